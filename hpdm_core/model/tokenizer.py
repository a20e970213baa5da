"""Pixels to data tokens and back (Fig. 11): flatten, linear layer, norm, learned positions.

Axis legend: `b` batch, `c` channels, `t h w` video or grid, `n` tokens, `d` width.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from hpdm_core.geometry.resample import Grid

CHANNELS = 3
PATCHIFY = "b c (t pt) (h ph) (w pw) -> b (t h w) (pt ph pw c)"
UNPATCHIFY = "b (t h w) (pt ph pw c) -> b c (t pt) (h ph) (w pw)"


class Positions(nn.Module):
    """Learned position embeddings of the tokens of a patch, which start as sinusoids.

    They start as large as the normalised tokens that they are added to (RIN's sine-cosine choice).
    From tables of standard deviation 0.02, attention hardly sees where a token is for the first
    thousands of steps: docs/learning.md has both measured.

    Args:
        grid: tokens per axis.
        width: width of a token.
        kind: 'learned' has one per token; 'factorised' adds one per frame, row and column.
    """

    def __init__(self, grid: Grid, width: int, *, kind: Literal["learned", "factorised"]) -> None:
        super().__init__()
        self.grid = grid
        t, h, w = grid
        shapes = [(t * h * w,)] if kind == "learned" else [(t,), (h,), (w,)]
        self.tables = nn.ParameterList(
            [nn.Parameter(torch.empty(*shape, width)) for shape in shapes]
        )

    def initial(self) -> list[Tensor]:
        """Return the initial value of each table: sinusoids of unit mean square over the tokens.

        Each axis has channels of its own. The time axis, the shortest, has a quarter of them.
        """
        width = self.tables[0].shape[-1]
        pairs = width // 2
        shares = [pairs - 2 * (3 * pairs // 8), 3 * pairs // 8, 3 * pairs // 8]
        before, tables = 0, []
        for size, share in zip(self.grid, shares, strict=True):
            waves = axis_sinusoids(size, share)
            tables.append(F.pad(waves, (before, width - before - waves.shape[1])))
            before += waves.shape[1]
        if len(self.tables) == len(tables):
            return tables
        t, h, w = tables
        return [(t[:, None, None] + h[:, None] + w).flatten(0, 2)]

    def forward(self) -> Tensor:
        """Return (n, d)."""
        if len(self.tables) == 1:
            return self.tables[0]
        t, h, w = self.tables
        return (t[:, None, None] + h[:, None] + w).flatten(0, 2)


def axis_sinusoids(size: int, pairs: int) -> Tensor:
    """Return (size, 2 pairs) sines and cosines of cell numbers, of mean square 1 in each pair.

    The slowest turns by a quarter over the axis, so that no two cells look alike; the fastest by
    half a turn from cell to cell. Frequencies between them are in geometric progression.
    """
    turns = torch.logspace(math.log10(0.25 / size), math.log10(0.5), pairs, device="cpu")
    angles = 2 * math.pi * torch.arange(size, device="cpu")[:, None] * turns
    return math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=1)


class Tokenizer(nn.Module):
    """Pixels of a patch to data tokens.

    Args:
        token: (t, h, w) pixels of a token.
        grid: tokens of a patch per axis.
        width: width of a token.
        positions: kind of position embedding.
        shallow_context: whether the RGB of the level below is read here (Table 3, row 1).
        coordinates: with shallow context, whether the tokens' positions in the video are too.
    """

    def __init__(
        self,
        token: Grid,
        grid: Grid,
        width: int,
        *,
        positions: Literal["learned", "factorised"],
        shallow_context: bool,
        coordinates: bool,
    ) -> None:
        super().__init__()
        pixels = CHANNELS * token[0] * token[1] * token[2]
        self.token = token
        self.project = nn.Linear(pixels, width)
        self.norm = nn.LayerNorm(width)
        self.positions = Positions(grid, width, kind=positions)
        extra = pixels + (3 if coordinates else 0)
        self.project_context = nn.Linear(extra, width, bias=False) if shallow_context else None

    def patchify(self, video: Tensor) -> Tensor:
        """(b, c, t, h, w) to (b, n, pixels of a token)."""
        pt, ph, pw = self.token
        return rearrange(video, PATCHIFY, pt=pt, ph=ph, pw=pw)

    def context_term(self, video: Tensor, coordinates: Tensor) -> Tensor:
        """Return what shallow context adds to the tokens before their norm.

        Args:
            video: (b, c, t, h, w) the level below, resampled at the patch.
            coordinates: (b, n, 3) centres of the tokens in the full video, in [-1, 1].
        """
        pixels = self.patchify(video)
        weight = self.project_context.weight
        size = pixels.shape[-1]
        term = F.linear(pixels, weight[:, :size])
        if weight.shape[1] == size:
            return term
        return term + F.linear(coordinates.to(term.dtype), weight[:, size:])

    def embed(self, video: Tensor) -> Tensor:
        """(b, c, t, h, w) to (b, n, d), to which shallow context is added."""
        return self.project(self.patchify(video))

    def forward(self, embedded: Tensor) -> Tensor:
        """Return data tokens (b, n, d) from embedded pixels (b, n, d)."""
        return self.norm(embedded) + self.positions()


class Detokenizer(nn.Module):
    """Data tokens back to pixels: norm, linear layer, unflatten."""

    def __init__(self, token: Grid, grid: Grid, width: int) -> None:
        super().__init__()
        self.token, self.grid = token, grid
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, CHANNELS * token[0] * token[1] * token[2])

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, n, d) to (b, c, t, h, w)."""
        (pt, ph, pw), (t, h, w) = self.token, self.grid
        pixels = self.project(self.norm(tokens))
        return rearrange(pixels, UNPATCHIFY, t=t, h=h, w=w, pt=pt, ph=ph, pw=pw)
