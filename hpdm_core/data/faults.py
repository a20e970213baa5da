"""What can be wrong with a video."""

from pathlib import Path
from typing import Literal

from hpdm_core.errors import DataError

Problem = Literal[
    "empty", "not a video", "unreadable", "corrupted", "truncated", "too short", "mislabelled",
    "crashed the decoder", "changed",
]  # fmt: skip


class UnusableVideo(DataError):
    """A file that cannot serve as a video.

    Args:
        path: the file.
        problem: what kind of fault, for counting.
        detail: the fault in words.
    """

    def __init__(self, path: Path | str, problem: Problem, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.path = path
        self.problem = problem
        self.detail = detail

    def __reduce__(self):
        return UnusableVideo, (self.path, self.problem, self.detail)
