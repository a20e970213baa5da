"""One process or several, behind one interface.

`torchrun` sets RANK, WORLD_SIZE and LOCAL_RANK; this file alone reads them. Several processes
use torch's DDP (each holds the whole model) or FSDP2 (each holds a shard of it).
"""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hpdm_core.device import available_memory, resolve_device
from hpdm_core.training.sharding import fill, local_all, shard_group

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
        replicas: under FSDP2, how many times the shards of the model are held (HSDP).
    """

    rank: int
    world_size: int
    device: torch.device
    mode: Mode
    replicas: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def wrap(self, network: nn.Module, *, some_unused: bool) -> nn.Module:
        """Return the module to call in training; under FSDP2 the network itself, now sharded.

        Args:
            network: on this process's device; under FSDP2 it may be on the meta device.
            some_unused: whether a step may leave weights without a gradient (level dropout).
        """
        if self.mode == "ddp":
            return DistributedDataParallel(network, find_unused_parameters=some_unused)
        if self.mode == "fsdp":
            shape = (self.replicas, self.world_size // self.replicas)
            return _shard(network, shape, self.device.type)
        return network

    def place(
        self, network: nn.Module, weights: Iterable[tuple[str, Tensor]], *, some_unused: bool
    ) -> nn.Module:
        """Move a network from the meta device to this one, sharded first; return what to call.

        No process holds more than its share of the network and one of the weights.

        Args:
            network: on the meta device.
            weights: its parameters by name, whole.
            some_unused: as in `wrap`.
        """
        sharded = self.mode == "fsdp"
        if sharded:
            self.wrap(network, some_unused=some_unused)
        network.to_empty(device=self.device)
        fill(network, weights)
        return network if sharded else self.wrap(network, some_unused=some_unused)

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

    @cached_property
    def writing_group(self) -> dist.ProcessGroup:
        """A group for writing in the background, whose messages must not mix with training's."""
        return dist.new_group(backend="gloo")

    def close(self) -> None:
        """Leave the process group."""
        if self.mode != "single" and dist.is_initialized():
            dist.destroy_process_group()


def start_parallel(device: str, *, mode: Literal["ddp", "fsdp"], replicas: int = 1) -> Parallel:
    """Join the process group of torchrun, if any.

    Args:
        device: "auto", "cpu" or "cuda".
        mode: parallelism of several processes; no effect in a single one.
        replicas: as in `Parallel`; it divides the number of processes.

    Raises:
        DeviceError: CUDA was asked for and is absent, or has fewer devices than processes.
    """
    rank = int(os.environ.get("RANK", "0"))
    world_size = num_processes()
    place = resolve_device(device, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
    shared = mode if world_size > 1 else "single"
    replicas = replicas if shared == "fsdp" else 1
    return Parallel(rank=rank, world_size=world_size, device=place, mode=shared, replicas=replicas)


def num_processes() -> int:
    """Return the number of torchrun's processes, before they have joined."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_processes() -> int:
    """Return the number of torchrun's processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", num_processes()))


def free_memory(device: torch.device) -> int | None:
    """Return the free bytes that one process may plan with; None where that is unknown.

    The processes of a machine have a GPU each, but share its main memory.
    """
    free = available_memory(device)
    if free is None or device.type == "cuda":
        return free
    return free // local_processes()


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


def _shard(network: nn.Module, shape: tuple[int, int], device_type: str) -> nn.Module:
    """Shard the weights block by block (FSDP2) over a mesh of (replicas, shards)."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    axes = ("replicate", "shard") if shape[0] > 1 else ("shard",)
    mesh = dist.device_mesh.init_device_mesh(device_type, shape[-len(axes) :], mesh_dim_names=axes)
    for block in network.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    # Previews call these instead of forward; they must gather the weights too.
    for method in PREVIEW_METHODS:
        if hasattr(network, method):
            register_fsdp_forward_method(network, method)
    return network
