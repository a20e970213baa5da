"""1,000 lists of captions made to break their reader: planned, or refused by a DataError."""

import json
import os
import random
from pathlib import Path

import pytest

from hpdm_core.data.captions import plan_captions
from hpdm_core.data.plan import DecodingOptions, targets
from hpdm_core.data.prepare import describe
from hpdm_core.errors import DataError
from hpdm_core.names import is_unicode

from .fuzzing import Memory, cases, enough, mutated, within_time

pytestmark = pytest.mark.slow

FILES = ["a.mp4", "b/c.mp4", "./a.mp4", "../x.mp4", "/etc/hosts", ".", "", "pipe.mp4", "loop.mp4"]
ODD = [
    None, True, 0, -1, 1e300, 10**400, [], {}, [[]], {"a": 1}, "\0", "\ud800", "a" * 5000, "\u2028",
    "\u0085", "two\nlines", 'a "quote"', "a, b", "é", " ", "\ufeff", "b/" * 3000, "🙂", "a\rb",
]  # fmt: skip
KEYS = ["file", "path", "video", "caption", "text", "captions", "split", "other", "", "\ud800"]
TOKENS = [
    b"\n", b"\r", b'"', b'""', b",", b"{", b"}", b"[" * 2000, b"\xff", b"\xef\xbb\xbf", b"\0",
    b"\\ud800", b"9" * 5000, b"NaN", b"\xe2\x80\xa8", b"x" * 200_000, b"file,caption\n",
]  # fmt: skip


def value(rng: random.Random, usual: list[str]) -> object:
    return rng.choice(usual) if rng.random() < 0.9 else rng.choice(ODD)


def hostile_list(rng: random.Random, *, as_csv: bool) -> bytes:
    lines = []
    for _ in range(rng.randrange(1, 12)):
        line = {rng.choice(KEYS[:3]): value(rng, FILES), rng.choice(KEYS[3:6]): value(rng, ["a b"])}
        if rng.random() < 0.2:
            line[rng.choice(KEYS)] = rng.choice(ODD)
        lines.append(line)
    if as_csv:
        rows = [",".join(f'"{v}"' for v in line.values()) for line in lines]
        text = "\n".join(["file,caption", *rows])
    else:
        text = "\n".join(json.dumps(line, ensure_ascii=rng.random() < 0.5) for line in lines)
    data = text.encode("utf-8", "surrogatepass")
    return mutated(rng, data, TOKENS) if rng.random() < 0.5 else data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b").mkdir()
    for name in ("a.mp4", "b/c.mp4"):
        (tmp_path / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    return tmp_path


def test_every_list_is_planned_or_refused(folder):
    memory, planned = Memory(warm_up=100), 0
    for seed in cases(1_000):
        with within_time(seed) as rng:
            as_csv = rng.random() < 0.4
            source = folder / ("list.csv" if as_csv else "list.jsonl")
            source.write_bytes(hostile_list(rng, as_csv=as_csv))
            try:
                plan = plan_captions(
                    folder / "out", name="c", source=source, options=DecodingOptions(), workers=1
                )
            except DataError as error:
                message = str(error)
                assert source.name in message
                assert len(message) < 1000
            else:
                planned += 1
                json.dumps(describe(plan))
                made = targets(plan.videos)
                assert len(made) == len(plan.videos)
                for video in plan.videos:
                    if video.problem is None:
                        target = (folder / "out" / made[video.name]).resolve()
                        assert target.is_relative_to(folder / "out/videos")
                        assert is_unicode(video.name)
                        assert video.caption
        memory.note()
    enough(planned, 100, of="lists planned")
