"""From pixels of a source to a level's patch: antialiased resizing, then the area mean (Sec. 4).

A level's pixel is the mean of the clip's pixels that it covers, and a clip's pixel is a weighted
mean of source pixels (a triangle filter, widened when shrinking: what Pillow and torchvision call
antialiased bilinear). Both are linear and act per axis, so one matrix per axis leads from the rows
that a patch needs straight to the patch, without making the clip.

Axis legend: `n` frames, `c` colours, `y x` rows and columns of the source, `h w` of the patch.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from einops import rearrange
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Crop:
    """The centred part of a source frame that has the clip's aspect ratio.

    Args:
        origin: (y, x) whole pixels.
        extent: (y, x) pixels, maybe not whole.
        exact: the part has the clip's size, so that nothing need be resized.
    """

    origin: tuple[int, int]
    extent: tuple[float, float]
    exact: bool


def centre_crop(source: tuple[int, int], clip: tuple[int, int]) -> Crop:
    """Return the largest centred crop of `source` (h, w) in the aspect ratio of `clip` (h, w)."""
    scale = min(source[0] / clip[0], source[1] / clip[1])
    extent = (scale * clip[0], scale * clip[1])
    origin = (int((source[0] - extent[0]) / 2), int((source[1] - extent[1]) / 2))
    return Crop(origin=origin, extent=extent, exact=scale == 1.0)


@lru_cache(maxsize=32)
def axis_weights(source: int, origin: int, extent: float, clip: int, stride: int) -> np.ndarray:
    """Return the matrix from a source axis to a level's axis; rows sum to one.

    Args:
        source: pixels of the source along the axis.
        origin, extent: the crop along it.
        clip: pixels of the clip.
        stride: clip pixels per pixel of the level; divides `clip`.

    Returns:
        (clip / stride, source) float32.
    """
    scale = extent / clip
    width = max(scale, 1.0)
    centres = origin + (np.arange(clip) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(source)[None, :] - centres[:, None])
    weights = np.maximum(0.0, 1.0 - distance / width)
    weights /= weights.sum(axis=1, keepdims=True)
    level = rearrange(weights, "(level stride) source -> level stride source", stride=stride)
    return level.mean(axis=1).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Region:
    """A level's patch as a part of the clip.

    Args:
        clip: (h, w) of the clip.
        stride: (h, w) clip pixels per level pixel.
        offset: (h, w) of the patch in level pixels.
        size: (h, w) of the patch.
    """

    clip: tuple[int, int]
    stride: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]


def resampled_patch(frames: Tensor, crop: Crop, region: Region) -> Tensor:
    """Return a level's patch straight from source frames.

    Args:
        frames: (n, y, x, c) uint8 or float32, whole source frames.
        crop: the part of them that is the clip.
        region: the part of the clip that is the patch.

    Returns:
        (c, n, h, w) float32 in the units of `frames`.
    """
    (rows, weights_y), (columns, weights_x) = (
        _window(frames.shape[1 + axis], axis, crop, region) for axis in (0, 1)
    )
    # Only the area that the patch needs becomes float.
    area = rearrange(frames[:, rows, columns].float(), "n y x c -> n y (x c)")
    tall = rearrange(weights_y @ area, "n h (x c) -> c n h x", c=frames.shape[3])
    return tall @ rearrange(weights_x, "w x -> x w")


def _window(source: int, axis: int, crop: Crop, region: Region) -> tuple[slice, Tensor]:
    """Return which source pixels matter for a patch along an axis, and their weights."""
    weights = axis_weights(
        source, crop.origin[axis], crop.extent[axis], region.clip[axis], region.stride[axis]
    )
    weights = weights[region.offset[axis] : region.offset[axis] + region.size[axis]]
    used = np.flatnonzero(weights.any(axis=0))
    window = slice(int(used[0]), int(used[-1]) + 1)
    return window, torch.from_numpy(np.ascontiguousarray(weights[:, window]))


def area_mean(pixels: np.ndarray, stride: tuple[int, int, int]) -> np.ndarray:
    """Return the mean over blocks of (t, h, w) pixels.

    Adding up strided slices as integers is exact, and three times as fast as torch's pooling.

    Args:
        pixels: (b, c, t, h, w) uint8.
        stride: block size per axis, dividing the axes.

    Returns:
        float32, each axis shorter by its stride.
    """
    frames, rows, columns = stride
    if stride == (1, 1, 1):
        return pixels.astype(np.float32)
    whole = np.uint16 if frames * rows <= np.iinfo(np.uint16).max // 255 else np.uint32
    tall = np.zeros_like(pixels[:, :, ::frames, ::rows], dtype=whole)
    for frame in range(frames):
        for row in range(rows):
            tall += pixels[:, :, frame::frames, row::rows]
    total = np.zeros_like(tall[..., ::columns], dtype=np.float32)
    for column in range(columns):
        total += tall[..., column::columns]
    total /= frames * rows * columns
    return total
