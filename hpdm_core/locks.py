"""One writer per folder: a lock that is released when its process ends."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpdm_core.errors import HpdmError

LOCK = ".lock"


@contextmanager
def lock_folder(folder: Path, *, doing: str, remedy: str) -> Iterator[None]:
    """Keep other commands out of `folder`, which is created if absent, until the block ends.

    Args:
        doing: what writes there, for the message: 'training into', 'preparing'.
        remedy: what the user can do if another command holds it.

    Raises:
        HpdmError: another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Append mode does not truncate; a killed process leaves no lock.
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HpdmError(f"another command is {doing} {folder}", remedy=remedy) from None
        except OSError:
            pass  # a file system without locks: continue without one
        yield
