"""One of two gloo processes; `test_parallel.py` starts both and looks at what they write.

Run with RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT set: `python two_processes.py FOLDER`.
"""

import dataclasses
import logging
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from hpdm_core.build import describe
from hpdm_core.recipe.load import load_recipe
from hpdm_core.runs.train.fit import fit_micro_batch
from hpdm_core.training import checkpoint
from hpdm_core.training import parallel as places
from hpdm_core.training.loop import train_step
from hpdm_core.training.parallel import Parallel, start_parallel
from hpdm_core.training.sharding import local, whole
from hpdm_core.training.stopping import StopRequest
from hpdm_core.training.store import TrainState
from tests.unit.training.standins import (
    contents,
    make_batch,
    make_batches,
    make_plan,
    make_state,
    run,
    tiny_loss,
)

ROWS = 8


def gathered(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: whole(tensor.detach()).clone() for name, tensor in tensors.items()}


def dump(path: Path, tensors: dict[str, Tensor], parallel: Parallel) -> None:
    tensors = gathered(tensors)
    if parallel.is_main:
        save_file(tensors, path)
    parallel.barrier()


def first_step(parallel: Parallel, *, micro_batch: int | None) -> tuple[TrainState, dict]:
    """Take one step on this process's half of the batch; return the state and its gradients."""
    state = make_state(parallel, dropout=0.0)
    share = ROWS // parallel.world_size
    batch = make_batch(0, rows=range(parallel.rank * share, (parallel.rank + 1) * share))
    plan = make_plan(grad_clip=1e9, micro_batch=micro_batch)
    train_step(state, batch, loss=tiny_loss, plan=plan, parallel=parallel, stop=StopRequest())
    grads = {name: param.grad for name, param in state.network.named_parameters()}
    return state, grads


def main(folder: Path) -> None:
    parallel = start_parallel("cpu", mode="ddp")
    different_memory(folder, parallel)
    for mode in ("ddp", "fsdp"):
        chosen = dataclasses.replace(parallel, mode=mode)
        for micro_batch in (None, 2):
            _, grads = first_step(chosen, micro_batch=micro_batch)
            dump(folder / f"{mode}-grads-{micro_batch}.safetensors", grads, chosen)
        full_run(folder, mode, chosen)
    for mode in ("ddp", "fsdp"):
        other = dataclasses.replace(parallel, mode={"ddp": "fsdp", "fsdp": "ddp"}[mode])
        state = run_here(folder / f"{mode}-run", other, steps=10)
        dump(folder / f"{mode}-continued.safetensors", contents(state), other)
    muon_run(folder, dataclasses.replace(parallel, mode="fsdp"))
    failing_disk(folder, dataclasses.replace(parallel, mode="fsdp"))
    parallel.close()


def run_here(folder: Path, parallel: Parallel, *, steps: int, **changes: object) -> TrainState:
    def batches(start_step: int):
        return make_batches(
            start_step, batch_size=ROWS, rank=parallel.rank, world_size=parallel.world_size
        )

    return run(
        folder,
        plan=make_plan(steps=steps, preview_every=3, level_drop_prob=0.3),
        batches=batches,
        parallel=parallel,
        dropout=0.0,
        **changes,
    )


def full_run(folder: Path, mode: str, parallel: Parallel) -> None:
    written = []
    write = checkpoint.write_tensors

    def watched(path, tensors, metadata):
        written.append(path.name)
        write(path, tensors, metadata)

    checkpoint.write_tensors = watched
    state = run_here(folder / f"{mode}-run", parallel, steps=8)
    checkpoint.write_tensors = write
    dump(folder / f"{mode}-end.safetensors", contents(state), parallel)
    (folder / f"{mode}-written-{parallel.rank}.txt").write_text("\n".join(written))
    tensors = contents(state)
    held = sum(local(tensor).numel() for tensor in tensors.values())
    share = held / sum(tensor.numel() for tensor in tensors.values())
    (folder / f"{mode}-share-{parallel.rank}.txt").write_text(str(share))


def muon_run(folder: Path, parallel: Parallel) -> None:
    """Train with Muon under FSDP2, in one piece, and once more from the checkpoint of step 4."""
    state = run_here(folder / "muon-run", parallel, steps=8, optimizer="muon")
    dump(folder / "muon-end.safetensors", contents(state), parallel)
    run_here(folder / "muon-parts", parallel, steps=4, optimizer="muon")
    state = run_here(folder / "muon-parts", parallel, steps=8, optimizer="muon")
    dump(folder / "muon-parts.safetensors", contents(state), parallel)


def different_memory(folder: Path, parallel: Parallel) -> None:
    """Let each process have another amount free and choose a micro-batch."""
    per_process = (40, 80)[parallel.rank] * 10**9
    places.available_memory = lambda device: 2 * per_process  # shared by both
    recipe, free = load_recipe("hpdm_s", []), parallel.free_memory()
    fit = fit_micro_batch(recipe, describe(recipe)["parameters"], devices=2, free=free)
    (folder / f"micro-batch-{parallel.rank}.txt").write_text(f"{free} {fit.micro_batch}")


def failing_disk(folder: Path, parallel: Parallel) -> None:
    """Let the last process fail to write its shards: nobody hangs, and no trace is left."""
    from hpdm_core.training import sharded_checkpoint

    class Failing(sharded_checkpoint.HuggingFaceStorageWriter):
        def write_data(self, *args):
            if parallel.rank == 1:
                raise OSError(28, "No space left on device")
            return super().write_data(*args)

    sharded_checkpoint.HuggingFaceStorageWriter = Failing
    file = folder / f"full-disk-{parallel.rank}.txt"
    logging.getLogger("hpdm").addHandler(logging.FileHandler(file))
    try:
        run_here(folder / "full-disk", parallel, steps=4)
    except checkpoint.CheckpointError as error:
        logging.getLogger("hpdm").error(str(error))


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
    main(Path(sys.argv[1]))
