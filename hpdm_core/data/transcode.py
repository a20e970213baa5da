"""Transcoding of one source file to a canonical MP4, or the reason why not.

A file is refused if the decoder had to conceal any part of it.
"""

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import av.error
import numpy as np
from PIL import Image

from hpdm_core.data.faults import Problem, is_of_machine
from hpdm_core.data.video_io import (
    Frame,
    SequentialVideo,
    UnusableVideo,
    as_rate,
    check_pixels,
    write_mp4,
)
from hpdm_core.files import irregular, sha256_of

# Headers overstate a little (by one frame in many AVIs, by the cut-off part in edited MP4s).
LEAST_SHARE_OF_HEADER = 0.9
# Intervals between frames further than this from their median mean a variable frame rate.
STEADY = (0.5, 1.5)
# A grid of the median interval may hold a long still shot: more frames than this are refused.
MOST_GROWTH = 20


@dataclass(frozen=True, kw_only=True)
class Transcode:
    """A file to transcode.

    Args:
        source: the original.
        target: the MP4 to write.
        is_image: whether the source is a still picture.
        min_frames: videos with fewer frames are refused.
        size: (h, w) that larger frames are shrunk to cover, None for the original size.
        known_sha256: hash of the source when `target` was last written, '' if never.
    """

    source: Path
    target: Path
    is_image: bool
    min_frames: int
    size: tuple[int, int] | None
    known_sha256: str


@dataclass(frozen=True, kw_only=True)
class Transcoded:
    """Result of a transcoding.

    Args:
        num_frames, fps, height, width: of the canonical MP4; all 0 where `unchanged`.
        sha256: of the source.
        unchanged: the source still has the known hash, so nothing was written.
        caption: of generated videos.
        notes: corrections ('rotated', 'variable frame rate').
    """

    num_frames: int = 0
    fps: float = 0.0
    height: int = 0
    width: int = 0
    sha256: str
    unchanged: bool = False
    caption: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Why a file cannot be used; `sha256` of the source, '' if it could not be read."""

    problem: Problem
    detail: str
    sha256: str = ""


def transcode(task: Transcode) -> Transcoded | Refused:
    """Transcode one file; never raises for faults of the file."""
    if fault := irregular(task.source):
        return Refused(problem="unreadable", detail=fault)
    try:
        sha256 = sha256_of(task.source)
    except OSError as error:
        return Refused(problem="unreadable", detail=f"cannot be read: {error.strerror}")
    if sha256 == task.known_sha256 and task.target.is_file():
        return Transcoded(sha256=sha256, unchanged=True)
    try:
        if task.is_image:
            return _write_image(task, sha256)
        return _write_video(task, sha256)
    except UnusableVideo as error:
        return Refused(problem=error.problem, detail=error.detail, sha256=sha256)
    except MemoryError:
        detail = "decoding it takes more memory than there is"
        return Refused(problem="unreadable", detail=detail, sha256=sha256)
    except (av.error.FFmpegError, OSError) as error:
        if is_of_machine(error):
            raise
        detail = f"its frames cannot be written as H.264: {error.strerror or error}"
        return Refused(problem="unreadable", detail=detail, sha256=sha256)


def _write_image(task: Transcode, sha256: str) -> Transcoded:
    try:
        with Image.open(task.source) as image:
            check_pixels(task.source, image.height, image.width)
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnusableVideo(task.source, "not a video", "not a picture that can be read") from error
    frame = fit(pixels, task.size)
    write_mp4(task.target, [frame], 25.0, threads=1)
    return Transcoded(
        num_frames=1, fps=25.0, height=frame.shape[0], width=frame.shape[1], sha256=sha256
    )


def _write_video(task: Transcode, sha256: str) -> Transcoded:
    interval = variable_interval(task.source)
    with SequentialVideo(task.source) as video:
        fps = float(as_rate(video.fps if interval is None else 1 / interval))
        frames = _checked(video, task.min_frames)
        if interval is not None:
            frames = _steady(frames, interval, task.source)
        first = next(frames)
        height, width = fit(first.pixels, task.size).shape[:2]
        pixels = _fitted(chain([first], frames), task, (height, width))
        count = write_mp4(task.target, pixels, fps, threads=1)
    return Transcoded(
        num_frames=count,
        fps=fps,
        height=height,
        width=width,
        sha256=sha256,
        notes=() if interval is None else ("variable frame rate",),
    )


def _checked(video: SequentialVideo, min_frames: int) -> Iterator[Frame]:
    """Yield the frames; raises UnusableVideo as soon as a fault is found."""
    count = damaged = 0
    for frame in video.frames():
        count += 1
        damaged += frame.damaged
        if not damaged:
            yield frame
    if count == 0:
        raise UnusableVideo(video.path, "unreadable", "no frame in it can be decoded")
    if count < LEAST_SHARE_OF_HEADER * video.claimed_frames:
        detail = f"holds {count} frames of the {video.claimed_frames} that its header claims"
        raise UnusableVideo(video.path, "truncated", detail)
    if damaged:
        detail = f"the decoder reports damage in {damaged} of {count} frames"
        raise UnusableVideo(video.path, "corrupted", detail)
    if count < min_frames:
        detail = f"{count} frames, fewer than {min_frames}"
        raise UnusableVideo(video.path, "too short", detail)


def variable_interval(path: Path) -> float | None:
    """Return the median seconds between frames where the rate varies, else None.

    Reads the times of packets only, decoding nothing. AVI keeps none.
    """
    with SequentialVideo(path) as video:
        times = sorted(video.packet_times())
    gaps = [after - before for before, after in pairwise(times) if after > before]
    if not video.has_times or len(gaps) < 2:
        return None
    median = statistics.median(gaps)
    low, high = STEADY
    steady = all(low * median < gap < high * median for gap in gaps)
    return None if steady else median


def _steady(frames: Iterator[Frame], interval: float, path: Path) -> Iterator[Frame]:
    """Show every frame until the next one's time, on a clock that ticks every `interval`."""
    shown = next(frames)
    start = shown.time or 0.0
    ticks, count = 0, 1
    for frame in frames:
        count += 1
        while frame.time is not None and start + (ticks + 0.5) * interval < frame.time:
            yield shown
            ticks += 1
            if ticks > MOST_GROWTH * count + 1000:
                detail = "the times of its frames lie too far apart to give it a constant rate"
                raise UnusableVideo(path, "unreadable", detail)
        shown = frame
    yield shown


def _fitted(
    frames: Iterable[Frame], task: Transcode, size: tuple[int, int]
) -> Iterator[np.ndarray]:
    for frame in frames:
        pixels = fit(frame.pixels, task.size)
        if pixels.shape[:2] != size:
            detail = "its frames change in size"
            raise UnusableVideo(task.source, "unreadable", detail)
        yield pixels


def fit(pixels: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Shrink a frame until it just covers `size` (h, w), never enlarge it; make its sides even."""
    height, width = pixels.shape[:2]
    scale = 1.0 if size is None else max(size[0] / height, size[1] / width)
    if scale < 1.0:
        new = (2 * round(width * scale / 2), 2 * round(height * scale / 2))
        return np.asarray(Image.fromarray(pixels).resize(new, Image.Resampling.BILINEAR))
    if height < 2 or width < 2:
        return pixels
    return pixels[: height - height % 2, : width - width % 2]
