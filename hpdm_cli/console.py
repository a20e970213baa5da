"""Output of a command: results on stdout, progress, messages and errors on stderr; its exit code.

Exit codes: 0 success, 2 a user error (one message), 1 a bug (traceback), 130 interrupted.
"""

import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from warnings import catch_warnings, simplefilter

import typer

from hpdm_cli.progress import LogLines, TerminalProgress
from hpdm_cli.streams import complain, give_up_stdout
from hpdm_cli.tables import Shown, print_shown
from hpdm_core.errors import HpdmError
from hpdm_core.progress import NoProgress, Progress, process_rank

_MISTAKE, _BUG, _INTERRUPTED = 2, 1, 130
_ROOM = "what was finished is kept: free space and run the same command again"
_RIGHTS = "give another path, or check the permissions of this one"
# File system errors that are not bugs. ENOENT is not among them: a missing file that no check has
# reported is one.
_REFUSALS = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: _RIGHTS,
    errno.EEXIST: "a file is where a folder is needed: give another path",
    errno.ENOTDIR: "a file is where a folder is needed: give another path",
    errno.EISDIR: "a folder is where a file is needed: give another path",
    errno.ENAMETOOLONG: "give a shorter name",
}


@dataclass(kw_only=True)
class Session:
    """One run of a command.

    Args:
        progress: for the `run_*` function.
        result: returned by that function; printed when the command ends.
        shown: its tables and lines, printed without `--json`.
    """

    progress: Progress
    result: dict | None = None
    shown: Shown = field(default_factory=Shown)

    def show(self, result: dict, shown: Shown) -> None:
        """Keep the result until the command ends."""
        self.result, self.shown = result, shown


@contextmanager
def session(*, as_json: bool) -> Iterator[Session]:
    """Run a command's body; print its result or its error, and set the exit code.

    Args:
        as_json: print the result as one JSON object and nothing else on stdout.
    """
    _quiet_libraries()
    rank = process_rank()
    terminal = TerminalProgress()
    current = Session(progress=terminal if rank == 0 else NoProgress())
    failure: dict | None = None
    with _signals_noted() as noted:
        try:
            with _logs_shown(terminal, rank), _stdout_sent_to_stderr(as_json), catch_warnings():
                if not sys.warnoptions:
                    simplefilter("ignore")
                try:
                    yield current
                finally:
                    current.progress.stop()
        except (Exception, KeyboardInterrupt) as error:
            failure, said = _outcome(error, interrupted=bool(noted))
            if said is None:
                raise
            _complain(said, rank)
            raise typer.Exit(failure["exit_code"]) from None
        finally:
            if rank == 0:
                _print_end(current, failure, as_json=as_json)


def _outcome(error: BaseException, *, interrupted: bool) -> tuple[dict, str | None]:
    """Return the JSON object of a failure and its message; no message for a bug.

    Args:
        interrupted: whether a signal came: libraries that are being imported may turn the
            interrupt into errors of their own.
    """
    if isinstance(error, HpdmError):
        return _failure(type(error).__name__, str(error), _MISTAKE), f"Error: {error}"
    if isinstance(error, KeyboardInterrupt) or interrupted:
        own = str(error) if isinstance(error, KeyboardInterrupt) else ""
        text = own or "interrupted; run the same command again to resume"
        return _failure("Interrupted", text, _INTERRUPTED), text
    refused = _refusal(error)
    if refused is None:
        return _failure(type(error).__name__, str(error), _BUG), None
    return _failure(type(error).__name__, refused, _MISTAKE), f"Error: {refused}"


@contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """Turn SIGINT and SIGTERM into KeyboardInterrupt, and yield the list of those that came."""
    noted: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, interrupt)}
    # Ignored in what a shell starts in the background: that stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        previous[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        yield noted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def usage_failure(message: str, code: int) -> str:
    """Return the JSON object of a command line that was not understood."""
    return json.dumps(_failure("UsageError", message, code), indent=2)


def _print_end(current: Session, failure: dict | None, *, as_json: bool) -> None:
    result = failure or current.result
    if result is None:
        return
    try:
        if as_json:
            print(json.dumps(result, indent=2, default=str), flush=True)
        elif failure is None:
            print_shown(current.shown)
            sys.stdout.flush()
    except OSError as error:
        problem = give_up_stdout(error)
        if problem is not None:
            _complain(f"Error: {problem}", 0)
            raise typer.Exit(_MISTAKE) from None


def _failure(kind: str, message: str, code: int) -> dict:
    return {"error": message, "kind": kind, "exit_code": code}


def _refusal(error: BaseException) -> str | None:
    """Return the message for a file system error; None for all other errors."""
    if not isinstance(error, OSError) or error.errno not in _REFUSALS:
        return None
    remedy = _REFUSALS[error.errno]
    if error.filename is not None:
        return f"cannot use {error.filename}; got {error.strerror!r}; {remedy}"
    # Without a file name it may be a socket's error, unless the disk is full.
    return f"got {error.strerror!r}; {remedy}" if remedy is _ROOM else None


def _complain(text: str, rank: int) -> None:
    # Plain text: a message may contain brackets, and paths must not be wrapped.
    complain(text if rank == 0 else f"process {rank}: {text}")


@contextmanager
def _logs_shown(terminal: TerminalProgress, rank: int) -> Iterator[None]:
    """Write the library's log messages to stderr; of several processes the first alone."""
    logger, handler = logging.getLogger("hpdm"), LogLines(terminal)
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    logger.propagate = False  # a handler of the root logger would write them twice
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        logger.setLevel(level)


def _quiet_libraries() -> None:
    """Ask libraries for no bars and no chatter: the command has its own."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@contextmanager
def _stdout_sent_to_stderr(wanted: bool) -> Iterator[None]:
    """Redirect output of libraries and child processes to stderr, so that stdout is pure JSON."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
