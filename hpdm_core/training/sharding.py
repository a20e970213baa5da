"""The shard of a tensor that this process holds. Whole tensors are their own shard.

FSDP2 turns parameters into `DTensor`s. They are detected by their methods, so that a single
process need not import torch's distributed tensors.
"""

import ctypes
from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

LARGE = 1 << 20


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of `tensor`, sharing its memory."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def local_all(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the local parts of many tensors, sharing their memory."""
    return [local(tensor) for tensor in tensors]


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor, gathered from all processes where it is sharded (collective)."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_group(tensor: Tensor) -> dist.ProcessGroup | None:
    """Return the processes over which `tensor` is sharded; None where it is whole."""
    if not hasattr(tensor, "device_mesh"):
        return None
    # The last axis of the mesh; replicas of shards are along the first.
    return tensor.device_mesh.get_group(tensor.device_mesh.ndim - 1)


def gathered(part: Tensor, *, like: Tensor) -> Tensor:
    """Return the whole tensor of which this process holds `part` (collective where sharded).

    Args:
        part: this process's shard, of any dtype.
        like: a tensor that is sharded in the same way.
    """
    if not hasattr(like, "device_mesh"):
        return part
    from torch.distributed.tensor import DTensor

    sharded = DTensor.from_local(
        part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
    return sharded.full_tensor()


def own_shard(source: Tensor, *, like: Tensor) -> Tensor:
    """Return this process's shard of the whole tensor `source`, sharded as `like` is."""
    if not hasattr(like, "device_mesh"):
        return source
    from torch.distributed.tensor import distribute_tensor

    source = source.to(like.device)
    return distribute_tensor(
        source, like.device_mesh, like.placements, src_data_rank=None
    ).to_local()


def copy_whole(target: Tensor, source: Tensor) -> None:
    """Copy the whole tensor `source` into `target`, this process's shard of it."""
    local(target).copy_(own_shard(source, like=target))


def fill(network: nn.Module, values: Iterable[tuple[str, Tensor]]) -> None:
    """Copy whole tensors by parameter name, one at a time, into this process's shards of them.

    What each leaves behind is returned to the system, so that the peak is the shards and a few
    tensors: glibc raises its threshold for that with every large block freed, up to 32 MB.
    """
    targets = dict(network.named_parameters())
    return_memory = memory_returner()
    with torch.no_grad():
        for name, value in values:
            copy_whole(targets.pop(name), value)
            if value.nbytes >= LARGE:
                del value
                return_memory()
    assert not targets, f"not initialised: {', '.join(targets)}"


def memory_returner() -> Callable[[], object]:
    """Return glibc's `malloc_trim`; where there is none, a function that does nothing."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another libc, or Windows
        return lambda: None
    return partial(trim, ctypes.c_size_t(0))


def reshard(network: nn.Module) -> None:
    """Drop gathered copies of sharded weights, so that the next pass gathers them again."""
    for module in network.modules():
        if hasattr(module, "reshard"):
            module.reshard()
