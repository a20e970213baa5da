"""Plan of a preparation: the videos that a scan found, and how they are transcoded."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from hpdm_core.data.dataset import Kind
from hpdm_core.data.faults import Problem
from hpdm_core.data.transcode import Refused, Transcode, Transcoded, transcode
from hpdm_core.data.video_io import CRF, GOP, write_mp4
from hpdm_core.names import short_name

VIDEOS = "videos"
MIN_FRAMES = 16


@dataclass(frozen=True, kw_only=True)
class SourceVideo:
    """A video that a scan of the source found.

    Args:
        file: where it is; None if it is generated.
        name: unique, relative to the source, with forward slashes.
        class_name, caption, more_captions, split, is_image: as in `VideoEntry`.
        problem: reason to refuse it without decoding, as (kind, message).
    """

    file: Path | None
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


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """Settings of transcoding.

    Args:
        min_frames: videos with fewer decoded frames are refused (stills are not).
        size: (h, w) that larger videos are shrunk to cover, None for the original size.
    """

    min_frames: int = MIN_FRAMES
    size: tuple[int, int] | None = None

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
