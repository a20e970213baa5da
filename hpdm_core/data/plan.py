"""Plan of a preparation: the videos that a scan found, and how they are transcoded."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from hpdm_core.data.dataset import Kind
from hpdm_core.data.faults import Problem
from hpdm_core.data.objects import RemoteFile, RemoteFolder
from hpdm_core.data.transcode import Refused, Transcode, Transcoded, transcode
from hpdm_core.data.video_io import CRF, GOP, write_mp4
from hpdm_core.errors import DataError
from hpdm_core.files import json_sha256
from hpdm_core.names import short_name

VIDEOS, SHARDS = "videos", "shards"
MIN_FRAMES = 16
MOST_RENDERED = 1_000_000
# Least and most of what options ask for.
_WORKERS, _FRAMES, _SIDE = (1, 1024), (1, 1_000_000), (8, 8192)


def check_range(option: str, value: int, low: int, high: int) -> None:
    """Refuse a number that an option cannot take.

    Raises:
        DataError: it is below `low` or above `high`.
    """
    if not low <= value <= high:
        raise DataError(
            f"--{option} is out of range", got=str(value)[:40], expected=f"{low:,} to {high:,}"
        )


@dataclass(frozen=True, kw_only=True)
class SourceVideo:
    """A video that a scan of the source found.

    Args:
        file: where it is, here or in an object store; None if it is generated.
        name: unique, relative to the source, with forward slashes.
        class_name, caption, more_captions, split, is_image: as in `VideoEntry`.
        problem: reason to refuse it without decoding, as (kind, message).
    """

    file: Path | RemoteFile | None
    name: str
    class_name: str | None = None
    caption: str | None = None
    more_captions: tuple[str, ...] = ()
    split: str = "train"
    is_image: bool = False
    problem: tuple[Problem, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """One video for a worker to make.

    Args:
        video: its source.
        target: the canonical MP4 to write.
        known_sha256: hash of the source when `target` was last written, '' if never.
    """

    video: SourceVideo
    target: Path
    known_sha256: str


@dataclass(frozen=True, kw_only=True)
class PrepShard:
    """One of `count` independent tasks that prepare a data set together.

    Args:
        number: from 0 to count - 1.
        count: number of tasks.
    """

    number: int
    count: int

    @property
    def folder(self) -> str:
        """Where its records lie, below the data set's folder."""
        return f"{SHARDS}/{self.number:05d}-of-{self.count:05d}"

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> "PrepShard":
        """Read 'i/n'.

        Raises:
            DataError: it is none.
        """
        found = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text)
        if found is None or not int(found[1]) < int(found[2]):
            raise DataError(
                "--shard is not one of n tasks", got=text, expected="i/n with i from 0 to n - 1"
            )
        return cls(number=int(found[1]), count=int(found[2]))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Plan of one preparation.

    Args:
        folder: the data set's folder.
        name, kind, classes: as in `VideoDataset`.
        source: description of the source, for the header.
        videos: everything that the scan found.
        make: writes one canonical video; importable by name, since it runs in workers.
        settings: what every canonical video depends on besides its source; changes remake all.
        workers: processes; None uses every core.
        notes: messages on the scan.
        shard: the task that this process does; None does all of it.
        store: the data set in an object store, for which `folder` stands while this task lasts.
    """

    folder: Path
    name: str
    kind: Kind
    classes: tuple[str, ...]
    source: str
    videos: Sequence[SourceVideo]
    make: Callable[[Job], Transcoded | Refused]
    settings: dict[str, Any]
    workers: int | None = None
    notes: tuple[str, ...] = ()
    shard: PrepShard | None = None
    store: RemoteFolder | None = None

    def __post_init__(self) -> None:
        if self.workers is not None:
            check_range("workers", self.workers, *_WORKERS)

    @property
    def place(self) -> str:
        """Where the data set lies, for messages."""
        return str(self.store or self.folder)

    @property
    def records(self) -> Path:
        """Where manifest, refused files and journal lie."""
        return self.folder if self.shard is None else self.folder / self.shard.folder

    @property
    def own(self) -> Sequence[SourceVideo]:
        """The videos that this process prepares: a contiguous part of all."""
        if self.shard is None:
            return self.videos
        total, (i, n) = len(self.videos), (self.shard.number, self.shard.count)
        return self.videos[total * i // n : total * (i + 1) // n]

    def digest(self) -> str:
        """Return a hash of what all shards of one preparation share."""
        names = [(v.name, v.class_name, v.split) for v in self.videos]
        return json_sha256([self.kind, self.settings, self.classes, names])


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """Settings of transcoding.

    Args:
        min_frames: videos with fewer decoded frames are refused (stills are not).
        size: (h, w) that larger videos are shrunk to cover, None for the original size.
    """

    min_frames: int = MIN_FRAMES
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_range("min-frames", self.min_frames, *_FRAMES)
        for side in self.size or ():
            check_range("size", side, *_SIDE)

    @property
    def settings(self) -> dict[str, Any]:
        size = None if self.size is None else list(self.size)
        return {"crf": CRF, "gop": GOP, "size": size, "min_frames": self.min_frames}

    def __call__(self, job: Job) -> Transcoded | Refused:
        return transcode(
            Transcode(
                source=job.video.file,
                target=job.target,
                is_image=job.video.is_image,
                min_frames=self.min_frames,
                size=self.size,
                known_sha256=job.known_sha256,
            )
        )


def write_rendered(
    job: Job, frames: np.ndarray, *, caption: str, fps: float, crf: int
) -> Transcoded:
    """Write the canonical video of a job that renders its frames, (t, h, w, 3) uint8."""
    write_mp4(job.target, frames, fps, crf=crf, threads=1)
    num_frames, height, width = frames.shape[:3]
    return Transcoded(
        num_frames=num_frames, fps=fps, height=height, width=width, sha256="", caption=caption
    )


def targets(videos: Sequence[SourceVideo]) -> dict[str, str]:
    """Return the canonical file of each source name.

    Names that would clash, also with a folder called c.mp4, keep their suffix; long ones are
    truncated.
    """
    stems = Counter(_stem(video.name).lower() for video in videos)
    folders = {str(part).lower() for video in videos for part in PurePosixPath(video.name).parents}
    result: dict[str, str] = {}
    taken: set[str] = set()
    for video in videos:
        stem = _stem(video.name)
        unique = stem if stems[stem.lower()] == 1 else video.name
        folder, slash, last = unique.rpartition("/")
        unique = folder + slash + short_name(last)
        while unique.lower() in taken or f"{unique}.mp4".lower() in folders:
            unique += "_"
        taken.add(unique.lower())
        result[video.name] = f"{VIDEOS}/{unique}.mp4"
    return result


def _stem(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + (last.rpartition(".")[0] or last)
