"""From pixels of a source to a level's patch: antialiased resizing, then the area mean (Sec. 4).

A level's pixel is the mean of the clip's pixels that it covers, and a clip's pixel is a weighted
mean of source pixels (a triangle filter, widened when shrinking: what Pillow and torchvision call
antialiased bilinear). Both are linear and act per axis, so one matrix per axis maps the rows that a
patch needs directly to the patch, without making the clip.

Axis legend: `n` frames, `c` colours, `y x` rows and columns of the source, `h w` of the patch.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from einops import rearrange
from scipy.sparse import csr_array

# A few frames of 240x240.
VALUES_AT_ONCE = 700_000


@dataclass(frozen=True, kw_only=True)
class Crop:
    """The centred part of a source frame that has the clip's aspect ratio.

    Args:
        origin: (y, x) whole pixels.
        extent: (y, x) pixels, possibly fractional.
        exact: the part has the clip's size and need not be resized.
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


@lru_cache(maxsize=64)
def axis_weights(source: int, origin: int, extent: float, clip: int, stride: int) -> csr_array:
    """Return the matrix from a source axis to a level's axis; rows sum to one.

    Args:
        source: pixels of the source along the axis.
        origin, extent: the crop along it.
        clip: pixels of the clip.
        stride: clip pixels per pixel of the level; divides `clip`.

    Returns:
        (clip / stride, source) float32, sparse: a row touches only the pixels under it.
    """
    scale = extent / clip
    width = max(scale, 1.0)
    centres = origin + (np.arange(clip) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(source)[None, :] - centres[:, None])
    weights = np.maximum(0.0, 1.0 - distance / width)
    weights /= weights.sum(axis=1, keepdims=True)
    level = rearrange(weights, "(level stride) source -> level stride source", stride=stride)
    return csr_array(level.mean(axis=1).astype(np.float32))


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


def resampled_patch(
    video: np.ndarray, frames: np.ndarray, crop: Crop, region: Region
) -> np.ndarray:
    """Return a level's patch directly from source frames.

    Args:
        video: (t, y, x, c) uint8, whole source frames.
        frames: (n,) int64, the frames of the patch.
        crop: the part of source frames that is the clip.
        region: the part of the clip that is the patch.

    Returns:
        (c, n, h, w) float32 in 0..255.
    """
    (rows, down), (columns, across) = (
        _window(video.shape[1 + axis], axis, crop, region) for axis in (0, 1)
    )
    patch = np.empty((video.shape[3], len(frames), *region.size), dtype=np.float32)
    colours, area = video.shape[3], video[:, rows, columns]
    # In chunks of frames, so that intermediate results stay in the processor's cache.
    at_once = max(1, VALUES_AT_ONCE // area[0].size)
    for start in range(0, len(frames), at_once):
        some = slice(start, start + at_once)
        # Only the area that the patch needs is copied and becomes float.
        source = rearrange(area[frames[some]], "n y x c -> y (n x c)").astype(np.float32)
        tall = rearrange(down @ source, "h (n x c) -> x (c n h)", x=area.shape[2], c=colours)
        wide = rearrange(across @ tall, "w (c n h) -> c n h w", c=colours, h=region.size[0])
        patch[:, some] = wide
    return patch


def _window(source: int, axis: int, crop: Crop, region: Region) -> tuple[slice, csr_array]:
    """Return which source pixels a patch needs along an axis, and their weights (h, y)."""
    weights = axis_weights(
        source, crop.origin[axis], crop.extent[axis], region.clip[axis], region.stride[axis]
    )
    start = region.offset[axis]
    weights = weights[start : start + region.size[axis]]
    first, last = int(weights.indices.min()), int(weights.indices.max())
    return slice(first, last + 1), weights[:, first : last + 1]


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
