"""Standard streams that take any text, may be closed, and may be full."""

import errno
import os
import sys
from contextlib import suppress
from io import TextIOWrapper

LOST = "stdout cannot be written to; what the command made is in its folder"


def prepare_streams() -> None:
    """Make stdout and stderr usable: closed ones discard, ASCII ones escape what they lack."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller; its number must not be reused
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def complain(text: str) -> None:
    """Print a line to stderr; where that is full or closed too, the exit code has to do."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def finish_stdout() -> str | None:
    """Flush stdout; return what is wrong with it, None if all is well or its reader left."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return give_up_stdout(error)
    return None


def give_up_stdout(error: OSError) -> str | None:
    """Discard what stdout still holds; return what is wrong, None if its reader left."""
    if isinstance(sys.stdout, TextIOWrapper):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return None if error.errno == errno.EPIPE else f"{LOST}; got {error.strerror!r}"
