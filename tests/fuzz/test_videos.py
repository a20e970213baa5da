"""1,000 damaged videos: each becomes canonical or is refused with a reason, and none hangs.

They run in a worker, for a decoder may hang or crash where Python hears no alarm.
"""

import random
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest

from hpdm_core.data.pool import Mark, WorkerLost, WorkerPool, run_tasks
from hpdm_core.data.transcode import Refused, Transcode, transcode
from hpdm_core.data.video_io import VideoReader, write_mp4
from hpdm_core.errors import HpdmError

from .fuzzing import LONGEST_SECONDS, Memory, cases, mutated, resident_bytes

pytestmark = pytest.mark.slow

ATOMS = [b"moov", b"mdat", b"stts", b"stsz", b"stco", b"ctts", b"elst", b"avcC", b"trak", b"idx1"]
ATOMS += [b"movi", b"strf", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\1"]


@dataclass(frozen=True)
class Attempt:
    """Damages one of the sources by a seed and prepares it."""

    folder: Path
    sources: tuple[bytes, ...]

    def __call__(self, seed: int, _mark: Mark) -> tuple[str, int]:
        rng = random.Random(seed)
        data = rng.choice(self.sources)
        # Headers decide most: in an MP4 of this project they lie at the end.
        part = slice(0, len(data)) if rng.random() < 0.3 else _headers(data)
        damaged = data[: part.start] + mutated(rng, data[part], ATOMS) + data[part.stop :]
        source = self.folder / "x.mp4"
        source.write_bytes(damaged)
        target = self.folder / "out.mp4"
        result = transcode(
            Transcode(
                source=source, target=target, is_image=False, min_frames=2, size=None,
                known_sha256="",
            )
        )  # fmt: skip
        if not isinstance(result, Refused):
            assert VideoReader(target, backend="pyav").num_frames == result.num_frames
            assert 0 < result.fps < 1e6
        with suppress(HpdmError):  # as a canonical video that was damaged after preparing
            VideoReader(source, backend="pyav").read(np.arange(4))
        problem = result.problem if isinstance(result, Refused) else "usable"
        return problem, resident_bytes()


def _headers(data: bytes) -> slice:
    place = data.find(b"moov")
    return slice(place, len(data)) if place > 0 else slice(0, min(len(data), 3000))


def _sources(folder: Path) -> tuple[bytes, ...]:
    rng = np.random.default_rng(0)
    video = rng.integers(0, 255, (12, 1, 1, 3)) + np.zeros((1, 32, 48, 1))
    frames = video.astype(np.uint8)
    write_mp4(folder / "s.mp4", frames, 12)
    kinds = (("s.avi", "mpeg4"), ("s.mkv", "ffv1"), ("s2.avi", "mjpeg"), ("s.webm", "libvpx"))
    for name, codec in kinds:
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=12)
            stream.height, stream.width = 32, 48
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for pixels in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))
    names = ("s.mp4", "s.mp4", "s.avi", "s.mkv", "s2.avi", "s.webm")
    return tuple((folder / name).read_bytes() for name in names)


def test_every_video_is_made_or_refused(tmp_path):
    memory, outcomes = Memory(warm_up=100), Counter()
    function = Attempt(tmp_path, _sources(tmp_path))
    with WorkerPool(function, workers=1, timeout=LONGEST_SECONDS) as pool:
        for seed, outcome in run_tasks(pool, cases(1_000), ahead=2):
            if isinstance(outcome, Exception):
                print(f"HPDM_FUZZ_SEED={seed} repeats this case: {outcome!r}", file=sys.stderr)
            if isinstance(outcome, WorkerLost) and "ended with code" in str(outcome):
                outcomes["crashed the decoder"] += 1  # `prepare` rejects it, in a worker as here
                continue
            if isinstance(outcome, Exception):
                raise outcome
            outcomes[outcome[0]] += 1
            memory.note(outcome[1])
    print(dict(outcomes))
    assert outcomes["crashed the decoder"] == 0
    assert outcomes["usable"] > 50 or outcomes.total() < 1_000
