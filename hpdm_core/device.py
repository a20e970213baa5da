"""The compute device: choice, precision and free memory."""

import logging
import platform
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import torch

from hpdm_core.errors import DeviceError

logger = logging.getLogger("hpdm.device")

Precision = Literal["fp32", "tf32", "bf16"]


def resolve_device(device: str, *, local_rank: int = 0) -> torch.device:
    """Turn "auto", "cpu" or "cuda" into a device of this process.

    Raises:
        DeviceError: another name, no CUDA device, or fewer of them than processes.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise DeviceError("unknown device", got=device, expected="auto, cpu or cuda")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and not found):
        return torch.device("cpu")
    if local_rank >= found:
        raise DeviceError(
            "not enough CUDA devices on this machine",
            got=found,
            expected=f"at least {local_rank + 1}",
            remedy="use --device cpu, or start as many processes as there are devices",
        )
    return torch.device("cuda", local_rank)


def device_name(device: torch.device) -> str:
    """Return the model name of a GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = _lines(Path("/proc/cpuinfo"))
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def set_precision(precision: Precision, *, device: torch.device, training: bool = False) -> None:
    """Let CUDA matrix products use TF32, or keep them in full float32. CPUs stay as they are.

    Args:
        precision: of matrix products.
        device: that computes.
        training: say so where bfloat16 is requested and the CPU has none. Sampling is in float32.
    """
    if training and precision == "bf16" and emulates_bf16(device):
        logger.warning(
            "this processor has no bfloat16 arithmetic: train.precision=bf16 computes in float32"
        )
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")


def autocast(precision: Precision, *, device: torch.device) -> AbstractContextManager[None]:
    """Context for bfloat16 autocast if requested; weights and gradients stay float32.

    A CPU without bfloat16 arithmetic, which would convert, many times slower, stays in float32.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(precision, device))


def uses_bf16(precision: Precision, device: torch.device) -> bool:
    """Return whether matrix products are in bfloat16: it is requested, and the device has it."""
    return precision == "bf16" and not emulates_bf16(device)


def emulates_bf16(device: torch.device) -> bool:
    """Return whether a device is a CPU without bfloat16 arithmetic."""
    return device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def available_memory(device: torch.device) -> int | None:
    """Return the free bytes of a device; None if unknown.

    On CUDA: free memory, and what this process's allocator holds unused. On a CPU: what
    the kernel calls available, within the limits of the process's control groups.
    """
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    return host_memory(Path("/"))


def host_memory(root: Path) -> int | None:
    """Return the bytes of main memory that this process may still take; None if unknown.

    Args:
        root: root of the file system that holds `proc` and `sys`.
    """
    table = _table(root / "proc" / "meminfo")
    free = [table["MemAvailable"] * 1024] if "MemAvailable" in table else []
    return min(free + _group_memory(root), default=None)


# Per version of control groups: the folder below sys/fs/cgroup, limit, use, and the share of the
# use that is page cache which the kernel drops when memory runs short.
_GROUP_FILES = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": (
        "memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
}


def _group_memory(root: Path) -> list[int]:
    """Return what is left in each control group that limits this process."""
    left = []
    for line in _lines(root / "proc" / "self" / "cgroup"):
        _, controllers, place = line.split(":", 2)
        if controllers not in _GROUP_FILES:
            continue
        folder, limit, use, cache = _GROUP_FILES[controllers]
        top = root / "sys" / "fs" / "cgroup" / folder
        # A limit of an outer group holds for all groups inside it.
        for group in (Path(place), *Path(place).parents):
            here = top / str(group).lstrip("/")
            limits, uses = _lines(here / limit), _lines(here / use)
            if limits and uses and limits[0].isdecimal():
                dropped = _table(here / "memory.stat").get(cache, 0)
                left.append(max(0, int(limits[0]) - int(uses[0]) + dropped))
    return left


def _table(path: Path) -> dict[str, int]:
    """Read lines such as `MemAvailable: 100 kB` or `inactive_file 100`."""
    rows = [line.replace(":", " ").split() for line in _lines(path)]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
