"""Deep context fusion: features of all lower levels, resampled into a finer one (Sec. 4.2, Fig. 3).

Before a block, level l >= 1 gets `project([a_l, ctx_l, coordinates])` (Eq. 9), where ctx_l is the
mean over the lower levels of their features at the same depth, resampled at the patch (Eq. 7).
The part of the projection that multiplies the context and the coordinates is a separate term:
it does not depend on the level's own noise, so that tiled inference computes it once.

Axis legend: `b` batch, `n` tokens of a patch, `d` width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from hpdm_core.geometry.boxes import Box
from hpdm_core.geometry.resample import Grid, Resampler, cell_centres, make_resampler
from hpdm_core.model.context_sites import TOKENIZER, Links


class DeepContext(nn.ModuleDict):
    """Context before each block, with a `DeepContextFusion` where a finer level enters the block.

    Args:
        width: width of data tokens.
        grid: tokens of a patch per axis.
        levels_per_block: how many of the lowest levels each block runs on.
        coordinates: whether each token's place in the full video is part of the input.
        detach: stop gradients from finer to coarser levels (Table 3, row 2).
    """

    def __init__(
        self,
        width: int,
        *,
        grid: Grid,
        levels_per_block: tuple[int, ...],
        coordinates: bool,
        detach: bool,
    ) -> None:
        # Only blocks that run on a finer level have fusion weights: others would be unused.
        levels = max(levels_per_block)
        super().__init__(
            {
                str(block): self.make_layer(width, levels=levels, coordinates=coordinates)
                for block, load in enumerate(levels_per_block)
                if load > 1
            }
        )
        self.grid, self.levels_per_block, self.detach = grid, levels_per_block, detach

    @staticmethod
    def make_layer(width: int, *, levels: int, coordinates: bool) -> "DeepContextFusion":
        """Return the layer in front of one block."""
        return DeepContextFusion(width, coordinates=3 if coordinates else 0)

    def pool(self, lower: Sequence[Tensor], links: Links) -> Tensor:
        """Return the context (b, n, d) of the lower levels' (b, n, d) features."""
        return pooled_context(lower, links.resamplers, self.grid)

    def sites(self, level: int) -> tuple[int, ...]:
        """Return where context enters a level: before the blocks that run on it."""
        loads = enumerate(self.levels_per_block)
        return tuple(block for block, load in loads if load > level > 0)

    def links(self, boxes: tuple[Box, ...]) -> Links:
        """Return how the lower levels' tokens are resampled at the patches boxes[-1]."""
        *lower, box = boxes
        return Links(
            coordinates=cell_centres(box, self.grid),
            resamplers=tuple(make_resampler(box.relative_to(k), self.grid) for k in lower),
        )

    def term(self, site: int, lower: Sequence[Tensor], links: Links) -> Tensor | None:
        """Return (b, n, d) that the lower levels' (b, n, d) inputs of the block contribute."""
        if site == TOKENIZER or not lower:
            return None
        if self.detach:
            lower = [features.detach() for features in lower]
        return self[str(site)].context_term(self.pool(lower, links), links.coordinates)

    def fuse(self, site: int, own: Tensor, term: Tensor | None) -> Tensor:
        """Fuse the patch's own (b, n, d) tokens with the term."""
        return own if term is None else self[str(site)](own, term)


class DeepContextFusion(nn.Module):
    """The linear layer (2 D + 3) -> D in front of a block.

    Args:
        width: width D of data tokens.
        coordinates: numbers that give each token's place in the full video; 0 where none do.
        contexts: widths D of context that enter; one in the paper's model.
    """

    def __init__(self, width: int, *, coordinates: int, contexts: int = 1) -> None:
        super().__init__()
        self.width = width
        self.project = nn.Linear((1 + contexts) * width + coordinates, width)

    def reset(self) -> None:
        """Initialise as the identity on the level's own tokens, which preserves a base model."""
        with torch.no_grad():
            self.project.weight.zero_()
            self.project.weight[:, : self.width].fill_diagonal_(1.0)
            self.project.bias.zero_()

    def context_term(self, context: Tensor, coordinates: Tensor) -> Tensor:
        """Return the part of Eq. 9's projection that does not depend on the level's own tokens.

        Args:
            context: (b, n, d) pooled features of the lower levels.
            coordinates: (b, n, 3) centres of the tokens in the full video, in [-1, 1].

        Returns:
            (b, n, d), the bias included.
        """
        start, end = self.width, self.width + context.shape[-1]
        weight = self.project.weight
        term = F.linear(context, weight[:, start:end], self.project.bias)
        if weight.shape[1] == end:
            return term
        return term + F.linear(coordinates.to(term.dtype), weight[:, end:])

    def forward(self, tokens: Tensor, context_term: Tensor) -> Tensor:
        """Fuse the level's own (b, n, d) tokens with the term of its context."""
        return F.linear(tokens, self.project.weight[:, : self.width]) + context_term


def pooled_context(
    ancestors: Sequence[Tensor], resamplers: Sequence[Resampler], grid: Grid
) -> Tensor:
    """Return ctx_l: the mean of the lower levels' features at the patch (Eq. 7).

    Args:
        ancestors: per lower level (b, n, d) block inputs, before their own fusion.
        resamplers: per lower level the resampling at the patch's box relative to it.
        grid: tokens of a patch per axis.
    """
    t, h, w = grid
    total = None
    for features, resampler in zip(ancestors, resamplers, strict=True):
        cells = rearrange(features, "b (t h w) d -> b t h w d", t=t, h=h, w=w)
        sampled = resampler(cells)
        total = sampled if total is None else total + sampled
    return rearrange(total / len(ancestors), "b t h w d -> b (t h w) d")
