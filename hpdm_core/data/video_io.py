"""Videos in and out: sequential decoding, random access, MP4, GIF, WebP, PNG and contact sheets.

Foreign files are decoded in sequence with PyAV, which is exact on every container and reports
damage; decord is faster at random access but right only on the canonical MP4s that `write_mp4`
makes (constant rate, no B-frames, a keyframe every 12 frames).

Axis legend: `t h w` frames, rows, columns; pixels are RGB, last axis, uint8.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import av.error
import av.logging
import numpy as np

from hpdm_core.data.faults import UnusableVideo
from hpdm_core.data.readers import HAS_DECORD, DecordReader, PyavReader, open_container
from hpdm_core.errors import DataError
from hpdm_core.files import atomic_path, irregular

av.logging.set_level(av.logging.PANIC)

GOP = 12
CRF = 18
# A frame of 8192x8192 takes 200 MB as RGB: what claims more is damaged, or meant to fill memory.
MOST_PIXELS = 2**26


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One decoded frame.

    Args:
        pixels: (h, w, 3) uint8, turned upright.
        time: seconds from the container, None where it has none.
        damaged: whether the decoder had to conceal a part of it.
    """

    pixels: np.ndarray
    time: float | None
    damaged: bool


class SequentialVideo(AbstractContextManager):
    """A file opened for decoding from its first frame to its last. Close it, or use `with`.

    Attributes:
        fps: frames per second that the header claims; 25 where it claims none.
        claimed_frames: frames that the header claims; 0 where it claims none.
        has_times: whether the container keeps a time per frame (AVI does not).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if fault := irregular(path):
            raise UnusableVideo(path, "unreadable", fault)
        if path.stat().st_size == 0:
            raise UnusableVideo(path, "empty", "the file is empty")
        try:
            self._container = open_container(path)
        except (av.error.FFmpegError, ValueError) as error:
            raise UnusableVideo(path, "not a video", _not_a_video(path)) from error
        if not self._container.streams.video:
            self._container.close()
            raise UnusableVideo(path, "not a video", "no video stream in it (sound only?)")
        self._stream = self._container.streams.video[0]
        decoder = self._stream.codec_context
        if decoder is None:
            self._container.close()
            raise UnusableVideo(path, "unreadable", "no decoder here knows its codec")
        check_pixels(path, decoder.height, decoder.width)
        decoder.thread_count = 1
        decoder.options = {"max_pixels": str(MOST_PIXELS)}
        self.fps = float(self._stream.average_rate or self._stream.guessed_rate or 25)
        self.has_times = "avi" not in self._container.format.name.split(",")
        self.claimed_frames = self._claimed_frames()

    def frames(self) -> Iterator[Frame]:
        """Yield the frames; raises UnusableVideo where the stream cannot be decoded further."""
        count = 0
        try:
            for frame in self._container.decode(self._stream):
                pixels = frame.to_ndarray(format="rgb24")
                turns = round(frame.rotation / 90) % 4
                if turns:
                    pixels = np.ascontiguousarray(np.rot90(pixels, turns))
                yield Frame(pixels=pixels, time=frame.time, damaged=frame.is_corrupt)
                count += 1
        except (av.error.FFmpegError, ValueError) as error:
            detail = f"decoding breaks off after {count} frames"
            raise UnusableVideo(self.path, "corrupted", detail) from error

    def packet_times(self) -> list[float]:
        """Return the seconds at which frames are shown, decoding nothing; unordered."""
        times = []
        with suppress(av.error.FFmpegError):  # decoding will meet the same fault and name it
            for packet in self._container.demux(self._stream):
                if packet.pts is not None:
                    times.append(float(packet.pts * packet.time_base))
        return times

    def _claimed_frames(self) -> int:
        # An edited MP4 shows fewer frames than it holds, and its duration knows; the duration of
        # an AVI is an estimate from the file's size, which is wrong for a truncated file.
        if not self.has_times:
            return self._stream.frames
        if self._stream.duration is not None:
            return round(self._stream.duration * self._stream.time_base * Fraction(self.fps))
        return 0

    def close(self) -> None:
        self._container.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def check_pixels(path: Path, height: int, width: int) -> None:
    """Raise UnusableVideo for frames too large to be held in memory."""
    if height * width > MOST_PIXELS:
        raise UnusableVideo(path, "unreadable", f"frames of {height}x{width} pixels are too large")


def _not_a_video(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(512)
    if b"\0" not in head and all(byte >= 32 or byte in b"\t\r\n\f" for byte in head):
        return "not a video: the file holds text"
    return "not a video, or its header is damaged"


def decode_sequential(path: Path) -> Iterator[np.ndarray]:
    """Yield every frame of any video file in order, (h, w, 3) uint8.

    Raises:
        UnusableVideo: the file is not a video, or breaks off.
    """
    with SequentialVideo(path) as video:
        for frame in video.frames():
            yield frame.pixels


class VideoReader:
    """Random access to the frames of a canonical MP4.

    Open it in the process that reads: decord's readers do not survive a fork.

    Args:
        path: a file written by `write_mp4`.
        backend: decord is faster; the default uses it if installed.
    """

    def __init__(self, path: Path, *, backend: Literal["decord", "pyav"] | None = None) -> None:
        self.path = path
        if not path.is_file():
            raise UnusableVideo(path, "unreadable", "the file is gone")
        with path.open("rb") as file:
            # decord prints errors about files that it cannot open; check first.
            if file.read(8)[4:] != b"ftyp":
                raise UnusableVideo(path, "unreadable", "it is not an MP4 any more")
        self._fall_back = backend is None
        backend = backend or ("decord" if HAS_DECORD else "pyav")
        self._reader = (DecordReader if backend == "decord" else PyavReader)(path)
        self.num_frames = self._reader.num_frames

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the frames at `indices` (n,), rising: (n, h, w, 3) uint8.

        Raises:
            UnusableVideo: a frame cannot be decoded.
        """
        try:
            return self._reader.read(indices)
        except UnusableVideo:
            if not self._fall_back or isinstance(self._reader, PyavReader):
                raise
        # decord fails at some widths below 64, such as 48; a damaged file fails here again.
        self._reader = PyavReader(self.path)
        return self._reader.read(indices)


