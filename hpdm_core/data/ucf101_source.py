"""Where UCF-101 comes from: a folder, an archive, a URL, or its known copies on the web."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hpdm_core.data.archives import DamagedArchive, extract, is_archive, is_rar, open_members
from hpdm_core.data.download import Remote, download
from hpdm_core.errors import DataError
from hpdm_core.files import write_text
from hpdm_core.names import plain_name, short_name
from hpdm_core.progress import Progress

logger = logging.getLogger("hpdm.data")

# The first copy has a published hash (listed by TensorFlow Datasets); the second is the official
# host, whose certificate chain is known to be incomplete.
VIDEOS = (
    Remote(
        url="https://storage.googleapis.com/thumos14_files/UCF101_videos.zip",
        size=6_960_400_115,
        sha256="dabf56f573cd19c79e096563529fec8126a2a34e18e10c72eb621dd687532b0d",
    ),
    Remote(url="https://www.crcv.ucf.edu/data/UCF101/UCF101.rar"),
)
SPLITS = Remote(
    url="https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip",
    size=113_943,
    sha256="5c0d1a53b8ed364a2ac830a73f405e51bece7d98ce1254fd19ed4a36b224bd27",
)


@dataclass(frozen=True, kw_only=True)
class Ucf101Files:
    """UCF-101 on disk.

    Args:
        videos: folder of videos.
        lists: folder of the official lists, None to look among the videos.
        words: description of the source.
        notes: problems that were worked around.
    """

    videos: Path
    lists: Path | None
    words: str
    notes: tuple[str, ...] = ()


def obtain(
    source: str | None,
    folder: Path,
    progress: Progress,
    *,
    copies: Sequence[Remote] = VIDEOS,
    splits: Remote | None = SPLITS,
) -> Ucf101Files:
    """Obtain UCF-101, downloading and unpacking below `folder` where needed.

    Args:
        source: a folder, an archive, a URL, or None for the known copies.
        copies, splits: the known copies, tried in order.

    Raises:
        DataError: no such source, or no copy can be fetched.
    """
    if source is not None and os.path.isdir(source):
        path = Path(source)
        return Ucf101Files(videos=path, lists=None, words=str(path.resolve()))
    check_source(source)
    notes: list[str] = []
    if source is None:
        archive, words = _first_of(copies, folder, progress), "UCF-101 from the web"
    elif "://" in source:
        archive, words = _fetch(Remote(url=source), folder, progress), source
    else:
        archive = Path(source)
        words = str(archive.resolve())
    lists = None
    if source is None and splits is not None:
        try:
            lists = _unpack(_fetch(splits, folder, progress), folder, progress)
        except DataError as error:
            notes.append(f"the official split lists could not be fetched ({error})")
    videos = _unpack(archive, folder, progress)
    return Ucf101Files(videos=videos, lists=lists, words=words, notes=tuple(notes))


def describe_source(
    source: str | None, *, copies: Sequence[Remote] = VIDEOS
) -> dict[str, Any] | None:
    """Return what `obtain` would fetch and unpack; None if the videos are in a folder already."""
    if source is not None and os.path.isdir(source):
        return None
    if source is None:
        return {"download": copies[0].url, "bytes": copies[0].size}
    if "://" in source:
        return {"download": source}
    check_source(source)
    if is_rar(Path(source)):
        return {"unpack": source, "bytes": Path(source).stat().st_size}
    with open_members(Path(source)) as members:
        size = sum(member.size for member in members)
        return {"unpack": source, "files": len(members), "bytes": size}


def check_source(source: str | None) -> None:
    """Raise DataError if a named source does not exist."""
    if source is None or "://" in source or os.path.isdir(source) or os.path.isfile(source):
        return
    raise DataError(
        f"--source {source}: " + ("not a file" if os.path.exists(source) else "nothing there"),
        expected="a folder, a .zip, .tar or .rar, or a URL",
        remedy="leave --source out to download UCF-101 (7 GB)",
    )


def _first_of(copies: Sequence[Remote], folder: Path, progress: Progress) -> Path:
    complaints = []
    for remote in copies:
        try:
            return _fetch(remote, folder, progress)
        except DataError as error:
            logger.warning(str(error))
            complaints.append(str(error))
    raise DataError(
        "no copy of UCF-101 could be fetched: " + " | ".join(complaints),
        remedy="fetch UCF101.rar or UCF101_videos.zip by other means and name it with --source",
    )


def _fetch(remote: Remote, folder: Path, progress: Progress) -> Path:
    archive = download(remote, folder / "source" / _file_name(remote.url), progress)
    if remote.sha256 is None and not is_archive(archive):
        archive.unlink()  # or it would block further attempts
        raise DataError(
            f"what came from {remote.url} is no archive (a web page?); it was removed",
            remedy="check the address, or name a local copy with --source",
        )
    return archive


def _file_name(url: str) -> str:
    try:
        return plain_name(short_name(Path(urlsplit(url).path).name))
    except ValueError:
        return "archive"


def _unpack(archive: Path, folder: Path, progress: Progress) -> Path:
    """Unpack once: a stamp beside the unpacked files tells whether they are of this archive."""
    unpacked = folder / "source" / f"{archive.name}.unpacked"
    stamp = unpacked.with_name(f"{unpacked.name}.stamp")
    state = archive.stat()
    words = f"{archive.resolve()} {state.st_size} {state.st_mtime_ns}"
    if not (unpacked.is_dir() and stamp.is_file() and stamp.read_text("utf-8") == words):
        stamp.unlink(missing_ok=True)
        try:
            extract(archive, unpacked, progress)
        except DamagedArchive as error:
            if archive.parent != unpacked.parent:  # the user's own
                raise
            archive.unlink()
            raise DataError(
                f"{error}; it was removed", remedy="run the same command again to fetch it"
            ) from error
        write_text(stamp, words)
    return unpacked
