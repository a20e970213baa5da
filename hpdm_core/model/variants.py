"""What the paper tried and left, in words and in no table: only for `hpdm ablate claims`.

Other ways to aggregate context (Sec. 4.2: concatenating or averaging all levels' features) and to
give coordinates (appendix D: sinusoidal), and one block for all (appendix D: shared weights).

Axis legend: `b` batch, `n` tokens of a patch, `d` width.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpdm_core.geometry.boxes import Box
from hpdm_core.model.context_sites import Links
from hpdm_core.model.deep_context import DeepContext, DeepContextFusion, pooled_context

# Octaves from half a wave over the video on; the last has 16 waves.
NUM_FREQUENCIES = 6


class ConcatenatedContext(DeepContext):
    """All lower levels' features side by side in place of their mean; zeros where a level lacks."""

    @staticmethod
    def make_layer(width: int, *, levels: int, coordinates: bool) -> DeepContextFusion:
        """Return the layer (L D + 3) -> D, with L the number of levels."""
        return DeepContextFusion(width, coordinates=3 if coordinates else 0, contexts=levels - 1)

    def pool(self, lower: Sequence[Tensor], links: Links) -> Tensor:
        """Return (b, n, (L - 1) d), coarsest first."""
        pairs = zip(lower, links.resamplers, strict=True)
        parts = [pooled_context([features], [sampler], self.grid) for features, sampler in pairs]
        lacking = max(self.levels_per_block) - 1 - len(parts)
        return torch.cat([*parts, *[torch.zeros_like(parts[0])] * lacking], dim=-1)


class AveragedContext(DeepContext):
    """The mean of the level's own features and its context (Eq. 7) in place of both."""

    @staticmethod
    def make_layer(width: int, *, levels: int, coordinates: bool) -> DeepContextFusion:
        """Return the layer (D + 3) -> D."""
        return AveragedFusion(width, coordinates=3 if coordinates else 0, contexts=0)


class AveragedFusion(DeepContextFusion):
    """The linear layer (D + 3) -> D on the mean of own features and context, and coordinates.

    Both parts of the mean are projected apart, since the context's is computed once in tiled
    inference; counts of operations (`cost.py`) have one product.
    """

    def context_term(self, context: Tensor, coordinates: Tensor) -> Tensor:
        """Return the (b, n, d) that do not depend on the level's own tokens."""
        own, places = self.project.weight.split([self.width, self._num_places()], dim=1)
        term = F.linear(context / 2, own, self.project.bias)
        return term + F.linear(coordinates.to(term.dtype), places) if places.shape[1] else term

    def forward(self, tokens: Tensor, context_term: Tensor) -> Tensor:
        """Fuse the level's own (b, n, d) tokens with the term of its context."""
        return super().forward(tokens / 2, context_term)

    def _num_places(self) -> int:
        return self.project.in_features - self.width


class SinusoidalContext(DeepContext):
    """Coordinates as sines and cosines of rising frequency in place of their values."""

    @staticmethod
    def make_layer(width: int, *, levels: int, coordinates: bool) -> DeepContextFusion:
        """Return the layer (2 D + 36) -> D."""
        return DeepContextFusion(width, coordinates=2 * 3 * NUM_FREQUENCIES)

    def links(self, boxes: tuple[Box, ...]) -> Links:
        """Return how lower levels are resampled, with (b, n, 36) embeddings for coordinates."""
        links = super().links(boxes)
        return replace(links, coordinates=sinusoids(links.coordinates))


def sinusoids(coordinates: Tensor) -> Tensor:
    """Return sin and cos of (b, n, 3) coordinates in [-1, 1] times pi 2^k / 2, k = 0, 1, ...

    Returns:
        (b, n, 2 * 3 * NUM_FREQUENCIES): all sines, then all cosines; of each axis in turn.
    """
    frequencies = 0.5 * math.pi * 2.0 ** torch.arange(NUM_FREQUENCIES, device=coordinates.device)
    angles = (coordinates[..., None] * frequencies).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class SharedBlocks(nn.ModuleList):
    """One block at every depth; its weights are registered, and iterated over, once.

    Args:
        blocks: of which the first is taken.
    """

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__([next(iter(blocks))])

    def __getitem__(self, index: int) -> nn.Module:
        return self._modules["0"]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._modules.values())


DEEP_CONTEXTS: dict[str, type[DeepContext]] = {
    "deep": DeepContext,
    "concatenated": ConcatenatedContext,
    "averaged": AveragedContext,
    "sinusoidal": SinusoidalContext,
}
