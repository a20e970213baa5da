"""Cache of activations that are constant over a level's steps, within byte budgets (Sec. 4.5).

Entries go to the device first, then to host memory; what fits in neither is not kept and is
recomputed by the caller.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

Entry = tuple[Tensor, ...]


@dataclass(kw_only=True)
class ActivationCache:
    """Entries of tensors by key.

    Args:
        device: where entries are used.
        device_budget: bytes that may be kept on the device.
        host_budget: bytes that may be kept in host memory.
    """

    device: torch.device
    device_budget: int
    host_budget: int
    _entries: dict[object, Entry] = field(default_factory=dict)
    _device_bytes: dict[object, int] = field(default_factory=dict)
    _host_bytes: dict[object, int] = field(default_factory=dict)

    @property
    def nbytes(self) -> tuple[int, int]:
        """Bytes kept on the device and in host memory."""
        return sum(self._device_bytes.values()), sum(self._host_bytes.values())

    def fits(self, entry: Entry) -> bool:
        """Return whether `entry`, which may be on the meta device, could be kept now."""
        on_device, on_host = self.nbytes
        room = (self.device_budget - on_device, self.host_budget - on_host)
        return _nbytes(entry) <= max(room)

    def put(self, key: object, entry: Entry, *, device_only: bool = False) -> bool:
        """Keep `entry` if it fits; return whether it was kept.

        Args:
            key: its name.
            entry: tensors.
            device_only: do not move it to host memory, which is slow to read from.
        """
        size = _nbytes(entry)
        on_device, on_host = self.nbytes
        if on_device + size <= self.device_budget:
            self._entries[key] = tuple(x.to(self.device) for x in entry)
            self._device_bytes[key] = size
            return True
        if not device_only and on_host + size <= self.host_budget:
            self._entries[key] = tuple(_to_host(x) for x in entry)
            self._host_bytes[key] = size
            return True
        return False

    def has(self, key: object) -> bool:
        """Return whether an entry is kept under `key`."""
        return key in self._entries

    def on_device(self, key: object) -> bool:
        """Return whether an entry is kept under `key` on the device."""
        return key in self._device_bytes

    def get(self, key: object, rows: Tensor | None = None) -> Entry | None:
        """Return an entry on the device, or None; with `rows`, only these of each tensor."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if rows is not None:
            entry = tuple(x[rows.to(x.device)] for x in entry)
        return tuple(x.to(self.device, non_blocking=True) for x in entry)

    def drop(self, key: object) -> None:
        """Remove an entry, if present."""
        for table in (self._entries, self._device_bytes, self._host_bytes):
            table.pop(key, None)

    def clear(self) -> None:
        """Remove all entries."""
        for table in (self._entries, self._device_bytes, self._host_bytes):
            table.clear()


def _nbytes(entry: Entry) -> int:
    return sum(x.numel() * x.element_size() for x in entry)


def _to_host(x: Tensor) -> Tensor:
    """Copy to pinned memory if there is a GPU: transfers back are faster and asynchronous."""
    if x.device.type != "cuda":
        return x.cpu()
    pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    return pinned.copy_(x)
