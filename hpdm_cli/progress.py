"""Progress and log messages on stderr: a bar with rate and ETA on a terminal, else plain lines."""

import logging
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_WINDOW_SECONDS = 60.0
_FIRST_LINE_SECONDS, _LINE_SECONDS = 2.0, 15.0


class Rate:
    """Units per second over the last minute.

    Args:
        now: seconds at the beginning.
        done: units that were done before.
    """

    def __init__(self, now: float, done: int) -> None:
        self._marks: deque[tuple[float, int]] = deque([(now, done)])

    def update(self, now: float, done: int) -> float | None:
        """Record that `done` units are done; return units per second, None if not yet known."""
        self._marks.append((now, done))
        while len(self._marks) > 2 and now - self._marks[1][0] > _WINDOW_SECONDS:
            self._marks.popleft()
        start, before = self._marks[0]
        return (done - before) / (now - start) if now > start and done > before else None


class TerminalProgress:
    """Shows a progress bar; see hpdm_core.progress.Progress for the calls."""

    def __init__(self, *, clock=time.monotonic) -> None:
        self._clock = clock
        self._bar: Bar | None = None
        self._open = False
        self._written: int | None = None  # what the last line said was done

    def start(self, description: str, total: int | None, done: int = 0) -> None:
        self.stop()
        now = self._clock()
        self._description, self._total, self._done = description, total, done
        self._fields: dict[str, str] = {}
        self._rate, self._speed = Rate(now, done), None
        self._next_line = now + _FIRST_LINE_SECONDS
        self._open, self._written = True, None
        if sys.stderr.isatty():
            self._bar = _bar()
            self._bar.start()
            self._task = self._bar.add_task(description, total=total, completed=done, figures="")

    def advance(self, amount: int = 1, **fields: str) -> None:
        now = self._clock()
        self._done += amount
        self._fields.update(fields)
        self._speed = self._rate.update(now, self._done)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, figures=self._figures())
        elif now >= self._next_line:
            self._next_line = now + _LINE_SECONDS
            self._write_line()

    def write(self, text: str) -> None:
        """Write one line, above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def stop(self) -> None:
        if not self._open:
            return
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._written not in (None, self._done):
            self._write_line()
        self._open = False

    def _write_line(self) -> None:
        self._written = self._done
        total = "" if self._total is None else f"/{self._total}"
        line = f"{self._description}: {self._done}{total}  {self._figures()}"
        print(line.rstrip(), file=sys.stderr, flush=True)

    def _figures(self) -> str:
        parts = [f"{name} {value}" for name, value in self._fields.items()]
        if self._speed:
            parts.append(rate_text(self._speed))
            if self._total is not None and self._done < self._total:
                left = (self._total - self._done) / self._speed
                parts.append(f"ETA {duration_text(left)}")
        return "  ".join(parts)


class LogLines(logging.Handler):
    """Writes log messages to stderr as plain lines, above the bar.

    Args:
        progress: whose bar it is.
    """

    def __init__(self, progress: TerminalProgress) -> None:
        super().__init__()
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.write(self.format(record))


def rate_text(per_second: float) -> str:
    """Format a rate with three digits: 12.3/s, or 4.56 s each if it is slow."""
    return f"{per_second:.3g}/s" if per_second >= 1 else f"{1 / per_second:.3g} s each"


def duration_text(seconds: float) -> str:
    """Format a duration as 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bar() -> "Bar":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        console=Console(stderr=True),
    )
