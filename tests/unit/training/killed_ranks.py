"""One of two gloo ranks of a stand-in run that `test_killed_ranks.py` kills.

What torch imports late (800 modules with the optimiser, FSDP2 and its checkpoints) is imported
here, by the server that forks the ranks: once, and not at each of their starts.
"""

import os
import time
from pathlib import Path

import torch
import torch._dynamo
import torch.distributed.fsdp
from safetensors.torch import save_file

from hpdm_core.training import sharded_checkpoint  # noqa: F401
from hpdm_core.training.parallel import start_parallel
from hpdm_core.training.sharding import whole
from tests.unit.training.standins import contents, make_batches, make_plan, run, tiny_loss

STEPS = 120


def slow_loss(network, batch, *, seed, step):
    time.sleep(0.005)  # so that kills fall between steps as well as into saving
    return tiny_loss(network, batch, seed=seed, step=step)


def rank_of_run(folder: Path, mode: str, kind: str, log: Path, environment: dict[str, str]) -> None:
    """Train to the end, or on from where a killed run was, and write the weights."""
    os.environ.update(environment)
    with log.open("ab") as out:
        for stream in (1, 2):
            os.dup2(out.fileno(), stream)
    torch.set_num_threads(1)
    parallel = start_parallel("cpu", mode=mode)

    def batches(start_step: int):
        return make_batches(start_step, rank=parallel.rank, world_size=parallel.world_size)

    state = run(
        folder, plan=make_plan(steps=STEPS, checkpoint_every=3), loss=slow_loss, batches=batches,
        parallel=parallel, asynchronous=kind == "beside",
    )  # fmt: skip
    tensors = {name: whole(tensor.detach()).clone() for name, tensor in contents(state).items()}
    if parallel.is_main:
        save_file(tensors, folder / "end.safetensors")
    parallel.close()
