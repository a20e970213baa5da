"""What a command shows: results on stdout, progress and errors on stderr, and the exit code.

Exit codes: 0 done, 2 the user's mistake (one message), 1 a bug (traceback), 130 interrupted.
"""

import errno
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import typer

from hpdm_cli.progress import TerminalProgress
from hpdm_core.errors import HpdmError
from hpdm_core.progress import NoProgress, Progress, process_rank

_MISTAKE, _BUG, _INTERRUPTED = 2, 1, 130
_ROOM = "what was finished is kept: make room and run the same command again"
_RIGHTS = "give another path, or the right to use this one"
# What a file system refuses whatever the program does. ENOENT is not among them: a missing file
# that no check has named is a bug.
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
        progress: to be handed to the `run_*` function.
        result: what that function returned; printed when the command ends.
        title: heading of the printed tables.
    """

    progress: Progress
    result: dict | None = None
    title: str = ""

    def show(self, result: dict, *, title: str) -> None:
        """Keep the result for the end of the command."""
        self.result, self.title = result, title


@contextmanager
def session(*, as_json: bool) -> Iterator[Session]:
    """Run a command's body; print its result or its error, and set the exit code.

    Args:
        as_json: print the result as one JSON object, and keep stdout free of all else.
    """
    rank = process_rank()
    current = Session(progress=TerminalProgress() if rank == 0 else NoProgress())
    previous = signal.signal(signal.SIGTERM, _interrupt)
    failure: dict | None = None
    try:
        with _stdout_sent_to_stderr(as_json):
            try:
                yield current
            finally:
                current.progress.stop()
    except HpdmError as error:
        failure = _failure(type(error).__name__, str(error), _MISTAKE)
        _complain(f"Error: {error}", rank)
        raise typer.Exit(_MISTAKE) from None
    except KeyboardInterrupt as error:
        text = str(error) or "interrupted; run the same command again to resume"
        failure = _failure("Interrupted", text, _INTERRUPTED)
        _complain(text, rank)
        raise typer.Exit(_INTERRUPTED) from None
    except Exception as error:
        refused = _refusal(error)
        if refused is None:
            failure = _failure(type(error).__name__, str(error), _BUG)
            raise
        failure = _failure(type(error).__name__, refused, _MISTAKE)
        _complain(f"Error: {refused}", rank)
        raise typer.Exit(_MISTAKE) from None
    finally:
        signal.signal(signal.SIGTERM, previous)
        if rank == 0:
            _print_end(current, failure, as_json=as_json)


def _print_end(current: Session, failure: dict | None, *, as_json: bool) -> None:
    result = failure or current.result
    if result is None:
        return
    if as_json:
        print(json.dumps(result, indent=2, default=str), flush=True)
    elif failure is None:
        from hpdm_cli.tables import print_result

        print_result(result, title=current.title)


def _failure(kind: str, message: str, code: int) -> dict:
    return {"error": message, "kind": kind, "exit_code": code}


def _refusal(error: Exception) -> str | None:
    """Return what to say of a file system's refusal; None for all other errors."""
    if not isinstance(error, OSError) or error.errno not in _REFUSALS:
        return None
    remedy = _REFUSALS[error.errno]
    if error.filename is not None:
        return f"cannot use {error.filename}; got {error.strerror!r}; {remedy}"
    # Without a file's name it may be a socket's error; a full disk is one all the same.
    return f"got {error.strerror!r}; {remedy}" if remedy is _ROOM else None


def _complain(text: str, rank: int) -> None:
    # Plain text: a message may hold brackets, and a path must not be broken over lines.
    print(text if rank == 0 else f"process {rank}: {text}", file=sys.stderr, flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _stdout_sent_to_stderr(wanted: bool) -> Iterator[None]:
    """Send whatever libraries and child processes print to stderr, so that stdout is JSON alone."""
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
