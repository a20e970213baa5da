"""One of several gloo processes that build a network on the meta device and shard it.

Run with RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT set by `test_placed.py`:
`python placed_processes.py FOLDER CASE`.
"""

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from hpdm_core.build import build_diffusion, build_network, build_optimizer
from hpdm_core.recipe.load import load_recipe, recipe_from_yaml
from hpdm_core.recipe.schema import Recipe
from hpdm_core.records import PatchBatch
from hpdm_core.runs.train.run import plan_from
from hpdm_core.training.ema import Ema
from hpdm_core.training.loop import train_step
from hpdm_core.training.parallel import Parallel, start_parallel
from hpdm_core.training.sharding import local, whole
from hpdm_core.training.stopping import StopRequest
from hpdm_core.training.store import TrainState
from tests.golden.ten_steps import BATCH, RECIPE, make_batch
from tests.unit.training.standins import contents, make_store

SEED = 3


def golden() -> Recipe:
    text = RECIPE.replace("OPTIMIZER", "lamb").replace("dropout: 0.1", "dropout: 0.0")
    return recipe_from_yaml(text, "golden")


def placed(recipe: Recipe, parallel: Parallel) -> TrainState:
    with torch.device("meta"):
        network, twin = build_network(recipe), build_network(recipe)
    torch.manual_seed(SEED)
    module = parallel.place(network, twin.initial_weights(), some_unused=False)
    return TrainState(
        network=network,
        module=module,
        optimizer=build_optimizer(network, recipe),
        ema=Ema(network, half_life=5.0, ramp=0.5),
    )


def steps(
    state: TrainState, recipe: Recipe, parallel: Parallel, *, count: int
) -> list[tuple[float, ...]]:
    """Train on this process's rows; return each step's losses: the total, then by level."""
    losses = []
    share = BATCH // parallel.world_size
    own = slice(parallel.rank * share, (parallel.rank + 1) * share)
    for number in range(state.step, state.step + count):
        batch = make_batch(recipe, number)
        part = PatchBatch(
            patches=tuple(patch[own] for patch in batch.patches),
            offsets=batch.offsets[own],
            condition=batch.condition.select(own),
            indices=batch.indices[own],
            keys=batch.keys[own],
        )
        report = train_step(
            state, part, loss=build_diffusion(recipe).loss, plan=plan_from(recipe),
            parallel=parallel, stop=StopRequest(),
        )  # fmt: skip
        losses.append((report.loss, *report.per_level))
    return losses


def dump(path: Path, state: TrainState, parallel: Parallel) -> None:
    tensors = {name: whole(tensor).clone() for name, tensor in contents(state).items()}
    if parallel.is_main:
        save_file(tensors, path)
    parallel.barrier()


def trained(folder: Path, mode: str, replicas: int) -> None:
    """Save the state after two steps, after two more of a run resumed as plain FSDP, and losses."""
    recipe = golden()
    parallel = start_parallel("cpu", mode=mode, replicas=replicas)
    state = placed(recipe, parallel)
    losses = steps(state, recipe, parallel, count=2)
    dump(folder / "two.safetensors", state, parallel)
    assert make_store(folder, parallel).save(state) is not None
    held = sum(local(p).numel() for p in state.network.parameters())
    (folder / f"held-{parallel.rank}.txt").write_text(str(held))
    other = replace(parallel, mode="fsdp", replicas=1)
    again = placed(recipe, other)
    assert make_store(folder, other).resume(again) is not None
    losses += steps(again, recipe, other, count=2)
    dump(folder / "four.safetensors", again, other)
    (folder / f"losses-{parallel.rank}.json").write_text(json.dumps(losses))
    parallel.close()


def written_beside_training(folder: Path, mode: str) -> None:
    """Save asynchronously after two steps, train on, and read the checkpoint."""
    recipe = golden()
    parallel = start_parallel("cpu", mode=mode)
    state = placed(recipe, parallel)
    steps(state, recipe, parallel, count=2)
    dump(folder / "expected.safetensors", state, parallel)
    store = make_store(folder, parallel, asynchronous=True)
    assert store.save(state, wait=False) is not None
    steps(state, recipe, parallel, count=2)
    assert store.wait()
    again = placed(recipe, parallel)
    assert make_store(folder, parallel).resume(again) is not None
    dump(folder / "found.safetensors", again, parallel)
    parallel.close()


def peak_memory(folder: Path) -> None:
    """Write by how much building hpdm_s raised this process's peak, and what its share is."""
    recipe = load_recipe("hpdm_s", ["model.num_classes=101"])
    parallel = start_parallel("cpu", mode="fsdp")
    with torch.device("meta"):
        network, twin = build_network(recipe), build_network(recipe)
    block = max(sum(p.numel() for p in block.parameters()) for block in twin.blocks)
    placed(golden(), parallel)  # torch imports what it needs
    torch.manual_seed(SEED)
    parallel.barrier()
    before = peak()
    parallel.place(network, twin.initial_weights(), some_unused=False)
    grown = peak() - before
    share = 4 * sum(local(p).numel() for p in network.parameters())
    (folder / f"peak-{parallel.rank}.txt").write_text(f"{grown} {share} {4 * block}")
    parallel.close()


def peak() -> int:
    """Return this process's largest resident memory so far, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
    place, case, *arguments = sys.argv[1:]
    if case == "peak":
        peak_memory(Path(place))
    elif case == "beside":
        written_beside_training(Path(place), *arguments)
    else:
        trained(Path(place), case, int(arguments[0]))
