"""Given videos and masks: read, cropped and resized to a grid, frames picked by their times.

Axis legend: `c` channels, `t h w` frames, rows, columns; `y x` rows and columns of the source.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from hpdm_core.data.faults import UnusableVideo
from hpdm_core.data.resample import Region, centre_crop, resampled_patch
from hpdm_core.data.video_io import SequentialVideo
from hpdm_core.errors import DataError, HpdmError
from hpdm_core.files import irregular

BOX = re.compile(r"\s*(\d{1,6})\s*,\s*(\d{1,6})\s*,\s*(\d{1,6})\s*,\s*(\d{1,6})\s*")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
# A pixel of the grid is generated where this much of it is under the mask.
LEAST_MASKED = 1e-3
MOST_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class Source:
    """A video that a user gives: a file, or pixels.

    Args:
        path: the file; None for pixels.
        pixels: (t, y, x, 3) uint8; None for a file.
    """

    path: Path | None = None
    pixels: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.pixels is not None:
            _check_pixels(self.pixels)
        elif fault := irregular(self.path):
            raise DataError(f"{self.path}: {fault}", expected="a video file")

    @property
    def name(self) -> str:
        """What messages call it."""
        return "the given video" if self.path is None else str(self.path)

    def sha256(self) -> str:
        """Return the hash of the file, or of the pixels."""
        if self.path is None:
            return hashlib.sha256(np.ascontiguousarray(self.pixels)).hexdigest()
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def frames(self) -> Iterator[np.ndarray]:
        """Yield the frames, (y, x, 3) uint8.

        Raises:
            UnusableVideo: the file is not a video, or breaks off.
        """
        if self.pixels is not None:
            yield from self.pixels
            return
        with SequentialVideo(self.path) as video:
            for frame in video.frames():
                yield frame.pixels

    @property
    def size(self) -> tuple[int, int]:
        """(y, x) of a frame.

        Raises:
            UnusableVideo: there is none.
        """
        for frame in self.frames():
            return frame.shape[:2]
        raise UnusableVideo(self.name, "empty", "it has no frames")

    @property
    def fps(self) -> float | None:
        """Frames per second; None for pixels, which are taken one by one."""
        if self.path is None:
            return None
        with SequentialVideo(self.path) as video:
            return video.fps

    def on_grid(
        self, size: tuple[int, int], *, rate: float, most: int | None, least: int
    ) -> tuple[Tensor, list[int]]:
        """Bring the centre of the video to a grid, and pick frames.

        Frames are picked by their times, from the first; of a file that has exactly `most` frames,
        and of pixels, one by one.

        Args:
            size: (h, w) of the grid.
            rate: frames per second of the grid.
            most: frames to pick; None: all there are.
            least: frames that there must be.

        Returns:
            (1, 3, t, h, w) float32 in [-1, 1], and which frames they are.

        Raises:
            HpdmError: the video has too few frames.
        """
        fps = self.fps
        ratio = 1.0 if fps is None else fps / rate
        needed = None if most is None else max(most + 1, int((most - 1) * ratio + 1e-6) + 1)
        ceiling = int(MOST_SECONDS * (fps or rate)) if needed is None else needed
        frames = [resized(frame, size) for frame in islice(self.frames(), ceiling)]
        places = [int(k * ratio + 1e-6) for k in range(int(len(frames) / ratio) + 2)]
        places = [place for place in places if place < len(frames)][:most]
        if len(frames) == most:
            places = list(range(most))
        if len(places) < least:
            of_file = f", {_frames(len(frames))} at {fps:g} fps" if fps else ""
            raise HpdmError(
                f"{self.name} is too short",
                got=f"{_frames(len(places))} at {rate:g} fps{of_file}",
                expected=f"at least {least}, which is {least / rate:g} s",
            )
        video = np.stack([frames[place] for place in places], axis=1)
        return torch.from_numpy(video)[None] / 127.5 - 1, places


def as_source(video: object) -> Source:
    """Return a path, (t, h, w, 3) uint8, or generated `Videos` of one video as a source."""
    if isinstance(video, str | Path):
        return Source(path=Path(video))
    pixels = np.asarray(getattr(video, "frames", video))
    if pixels.ndim == 5 and len(pixels) == 1:
        pixels = pixels[0]
    return Source(pixels=pixels)


def read_mask(mask: object, source: Source) -> np.ndarray:
    """Return a mask in the source's pixels: what is generated.

    Args:
        mask: 'x,y,w,h' or four numbers, a box; an image or video file, white where pixels are
            generated; or an array (y, x) or (t, y, x), not 0 there.
        source: the video that it belongs to.

    Returns:
        (1 or t, y, x) bool.

    Raises:
        HpdmError: it is not a mask, or has another size than the video.
    """
    size = source.size
    if isinstance(mask, str) and (box := BOX.fullmatch(mask)):
        mask = tuple(int(number) for number in box.groups())
    if isinstance(mask, tuple | list) and len(mask) == 4:
        return _box(mask, size)
    if isinstance(mask, str | Path):
        mask = _read_file(Path(mask))
    masked = np.asarray(mask) != 0
    masked = masked[None] if masked.ndim == 2 else masked
    if masked.ndim != 3 or masked.shape[1:] != size:
        raise HpdmError(
            "the mask has another size than the video",
            got="x".join(str(n) for n in masked.shape[1:]),
            expected="{}x{} (height x width)".format(*size),
        )
    return masked


def mask_on_grid(mask: np.ndarray, size: tuple[int, int], places: list[int]) -> Tensor:
    """Bring a mask to the grid of a video.

    Args:
        mask: (1 or t, y, x) bool.
        size: (h, w) of the grid.
        places: which of its frames the video's are.

    Returns:
        (1, 1, t, h, w) bool: a pixel is generated if any part of it is under the mask.

    Raises:
        HpdmError: the mask covers nothing or everything, or has fewer frames than the video.
    """
    if len(mask) == 1:
        mask, places = np.repeat(mask, 1, axis=0), [0] * len(places)
    if max(places) >= len(mask):
        raise HpdmError(
            "the mask is shorter than the video",
            got=_frames(len(mask)),
            expected=f"at least {max(places) + 1}, or one for all",
        )
    pixels = [resized(mask[k, ..., None].astype(np.uint8) * 255, size) for k in places]
    generated = torch.from_numpy(np.stack(pixels, axis=1))[None] > 255 * LEAST_MASKED
    if not generated.any():
        raise HpdmError(
            "the mask covers nothing of the video",
            expected="white, or a box, where pixels are to be generated",
            remedy="the video is cropped at its centre to the model's aspect ratio",
        )
    if generated.all():
        raise HpdmError(
            "the mask covers the whole video",
            expected="some pixels outside it",
            remedy="leave out the mask to generate all pixels, or the video to start from nothing",
        )
    return generated


def resized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the centre of a frame (y, x, c) uint8 on a grid (h, w): (c, h, w) in 0..255."""
    crop = centre_crop(frame.shape[:2], size)
    region = Region(clip=size, stride=(1, 1), offset=(0, 0), size=size)
    return resampled_patch(frame[None], np.zeros(1, dtype=np.int64), crop, region)[:, 0]


