"""Networks built on the meta device: initial weights, HSDP over four processes, peak memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hpdm_core.build import build_network
from hpdm_core.errors import RecipeError
from hpdm_core.recipe.load import load_recipe
from hpdm_core.runs.train.fit import training_memory
from hpdm_core.runs.train.preflight import check_processes
from hpdm_core.training.parallel import start_parallel
from tests.unit.training.placed_processes import SEED, golden, placed, steps
from tests.unit.training.standins import contents
from tests.unit.training.test_parallel import LONG, free_port, process_environment

SCRIPT = Path(__file__).with_name("placed_processes.py")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"block": "transformer"},
        {"context": "shallow"},
        {"positions": "factorised", "conditioning": "none"},
    ],
    ids=str,
)
def test_initial_weights_are_those_of_a_network_built_in_memory(changes):
    recipe = golden().with_fields("model", changes)
    network = build_network(recipe)
    torch.manual_seed(SEED)
    network.reset_parameters()
    state = placed(recipe, start_parallel("cpu", mode="ddp"))
    expected = dict(network.named_parameters())
    found = dict(state.network.named_parameters())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def start(folder: Path, *arguments: str, processes: int) -> None:
    env = process_environment(processes, free_port())
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), *arguments],
            env={**env, "RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(processes)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=LONG)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, "\n".join(outputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "replicas", "share"),
    [("fsdp", 2, 2), ("fsdp", 1, 4), ("ddp", 1, 1)],
    ids=["hsdp", "fsdp", "ddp"],
)
def test_four_processes_equal_one(tmp_path, mode, replicas, share):
    start(tmp_path, mode, str(replicas), processes=4)
    parallel = start_parallel("cpu", mode="ddp")
    state = placed(golden(), parallel)
    total = sum(p.numel() for p in state.network.parameters())
    held = [int((tmp_path / f"held-{rank}.txt").read_text()) for rank in range(4)]
    assert sum(held) == pytest.approx(4 * total / share, rel=0.05)
    losses = []
    for name in ("two", "four"):
        losses += steps(state, golden(), parallel, count=2)
        found = load_file(tmp_path / f"{name}.safetensors")
        for key, value in contents(state).items():
            # Where a gradient is nearly zero, LAMB enlarges the rounding of sums in another order.
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=5e-5)
    # What each process reports is the loss of the whole batch.
    for rank in range(4):
        found = json.loads((tmp_path / f"losses-{rank}.json").read_text())
        torch.testing.assert_close(torch.tensor(found), torch.tensor(losses), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fsdp", "ddp"])
def test_a_checkpoint_written_beside_training_is_that_of_its_step(tmp_path, mode):
    start(tmp_path, "beside", mode, processes=2)
    expected, found = (load_file(tmp_path / f"{n}.safetensors") for n in ("expected", "found"))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.slow
def test_a_process_holds_its_share_and_one_block(tmp_path):
    start(tmp_path, "peak", processes=2)
    for rank in range(2):
        grown, share, block = map(int, (tmp_path / f"peak-{rank}.txt").read_text().split())
        print(
            f"rank {rank}: {grown / 1e6:.0f} MB; share {share / 1e6:.0f}, block {block / 1e6:.0f}"
        )
        assert grown <= 1.3 * share + block


def test_replicas_divide_the_processes_and_their_shards_count():
    recipe = load_recipe("hpdm_t2v", ["train.replicas=4"])
    check_processes(recipe, 8)
    with pytest.raises(RecipeError, match=r"train\.replicas .*got 4 of 6"):
        check_processes(recipe.with_fields("train", {"batch_size": 6}), 6)
    parameters = {"total": 4 * 10**9, "blocks": 3 * 10**9}
    needed = [
        training_memory(recipe.with_fields("train", {"replicas": replicas}), parameters, devices=8)
        .needed(1)["weights_and_optimizer"]
        for replicas in (1, 4)
    ]  # fmt: skip
    assert needed == [20 * parameters["total"] // 8, 20 * parameters["total"] // 2]
