"""Downloads with resume, retries and checksums."""

import http.client
import logging
import socket
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from hpdm_core.data.faults import is_of_machine
from hpdm_core.errors import DataError
from hpdm_core.files import check_room, sha256_of
from hpdm_core.names import as_unicode
from hpdm_core.progress import Progress

logger = logging.getLogger("hpdm.data")

BLOCK = 1 << 20
TIMEOUT_SECONDS = 30.0
ATTEMPTS = 6
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file available by HTTP.

    Args:
        url: http or https.
        size: bytes, None where not known.
        sha256: None if none is published.
    """

    url: str
    size: int | None = None
    sha256: str | None = None


class _Broken(Exception):
    """A transfer that is worth another attempt."""


# Errors that a retry will not fix: invalid addresses, unknown hosts.
_LASTING = (http.client.InvalidURL, http.client.UnknownProtocol, ValueError)


def download(remote: Remote, target: Path, progress: Progress, *, pause: float = 1.0) -> Path:
    """Fetch a file to `target`; an earlier attempt is resumed.

    Args:
        pause: seconds before the second attempt, doubled before each further one.

    Raises:
        DataError: the address is invalid or unreachable, or the hash is wrong.
    """
    if target.is_file():
        return target
    _check_address(remote.url)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    needed = (remote.size or 0) - _size(part)
    check_room(target.parent, needed, purpose="for the download")
    progress.start(f"downloading {target.name}", remote.size, done=_size(part))
    try:
        _fetch_patiently(remote, part, progress, pause)
    finally:
        progress.stop()
    _check_hash(remote, part)
    part.replace(target)
    return target


def _fetch_patiently(remote: Remote, part: Path, progress: Progress, pause: float) -> None:
    failures, at_first = 0, _size(part)
    while True:
        before = _size(part)
        try:
            _fetch(remote, part, progress)
            return
        except (_Broken, OSError, ValueError, http.client.HTTPException) as error:
            if is_of_machine(error):
                raise
            _refuse_lost_causes(remote, error, begun=_size(part) != at_first)
            # Only failures in a row count: a long download may break off many times.
            failures = 1 if _size(part) > before else failures + 1
            if failures >= ATTEMPTS:
                raise DataError(
                    f"downloading {remote.url} failed {failures} times in a row: {error}",
                    remedy="run the same command again to resume, or fetch the file yourself and "
                    "name it with --source",
                ) from error
            logger.info("%s; retrying from byte %d", error, _size(part))
            time.sleep(pause * 2 ** (failures - 1))


def _fetch(remote: Remote, part: Path, progress: Progress) -> None:
    start = _size(part)
    if remote.size is not None and start == remote.size:
        return
    headers = {"User-Agent": "hpdm", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(remote.url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            _receive(response, part, start, progress)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # Nothing beyond what is here: either it is complete, or it is of another file.
        if error.headers.get("Content-Range", "") != f"bytes */{start}":
            progress.advance(-start)
            part.unlink()
            raise _Broken("what was here is longer than the file") from error


def _receive(
    response: http.client.HTTPResponse, part: Path, start: int, progress: Progress
) -> None:
    resumed = response.status == 206
    if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        raise _Broken("the server sent another part than asked for")
    if start and not resumed:  # it cannot resume, and sends all again
        progress.advance(-start)
        start = 0
    length = response.headers.get("Content-Length")
    received = 0
    with part.open("ab" if start else "wb") as file:
        while block := response.read(BLOCK):
            file.write(block)
            received += len(block)
            progress.advance(len(block))
    # A connection that breaks off looks like the end of the file.
    # An invalid length is ignored.
    if length is not None and length.isdecimal() and received < int(length[:18]):
        raise _Broken(f"the connection broke off after {received} of {length} bytes")


def _refuse_lost_causes(remote: Remote, error: Exception, *, begun: bool) -> None:
    """Raise DataError for errors that a retry cannot fix.

    Args:
        begun: whether this download has received something. A server that then refuses the
            connection may be starting again; one that refuses the first is not there.
    """
    reason = getattr(error, "reason", None)
    if isinstance(reason, ssl.SSLCertVerificationError):
        raise DataError(
            f"the certificate of {remote.url} cannot be verified ({reason.verify_message})",
            remedy="this host is known to send an incomplete chain; verification is never "
            "switched off here: fetch the file by a way that you trust and name it with --source, "
            "or give the URL of another copy",
        ) from error
    if isinstance(error, urllib.error.HTTPError) and error.code not in PASSING:
        raise DataError(
            f"{remote.url} cannot be fetched: HTTP {error.code} {error.reason}",
            remedy="check the address, or name a local copy with --source",
        ) from error
    unknown = isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME
    absent = isinstance(reason, ConnectionRefusedError) and not begun
    if unknown or absent or isinstance(error, _LASTING):
        raise DataError(
            f"{remote.url} cannot be fetched: {reason or error}",
            remedy="check the address, or name a local copy with --source",
        ) from error


def _check_address(url: str) -> None:
    """Raise DataError for anything but an http or https address of a host."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # raises where it is no number
    except ValueError:
        sound = False
    if not sound or not url.isascii() or not url.isprintable() or " " in url:
        raise DataError(
            f"cannot download {as_unicode(url)[:200]}",
            expected="an http or https address with a host, special characters as %XX",
        )


def _check_hash(remote: Remote, part: Path) -> None:
    if remote.sha256 is not None and (found := sha256_of(part)) != remote.sha256:
        part.unlink()
        raise DataError(
            f"{remote.url} arrived damaged, or is another file now; it was removed",
            got=f"SHA-256 {found}",
            expected=remote.sha256,
            remedy="run the same command again, or name a local copy with --source",
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
