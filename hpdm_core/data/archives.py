"""Unpack .zip, .tar and .rar so that nothing lands outside the folder meant for it.

An archive with a member that would leave the folder, or with links or devices, is refused entirely.
"""

import gzip
import logging
import lzma
import os
import shutil
import stat
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from hpdm_core.data.faults import is_of_machine
from hpdm_core.errors import DataError
from hpdm_core.files import check_room
from hpdm_core.names import as_unicode
from hpdm_core.progress import Progress

logger = logging.getLogger("hpdm.data")

# Raised by the unpackers on damaged files; zipfile's RuntimeError is an encrypted or exotic member.
DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile,
    RuntimeError, ValueError, LookupError, ArithmeticError, struct.error, MemoryError,
)  # fmt: skip
RAR_MAGIC = b"Rar!\x1a\x07"
# (program, arguments); each unpacks the whole archive in one process, not one per
# member. unar opens solid RAR3, bsdtar opens RAR5, unrar both.
RAR_TOOLS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("unrar", ("x", "-idq", "-y", "-p-", "{archive}", "{folder}/")),
    ("unar", ("-quiet", "-no-directory", "-output-directory", "{folder}", "{archive}")),
    ("bsdtar", ("-x", "-f", "{archive}", "-C", "{folder}")),
)  # fmt: skip


class DamagedArchive(DataError):
    """Not an archive, or a damaged one: a new download may fix it."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file in an archive.

    Args:
        name: its path as the archive gives it.
        size: bytes when unpacked.
        open: returns its contents as a stream.
    """

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def extract(archive: Path, folder: Path, progress: Progress) -> Path:
    """Unpack an archive to `folder`, atomically.

    Raises:
        DataError: not an archive, damaged, hostile, or no program to unpack it.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if is_rar(archive):
            _extract_rar(archive, partial, progress)
        else:
            _extract_members(archive, partial, progress)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def is_rar(archive: Path) -> bool:
    """Return whether a file starts as RAR archives of any version do."""
    with archive.open("rb") as file:
        return file.read(len(RAR_MAGIC)) == RAR_MAGIC


def is_archive(path: Path) -> bool:
    """Return whether a file starts, or ends, as one of the archives that can be unpacked."""
    try:
        return is_rar(path) or zipfile.is_zipfile(path) or tarfile.is_tarfile(path)
    except DAMAGE:  # looked like an archive, but is damaged
        return False


@contextmanager
def open_members(archive: Path) -> Iterator[list[Member]]:
    """Yield the files in a .zip or .tar (compressed or not), all of them checked.

    Raises:
        DataError: not an archive, damaged, or a member is hostile.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                yield list(_zip_members(archive, opened))
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as opened:
                yield list(_tar_members(archive, opened))
        else:
            raise DamagedArchive(
                f"{archive} is not an archive that can be unpacked",
                expected=".zip, .tar (also .gz, .bz2, .xz) or .rar",
                remedy="give an archive, or the folder that you unpacked yourself",
            )
    except DAMAGE as error:
        raise _damaged(archive, error) from error
    except OSError as error:
        if is_of_machine(error):
            raise
        raise _damaged(archive, error) from error


def _damaged(archive: Path, error: Exception) -> DamagedArchive:
    reason = as_unicode(str(error))[:200] or type(error).__name__
    return DamagedArchive(
        f"{archive} is damaged: {reason}", remedy="fetch it again, or unpack it yourself"
    )


def _zip_members(archive: Path, opened: zipfile.ZipFile) -> Iterator[Member]:
    for info in opened.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _hostile(archive, info.filename, "it is a link or a device")
        _check_name(archive, info.filename)
        if not info.is_dir():
            yield Member(
                name=info.filename, size=info.file_size, open=lambda info=info: opened.open(info)
            )


def _tar_members(archive: Path, opened: tarfile.TarFile) -> Iterator[Member]:
    for info in opened:
        if not (info.isreg() or info.isdir()):
            raise _hostile(archive, info.name, "it is a link or a device")
        if info.issparse():
            raise _hostile(archive, info.name, "it has holes, which may fill the disk")
        _check_name(archive, info.name)
        if info.isreg():
            yield Member(
                name=info.name, size=info.size, open=lambda info=info: opened.extractfile(info)
            )


def _check_name(archive: Path, name: str) -> None:
    windows, posix = PureWindowsPath(name), PurePosixPath(name)
    if windows.drive or windows.root or posix.is_absolute():
        raise _hostile(archive, name, "its path is absolute")
    if ".." in windows.parts or "\0" in name:
        raise _hostile(archive, name, "its path leads out of the folder")


def _hostile(archive: Path, name: str, why: str) -> DataError:
    return DataError(
        f"{archive} holds {as_unicode(name[:200])!r}, which is refused: {why}",
        remedy="nothing was unpacked; do not trust this archive, or unpack it yourself",
    )


def _extract_members(archive: Path, folder: Path, progress: Progress) -> None:
    with open_members(archive) as members:
        total = sum(member.size for member in members)
        check_room(folder.parent, total, purpose="to unpack")
        progress.start(f"unpacking {archive.name}", total)
        try:
            for member in members:
                target = folder / PurePosixPath(member.name)
                target.parent.mkdir(parents=True, exist_ok=True)
                with member.open() as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                progress.advance(member.size)
        finally:
            progress.stop()


def _extract_rar(archive: Path, folder: Path, progress: Progress) -> None:
    present = [(tool, args) for tool, args in RAR_TOOLS if shutil.which(tool)]
    if not present:
        raise DataError(
            f"no program to unpack {archive}",
            expected="one of " + ", ".join(tool for tool, _ in RAR_TOOLS),
            remedy="`apt install unar` or `apt install libarchive-tools` (macOS: `brew install "
            "unar`), or use the .zip of UCF-101, or unpack it yourself and give the folder",
        )
    complaints = []
    for tool, arguments in present:
        logger.info("unpacking %s with %s: this takes some minutes", archive.name, tool)
        command = [tool, *(a.format(archive=archive, folder=folder) for a in arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            _check_unpacked(archive, folder)
            return
        complaints.append(f"{tool}: {(done.stderr or done.stdout).strip()[-200:]}")
        shutil.rmtree(folder)
        folder.mkdir()
    raise DataError(
        f"{archive} cannot be unpacked ({'; '.join(complaints)})",
        remedy="fetch it again, or unpack it yourself and give the folder",
    )


def _check_unpacked(archive: Path, folder: Path) -> None:
    """Refuse links: the programs themselves keep paths inside the folder, links may lead out."""
    for place, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(place) / name
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                relative = path.relative_to(folder).as_posix()
                raise _hostile(archive, relative, "it is a link or a device")
