"""Checkpoint folders: whole or not at all, and damage is noticed."""

import json
import os

import pytest
import torch

from hpdm_core.errors import CheckpointError
from hpdm_core.training import checkpoint
from hpdm_core.training.parallel import start_parallel
from tests.unit.training.standins import (
    assert_equal,
    contents,
    make_plan,
    make_state,
    make_store,
    run,
)


@pytest.fixture
def trained(tmp_path):
    """A run with checkpoints at steps 8 and 12."""
    return run(tmp_path)


def checkpoints(folder):
    return [path.name for path in checkpoint.list_checkpoints(folder / "checkpoints")]


def test_a_checkpoint_is_complete_and_old_ones_are_pruned(trained, tmp_path):
    assert checkpoints(tmp_path) == ["step-00000008", "step-00000012"]
    newest = tmp_path / "checkpoints" / "step-00000012"
    assert sorted(path.name for path in newest.iterdir()) == [
        "ema.safetensors",
        "model.safetensors",
        "optimizer.safetensors",
        "recipe.yaml",
        "state.json",
    ]
    assert checkpoint.damage(newest) is None


def test_what_an_interruption_saved_goes_once_there_is_a_newer_one(tmp_path):
    def saved(*steps: int) -> list[int]:
        for step in steps:
            (tmp_path / f"step-{step:08d}").mkdir()
            (tmp_path / f"step-{step:08d}" / checkpoint.STATE).touch()
            checkpoint.prune(tmp_path, keep=3, every=10)
        return [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(tmp_path)]

    assert saved(10, 14) == [10, 14]
    assert saved(17) == [10, 17]
    assert saved(20, 30) == [10, 20, 30]
    assert saved(33) == [20, 30, 33]
    assert saved(35, 40) == [20, 30, 40]


def test_other_names_and_empty_folders_do_not_count(trained, tmp_path):
    names = ("step-abc", "step-00000099", "step-", "step-²²²²²²²²", "step--0000001")
    for name in names:
        (tmp_path / "checkpoints" / name).mkdir()
    (tmp_path / "checkpoints" / "step-abc" / "file").touch()
    (tmp_path / "checkpoints" / "step-00000100").touch()
    assert checkpoints(tmp_path) == ["step-00000008", "step-00000012"]
    assert checkpoint.find_weights(tmp_path).parent.name == "step-00000012"
    assert run(tmp_path).step == 12
    assert all((tmp_path / "checkpoints" / name).is_dir() for name in names)


def test_a_pipe_is_no_weights_file_and_no_state(trained, tmp_path):
    """Opening one would wait for a writer for ever."""
    newest = tmp_path / "checkpoints" / "step-00000012"
    for name in (checkpoint.STATE, checkpoint.EMA):
        (newest / name).unlink()
        os.mkfifo(newest / name)
    assert checkpoint.damage(newest) == "state.json is missing or damaged"
    assert checkpoint.find_weights(tmp_path).parent.name == "step-00000008"
    os.mkfifo(tmp_path / "pipe.safetensors")
    os.symlink("/dev/zero", tmp_path / "device.safetensors")
    for name, kind in (("pipe", "pipe"), ("device", "device")):
        with pytest.raises(CheckpointError, match=f"got it is a {kind}, not a file"):
            checkpoint.find_weights(tmp_path / f"{name}.safetensors")
    for read in (checkpoint.read_header, checkpoint.read_tensors):
        with pytest.raises(CheckpointError, match="got it is a pipe, not a file"):
            read(newest / checkpoint.EMA)


def test_what_is_read_back_is_what_was_written(trained, tmp_path):
    parallel = start_parallel("cpu", mode="ddp")
    state = make_state(parallel)
    path = make_store(tmp_path, parallel).resume(state)
    assert path.name == "step-00000012"
    assert_equal(state, trained)


