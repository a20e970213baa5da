"""Random access to the frames of canonical MP4s: by decord, or by PyAV where decord is absent.

Axis legend: `n` frames, `h w` rows, columns; pixels are RGB, last axis, uint8.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import av.error
import numpy as np

from hpdm_core.data.faults import UnusableVideo

try:
    import decord
except ImportError:  # no wheel for this platform: PyAV reads instead, more slowly
    decord = None
else:
    decord.logging.set_level(decord.logging.QUIET)

# Headers may hold text that is not UTF-8, which is irrelevant here. PyAV 19 keeps its bytes and has
# dropped the option that earlier versions need.
_ANY_TEXT = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}
# By name, so that a playlist or a list of files called x.mp4 opens no other file or host.
_FORMATS = "avi,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,flv,live_flv,gif,mpegts,mpeg,mpegvideo,ogg,"
_FORMATS += "asf,yuv4mpegpipe,h264,hevc,m4v,wav,mp3"
_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
HAS_DECORD = decord is not None


def open_container(path: Path) -> av.container.InputContainer:
    """Open a video file for reading, and nothing else.

    Raises:
        av.error.FFmpegError or ValueError: FFmpeg cannot.
    """
    # Absolute, since FFmpeg reads a name such as `pipe:0.mp4` as a protocol.
    return av.open(str(path.absolute()), options=_OPTIONS, **_ANY_TEXT)


class DecordReader:
    """Reads with decord. Its readers do not survive a fork."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._video = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        except (decord.DECORDError, RuntimeError) as error:
            raise UnusableVideo(path, "unreadable", "decord cannot open it") from error
        self.num_frames = len(self._video)

    def read(self, indices: np.ndarray) -> np.ndarray:
        try:
            return self._video.get_batch(indices).asnumpy()
        except (decord.DECORDError, RuntimeError, IndexError) as error:
            detail = f"decord cannot read frames {indices[0]} to {indices[-1]}"
            raise UnusableVideo(self.path, "unreadable", detail) from error


class PyavReader:
    """Reads with PyAV, by seeking to the keyframe before a frame."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_container(path) as container:
                stream = container.streams.video[0]
                self.num_frames = stream.frames
                if None in (stream.codec_context, stream.average_rate, stream.time_base):
                    raise ValueError("no decoder, or no clock")
        except (av.error.FFmpegError, ValueError, IndexError) as error:
            raise UnusableVideo(path, "unreadable", "PyAV cannot open it") from error

    def read(self, indices: np.ndarray) -> np.ndarray:
        try:
            return np.stack(list(self._frames([int(i) for i in indices])))
        except (av.error.FFmpegError, ValueError, IndexError) as error:
            detail = f"PyAV cannot read frames {indices[0]} to {indices[-1]}"
            raise UnusableVideo(self.path, "unreadable", detail) from error

    def _frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        wanted = iter(indices)
        target = next(wanted)
        with open_container(self.path) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            frame_ticks = 1 / (stream.average_rate * stream.time_base)
            container.seek(int(target * frame_ticks), stream=stream)
            for frame in container.decode(stream):
                if frame.is_corrupt or frame.pts is None:
                    raise UnusableVideo(self.path, "corrupted", f"frame {target} or one before it")
                place = round(frame.pts / frame_ticks)
                while place == target:
                    yield frame.to_ndarray(format="rgb24")
                    target = next(wanted, None)
                if target is None:
                    return
        raise IndexError(target)
