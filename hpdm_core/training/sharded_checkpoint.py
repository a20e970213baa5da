"""Sharded checkpoints: torch.distributed.checkpoint in safetensors (no pickle), any device count.

Every process writes its own shards; on reading, each loads what it needs, for any number of
processes.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from hpdm_core.errors import CheckpointError


def write_sharded(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write the shards of `tensors` (collective).

    Raises:
        OSError: a process could not write, on all of them.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp.save(tensors, storage_writer=writer)
    except CheckpointException as error:
        raise _as_os_error(error) from error


def begin_sharded(
    folder: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup
) -> Callable[[], None]:
    """Copy the shards of `tensors` to main memory and begin to write them (collective).

    Args:
        folder: where to.
        tensors: sharded.
        group: of gloo, used by nothing else meanwhile.

    Returns:
        a function that waits until every process has written its shards, and raises OSError if
        one could not.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    written = dcp.async_save(tensors, storage_writer=writer, process_group=group)

    def wait() -> None:
        try:
            written.result()
        except CheckpointException as error:
            raise _as_os_error(error) from error

    return wait


def _as_os_error(error: CheckpointException) -> OSError:
    return OSError(f"sharded checkpoint: {next(iter(error.failures.values()))[0]}")


def read_sharded(folder: Path, targets: dict[str, Tensor]) -> None:
    """Fill `targets` in place, whatever their sharding (collective for several processes).

    Raises:
        CheckpointError: a tensor is absent or has another shape.
    """
    shapes = sharded_shapes(folder)
    for name, target in targets.items():
        if shapes.get(name) != tuple(target.shape):
            raise CheckpointError(
                f"{folder} does not fit this model at {name}",
                got=shapes.get(name, "nothing"),
                expected=tuple(target.shape),
            )
    reader = HuggingFaceStorageReader(str(folder))
    with warnings.catch_warnings():  # a single process without a group is intended
        warnings.simplefilter("ignore")
        dcp.load(targets, storage_reader=reader, no_dist=not dist.is_initialized())


def sharded_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor, without reading it."""
    metadata = HuggingFaceStorageReader(str(folder)).read_metadata()
    return {name: tuple(entry.size) for name, entry in metadata.state_dict_metadata.items()}
