"""Trilinear resampling of a feature grid at a box inside it (the grid_sample_3D of Eq. 7).

A patch is an axis-aligned box, so that trilinear interpolation is a product of three small
matrices, one per axis. As matrix products they are exact, differentiable and faster than a
general grid sampler, which the authors call a bottleneck (appendix D).

Axis legend: `b` batch, `t h w` grid cells, `d` width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hpdm_core.geometry.boxes import Box

Grid = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Resampler:
    """Interpolation matrices of one box per sample.

    Args:
        t: (b, t_out, t_in) weights; every row sums to one.
        h: (b, h_out, h_in) weights.
        w: (b, w_out, w_in) weights.
    """

    t: Tensor
    h: Tensor
    w: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Resample at the boxes.

        Args:
            features: (b, t, h, w, d) values at the centres of the ancestor's cells.

        Returns:
            (b, t, h, w, d) values at the centres of the box's cells; a centre beyond the
            outermost cell centres takes the border's value.
        """
        b, t, h, _, d = features.shape
        x = torch.matmul(self.w[:, None, None], features)
        x = torch.matmul(self.h[:, None], x.reshape(b, t, h, -1))
        x = torch.matmul(self.t, x.reshape(b, t, -1))
        return x.reshape(b, self.t.shape[1], self.h.shape[1], self.w.shape[1], d)


def make_resampler(box: Box, grid: Grid, ancestor_grid: Grid | None = None) -> Resampler:
    """Build the matrices that resample an ancestor's cells at `box`.

    Args:
        box: (b, 3) boxes in units of the ancestor (Eq. 8).
        grid: cells of the box per axis.
        ancestor_grid: cells of the ancestor per axis; default: `grid`.
    """
    sources = grid if ancestor_grid is None else ancestor_grid
    matrices = [
        _interpolation_matrix(box.scale[:, axis], box.offset[:, axis], out, source)
        for axis, (out, source) in enumerate(zip(grid, sources, strict=True))
    ]
    return Resampler(t=matrices[0], h=matrices[1], w=matrices[2])


def cell_centres(box: Box, grid: Grid) -> Tensor:
    """Return the position of every cell's centre in the full video, from -1 to 1.

    Args:
        box: (b, 3) boxes in units of the full video.
        grid: cells per axis.

    Returns:
        (b, t * h * w, 3) coordinates, one channel per axis.
    """
    axes = []
    for axis, size in enumerate(grid):
        steps = (torch.arange(size, device=box.offset.device) + 0.5) / size
        centres = box.offset[:, axis, None] + box.scale[:, axis, None] * steps
        axes.append(2 * centres - 1)
    t, h, w = axes
    cells = torch.broadcast_tensors(t[:, :, None, None], h[:, None, :, None], w[:, None, None])
    return torch.stack(cells, dim=-1).flatten(1, 3)


def _interpolation_matrix(scale: Tensor, offset: Tensor, out: int, source: int) -> Tensor:
    """Return (b, out, source): hat functions around each output centre, in the source's cells."""
    device = offset.device
    centres = (torch.arange(out, device=device) + 0.5) / out
    place = (offset[:, None] + scale[:, None] * centres) * source - 0.5
    place = place.clamp(0, source - 1)
    cells = torch.arange(source, device=device)
    return (1 - (place[:, :, None] - cells).abs()).clamp(min=0)