@pytest.mark.parametrize("name", ["ema.safetensors", "optimizer.safetensors", "recipe.yaml"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_after_damage_the_checkpoint_before_is_loaded(trained, tmp_path, name, harm, caplog):
    newest = tmp_path / "checkpoints" / "step-00000012"
    data = bytearray((newest / name).read_bytes())
    data[len(data) // 2] ^= 1
    if harm == "flip":
        (newest / name).write_bytes(data)
    elif harm == "cut":
        (newest / name).write_bytes(data[:-1])
    else:
        (newest / name).unlink()
    parallel = start_parallel("cpu", mode="ddp")
    state = make_state(parallel)
    path = make_store(tmp_path, parallel).resume(state)
    assert (path.name, state.step) == ("step-00000008", 8)
    assert name in caplog.messages[0]
    assert "falling back to the one before" in caplog.messages[0]
    # Put aside: a later pruning must count good ones only.
    assert checkpoints(tmp_path) == ["step-00000008"]
    assert (tmp_path / "checkpoints" / "damaged-step-00000012").is_dir()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "[" * 100_000, '{"step": 12}', None],
    ids=["empty", "open", "list", "nested", "short", "changed"],
)
def test_a_damaged_state_file_is_noticed(trained, tmp_path, text):
    state_file = tmp_path / "checkpoints" / "step-00000012" / "state.json"
    if text is None:  # valid JSON, one figure changed
        state = json.loads(state_file.read_text())
        state["progress"]["skipped"] = 5
        text = json.dumps(state)
    state_file.write_text(text)
    assert "state.json" in checkpoint.damage(state_file.parent)


def test_a_run_goes_on_after_damage_and_ends_as_if_nothing_had_happened(trained, tmp_path):
    (tmp_path / "checkpoints" / "step-00000012" / "model.safetensors").write_bytes(b"")
    assert_equal(run(tmp_path), trained)
    assert checkpoints(tmp_path) == ["step-00000008", "step-00000012"]


def test_all_damaged_is_an_error_and_not_a_silent_start_from_nothing(trained, tmp_path):
    for path in checkpoint.list_checkpoints(tmp_path / "checkpoints"):
        (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be used; got 2 damaged"):
        run(tmp_path)


def test_leftovers_of_a_killed_process_are_ignored_and_removed(trained, tmp_path):
    for name in (".partial-step-00000016", ".old-step-00000004"):
        (tmp_path / "checkpoints" / name).mkdir()
    parallel = start_parallel("cpu", mode="ddp")
    assert make_store(tmp_path, parallel).resume(make_state(parallel)).name == "step-00000012"
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000008", "step-00000012"]


def test_weights_are_found_by_run_checkpoint_or_file(trained, tmp_path):
    newest = tmp_path / "checkpoints" / "step-00000012"
    for ref in (tmp_path, newest.parent, newest, newest / "ema.safetensors"):
        assert checkpoint.find_weights(ref) == newest / "ema.safetensors"
    raw = newest / "model.safetensors"
    assert checkpoint.find_weights(raw) == raw
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*nothing"):
        checkpoint.find_weights(tmp_path / "nothing")
    (tmp_path / "weights.pt").write_bytes(b"pickled")
    with pytest.raises(CheckpointError, match=r"weights.pt is no .safetensors file; .*never read"):
        checkpoint.find_weights(tmp_path / "weights.pt")


def test_damaged_weights_are_passed_over_and_logged(trained, tmp_path, caplog):
    (tmp_path / "checkpoints" / "step-00000012" / "ema.safetensors").write_bytes(b"x")
    assert checkpoint.find_weights(tmp_path).parent.name == "step-00000008"
    assert len(caplog.messages) == 1


def test_a_weights_file_is_a_complete_model(trained, tmp_path):
    path = checkpoint.find_weights(tmp_path)
    assert checkpoint.read_header(path) == {
        "recipe": "name: tiny\n",
        "classes": "[]",
        "hpdm_version": "0",
        "step": "12",
        "kind": "ema",
        "seconds": str(round(checkpoint.read_progress(path.parent)["seconds"])),
    }
    for name, tensor in checkpoint.read_tensors(path).items():
        assert torch.equal(tensor, contents(trained)[f"ema/{name}"])


def test_foreign_and_broken_weights_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    checkpoint.write_tensors(path, {"x": torch.zeros(1)}, {"step": "1"})
    with pytest.raises(CheckpointError, match=r"no classes, kind, recipe in its header"):
        checkpoint.read_header(path)
    path.write_bytes(b"not weights")
    for read in (checkpoint.read_header, checkpoint.read_tensors):
        with pytest.raises(CheckpointError, match=r"cannot read weights .*download it again"):
            read(path)


def test_a_checkpoint_of_another_model_is_refused(trained, tmp_path):
    parallel = start_parallel("cpu", mode="ddp")
    state = make_state(parallel)
    state.network.read = torch.nn.Linear(5, 5)
    with pytest.raises(CheckpointError, match=r"does not fit this model at read.weight"):
        make_store(tmp_path, parallel).resume(state)


@pytest.mark.parametrize("optimizer", ["lamb", "adamw", "muon"])
def test_pieces_equal_one_run_bit_for_bit(tmp_path, optimizer):
    """Weights, averages, moments, data order, dropout: 12 steps = 5 + 7 with a stop between."""
    whole = run(tmp_path / "whole", optimizer=optimizer)
    run(tmp_path / "parts", plan=make_plan(steps=5), optimizer=optimizer)
    assert_equal(run(tmp_path / "parts", optimizer=optimizer), whole)
