"""Faults of videos, as opposed to faults of the machine."""

import errno
import os
import stat
from pathlib import Path
from typing import Literal

from hpdm_core.errors import DataError

Problem = Literal[
    "empty", "not a video", "unreadable", "corrupted", "truncated", "too short", "mislabelled",
    "crashed the decoder", "changed",
]  # fmt: skip


# Faults of the machine, not of the file being read: they end a command, which can be run again.
_MACHINE = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE,
        errno.ENFILE,
    }
)  # fmt: skip
_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


def is_of_machine(error: BaseException) -> bool:
    """Return whether an error is a full disk, missing rights and the like."""
    return getattr(error, "errno", None) in _MACHINE


def irregular(path: Path) -> str | None:
    """Return why a path is not a regular file, without opening it: a pipe would block."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    if stat.S_ISREG(mode):
        return None
    return f"it is {_KINDS.get(stat.S_IFMT(mode), 'something special')}, not a file"


class UnusableVideo(DataError):
    """A file that cannot serve as a video.

    Args:
        path: the file.
        problem: kind of fault, for counting.
        detail: description of the fault.
    """

    def __init__(self, path: Path | str, problem: Problem, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.path = path
        self.problem = problem
        self.detail = detail

    def __reduce__(self):
        return UnusableVideo, (self.path, self.problem, self.detail)