def _box(box: Iterable[int], size: tuple[int, int]) -> np.ndarray:
    x, y, w, h = (int(number) for number in box)
    if min(x, y) < 0 or w < 1 or h < 1 or x >= size[1] or y >= size[0]:
        raise HpdmError(
            "the mask covers nothing of the video",
            got=f"a box {x},{y},{w},{h} (x,y,width,height)",
            expected="one inside {} columns and {} rows".format(*size[::-1]),
        )
    masked = np.zeros((1, *size), dtype=bool)
    masked[:, y : y + h, x : x + w] = True
    return masked


def _read_file(path: Path) -> np.ndarray:
    """Return (t, y, x) bool of an image or a video, true where it is more white than black."""
    if fault := irregular(path):
        raise DataError(
            f"mask {path}: {fault}", expected="an image, a video, or a box x,y,width,height"
        )
    if path.suffix.lower() not in IMAGES:
        with SequentialVideo(path) as video:
            frames = [frame.pixels.mean(axis=2) >= 128 for frame in video.frames()]
        if not frames:
            raise UnusableVideo(path, "empty", "it has no frames")
        return np.stack(frames)
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L"))[None] >= 128
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DataError(f"mask {path} is not an image that can be read", got=error) from error


def _frames(count: int) -> str:
    return f"{count} frame{'' if count == 1 else 's'}"


def _check_pixels(pixels: np.ndarray) -> None:
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise DataError(
            "a given video has the wrong shape or dtype",
            got=f"{pixels.shape} {pixels.dtype}",
            expected="(frames, height, width, 3) uint8, or the path of a file",
        )
