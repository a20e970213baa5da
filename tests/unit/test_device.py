"""Which device is taken, and how much memory it says is free."""

from pathlib import Path

import pytest
import torch

from hpdm_core import device as devices
from hpdm_core.device import (
    autocast,
    available_memory,
    host_memory,
    resolve_device,
    set_precision,
)
from hpdm_core.errors import DeviceError


def test_devices_that_are_absent_are_refused():
    with pytest.raises(DeviceError, match="expected auto, cpu or cuda"):
        resolve_device("tpu")
    if not torch.cuda.is_available():
        assert resolve_device("auto") == torch.device("cpu")
        with pytest.raises(DeviceError, match="not enough CUDA devices"):
            resolve_device("cuda")


@pytest.mark.parametrize(
    ("precision", "supported", "warned"),
    [("bf16", False, True), ("bf16", True, False), ("fp32", False, False)],
)
def test_a_processor_without_bf16_computes_in_float32_and_says_so(
    precision, supported, warned, monkeypatch, caplog
):
    cpu = torch.device("cpu")
    monkeypatch.setattr(devices, "emulates_bf16", lambda device: not supported)
    set_precision(precision, device=cpu)
    assert not caplog.records
    set_precision(precision, device=cpu, training=True)
    assert ("computes in float32" in caplog.text) is warned
    with autocast(precision, device=cpu):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    expected = torch.bfloat16 if precision == "bf16" and supported else torch.float32
    assert product.dtype == expected


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = {"proc/meminfo": "MemTotal:  9000 kB\nMemAvailable:  5000 kB\nHugePages_Total: 0\n"}


def test_main_memory_is_what_the_kernel_calls_available(tmp_path):
    assert host_memory(tmp_path) is None
    write(tmp_path, MEMINFO)
    assert host_memory(tmp_path) == 5000 * 1024


@pytest.mark.parametrize("limited", ["job", "job/step"])
def test_the_limit_of_any_control_group_around_the_process_holds(tmp_path, limited):
    """Version 2; page cache that the kernel can drop counts as free."""
    group = f"sys/fs/cgroup/{limited}"
    write(tmp_path, MEMINFO | {"proc/self/cgroup": "1:name=systemd:/x\n0::/job/step\n"})
    unlimited = {"memory.max": "max\n", "memory.current": "1\n"}
    for name in ("job", "job/step"):
        write(tmp_path / "sys/fs/cgroup" / name, unlimited)
    assert host_memory(tmp_path) == 5000 * 1024
    limit = {"memory.max": "3000", "memory.current": "2000", "memory.stat": "inactive_file 500\n"}
    write(tmp_path / group, limit)
    assert host_memory(tmp_path) == 1500
    write(tmp_path / group, {"memory.max": "1000"})
    assert host_memory(tmp_path) == 0


def test_control_groups_of_version_1_hold_too(tmp_path):
    group = "sys/fs/cgroup/memory/box/"
    limit = {f"{group}memory.limit_in_bytes": "3000", f"{group}memory.usage_in_bytes": "1000"}
    write(tmp_path, MEMINFO | limit | {"proc/self/cgroup": "4:memory:/box\n0::/\n"})
    assert host_memory(tmp_path) == 2000


def test_this_machine_tells_its_free_memory():
    free = available_memory(torch.device("cpu"))
    assert free is None or free > 2**20
