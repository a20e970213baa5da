"""Tiles that cover a level at inference, their averaging, and their ancestors (Sec. 4.4).

Offsets are whole pixels of a level's own grid. With overlap along an axis the stride is half a
patch, so that a level of R pixels takes 2 R / r - 1 tiles of r; without, R / r. On a canvas, a
patch of level 0 is a window, and boxes of what is nested in it are relative to it.

Axis legend: `n` tiles; the last axis is (t, h, w).
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from hpdm_core.errors import RecipeError
from hpdm_core.geometry.pyramid import AXES, Pyramid, window_step


def parse_overlap(text: str) -> str:
    """Return the overlapping axes as letters in the order fhw; '' for 'none'.

    Args:
        text: 'none', or any of the letters f (frames), h (height), w (width), in any order.

    Raises:
        RecipeError: `text` is anything else.
    """
    if text == "none":
        return ""
    if not text or set(text) - set(AXES) or len(set(text)) != len(text):
        raise RecipeError(
            "unknown overlap",
            got=repr(text),
            expected="none, f, h, w, fh, fw, hw or fhw",
            remedy="f overlaps tiles along frames, h along height, w along width",
        )
    return "".join(axis for axis in AXES if axis in text)


def tile_offsets(pyramid: Pyramid, level: int, overlap: str) -> Tensor:
    """Return the offsets of all tiles of a level, (n, 3) int64, the width running fastest.

    Args:
        overlap: axes with 50% overlap, as `parse_overlap` returns them.
    """
    starts = []
    for axis, patch, size in zip(AXES, pyramid.patch, pyramid.sizes[level], strict=True):
        # Windows of a canvas always overlap, as does what whole patches would not cover.
        overlaps = axis in overlap or level == 0 or size % patch > 0
        stride = window_step(patch) if overlaps and size > patch else patch
        starts.append(range(0, size - patch + 1, stride))
    return torch.tensor(list(product(*starts)), dtype=torch.int64)


def tile_borders(
    pyramid: Pyramid, level: int, overlap: str
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return where tiles of a level start or end inside it, rising, along (t, h, w).

    A border p lies between the indices p - 1 and p; none where one tile covers the axis.

    Args:
        overlap: axes with 50% overlap, as `parse_overlap` returns them.
    """
    starts = tile_offsets(pyramid, level, overlap)
    borders = []
    for axis, (patch, size) in enumerate(zip(pyramid.patch, pyramid.sizes[level], strict=True)):
        edges = torch.cat([starts[:, axis], starts[:, axis] + patch]).unique().tolist()
        borders.append(tuple(p for p in edges if 0 < p < size))
    return tuple(borders)


def parent_offsets(pyramid: Pyramid, level: int, offsets: Tensor) -> Tensor:
    """Return for each patch the tile one level down that contains it and has the nearest centre.

    The candidates are the tiles of the fully overlapping grid; ties go to the lower one. Along
    time the centre is that of the frames' true times: frames that were subsampled stand at the
    start of their spans, so that of two parents the later one has frames on both sides of more of
    the patch's. With the earlier one, last frames of tiles stayed behind.

    Args:
        level: the patches' level, at least 1.
        offsets: (n, 3) int64.

    Returns:
        (n, 3) int64 offsets on level - 1's own grid.
    """
    parents = torch.empty_like(offsets)
    for axis in range(3):
        patch = pyramid.patch[axis]
        size, growth = pyramid.sizes[level - 1][axis], pyramid.growth(level)[axis]
        stride = window_step(patch) if size > patch else patch
        grid = torch.arange(0, size - patch + 1, stride)
        start = offsets[:, axis, None]
        # In units of the finer level's pixels, where everything is an integer.
        inside = (growth * grid <= start) & (start + patch <= growth * (grid + patch))
        early = growth - 1 if axis == 0 and pyramid.temporal_downsampling == "stride" else 0
        distance = (2 * start + patch - growth * (2 * grid + patch) + early).abs()
        distance = distance.masked_fill(~inside, torch.iinfo(torch.int64).max)
        parents[:, axis] = grid[distance.argmin(dim=1)]
    return parents


def tile_counts(pyramid: Pyramid, level: int, overlap: str) -> Tensor:
    """Return how many tiles cover each pixel of a level, (t, h, w) float32, at least 1."""
    counts = torch.zeros(pyramid.sizes[level])
    for offset in tile_offsets(pyramid, level, overlap).tolist():
        counts[tile_slices(pyramid, offset)] += 1
    return counts


def tile_slices(pyramid: Pyramid, offset: list[int]) -> tuple[slice, slice, slice]:
    """Return the slices (t, h, w) of the tile at `offset`."""
    return tuple(slice(o, o + p) for o, p in zip(offset, pyramid.patch, strict=True))


@dataclass(frozen=True, kw_only=True)
class Ancestry:
    """The tiles of a level and all patches of lower levels that they are nested in.

    Args:
        offsets: per level k <= l the (n_k, 3) offsets of its patches: the tiles themselves on
            level l, their distinct ancestors below.
        parents: per level k <= l the (n_k,) index of each patch's parent among those of k - 1;
            zeros on level 0.
        windows: per level k <= l the (n_k, 3) offset on level 0 of the window that each patch
            belongs to; zeros unless on a canvas.
    """

    offsets: tuple[Tensor, ...]
    parents: tuple[Tensor, ...]
    windows: tuple[Tensor, ...]

    @property
    def level(self) -> int:
        return len(self.offsets) - 1


def make_ancestry(pyramid: Pyramid, level: int, overlap: str) -> Ancestry:
    """Return the tiles of `level` with their nested ancestors."""
    offsets = [tile_offsets(pyramid, level, overlap)]
    parents = []
    for k in range(level, 0, -1):
        above, places = torch.unique(
            parent_offsets(pyramid, k, offsets[0]), dim=0, return_inverse=True
        )
        offsets.insert(0, above)
        parents.insert(0, places)
    parents.insert(0, torch.zeros(len(offsets[0]), dtype=torch.int64))
    windows = [offsets[0]]
    for places in parents[1:]:
        windows.append(windows[-1][places])
    return Ancestry(offsets=tuple(offsets), parents=tuple(parents), windows=tuple(windows))
