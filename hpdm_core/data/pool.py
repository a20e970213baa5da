"""A pool that survives tasks which kill or hang a worker, and reports which task it was.

The standard pools break as a whole when a decoder crashes on a damaged file. Workers inherit no
lock, thread or device context of the parent; they ignore Ctrl-C, which the parent handles, and end
by themselves when the parent dies.
"""

import math
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from ctypes import c_int64
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.sharedctypes import RawArray
from typing import Any, Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
Mark = Callable[[int], None]
NO_MARK = -1


class WorkerLost(Exception):
    """A worker died or hung.

    Args:
        reason: of its end.
        mark: its last noted progress within the task; `NO_MARK` without.
    """

    def __init__(self, reason: str, mark: int) -> None:
        super().__init__(reason)
        self.mark = mark


@dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    pipe: Connection
    marks: Any  # the last mark, and how many there were
    tasks: deque = field(default_factory=deque)
    since: float = 0.0
    seen: int = 0

    def hung(self, now: float, timeout: float) -> bool:
        """Return whether there was no sign of life for `timeout` seconds."""
        if self.marks[1] != self.seen:
            self.seen, self.since = self.marks[1], now
        return bool(self.tasks) and now - self.since > timeout


def usable_cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


class WorkerPool(AbstractContextManager, Generic[Task, Result]):
    """Processes that apply one function to tasks. Close it, or use `with`.

    Args:
        function: picklable; takes a task and `mark`, which records progress within the task.
        workers: number of processes, >= 1; they start with their first task.
        timeout: seconds without a result or a mark before a worker counts as hung.
        setup: picklable; runs first in every worker.
        preload: module that workers need, imported once for all if the system supports it.
    """

    def __init__(
        self,
        function: Callable[[Task, Mark], Result],
        *,
        workers: int,
        timeout: float,
        setup: Callable[[], None] | None = None,
        preload: str = __name__,
    ) -> None:
        self._function = function
        self._count = workers
        self._timeout = timeout
        self._setup = setup
        self._preload = preload
        self._workers: list[_Worker] = []

    @property
    def pending(self) -> int:
        """Tasks submitted and not yet collected."""
        return sum(len(worker.tasks) for worker in self._workers)

    def submit(self, task: Task) -> None:
        """Queue a task at the worker with the fewest tasks."""
        if len(self._workers) < self._count:
            self._workers.append(self._start())
        worker = min(self._workers, key=lambda w: len(w.tasks))
        if not worker.tasks:
            worker.since = time.monotonic()
        worker.tasks.append(task)
        with suppress(OSError):  # it died while idle: `collect` finds the broken pipe
            worker.pipe.send(task)

    def collect(self, *, within: float = math.inf) -> list[tuple[Task, Result | Exception]]:
        """Wait for results: pairs of a task and its result, or the exception it ended in.

        Args:
            within: seconds; without a result until then the list is empty.
        """
        end = time.monotonic() + within
        while self.pending and time.monotonic() < end:
            busy = {worker.pipe: worker for worker in self._workers if worker.tasks}
            done = [
                self._receive(busy[pipe]) for pipe in wait(list(busy), timeout=min(1.0, within))
            ]
            now = time.monotonic()
            hung = [w for w in self._workers if w.hung(now, self._timeout)]
            done += [self._lose(w, f"no answer after {self._timeout:.0f} s") for w in hung]
            if done:
                return done
        return []

    def close(self) -> None:
        """Terminate all workers."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            _join(worker)
        self._workers.clear()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> _Worker:
        context = _context(self._preload)
        ours, theirs = context.Pipe()
        marks = RawArray(c_int64, [NO_MARK, 0])
        arguments = (self._function, self._setup, theirs, marks)
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        theirs.close()
        return _Worker(process=process, pipe=ours, marks=marks)

    def _receive(self, worker: _Worker) -> tuple[Task, Result | Exception]:
        try:
            result = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            return self._lose(worker, f"its process ended with code {worker.process.exitcode}")
        worker.since = time.monotonic()
        return worker.tasks.popleft(), result

    def _lose(self, worker: _Worker, reason: str) -> tuple[Task, WorkerLost]:
        """Terminate a worker; its queue goes to the others."""
        self._workers.remove(worker)
        worker.process.terminate()
        _join(worker)
        task, *others = worker.tasks
        for other in others:
            self.submit(other)
        return task, WorkerLost(reason, worker.marks[0])


def run_tasks(
    pool: WorkerPool[Task, Result], tasks: Iterable[Task], *, ahead: int
) -> Iterator[tuple[Task, Result | Exception]]:
    """Yield (task, result) as they come, keeping at most `ahead` tasks in the pool."""
    for task in tasks:
        pool.submit(task)
        while pool.pending >= ahead:
            yield from pool.collect()
    while pool.pending:
        yield from pool.collect()


def attempt(function: Callable[[Task, Mark], Result], task: Task, mark: Mark) -> Result | Exception:
    """Apply `function`; return its result or exception."""
    try:
        return function(task, mark)
    except Exception as error:
        return error


def _context(preload: str) -> BaseContext:
    """Return the multiprocessing context: forkserver if available.

    The server has imported `preload` and done nothing else, so that no lock, thread or device
    context of the parent is inherited, and workers start in milliseconds.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    return context


def _join(worker: _Worker) -> None:
    worker.process.join(5.0)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
    worker.pipe.close()


def _work(
    function: Callable[[Any, Mark], Any],
    setup: Callable[[], None] | None,
    pipe: Connection,
    marks: Any,
) -> None:
    # Ctrl-C reaches the whole group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if setup is not None:
        setup()

    def mark(value: int) -> None:
        marks[0] = value
        marks[1] += 1

    with suppress(EOFError, BrokenPipeError):
        while True:
            result = attempt(function, pipe.recv(), mark)
            mark(NO_MARK)
            pipe.send(result)
