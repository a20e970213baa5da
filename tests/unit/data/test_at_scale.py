"""2,000 files of which 5% are damaged, and 10,000 clips without a leak. Run with `-m slow`."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from hpdm_core.data.dataset import open_dataset
from hpdm_core.data.entries import read_json_lines
from hpdm_core.data.loader import PatchLoader
from hpdm_core.data.video_io import write_mp4
from hpdm_core.geometry.pyramid import Pyramid
from hpdm_core.progress import NoProgress
from hpdm_core.runs.prep import run_prep_folder

from .conftest import smooth_video

pytestmark = pytest.mark.slow
PYRAMID = Pyramid(patch=(4, 12, 12), levels=((4, 12, 12), (8, 24, 24), (16, 48, 48)))
KINDS = ("empty", "text", "cut", "short", "flipped")


def make_files(folder: Path, *, count: int, share: float) -> Counter:
    """Write videos of ten classes, every n-th of them damaged in one of five ways."""
    originals = []
    for index in range(20):
        write_mp4(folder / "v.mp4", smooth_video(index), 12)
        originals.append((folder / "v.mp4").read_bytes())
    write_mp4(folder / "v.mp4", smooth_video(0, frames=6), 12)
    short = (folder / "v.mp4").read_bytes()
    (folder / "v.mp4").unlink()
    damaged = Counter()
    for index in range(count):
        data = originals[index % len(originals)]
        if index % round(1 / share) == 0:
            kind = KINDS[index // round(1 / share) % len(KINDS)]
            damaged[kind] += 1
            data = damage(data, kind, short, seed=index)
        path = folder / f"class{index % 10}/{index:05d}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return damaged


def damage(data: bytes, kind: str, short: bytes, *, seed: int) -> bytes:
    if kind == "flipped":
        rng = random.Random(seed)
        flipped = bytearray(data)
        start, end = data.find(b"mdat") + 600, data.find(b"moov") - 50
        for _ in range(60):
            flipped[rng.randrange(start, end)] ^= rng.randrange(1, 256)
        return bytes(flipped)
    return {"empty": b"", "text": b"404", "cut": data[: len(data) // 2], "short": short}[kind]


def test_two_thousand_files_with_five_percent_damaged(tmp_path):
    damaged = make_files(tmp_path / "source", count=2000, share=0.05)
    assert sum(damaged.values()) == 100
    result = run_prep_folder(
        tmp_path, source=tmp_path / "source", name="many", progress=NoProgress()
    )
    print(result["usable"])
    rejected = read_json_lines(tmp_path / "many/rejected.jsonl")
    bad = {line["source"] for line in rejected}
    known = {f"class{i % 10}/{i:05d}.mp4" for i in range(0, 2000, 20)}
    flipped = {f"class{i % 10}/{i:05d}.mp4" for i in range(80, 2000, 100)}
    assert bad <= known
    # H.264 carries no checksums: flipped bytes may still decode to something.
    assert known - bad <= flipped
    assert len(flipped - bad) <= 4
    dataset = open_dataset(tmp_path, "many")
    assert len(dataset.entries) == 2000 - len(bad)
    assert len(dataset.classes) == 10

    again = run_prep_folder(
        tmp_path, source=tmp_path / "source", name="many", progress=NoProgress()
    )
    assert again["skipped_unchanged"] == 2000

    # A fiftieth goes bad between preparation and training.
    gone = {entry.path for entry in dataset.entries[::50]}
    for path in gone:
        (dataset.folder / path).write_bytes(b"gone bad")
    loader = PatchLoader(dataset, pyramid=PYRAMID, batch_size=20, seed=0, workers=2)
    batches = loader.batches(0)
    keys = Counter()
    for _ in range(-(-len(dataset.entries) // 20)):
        keys.update(next(batches).keys)
    batches.close()
    assert not gone & keys.keys()
    assert loader.replaced >= len(gone)
    assert {path.relative_to(dataset.folder).as_posix() for path in loader.bad_files} == gone


def test_ten_thousand_clips_leak_nothing(dataset):
    loader = PatchLoader(dataset, pyramid=PYRAMID, batch_size=20, seed=0, workers=2)
    batches = loader.batches(0)
    usage = []
    for step in range(500):
        next(batches)
        if step in (100, 499):
            pids = [os.getpid(), *(w.process.pid for w in loader._pool._workers)]
            usage.append([(resident(pid), len(os.listdir(f"/proc/{pid}/fd"))) for pid in pids])
    batches.close()
    for (early, early_files), (late, late_files) in zip(*usage, strict=True):
        assert late - early < 16 * 2**20
        assert late_files <= early_files + 4


def resident(pid: int) -> int:
    """Return a process's resident memory in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


PROGRAM = """
import sys
from hpdm_core.data.dataset import open_dataset
from hpdm_core.data.loader import PatchLoader
from hpdm_core.geometry.pyramid import Pyramid

def main():
    pyramid = Pyramid(patch=(4, 12, 12), levels=((4, 12, 12), (16, 48, 48)))
    dataset = open_dataset(sys.argv[1], "waves")
    loader = PatchLoader(dataset, pyramid=pyramid, batch_size=8, seed=0, workers=2)
    for step, _ in enumerate(loader.batches(0)):
        if step == 3:
            print(*[w.process.pid for w in loader._pool._workers], flush=True)

if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_leaves_no_process_behind(dataset, tmp_path, root, how):
    (tmp_path / "program.py").write_text(PROGRAM)
    running = subprocess.Popen(
        [sys.executable, tmp_path / "program.py", tmp_path / "data"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
        start_new_session=True,
    )
    workers = [int(pid) for pid in running.stdout.readline().split()]
    # As a terminal does: the whole group at once (a kill reaches one process only).
    if how == signal.SIGINT:
        os.killpg(running.pid, how)
    else:
        os.kill(running.pid, how)
    _, complaints = running.communicate(timeout=60)
    assert running.returncode == (130 if how == signal.SIGINT else -how)
    if how == signal.SIGINT:
        assert "Traceback" not in complaints
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in workers)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
