"""One process or several, behind one interface.

`torchrun` sets RANK, WORLD_SIZE and LOCAL_RANK; this file alone reads them. Several processes
use torch's DDP (each holds the whole model) or FSDP2 (each holds a shard of it).
"""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hpdm_core.device import available_memory, resolve_device
from hpdm_core.training.sharding import local_all, shard_group

Mode = Literal["single", "ddp", "fsdp"]
UNKNOWN = 2**62  # more bytes than any device has
PREVIEW_METHODS = ("run_level", "context")


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """This process's rank, device and mode of parallelism.

    Args:
        rank: of this process, from 0.
        world_size: number of processes.
        device: where this process computes.
        mode: single process, DDP or FSDP2.
    """

    rank: int
    world_size: int
    device: torch.device
    mode: Mode

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the module to call in training; under FSDP2 the network itself, now sharded."""
        if self.mode == "ddp":
            # With adaptive computation and level dropout some weights have no gradient.
            return DistributedDataParallel(network, find_unused_parameters=True)
        if self.mode == "fsdp":
            return _shard(network, self.world_size, self.device.type)
        return network

    def pass_of(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Context of a forward and backward pass; gradients are synchronised in a step's last."""
        if self.mode == "ddp" and not last:
            return module.no_sync()
        if self.mode == "fsdp":
            module.set_requires_gradient_sync(last)
        return nullcontext()

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over all processes."""
        if self.mode != "single":
            dist.all_reduce(values)
            values = values / self.world_size
        return values

    def any(self, flag: bool) -> bool:
        """Return whether `flag` holds on any process."""
        return bool(self.mean(torch.tensor(float(flag), device=self.device)) > 0)

    def free_memory(self) -> int | None:
        """Return the smallest free memory of all processes, so that all plan alike."""
        free = free_memory(self.device)
        if self.mode == "single":
            return free
        least = torch.tensor(UNKNOWN if free is None else free, device=self.device)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return None if int(least) == UNKNOWN else int(least)

    def from_main(self, number: int) -> int:
        """Broadcast the main process's number."""
        value = torch.tensor(number, device=self.device)
        if self.mode != "single":
            dist.broadcast(value, 0)
        return int(value)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.mode != "single":
            dist.barrier()

    def close(self) -> None:
        """Leave the process group."""
        if self.mode != "single" and dist.is_initialized():
            dist.destroy_process_group()


def start_parallel(device: str, *, mode: Literal["ddp", "fsdp"]) -> Parallel:
    """Join the process group of torchrun, if any.

    Args:
        device: "auto", "cpu" or "cuda".
        mode: parallelism of several processes; no effect in a single one.

    Raises:
        DeviceError: CUDA was asked for and is absent, or has fewer devices than processes.
    """
    rank = int(os.environ.get("RANK", "0"))
    world_size = num_processes()
    place = resolve_device(device, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    shared = mode if world_size > 1 else "single"
    return Parallel(rank=rank, world_size=world_size, device=place, mode=shared)


def num_processes() -> int:
    """Return the number of torchrun's processes, before they have joined."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def free_memory(device: torch.device) -> int | None:
    """Return the free bytes that one process may plan with; None where that is unknown.

    The processes of a machine have a GPU each, but share its main memory.
    """
    free = available_memory(device)
    if free is None or device.type == "cuda":
        return free
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", num_processes()))


@torch.no_grad()
def clip_gradients(params: list[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients to a total norm of at most `max_norm`; return the norm before.

    Returns:
        () float32, the same on every process.
    """
    params = [param for param in params if param.grad is not None]
    grads = local_all(param.grad for param in params)
    square = torch.stack(torch._foreach_norm(grads)).square().sum()
    group = shard_group(params[0])
    if group is not None:
        dist.all_reduce(square, group=group)
    norm = square.sqrt()
    torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _shard(network: nn.Module, world_size: int, device_type: str) -> nn.Module:
    """Shard the weights over all processes, block by block (FSDP2)."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = dist.device_mesh.init_device_mesh(device_type, (world_size,))
    for block in network.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    # Previews call these instead of forward; they must gather the weights too.
    for method in PREVIEW_METHODS:
        if hasattr(network, method):
            register_fsdp_forward_method(network, method)
    return network
