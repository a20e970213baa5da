"""Files: atomic writes, JSON lines that survive a kill, checksums, free disk space."""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpdm_core.errors import DataError
from hpdm_core.names import short_name

PARTIAL = ".partial"
_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path; it is renamed to `path` when the block succeeds, else removed."""
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
    """Remove partial files of a killed process below `folder`."""
    for partial in folder.rglob(f".*{PARTIAL}*"):
        if partial.is_file():
            partial.unlink(missing_ok=True)


def read_whole_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSON object per line; what is none (a killed command's partial line) is skipped."""
    lines = []
    if path.is_file():
        for data in path.read_bytes().split(b"\n"):
            try:
                lines.append(json.loads(data))
            except (ValueError, RecursionError):
                continue
    return [line for line in lines if isinstance(line, dict)]


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Append a JSON object in one write; a partial last line is terminated first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(line, ensure_ascii=False) + "\n"
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            text = text if file.read() == b"\n" else f"\n{text}"
        file.write(text.encode())


def irregular(path: Path) -> str | None:
    """Return why a path is not a regular file, without opening it: a pipe would block."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    if stat.S_ISREG(mode):
        return None
    return f"it is {_KINDS.get(stat.S_IFMT(mode), 'something special')}, not a file"


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def json_sha256(value: object) -> str:
    """Return the SHA-256, in hex, of a value as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def gigabytes(size: float) -> str:
    """Write a number of bytes as 12.3 GB."""
    return f"{size / 1e9:.1f} GB"


def check_room(folder: Path, needed: int, *, purpose: str) -> None:
    """Raise DataError unless the disk of `folder` has `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder} has not enough space {purpose}",
            got=f"{gigabytes(free)} free",
            expected=gigabytes(needed),
        )
