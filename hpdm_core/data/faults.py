"""Faults of videos, as opposed to faults of the machine."""

import errno
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


def is_of_machine(error: BaseException) -> bool:
    """Return whether an error is a full disk, missing rights and the like."""
    return getattr(error, "errno", None) in _MACHINE


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
