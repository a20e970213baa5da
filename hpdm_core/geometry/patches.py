"""Nested patches of video tensors: crop the patch's region, then downsample it (Eq. 6, Sec. 4.1).

For videos in memory; `hpdm_core.data` makes the same patches from files.

Axis legend: `b` batch, `c` channels, `t h w` video, `l` level; `k i j` the finest frames, rows and
columns that one pixel of a level covers.
"""

import numpy as np
import torch
from einops import reduce
from torch import Tensor

from hpdm_core.errors import DataError
from hpdm_core.geometry.pyramid import AXIS_NAMES, Pyramid, sample_offsets


def extract_patches(videos: Tensor, pyramid: Pyramid, offsets: Tensor) -> tuple[Tensor, ...]:
    """Extract one patch per level from each video (Eq. 6).

    A patch's pixel is the mean of the finest-level pixels that it covers in space; in time it is
    the first of their frames or the mean of them, by `pyramid.temporal_downsampling`.
    Differentiable in `videos`.

    Args:
        videos: (b, c, t, h, w) floating point, at the resolution of the finest level.
        offsets: (b, l, 3) int64 offsets of nested patches in pixels of each level's own grid, as
            `draw_offsets` returns them.

    Returns:
        per level (b, c, t, h, w) of the patch size, in the dtype and on the device of `videos`.

    Raises:
        DataError: videos or offsets have another shape or dtype, or patches are not nested.
    """
    _check_videos(videos, pyramid)
    _check_offsets(offsets, pyramid, num_videos=len(videos))
    places = offsets.tolist()
    return tuple(
        torch.stack(
            [
                _extract_patch(video, pyramid, level, place[level])
                for video, place in zip(videos, places, strict=True)
            ]
        )
        for level in range(pyramid.num_levels)
    )


def draw_offsets(
    pyramid: Pyramid, batch: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """Draw nested patches for a batch of videos, uniformly as `sample_offsets` does.

    Args:
        batch: number of videos, at least 1.
        generator: on the CPU; None: torch's default one.

    Returns:
        (b, l, 3) int64 offsets in pixels of each level's own grid, on the CPU.
    """
    seed = torch.randint(2**63 - 1, (), generator=generator).item()
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([sample_offsets(pyramid, rng) for _ in range(batch)]))


def _extract_patch(video: Tensor, pyramid: Pyramid, level: int, offset: list[int]) -> Tensor:
    """Return (c, t, h, w), the patch of one video (c, t, h, w) at `offset` on a level."""
    stride = pyramid.stride(level)
    frames, rows, columns = (
        slice(start * step, (start + size) * step)
        for start, size, step in zip(offset, pyramid.patch, stride, strict=True)
    )
    region = video[:, frames, rows, columns]  # (c, t k, h i, w j)
    k, i, j = stride
    if pyramid.temporal_downsampling == "stride":
        region, k = region[:, ::k], 1
    return reduce(region, "c (t k) (h i) (w j) -> c t h w", "mean", k=k, i=i, j=j)


def _check_videos(videos: Tensor, pyramid: Pyramid) -> None:
    """Raise DataError unless videos are floats of the finest level's resolution."""
    shape, resolution = tuple(videos.shape), pyramid.resolution
    if len(shape) != 5 or shape[2:] != resolution:
        raise DataError(
            "videos have the wrong shape",
            got=shape,
            expected="(b, c, {}, {}, {})".format(*resolution),
            remedy="resize them to the finest of pyramid.levels, or change that",
        )
    if not videos.is_floating_point():
        raise DataError(
            "videos have the wrong dtype",
            got=videos.dtype,
            expected="floating point in [-1, 1]",
            remedy="convert bytes with videos.float() / 127.5 - 1",
        )


def _check_offsets(offsets: Tensor, pyramid: Pyramid, *, num_videos: int) -> None:
    """Raise DataError unless each video has one int64 patch per level, each inside the last."""
    shape = (num_videos, pyramid.num_levels, 3)
    if tuple(offsets.shape) != shape or offsets.dtype != torch.int64:
        raise DataError(
            "offsets have the wrong shape or dtype",
            got=f"{tuple(offsets.shape)} {offsets.dtype}",
            expected=f"{shape} torch.int64, (videos, levels, axes)",
            remedy="draw them with draw_offsets",
        )
    growths = [pyramid.growth(level) for level in range(1, pyramid.num_levels)]
    growth = offsets.new_tensor([(1, 1, 1), *growths])  # (l, 3)
    # The patch of level 0 covers the whole level, so its offset is zero.
    parents = torch.cat([torch.zeros_like(offsets[:, :1]), offsets[:, :-1]], dim=1)
    low = growth * parents
    high = low + (growth - 1) * offsets.new_tensor(pyramid.patch)
    outside = ((offsets < low) | (offsets > high)).nonzero()
    if len(outside):
        video, level, axis = place = tuple(outside[0].tolist())
        raise DataError(
            f"the patch of video {video} on level {level} is not inside "
            f"{f'its patch on level {level - 1}' if level else 'the level'}",
            got=f"an offset of {offsets[place].item()} along {AXIS_NAMES[axis]}",
            expected=f"{low[place].item()} to {high[place].item()}",
            remedy="draw nested patches with draw_offsets",
        )
