"""Errors that a user can fix. The command line prints one message and exits with code 2."""


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


class RecipeError(HpdmError):
    """A recipe or an override that cannot be used."""


class DataError(HpdmError):
    """A video, data set or caption file that cannot be used."""


class CheckpointError(HpdmError):
    """A checkpoint that is absent, damaged or of another shape."""


class DeviceError(HpdmError):
    """A device that is absent or too small for what was asked."""


class MetricError(HpdmError):
    """A score that cannot be computed from what was given."""
