"""Checkpoints written beside training: equal to those written in between, and as safe."""

import json
import logging
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hpdm_core.training import checkpoint
from hpdm_core.training.parallel import start_parallel
from tests.unit.training.standins import (
    assert_equal,
    make_plan,
    make_state,
    make_store,
    run,
    tiny_loss,
)


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoint.list_checkpoints(folder / "checkpoints")]


def test_they_equal_those_written_in_between(tmp_path):
    states = [run(tmp_path / str(on), asynchronous=on) for on in (False, True)]
    assert_equal(*states)
    assert names(tmp_path / "True") == ["step-00000008", "step-00000012"]
    assert names(tmp_path / "False") == names(tmp_path / "True")
    for name in names(tmp_path / "True"):
        before, after = (tmp_path / str(on) / "checkpoints" / name for on in (False, True))
        assert checkpoint.damage(after) is None
        for file in before.glob("*.safetensors"):
            one, other = load_file(file), load_file(after / file.name)
            assert one.keys() == other.keys()
            assert all(torch.equal(one[key], other[key]) for key in one)


def test_training_goes_on_while_one_is_written_and_does_not_change_it(tmp_path, monkeypatch):
    gate, write = threading.Event(), checkpoint.write_tensors

    def slow(path, tensors, metadata):
        assert gate.wait(60)
        write(path, tensors, metadata)

    monkeypatch.setattr(checkpoint, "write_tensors", slow)
    seen = []

    def loss(network, batch, *, seed, step):
        seen.append((step, names(tmp_path)))
        if step == 7:  # three steps after the checkpoint of step 4 was begun
            gate.set()
        return tiny_loss(network, batch, seed=seed, step=step)

    run(tmp_path, loss=loss, asynchronous=True, keep=3)
    assert (7, []) in seen
    monkeypatch.setattr(checkpoint, "write_tensors", write)
    run(tmp_path / "in-between", keep=3)
    for file in (checkpoint.MODEL, checkpoint.EMA, checkpoint.OPTIMIZER):
        place = Path("checkpoints/step-00000004") / file
        one, other = load_file(tmp_path / place), load_file(tmp_path / "in-between" / place)
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_full_disk_is_logged_and_training_goes_on(tmp_path, monkeypatch, caplog):
    write, failures = checkpoint.write_tensors, [OSError(28, "No space left on device")]

    def full(path, tensors, metadata):
        if failures:
            raise failures.pop()
        write(path, tensors, metadata)

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    with caplog.at_level(logging.WARNING, logger="hpdm"):
        run(tmp_path, asynchronous=True)
    assert "step 4: checkpoint could not be written" in caplog.text
    assert names(tmp_path) == ["step-00000008", "step-00000012"]
    assert not list((tmp_path / "checkpoints").glob(".partial-*"))


def test_a_killed_write_leaves_the_one_before(tmp_path):
    parallel = start_parallel("cpu", mode="ddp")
    run(tmp_path, plan=make_plan(steps=4))
    (tmp_path / "checkpoints/.partial-step-00000008").mkdir()
    store, state = make_store(tmp_path, parallel, asynchronous=True), make_state(parallel)
    assert store.resume(state).name == "step-00000004"
    assert store.wait()
    state.step = 8
    path = store.save(state, wait=False)
    assert store.wait()
    assert json.loads((path / checkpoint.STATE).read_text())["step"] == 8


@pytest.mark.parametrize("wait", [True, False])
def test_only_a_store_that_is_asked_to_writes_beside_training(tmp_path, wait):
    parallel = start_parallel("cpu", mode="ddp")
    store, state = make_store(tmp_path, parallel), make_state(parallel)
    assert checkpoint.damage(store.save(state, wait=wait)) is None
