"""`hpdm sample` as processes: killed at any moment, and spread over two of them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hpdm_core.data.video_io import decode_sequential
from hpdm_core.locks import LOCK

ROOT = Path(__file__).resolve().parents[4]


def start(*arguments: object, processes: int = 1) -> subprocess.Popen:
    launch = [sys.executable, "-m"]
    if processes > 1:
        # The bare `--` keeps torchrun from taking our --num for its own --numa-binding.
        launch += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        launch += ["-m", "--"]
    return subprocess.Popen(
        [*launch, "hpdm_cli", "sample", *map(str, arguments), "--device", "cpu", "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> dict:
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return json.loads(out)


def videos(folder: Path) -> dict[int, np.ndarray]:
    lines = [json.loads(text) for text in (folder / "samples.jsonl").read_text().splitlines()]
    return {x["seed"]: np.stack(list(decode_sequential(folder / x["file"]))) for x in lines}


@pytest.mark.slow
def test_killed_three_times_it_ends_with_exactly_the_videos_asked_for(make_weights, tmp_path):
    common = ("--checkpoint", make_weights(), "--num", 40, "--batch", 1, "--steps", "24,24")
    for finished in (3, 9, 17):
        process = start(*common, "--out", tmp_path / "killed")
        while process.poll() is None and len(list(tmp_path.glob("killed/*.mp4"))) < finished:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert finish(start(*common, "--out", tmp_path / "killed"))["made"] < 40
    finish(start(*common, "--out", tmp_path / "whole"))
    killed, whole = videos(tmp_path / "killed"), videos(tmp_path / "whole")
    assert sorted(killed) == list(range(40))
    assert all(np.array_equal(killed[seed], whole[seed]) for seed in whole)
    assert len(list(tmp_path.glob("killed/*.mp4"))) == 40
    assert [path.name for path in tmp_path.glob("killed/.*")] == [LOCK]


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["videos", "tiles"])
def test_two_processes_make_what_one_makes(make_weights, tmp_path, shard):
    common = ("--checkpoint", make_weights(), "--num", 3, "--overlap", "fhw")
    finish(start(*common, "--out", tmp_path / "one"))
    finish(start(*common, "--out", tmp_path / "two", "--shard", shard, processes=2))
    one, two = videos(tmp_path / "one"), videos(tmp_path / "two")
    assert sorted(one) == sorted(two) == [0, 1, 2]
    for seed, video in one.items():
        # Sums in another order may fall to the other side between two grey levels.
        assert np.abs(video.astype(int) - two[seed]).max() <= 3
        assert np.mean(video != two[seed]) < 0.01
