"""SIGINT and SIGTERM as a stop request: the loop finishes its step, saves, and exits."""

import signal
import threading
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The run was interrupted and has saved a checkpoint."""


class StopRequest:
    """Context that records the first SIGINT or SIGTERM; a second one interrupts at once."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
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

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
