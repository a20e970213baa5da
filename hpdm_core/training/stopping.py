"""SIGINT and SIGTERM as a stop request: the loop finishes its step, saves, and exits."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The run was interrupted and has saved a checkpoint."""


class StopRequest:
    """Context that records the first SIGINT or SIGTERM; a second one interrupts at once."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._at_once = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def requested(self) -> bool:
        return self.signal_name is not None

    @contextmanager
    def at_once(self, *, alone: bool) -> Iterator[None]:
        """Interrupt the block by the first signal already: where nothing can be lost.

        Args:
            alone: whether this is the only process; of several each finishes its step, which the
                others compute with it.

        Raises:
            KeyboardInterrupt: a signal came, now or before.
        """
        self._at_once = alone
        try:
            if alone and self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.signal_name = self.requested, signal.Signals(number).name
        if again or self._at_once:
            raise KeyboardInterrupt
