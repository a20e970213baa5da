"""What `editing.py` measures and `editing_pictures.py` draws: each use of a given video, and simple
ways beside it, on real videos that the model was not trained on.

Axis legend: `b` videos, `t h w` frames, rows, columns.
"""

from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from einops import rearrange
from shipped_models import real_clips, real_shapes
from torch.nn.functional import interpolate

from hpdm_core import Pipeline
from hpdm_core.data.shapes import SHAPE_CLASSES
from hpdm_core.errors import HpdmError
from hpdm_core.inference.given import lower_levels, next_window
from hpdm_core.pipeline.inputs import as_source
from hpdm_core.pipeline.videos import to_uint8
from hpdm_core.progress import NoProgress

CLASS_STEP = 7  # classes in this order, so that few videos are of different kinds

Third = Literal["middle columns", "lower rows"]
THIRDS: tuple[Third, ...] = get_args(Third)


@dataclass(frozen=True, kw_only=True)
class Held:
    """A model and real videos that it was not trained on.

    Args:
        pipe: the model.
        videos: (b, t, h, w, 3) uint8 of the model's size.
        names: class of each; empty for a model without classes.
        others: more real videos, (n, t, h, w, 3) uint8.
        options: of every call, such as `preset` and `overlap`.
    """

    pipe: Pipeline
    videos: np.ndarray
    names: tuple[str, ...]
    others: np.ndarray
    options: dict[str, object]

    def asked(self, index: int) -> dict[str, object]:
        """Return the arguments of a call for a video: its class, a seed, and the options."""
        named = {"classes": self.names[index]} if self.names else {}
        return {**named, "seeds": index, "progress": NoProgress(), **self.options}


def hold_back(
    pipe: Pipeline,
    data: Path | None,
    *,
    num: int,
    num_others: int,
    options: dict[str, object],
) -> Held:
    """Render shapes with seeds that no data set has, or read the first videos of a data set.

    Args:
        data: a prepared data set that the model was not trained on; None renders.

    Raises:
        HpdmError: the model is not of shapes, and there is no data set.
    """
    frames, height, width = pipe.pyramid.resolution
    count = len(pipe.classes) or 1
    order = [pipe.classes[k * CLASS_STEP % count] for k in range(len(pipe.classes))]
    if data is not None:
        stride = pipe.frame_stride
        clips = real_clips(data, tuple(order), frames=frames * stride, num=num + num_others)
        clips = clips[:, ::stride]
    elif order and set(order) <= set(SHAPE_CLASSES):
        clips = real_shapes(tuple(order), frames=frames, size=height, num=num + num_others)
    else:
        raise HpdmError(
            "real videos of this model's kind cannot be rendered",
            got=repr(pipe),
            remedy="--data FOLDER, prepared with another seed than the training data",
        )
    clips = np.concatenate([_on_grid(clip, (height, width), frames) for clip in clips])
    names = tuple(islice(cycle(order), num)) if order else ()
    return Held(pipe=pipe, videos=clips[:num], names=names, others=clips[num:], options=options)


def upscale(held: Held, **options: object) -> dict[str, np.ndarray]:
    """Upscale level 0's true videos; beside them bicubic interpolation.

    Args:
        options: of `Pipeline.upscale`.

    Returns:
        'input' (b, t, h, w, 3) uint8 of level 0's size, 'bicubic', 'upscaled', 'real'.
    """
    small = to_uint8(level_0(held.pipe, held.videos)).numpy()
    made = [
        held.pipe.upscale(video, level=0, **held.asked(k), **options).frames
        for k, video in enumerate(small)
    ]
    return {
        "input": small,
        "bicubic": bicubic(small, held.videos.shape[1:4]),
        "upscaled": np.concatenate(made),
        "real": held.videos,
    }


def inpaint(held: Held, third: Third) -> dict[str, np.ndarray]:
    """Inpaint a third of the frame; beside it simple ways of filling it.

    Returns:
        'input' (b, t, h, w, 3) uint8, grey where pixels are hidden, 'inpainted',
        'mean colour', 'border copied', 'real'.
    """
    real = held.videos
    rows, columns = hidden(real.shape[2:4], third)
    box = (columns[0], rows[0], len(columns), len(rows))
    made = [
        held.pipe.inpaint(video, box, **held.asked(k)).frames
        for k, video in enumerate(real)
    ]
    grey, mean = real.copy(), real.copy()
    place = np.ix_(range(len(real)), range(real.shape[1]), rows, columns)
    grey[place] = 128
    known = np.ones(real.shape[2:4], bool)
    known[np.ix_(rows, columns)] = False
    mean[place] = real[:, :, known].mean(axis=2).round()[:, :, None, None]
    return {
        "input": grey,
        "inpainted": np.concatenate(made),
        "mean colour": mean,
        "border copied": _border_copied(real, rows, columns),
        "real": real,
    }


def hidden(size: tuple[int, int], third: Third) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and the columns that `inpaint` hides, of frames (h, w)."""
    height, width = size
    if third == "middle columns":
        return np.arange(height), np.arange(width // 3, width - width // 3)
    return np.arange(height - height // 3, height), np.arange(width)


def _border_copied(real: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Copy the nearest known column, or row, to the hidden ones."""
    axis, at = (3, columns) if len(rows) == real.shape[2] else (2, rows)
    known = np.setdiff1d(np.arange(real.shape[axis]), at)
    nearest = np.arange(real.shape[axis])
    nearest[at] = known[abs(known - at[:, None]).argmin(axis=1)]
    return real.take(nearest, axis=axis)


def extend(held: Held, windows: int) -> np.ndarray:
    """Continue each video by windows of the model's length: (b, t, h, w, 3) uint8."""
    frames = windows * window_plan(held)[1]
    made = [
        held.pipe.extend(video, frames=frames, **held.asked(k)).frames
        for k, video in enumerate(held.videos)
    ]
    return np.concatenate(made)


def window_plan(held: Held) -> tuple[int, int]:
    """Return how many frames a window holds and adds, one with others before and after it."""
    length = held.videos.shape[1]
    return next_window(held.pipe.pyramid, have=length, frames=4 * length)


def level_0(pipe: Pipeline, videos: np.ndarray) -> torch.Tensor:
    """Bring (b, t, h, w, 3) uint8 down to level 0: (b, c, t, h, w) in [-1, 1]."""
    pixels = rearrange(torch.from_numpy(videos).float() / 127.5 - 1, "b t h w c -> b c t h w")
    return lower_levels(pipe.pyramid, pixels, pipe.pyramid.num_levels - 1)[0]


def bicubic(small: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """Enlarge by bicubic interpolation in space; in time each frame stands until the next."""
    t, h, w = size
    flat = rearrange(torch.from_numpy(small).float(), "b t h w c -> (b t) c h w")
    large = interpolate(flat, (h, w), mode="bicubic", align_corners=False).clamp(0, 255).round()
    video = rearrange(large.byte().numpy(), "(b t) c h w -> b t h w c", b=len(small))
    return video.repeat(t // video.shape[1], axis=1)


def _on_grid(clip: np.ndarray, size: tuple[int, int], frames: int) -> np.ndarray:
    video, _ = as_source(clip).on_grid(size, rate=1.0, most=frames, least=frames)
    return to_uint8(video).numpy()
