"""Two gloo processes against one: DDP and FSDP2 give the same gradients, weights and averages."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hpdm_core.build import describe
from hpdm_core.recipe.load import load_recipe
from hpdm_core.runs.train.fit import fit_micro_batch
from hpdm_core.training import checkpoint
from hpdm_core.training.parallel import start_parallel
from tests.unit.training.standins import contents, make_state, make_store
from tests.unit.training.two_processes import first_step, run_here

ROOT = Path(__file__).resolve().parents[3]
MODES = ["ddp", "fsdp"]
LONG = 900.0  # seconds: a bound for a machine that is busy, not a measurement


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def process_environment(world_size: int, port: int) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What two processes wrote."""
    folder = tmp_path_factory.mktemp("two")
    script = Path(__file__).with_name("two_processes.py")
    env = process_environment(2, free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder)],
            env={**env, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=LONG)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The same eight steps in one process."""
    parallel = start_parallel("cpu", mode="ddp")
    return contents(run_here(tmp_path_factory.mktemp("one"), parallel, steps=8))


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("mode", MODES)
def test_half_the_batch_each_gives_the_gradients_of_one_process(folder, mode, micro_batch):
    _, grads = first_step(start_parallel("cpu", mode="ddp"), micro_batch=None)
    found = load_file(folder / f"{mode}-grads-{micro_batch}.safetensors")
    assert found.keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-5, atol=1e-6)


def test_fsdp_equals_ddp_equals_one_process_after_eight_steps(folder, single):
    """Weights, averages and moments, through pyramid cuts and previews."""
    ends = {mode: load_file(folder / f"{mode}-end.safetensors") for mode in MODES}
    assert ends["ddp"].keys() == ends["fsdp"].keys() == single.keys()
    for name, tensor in single.items():
        torch.testing.assert_close(ends["ddp"][name], tensor, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ends["fsdp"][name], ends["ddp"][name], rtol=1e-4, atol=1e-5)


def test_every_averaged_weight_moves_under_sharding(folder):
    """The paper's authors met averages that were not updated under FSDP (appendix D)."""
    start = contents(make_state(start_parallel("cpu", mode="ddp")))
    end = load_file(folder / "fsdp-end.safetensors")
    averages = [name for name in end if name.startswith("ema/")]
    assert len(averages) == len([name for name in end if name.startswith("model/")])
    for name in averages:
        assert not torch.equal(end[name], start[name]), name
        assert not torch.equal(end[name], end[name.replace("ema/", "model/")]), name


def test_the_gathered_average_is_a_complete_model(folder):
    end = load_file(folder / "fsdp-end.safetensors")
    path = checkpoint.find_weights(folder / "fsdp-run")
    assert checkpoint.read_header(path)["kind"] == "ema"
    names = {f"ema/{name}" for name in checkpoint.read_tensors(path)}
    assert names == {name for name in end if name.startswith("ema/")}


def test_rank_0_alone_writes_whole_files(folder):
    for mode in MODES:
        assert (folder / f"{mode}-written-0.txt").read_text()
        assert not (folder / f"{mode}-written-1.txt").read_text()


def test_fsdp_holds_half_of_everything_and_ddp_all(folder):
    shares = {
        mode: [float((folder / f"{mode}-share-{rank}.txt").read_text()) for rank in range(2)]
        for mode in MODES
    }
    assert shares["ddp"] == [1.0, 1.0]
    assert shares["fsdp"] == pytest.approx([0.5, 0.5], abs=0.03)


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_is_taken_back_by_one_process(folder, mode, tmp_path):
    """Written by two, whole or in shards, read by one: the same tensors, bit for bit."""
    parallel = start_parallel("cpu", mode="ddp")
    state = make_state(parallel)
    copy = tmp_path / "checkpoints"
    copy.mkdir()
    source = folder / f"{mode}-run" / "checkpoints" / "step-00000008"
    (copy / source.name).symlink_to(source)
    assert make_store(tmp_path, parallel).resume(state).name == source.name
    end = load_file(folder / f"{mode}-end.safetensors")
    for name, tensor in contents(state).items():
        assert torch.equal(tensor, end[name]), name


def test_runs_go_on_with_the_other_kind_of_parallel(folder):
    """DDP's checkpoint under FSDP2 and the other way round: two steps more are the same."""
    one, other = (load_file(folder / f"{mode}-continued.safetensors") for mode in MODES)
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_disk_that_is_full_for_one_process_hangs_nobody(folder):
    for rank in range(2):
        said = (folder / f"full-disk-{rank}.txt").read_text()
        assert "No space left on device" in said
        assert "the last checkpoint (step 4) could not be written" in said
    assert list((folder / "full-disk" / "checkpoints").iterdir()) == []


def test_muon_orthogonalises_whole_matrices_under_sharding(folder, tmp_path):
    """Two processes with half of each matrix equal one with the whole; a resumed run the same."""
    parallel = start_parallel("cpu", mode="ddp")
    single = contents(run_here(tmp_path, parallel, steps=8, optimizer="muon"))
    end, parts = (load_file(folder / f"muon-{name}.safetensors") for name in ("end", "parts"))
    assert end.keys() == parts.keys() == single.keys()
    assert "momentum_buffer/blocks.0.linear.weight" in single
    for name, tensor in single.items():
        torch.testing.assert_close(end[name], tensor, rtol=1e-4, atol=1e-5)
        assert torch.equal(parts[name], end[name]), name


def test_muon_s_shards_are_taken_back_by_one_process(folder, tmp_path):
    parallel = start_parallel("cpu", mode="ddp")
    state = make_state(parallel, optimizer="muon")
    (tmp_path / "checkpoints").mkdir()
    source = folder / "muon-run" / "checkpoints" / "step-00000008"
    (tmp_path / "checkpoints" / source.name).symlink_to(source)
    assert make_store(tmp_path, parallel).resume(state).name == source.name
    end = load_file(folder / "muon-end.safetensors")
    for name, tensor in contents(state).items():
        assert torch.equal(tensor, end[name]), name


def test_processes_with_different_free_memory_agree(folder):
    """40 GB for the first and 80 GB for the second, so both take what fits in 40 GB."""
    recipe = load_recipe("hpdm_s", [])
    alone = fit_micro_batch(recipe, describe(recipe)["parameters"], devices=2, free=40 * 10**9)
    for rank in range(2):
        text = (folder / f"micro-batch-{rank}.txt").read_text()
        assert text == f"{40 * 10**9} {alone.micro_batch}"
