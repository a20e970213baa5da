"""Shallow context: the RGB of the level below, resampled at the patch (Table 3, row 1).

Axis legend: `b` batch, `c` channels, `t h w` video, `n` tokens of a patch, `d` width.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from hpdm_core.geometry.boxes import Box
from hpdm_core.geometry.resample import Grid, cell_centres, make_resampler
from hpdm_core.model.context_sites import TOKENIZER, Links
from hpdm_core.model.tokenizer import Tokenizer


class ShallowContext(nn.Module):
    """Context at the tokenizer only, with the tokenizer's weights.

    Args:
        tokenizer: projects the level below's pixels (`Tokenizer.context_term`).
        patch: (t, h, w) pixels of a patch.
        grid: tokens of a patch per axis.
        levels: number of levels.
    """

    def __init__(self, tokenizer: Tokenizer, *, patch: Grid, grid: Grid, levels: int) -> None:
        super().__init__()
        self.patch, self.grid, self.levels = patch, grid, levels
        self._project = tokenizer.context_term  # a method: its weights are registered once

    def sites(self, level: int) -> tuple[int, ...]:
        """Return where context enters a level."""
        return (TOKENIZER,) if 0 < level < self.levels else ()

    def links(self, boxes: tuple[Box, ...]) -> Links:
        """Return how the pixels of the level below are resampled at the patches boxes[-1]."""
        *lower, box = boxes
        return Links(
            coordinates=cell_centres(box, self.grid),
            resamplers=tuple(make_resampler(box.relative_to(k), self.patch) for k in lower[-1:]),
        )

    def term(self, site: int, lower: Sequence[Tensor], links: Links) -> Tensor | None:
        """Return (b, n, d) that the nearest of the lower levels' (b, c, t, h, w) pixels add."""
        if site != TOKENIZER or not lower:
            return None
        pixels = links.resamplers[0](lower[-1].movedim(1, -1))
        return self._project(pixels.movedim(-1, 1), links.coordinates)

    def fuse(self, site: int, own: Tensor, term: Tensor | None) -> Tensor:
        """Add the term to the patch's own (b, n, d) projected pixels."""
        return own if term is None else own + term
