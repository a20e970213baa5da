"""Boxes of patches in the full video, and boxes relative to an ancestor (Eq. 8).

Axis legend: `b` batch, `l` level; the last axis is (t, h, w).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hpdm_core.geometry.pyramid import Pyramid


@dataclass(frozen=True, kw_only=True)
class Box:
    """A region in units of the full video, so that the whole video is scale 1, offset 0.

    Args:
        scale: (..., 3) extent per axis, in (0, 1].
        offset: (..., 3) lower corner per axis, in [0, 1 - scale]; along time earlier by the level's
            time shift, so that cell centres are the true times of frames.
    """

    scale: Tensor
    offset: Tensor

    def relative_to(self, ancestor: "Box") -> "Box":
        """Return this box in the units of `ancestor` (Eq. 8): [s_l / s_k; (d_l - d_k) / s_k]."""
        return Box(
            scale=self.scale / ancestor.scale,
            offset=(self.offset - ancestor.offset) / ancestor.scale,
        )


def level_box(pyramid: Pyramid, level: int, offsets: Tensor) -> Box:
    """Turn pixel offsets on a level's own grid into a box.

    Frames that were subsampled are at their own time and not at the centre of the span that they
    represent, so the box is shifted along time (`Pyramid.time_shift`).

    Args:
        offsets: (b, 3) pixels.

    Returns:
        Box of (b, 3) float32 scales and offsets.
    """
    resolution = torch.tensor(pyramid.levels[level], dtype=torch.float32, device=offsets.device)
    patch = torch.tensor(pyramid.patch, dtype=torch.float32, device=offsets.device)
    shift = torch.tensor([pyramid.time_shift(level), 0.0, 0.0], device=offsets.device)
    return Box(
        scale=(patch / resolution).expand(len(offsets), 3), offset=offsets / resolution - shift
    )


def pyramid_boxes(pyramid: Pyramid, offsets: Tensor) -> tuple[Box, ...]:
    """Return the box of every level's patch.

    Args:
        offsets: (b, l, 3) pixels of each level's own grid.
    """
    return tuple(level_box(pyramid, k, offsets[:, k]) for k in range(pyramid.num_levels))
