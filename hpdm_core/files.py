"""Files that appear whole or not at all: written under a name beside, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpdm_core.names import short_name

PARTIAL = ".partial"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a name to write to; it becomes `path` when the block ends well, and goes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, because encoders choose their format by it.
    partial = path.with_name(f".{short_name(path.stem)}{PARTIAL}{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def remove_partials(folder: Path) -> None:
    """Remove what an earlier, killed process left half-written below `folder`."""
    for partial in folder.rglob(f".*{PARTIAL}*"):
        if partial.is_file():
            partial.unlink(missing_ok=True)
