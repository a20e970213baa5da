"""Errors that a user can fix. The command line prints one message and exits with code 2."""

import difflib
from collections.abc import Iterable


class HpdmError(Exception):
    """A user error: what, got, expected, remedy.

    Args:
        what: what went wrong, naming the file, field or argument.
        got: the value that was found.
        expected: a valid value.
        remedy: what the user can do about it.
    """

    def __init__(
        self, what: str, *, got: object = None, expected: object = None, remedy: str | None = None
    ) -> None:
        parts = [what]
        if got is not None:
            parts.append(f"got {got}")
        if expected is not None:
            parts.append(f"expected {expected}")
        if remedy is not None:
            parts.append(remedy)
        super().__init__("; ".join(parts))


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Return a remedy that names the nearest of the known words in any case; None if none is."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower()[:100], by_lower, n=1, cutoff=0.5)
    return f"did you mean {by_lower[near[0]]}?" if near else None


class RecipeError(HpdmError):
    """A recipe or an override that cannot be used."""


class DataError(HpdmError):
    """A video, data set or caption file that cannot be used."""


class CheckpointError(HpdmError):
    """A checkpoint that is absent, damaged or of another shape."""


class DivergedError(HpdmError):
    """A training whose losses or gradients stay infinite or undefined."""


class DeviceError(HpdmError):
    """A device that is absent or too small for what was asked."""


class MetricError(HpdmError):
    """A score that cannot be computed from what was given."""
