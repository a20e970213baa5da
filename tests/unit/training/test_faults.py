"""Kills at random points: the run always resumes, and ends as an uninterrupted one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hpdm_core.training import checkpoint
from hpdm_core.training.parallel import start_parallel
from tests.unit.training.killed_run import plan
from tests.unit.training.standins import assert_equal, contents, make_state, make_store, run

ROOT = Path(__file__).resolve().parents[3]


def start(folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("killed_run.py")), str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition, process: subprocess.Popen) -> None:
    limit = time.monotonic() + 60
    while not condition() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.002)


def steps_saved(folder: Path) -> list[str]:
    return [path.name for path in checkpoint.list_checkpoints(folder / "checkpoints")]


def kill_at_random(folder: Path, rng: random.Random) -> int | None:
    """Start the run, kill it some time after it began to work; return its exit code."""
    before = steps_saved(folder)
    process = start(folder)
    wait_for(lambda: steps_saved(folder) != before, process)
    time.sleep(rng.uniform(0, 0.05))
    process.kill()
    process.communicate()
    return process.returncode


def end_of_killed_run(folder: Path, kills: int, seed: int):
    """Kill the run that often, or until it is done; then let it end and return its state."""
    rng = random.Random(seed)
    killed = 0
    for _ in range(kills):
        killed += kill_at_random(folder, rng) == -signal.SIGKILL
        for path in checkpoint.list_checkpoints(folder / "checkpoints"):
            assert checkpoint.damage(path) is None, path
    assert killed >= min(kills, 4)
    process = start(folder)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    parallel = start_parallel("cpu", mode="ddp")
    state = make_state(parallel)
    make_store(folder, parallel).resume(state)
    return state, killed


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    return run(tmp_path_factory.mktemp("untouched"), plan=plan())


def test_a_run_killed_five_times_ends_as_the_untouched_one(tmp_path, untouched):
    state, _ = end_of_killed_run(tmp_path, 5, seed=0)
    assert_equal(state, untouched)
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if p.name.startswith(".")]


@pytest.mark.slow
def test_twenty_kills_at_random_points(tmp_path, untouched):
    total = 0
    for attempt in range(10):
        state, killed = end_of_killed_run(tmp_path / str(attempt), 8, seed=attempt)
        assert_equal(state, untouched)
        total += killed
        if total >= 20:
            return
    raise AssertionError(f"only {total} kills fell into a run")


@pytest.mark.parametrize("point", ["_flush", "write_tensors", "prune", "json_sha256"])
def test_death_at_the_worst_moments_of_saving(tmp_path, monkeypatch, point, untouched):
    """Die inside each part of saving, as kill -9 would, by leaving without any clean-up."""
    calls = [0]
    real = getattr(checkpoint, point)

    class Died(BaseException):
        pass

    def dying(*args, **kwargs):
        calls[0] += 1
        if calls[0] == 7:
            raise Died
        return real(*args, **kwargs)

    monkeypatch.setattr(checkpoint, point, dying)
    with pytest.raises(Died):
        run(tmp_path, plan=plan())
    monkeypatch.undo()
    assert_equal(run(tmp_path, plan=plan()), untouched)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_from_outside_saves_and_exits_with_130(tmp_path, number):
    process = start(tmp_path)
    wait_for(lambda: bool(steps_saved(tmp_path)), process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    parallel = start_parallel("cpu", mode="ddp")
    state = make_state(parallel)
    make_store(tmp_path, parallel).resume(state)
    assert 0 < state.step < 60
    assert all(torch.isfinite(tensor).all() for tensor in contents(state).values())
