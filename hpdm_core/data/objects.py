"""Files in object stores (`s3://`, `gs://`, `hf://`, ...), through fsspec.

Only fsspec's own calls are used: an upload is one PUT, or a multipart upload that is completed at
its end, so that a reader sees a whole object or none.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from hpdm_core.errors import DataError, HpdmError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

INSTALL = "pip install 'hpdm[cluster]'"
_URL = re.compile(r"[a-z][a-z0-9+.-]*://")
# What tells versions of an object apart: the first that a store has.
_VERSIONS = ("ETag", "etag", "blob_id", "md5Hash", "LastModified", "updated", "mtime", "created")


def is_url(text: str | Path) -> bool:
    """Return whether a place is an object store's, such as s3://bucket/folder."""
    return isinstance(text, str) and _URL.match(text) is not None


@dataclass(frozen=True)
class RemoteFile:
    """An object.

    Args:
        url: where it is.
        known: (bytes, version as an int64) if a listing gave them.
    """

    url: str
    known: tuple[int, int] | None = None

    @property
    def suffix(self) -> str:
        """The ending of its name, with the dot."""
        return PurePosixPath(self.url).suffix

    def stat(self) -> tuple[int, int]:
        """Return (bytes, version); (0, 0) where it is absent.

        Raises:
            DataError: the store cannot be reached.
        """
        if self.known is None:
            with naming(self.url):
                system, path = _open(self.url)
                try:
                    return _version(system.info(path))
                except FileNotFoundError:
                    return 0, 0
        return self.known

    def fetch(self, local: Path) -> bool:
        """Download it; return whether it was there.

        Raises:
            DataError: the store cannot be reached.
        """
        with naming(self.url):
            system, path = _open(self.url)
            try:
                system.get_file(path, str(local))
            except FileNotFoundError:
                local.unlink(missing_ok=True)  # fsspec opens the file first
                return False
        return True


@dataclass(frozen=True)
class RemoteFolder:
    """A prefix of an object store. Every method raises DataError where the store cannot be reached.

    Args:
        url: without a slash at its end.
    """

    url: str

    @cached_property
    def _opened(self) -> tuple["AbstractFileSystem", str]:
        with naming(self.url):
            return _open(self.url)

    def __getstate__(self) -> dict[str, str]:
        return {"url": self.url}  # connections do not survive in another process

    def __str__(self) -> str:
        return self.url

    def path(self, name: str) -> str:
        """Return fsspec's path of a file in it."""
        return f"{self._opened[1].rstrip('/')}/{name}"

    def files(self, under: str = "") -> Iterator[tuple[str, RemoteFile]]:
        """Yield (name relative to the folder, object) of all that lie below `under`, sorted."""
        with naming(self.url):
            system, base = self._opened
            system.invalidate_cache()  # others write beside this process
            start = len(base.rstrip("/")) + 1
            try:
                found = system.find(self.path(under) if under else base, detail=True)
            except FileNotFoundError:  # some stores have no folder without files
                found = {}
        for path, info in sorted(found.items()):
            url = str(system.unstrip_protocol(path))
            yield path[start:], RemoteFile(url, known=_version(info))

    def folders(self) -> list[str]:
        """Return the names of its folders, sorted."""
        with naming(self.url):
            system, base = self._opened
            system.invalidate_cache()
            try:
                found = system.ls(base, detail=True)
            except FileNotFoundError:
                return []
            names = (i["name"].rstrip("/") for i in found if i["type"] == "directory")
            return sorted(name.rpartition("/")[2] for name in names)

    def exists(self, name: str) -> bool:
        """Return whether it holds a file."""
        with naming(self.url):
            self._opened[0].invalidate_cache()
            return self._opened[0].isfile(self.path(name))

    def get(self, names: Sequence[str], folder: Path) -> None:
        """Download files to the same names below a local folder."""
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if names:
            with naming(self.url):
                system, _ = self._opened
                system.get([self.path(n) for n in names], [str(folder / n) for n in names])

    def put(self, local: Path, name: str) -> None:
        """Upload a file."""
        with naming(self.url):
            self._opened[0].put_file(str(local), self.path(name))

    def copy(self, name: str, target: str) -> None:
        """Copy a file within the store, which moves the bytes itself."""
        with naming(self.url):
            self._opened[0].cp_file(self.path(name), self.path(target))

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with naming(self.url):
            self._opened[0].invalidate_cache()
            if self._opened[0].isfile(self.path(name)):
                self._opened[0].rm_file(self.path(name))

    def ranges(self, names: Sequence[str], starts: list[int], ends: list[int]) -> list[bytes]:
        """Return bytes [start, end) of several files."""
        with naming(self.url):
            return self._opened[0].cat_ranges(
                [self.path(name) for name in names], starts, ends, on_error="raise"
            )


def remote_folder(url: str) -> RemoteFolder:
    """Return the folder at a URL, which may end with slashes.

    Raises:
        DataError: the URL names none, or the package for its store is not installed.
    """
    if not url.partition("://")[2].strip("/"):
        raise DataError(f"{url} names no folder", expected="s3://BUCKET/FOLDER or the like")
    folder = RemoteFolder(url.rstrip("/"))
    folder.path("")  # names a store that is unknown, or a package that is missing, at once
    return folder


def join_url(folder: str, name: str) -> str:
    """Return the URL of a file in a folder; a URL stays as it is."""
    if is_url(name):
        return name
    return f"{folder if folder.endswith('://') else folder.rstrip('/') + '/'}{name}"


@contextmanager
def naming(url: str) -> Iterator[None]:
    """Turn the errors of any store's client into a DataError that names the URL."""
    try:
        yield
    except HpdmError:
        raise
    except ImportError as error:
        raise DataError(f"{url}: {error}", remedy=INSTALL) from error
    except Exception as error:  # each client has exceptions of its own, without a common base
        said = str(error).strip().splitlines()
        raise DataError(
            f"{url} cannot be reached or used",
            got=f"{type(error).__name__}: {said[0][:200] if said else ''}",
            remedy="check the address, the rights and the credentials; a part that was cut off "
            "can be run again",
        ) from error


def _open(url: str) -> tuple["AbstractFileSystem", str]:
    import fsspec.core  # only here: commands on local folders start without it

    try:
        return fsspec.core.url_to_fs(url)
    except ValueError as error:
        if not str(error).startswith("Protocol not known"):
            raise
        raise DataError(
            f"{url}: fsspec knows no such store", expected="s3://, gs://, hf:// or the like"
        ) from error


def _version(info: dict[str, Any]) -> tuple[int, int]:
    stamp = next((info[name] for name in _VERSIONS if info.get(name)), "")
    if isinstance(stamp, datetime):  # fsspec's memory:// lists numbers and shows dates
        stamp = stamp.timestamp()
    digest = hashlib.sha256(str(stamp).encode()).digest()
    return int(info.get("size") or 0), int.from_bytes(digest[:7], "big")
