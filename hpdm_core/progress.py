"""Progress of long work: what the core calls, whoever shows it. Needs no torch.

Messages go through `logging`, to loggers below "hpdm".
"""

import os
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tqdm import tqdm


def process_rank() -> int:
    """Return this process's rank under torchrun, 0 for a single process.

    Only the process of rank 0 writes to the terminal and to files.
    """
    return int(os.environ.get("RANK", "0"))


class Progress(Protocol):
    """A progress bar; the command line draws bars or plain lines from it."""

    def start(self, description: str, total: int | None, done: int = 0) -> None:
        """Start a bar; one that is still open ends.

        Args:
            description: short description.
            total: number of units, or None if unknown.
            done: units done before; they count for the bar, not for the rate.
        """
        ...

    def advance(self, amount: int = 1, **fields: str) -> None:
        """Report `amount` more units as done.

        Args:
            amount: number of units.
            fields: figures to show beside the bar, such as loss="0.231"; they stay until they
                are given again.
        """
        ...

    def stop(self) -> None:
        """End the bar; another may be started."""
        ...


class NoProgress:
    """Shows nothing."""

    def start(self, description: str, total: int | None, done: int = 0) -> None: ...

    def advance(self, amount: int = 1, **fields: str) -> None: ...

    def stop(self) -> None: ...


class TqdmProgress:
    """A tqdm bar (a notebook's own in notebooks): the default of library calls."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._fields: dict[str, str] = {}

    def start(self, description: str, total: int | None, done: int = 0) -> None:
        from tqdm.auto import tqdm

        self.stop()
        self._bar = tqdm(desc=description, total=total, initial=done)

    def advance(self, amount: int = 1, **fields: str) -> None:
        if self._bar is not None:
            self._fields |= fields
            self._bar.set_postfix(self._fields, refresh=False)
            self._bar.update(amount)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._fields = None, {}
