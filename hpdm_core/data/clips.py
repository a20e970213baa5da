"""Read the pixels that a sample's patches need: from memory, or from the canonical MP4.

Axis legend: `l` level, `n` decoded frames, `c` colours, `t h w` frames, rows, columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import rearrange

from hpdm_core.data.entries import VideoEntry
from hpdm_core.data.order import ClipSpec
from hpdm_core.data.resample import Crop, Region, centre_crop, resampled_patch
from hpdm_core.data.video_io import UnusableVideo, VideoReader
from hpdm_core.geometry.pyramid import Pyramid


@dataclass(frozen=True, kw_only=True)
class ClipPixels:
    """Decoded frames of one sample's clip.

    Args:
        pixels: (c, n, h, w) uint8 at the clip's resolution if `crop` is None, else whole source
            frames (n, y, x, c) uint8.
        rows: (t,) int64 index in `pixels` of every frame of the clip, -1 where not decoded.
        crop: the part of source frames that is the clip.
        fresh_bytes: memory freed with this clip; 0 for cached pixels.
    """

    pixels: np.ndarray
    rows: np.ndarray
    crop: Crop | None
    fresh_bytes: int


class ClipReader:
    """Reads clips; caches small videos in memory.

    Which videos are cached depends only on the list of videos and the budget, not on the order of
    reading, so that every process yields the same pixels.

    Args:
        folder: the data set's folder.
        entries: its videos.
        pyramid: the levels' resolutions.
        memory_cache_bytes: budget for videos cached in memory, resized to the clip's resolution.
    """

    def __init__(
        self,
        folder: Path,
        entries: Sequence[VideoEntry],
        *,
        pyramid: Pyramid,
        memory_cache_bytes: int,
    ) -> None:
        self._folder = folder
        self._entries = entries
        self._pyramid = pyramid
        self._num_kept = _num_that_fit(entries, pyramid, memory_cache_bytes)
        self._kept: dict[int, np.ndarray] = {}

    def read(self, index: int, spec: ClipSpec) -> ClipPixels:
        """Return the pixels of entry `index` that `spec` needs.

        Raises:
            UnusableVideo: the file has gone bad since it was prepared.
        """
        if index < self._num_kept:
            kept = self._kept_video(index)
            return ClipPixels(pixels=kept, rows=spec.frames, crop=None, fresh_bytes=0)
        needed = self.needed_frames(spec)
        pixels = self._decode(index, needed)
        rows = np.searchsorted(needed, spec.frames)
        rows[~np.isin(spec.frames, needed)] = -1
        crop = centre_crop(pixels.shape[1:3], self._pyramid.resolution[1:])
        if crop.exact:
            cut = _cut(pixels, crop)
            return ClipPixels(pixels=cut, rows=rows, crop=None, fresh_bytes=pixels.nbytes)
        return ClipPixels(pixels=pixels, rows=rows, crop=crop, fresh_bytes=pixels.nbytes)

    def needed_frames(self, spec: ClipSpec) -> np.ndarray:
        """Return the frames of the source that any level needs, (n,) rising."""
        levels = range(self._pyramid.num_levels)
        wanted = np.concatenate([self.level_frames(level, spec).ravel() for level in levels])
        return np.unique(spec.frames[wanted])

    def level_frames(self, level: int, spec: ClipSpec) -> np.ndarray:
        """Return the clip's frames behind a level's patch: (t, k), k to be averaged."""
        stride = self._pyramid.stride(level)[0]
        start = spec.offsets[level, 0]
        frames = (start + np.arange(self._pyramid.patch[0]))[:, None] * stride
        return frames + np.arange(stride if self._pyramid.temporal_downsampling == "average" else 1)

    def _kept_video(self, index: int) -> np.ndarray:
        video = self._kept.get(index)
        if video is None:
            video = self._kept[index] = self._whole_video(index)
        return video

    def _whole_video(self, index: int) -> np.ndarray:
        pixels = self._decode(index, np.arange(self._entries[index].num_frames))
        clip = self._pyramid.resolution[1:]
        crop = centre_crop(pixels.shape[1:3], clip)
        if crop.exact:
            return np.ascontiguousarray(_cut(pixels, crop))
        whole = Region(clip=clip, stride=(1, 1), offset=(0, 0), size=clip)
        # In chunks of frames: a long video as floats would take too much memory.
        parts = [
            np.round(resampled_patch(pixels, rows, crop, whole)).astype(np.uint8)
            for rows in np.split(np.arange(len(pixels)), range(16, len(pixels), 16))
        ]
        return np.concatenate(parts, axis=1)

    def _decode(self, index: int, frames: np.ndarray) -> np.ndarray:
        entry = self._entries[index]
        path = self._folder / entry.path
        reader = VideoReader(path)
        if reader.num_frames != entry.num_frames:
            detail = f"holds {reader.num_frames} frames, the manifest says {entry.num_frames}"
            raise UnusableVideo(path, "changed", detail)
        return reader.read(frames)


def _num_that_fit(entries: Sequence[VideoEntry], pyramid: Pyramid, budget: int) -> int:
    """Return how many videos fit into the budget, counted from the first."""
    frame_bytes = 3 * pyramid.resolution[1] * pyramid.resolution[2]
    total = 0
    for number, entry in enumerate(entries if budget else ()):
        total += entry.num_frames * frame_bytes
        if total > budget:
            return number
    return len(entries) if budget else 0


def _cut(pixels: np.ndarray, crop: Crop) -> np.ndarray:
    (y, x), (height, width) = crop.origin, crop.extent
    return rearrange(pixels[:, y : y + int(height), x : x + int(width)], "n h w c -> c n h w")


def foreign_patch(clip: ClipPixels, frames: np.ndarray, region: Region) -> np.ndarray:
    """Return a level's patch of a clip whose source has another resolution.

    Args:
        clip: with `crop`.
        frames: (t, k) frames of the clip, k to be averaged.
        region: the patch in the clip.

    Returns:
        (c, t, h, w) float32 in 0..255.
    """
    rows, places = np.unique(clip.rows[frames], return_inverse=True)
    patch = resampled_patch(clip.pixels, rows, clip.crop, region)
    if frames.size == len(rows) == len(frames):
        return patch
    return patch[:, places.reshape(frames.shape)].mean(axis=2)
