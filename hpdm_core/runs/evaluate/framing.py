"""How a decoded frame becomes one of a clip: our way, that of training, and StyleGAN-V's.

Axis legend: `t h w` frames, rows, columns, `c` colours.
"""

from typing import Literal

import numpy as np
from einops import rearrange
from PIL import Image

from hpdm_core.data.resample import Region, centre_crop, resampled_patch

Preparation = Literal["hpdm", "stylegan-v"]
PREPARATIONS: tuple[Preparation, ...] = ("hpdm", "stylegan-v")


def lanczos_frames(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize by Lanczos until the frame just covers `size`, then crop the centre.

    Args:
        frames: (t, h, w, 3) uint8.
        size: (h, w).

    Returns:
        (t, *size, 3) uint8.
    """
    height, width = frames.shape[1:3]
    scale = max(size[0] / height, size[1] / width)
    # Truncated, and the odd pixel left over to the even side: as torchvision does.
    covering = (max(size[0], int(height * scale)), max(size[1], int(width * scale)))
    top, left = (round((whole - part) / 2) for whole, part in zip(covering, size, strict=True))
    box = (left, top, left + size[1], top + size[0])
    resized = (
        Image.fromarray(frame).resize(covering[::-1], Image.Resampling.LANCZOS).crop(box)
        for frame in frames
    )
    return np.stack([np.asarray(frame) for frame in resized])


def fit_frames(
    frames: np.ndarray, size: tuple[int, int], *, shrink: tuple[int, int] = (1, 1)
) -> np.ndarray:
    """Crop the centre to the aspect ratio of `size`, resize, take area means: as in training.

    Args:
        frames: (t, h, w, 3) uint8.
        size: (h, w) before shrinking.
        shrink: divides it.

    Returns:
        (t, h, w, 3) uint8, of `size` over `shrink`.
    """
    crop = centre_crop(frames.shape[1:3], size)
    if crop.exact and shrink == (1, 1):
        (top, left), (rows, columns) = crop.origin, size
        return np.ascontiguousarray(frames[:, top : top + rows, left : left + columns])
    final = (size[0] // shrink[0], size[1] // shrink[1])
    region = Region(clip=size, stride=shrink, offset=(0, 0), size=final)
    pixels = resampled_patch(frames, np.arange(len(frames)), crop, region)
    grey = pixels.round().clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(rearrange(grey, "c t h w -> t h w c"))
