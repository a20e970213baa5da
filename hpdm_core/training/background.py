"""Writing a checkpoint beside training: tensors are copied to main memory, a thread writes them."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(kw_only=True)
class Background:
    """At most one write at a time. The interpreter does not end before it is done.

    Args:
        step: of the newest write.
    """

    step: int = -1
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(max_workers=1))
    _pending: Future | None = None
    _copies: dict[str, Tensor] = field(default_factory=dict)

    @property
    def busy(self) -> bool:
        """Whether a write was begun and not waited for."""
        return self._pending is not None

    def begin(self, step: int, write: Callable[[], None]) -> None:
        """Begin to write a step's checkpoint."""
        self.step, self._pending = step, self._pool.submit(write)

    @torch.no_grad()
    def copy(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copy tensors to main memory: training changes the originals.

        The copies are those of the write before, filled anew: fetching fresh pages from the system
        takes longer than copying. Call `wait` first.
        """
        for name, tensor in tensors.items():
            old = self._copies.get(name)
            if old is None or (old.shape, old.dtype) != (tensor.shape, tensor.dtype):
                self._copies[name] = torch.empty_like(tensor, device="cpu")
        for gone in self._copies.keys() - tensors.keys():
            del self._copies[gone]
        for name, tensor in tensors.items():
            self._copies[name].copy_(tensor)
        return self._copies

    def wait(self) -> None:
        """Wait for the write.

        Raises:
            Exception: what it failed with.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