def write_mp4(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: float,
    *,
    crf: int = CRF,
    threads: int = 0,
) -> int:
    """Write a canonical MP4: H.264, a keyframe every 12 frames, no B-frames, constant rate.

    Args:
        path: the file to write; appears whole or not at all.
        frames: (h, w, 3) uint8 each, all of one size; an odd side is padded by its last pixels.
        fps: frames per second.
        crf: quality of x264; lower is better, 18 is visually lossless.
        threads: encoder threads; 0 lets x264 choose.

    Returns:
        The number of frames written.

    Raises:
        DataError: there is no frame.
    """
    rate = as_rate(fps)
    count = 0
    with atomic_path(path) as partial, av.open(str(partial), "w") as container:
        stream = None
        for pixels in frames:
            even = _pad_to_even(pixels)
            if stream is None:
                stream = _open_h264(container, even.shape[:2], rate, crf=crf, threads=threads)
            frame = av.VideoFrame.from_ndarray(even, format="rgb24")
            frame.pts = count
            frame.time_base = 1 / rate
            container.mux(stream.encode(frame))
            count += 1
        if stream is None:
            raise DataError(f"{path}: nothing to write", got="no frames")
        container.mux(stream.encode(None))
    return count


def as_rate(fps: float) -> Fraction:
    """Return the frame rate as containers keep it (29.97 is 30000/1001)."""
    return Fraction(max(fps, 0.01)).limit_denominator(1001)


def _open_h264(container, size: tuple[int, int], rate: Fraction, *, crf: int, threads: int):
    stream = container.add_stream("libx264", rate=rate)
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.time_base = 1 / rate
    context.gop_size = GOP
    context.max_b_frames = 0
    context.thread_count = threads
    # swscale converts by BT.601 in the narrow range; without this, players assume BT.709 for HD.
    context.colorspace = 6
    context.color_range = 1
    # Keyframes at scene cuts would make the distance between keyframes, and so reading, uneven.
    # x264's macroblock tree is not deterministic on small frames (some 1 file in 100 differs).
    context.options = {
        "crf": str(crf),
        "preset": "veryfast",
        "sc_threshold": "0",
        "x264-params": "mbtree=0",
    }
    return stream


def _pad_to_even(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(pixels)
