"""Clips of videos for `hpdm eval-fvd`, from disk or generated: which ones, frames and sizes.

Axis legend: `t h w` frames, rows, columns.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpdm_core.data.dataset import HEADER, VideoDataset, open_dataset
from hpdm_core.data.entries import read_json_lines
from hpdm_core.data.folders import VIDEO_SUFFIXES, find_videos
from hpdm_core.data.pool import usable_cores
from hpdm_core.data.video_io import UnusableVideo, VideoReader, decode_sequential
from hpdm_core.errors import DataError, MetricError
from hpdm_core.files import sha256_of
from hpdm_core.metrics.extract import Skipped
from hpdm_core.pipeline.pipeline import Pipeline
from hpdm_core.pipeline.resources import Resources
from hpdm_core.pipeline.videos import to_uint8
from hpdm_core.records import NO_CLASS
from hpdm_core.runs.evaluate.framing import Preparation, fit_frames, lanczos_frames
from hpdm_core.seeds import derive_seed

SAMPLES = "samples*.jsonl"
# If a folder's videos differ in size, all are resized to that of the paper's comparisons.
COMMON_SIZE = (256, 256)
NUM_PROBES = 16
MAX_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class VideoFile:
    """A video on disk.

    Args:
        name: relative to its folder.
        path: the file.
        num_frames: frames in it, None if unknown before decoding.
        size: (h, w), None if unknown before decoding.
        class_name: its class, or None.
    """

    name: str
    path: Path
    num_frames: int | None = None
    size: tuple[int, int] | None = None
    class_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class VideoSet:
    """Videos that are scored together.

    Args:
        source: the folder, as the user named it.
        split: which split of a prepared data set, None for a plain folder.
        files: in the order of scoring.
        sha256: over the contents of all videos.
    """

    source: Path
    split: str | None
    files: tuple[VideoFile, ...]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ClipFormat:
    """Which frames of a video a clip has, and at which size.

    Args:
        frames: number of frames.
        stride: every n-th frame.
        size: (h, w) that each frame is cropped and resized to.
        shrink: area mean over this many rows and columns after that (a lower pyramid level).
        start_seed: seed of a random start per video; None starts at the first frame.
        preparation: 'hpdm', or 'stylegan-v' for that project's reading: the last start is where
            the clip's last frame is the video's last (stride - 1 later), and frames are resized by
            Lanczos before they are cropped.
    """

    frames: int
    stride: int
    size: tuple[int, int]
    shrink: tuple[int, int] = (1, 1)
    start_seed: int | None = None
    preparation: Preparation = "hpdm"

    @property
    def span(self) -> int:
        """Minimum frames of a video: frames times stride, or from first to last frame."""
        unused = self.stride - 1 if self.preparation == "stylegan-v" else 0
        return self.frames * self.stride - unused


@dataclass(frozen=True, kw_only=True)
class FileClips:
    """Clips of video files (a `ClipSource`), decoded by a few threads."""

    files: Sequence[VideoFile]
    spec: ClipFormat

    def __len__(self) -> int:
        return len(self.files)

    def clips(self, start: int, stop: int) -> Iterator[np.ndarray | Skipped]:
        with ThreadPoolExecutor(min(MAX_THREADS, usable_cores())) as threads:
            yield from threads.map(
                lambda file: extract_clip(file, self.spec), self.files[start:stop]
            )


def extract_clip(file: VideoFile, spec: ClipFormat) -> np.ndarray | Skipped:
    """Return the clip of a video, (t, h, w, 3) uint8, or the reason why not."""
    try:
        total = file.num_frames
        if total is None and spec.start_seed is not None:
            total = sum(1 for _ in decode_sequential(file.path))
        if total is not None and total < spec.span:
            return _too_short(file, total, spec)
        first = 0
        if spec.start_seed is not None:
            rng = np.random.default_rng(derive_seed("clip", spec.start_seed, file.name))
            first = int(rng.integers(total - spec.span + 1))
        places = first + spec.stride * np.arange(spec.frames)
        if file.num_frames is not None:
            frames = VideoReader(file.path).read(places)
        else:
            wanted = itertools.islice(decode_sequential(file.path), first + spec.span)
            frames = list(wanted)[first :: spec.stride]
            if len(frames) < spec.frames:
                return _too_short(file, first + len(frames), spec)
            frames = np.stack(frames)
    except UnusableVideo as problem:
        return Skipped(reason=f"{file.name}: {problem.detail}")
    if spec.preparation == "stylegan-v" and spec.shrink == (1, 1):
        return lanczos_frames(frames, spec.size)
    return fit_frames(frames, spec.size, shrink=spec.shrink)


def open_videos(source: Path, *, split: str | None, default_split: str) -> VideoSet:
    """Return the videos of a prepared data set, of `hpdm sample`, or of any folder.

    Args:
        source: the folder.
        split: of a prepared data set; None uses `default_split`.
        default_split: 'train', or 'all'.

    Raises:
        MetricError: there is no such folder, no video in it, or no splits to choose from.
    """
    if not source.is_dir():
        raise MetricError(
            f"{source} is not a folder of videos",
            remedy="give a data set of `hpdm prep` such as data/ucf101, or a folder of videos",
        )
    if (source / HEADER).is_file():
        dataset = open_dataset(source.parent, source.name)
        return _prepared(source, dataset, split or default_split)
    if split is not None:
        raise MetricError(
            f"{source} has no splits", got=f"--split {split}", remedy="prepare it with `hpdm prep`"
        )
    listed = _listed(source) if any(source.glob(SAMPLES)) else _found(source)
    if not listed:
        raise MetricError(f"no video in {source}", expected="MP4, AVI, MOV, MKV, WebM or GIF files")
    digest = hashlib.sha256()
    for file in listed:
        digest.update(f"{file.name}\0{sha256_of(file.path)}\n".encode())
    return VideoSet(source=source, split=None, files=listed, sha256=digest.hexdigest())


def in_random_order(videos: VideoSet, seed: int) -> tuple[VideoFile, ...]:
    """Return the files in a seeded order, so that the first n cover all classes evenly."""
    order = np.random.default_rng(derive_seed("order", seed)).permutation(len(videos.files))
    return tuple(videos.files[i] for i in order)


def common_size(files: Sequence[VideoFile]) -> tuple[tuple[int, int], bool]:
    """Return the (h, w) that all videos share, or `COMMON_SIZE`, and whether they share one."""
    if all(file.size is not None for file in files):
        sizes = {file.size for file in files}
    else:
        probes = np.linspace(0, len(files) - 1, min(NUM_PROBES, len(files))).round().astype(int)
        sizes = {size for i in probes if (size := _size(files[i])) is not None}
    return (sizes.pop(), True) if len(sizes) == 1 else (COMMON_SIZE, False)


def _prepared(source: Path, dataset: VideoDataset, split: str) -> VideoSet:
    entries = [entry for entry in dataset.split(split) if not entry.is_image]
    digest = hashlib.sha256(json.dumps(dataset.header, sort_keys=True, default=str).encode())
    for entry in entries:
        facts = asdict(entry)
        # The hash does not depend on the data set's location.
        del facts["source_mtime_ns"]
        digest.update(json.dumps(facts, sort_keys=True).encode())
    files = tuple(
        VideoFile(
            name=entry.path,
            path=dataset.file(entry),
            num_frames=entry.num_frames,
            size=(entry.height, entry.width),
            class_name=entry.class_name,
        )
        for entry in entries
    )
    return VideoSet(source=source, split=split, files=files, sha256=digest.hexdigest())


def _listed(source: Path) -> tuple[VideoFile, ...]:
    """Return what `hpdm sample` listed, of all its processes, in the order of the requests."""
    lines = [line for path in sorted(source.glob(SAMPLES)) for line in read_json_lines(path)]
    files = []
    for line in sorted(lines, key=lambda line: int(line.get("index", 0))):
        name = _video_of(line)
        if name is None or not (source / name).is_file():
            raise DataError(
                f"{source} lists a video that is not there",
                got=name or f"only {', '.join(_names_of(line)) or 'nothing'}",
                expected="a video file such as MP4",
                remedy="run `hpdm sample` again with --format mp4: it makes what is missing",
            )
        files.append(VideoFile(name=name, path=source / name, class_name=line.get("class")))
    return tuple(files)


def _video_of(line: Mapping[str, Any]) -> str | None:
    """Return the best-quality file of a line; further files hold other levels."""
    names = _names_of(line)
    same = [name for name in names if Path(name).stem == Path(names[0]).stem]
    readable = [name for name in same if Path(name).suffix.lower() in VIDEO_SUFFIXES]
    return min(readable, key=lambda name: not name.endswith(".mp4"), default=None)


def _names_of(line: Mapping[str, Any]) -> list[str]:
    return [str(name) for name in line.get("files") or [line.get("file")] if name]


def _found(source: Path) -> tuple[VideoFile, ...]:
    return tuple(VideoFile(name=name, path=path) for name, path in find_videos(source))


def _size(file: VideoFile) -> tuple[int, int] | None:
    try:
        return next(decode_sequential(file.path)).shape[:2]
    except (UnusableVideo, StopIteration):
        return None


def _too_short(file: VideoFile, frames: int, spec: ClipFormat) -> Skipped:
    return Skipped(reason=f"{file.name}: too short, {frames} of {spec.span} frames")


@dataclass(frozen=True, kw_only=True)
class GeneratedClips:
    """Clips of generated videos (a `ClipSource`): index i is the video of seed `seed + i`.

    Args:
        pipeline: generates videos.
        seed: of the first video.
        labels: class of each video.
        level: index of the level.
        frames: number of frames of a clip.
        stride: every n-th frame.
        batch: videos per call.
    """

    pipeline: Pipeline
    seed: int
    labels: tuple[int, ...]
    level: int
    frames: int
    stride: int
    batch: int

    def __len__(self) -> int:
        return len(self.labels)

    def clips(self, start: int, stop: int) -> Iterator[np.ndarray]:
        for first in range(start, stop, self.batch):
            places = range(first, min(first + self.batch, stop))
            seeds = tuple(self.seed + place for place in places)
            condition = self.pipeline.condition_of([self.labels[place] for place in places])
            videos = self.pipeline.sample(
                seeds, condition, level=self.level, resources=Resources(batch=len(seeds))
            )
            last = self.frames * self.stride
            yield from to_uint8(videos)[:, : last : self.stride].numpy()


def draw_labels(
    classes: Sequence[str], real_classes: Sequence[str | None], *, count: int, seed: int
) -> tuple[int, ...]:
    """Return `count` labels distributed as the real videos' classes are.

    Label i is that of a real video drawn for (seed, i), so more fakes begin with the same ones.
    Real videos of classes that the model does not know do not count; without any that it knows,
    classes are equally likely.

    Args:
        classes: that the model knows; without any, all labels are `NO_CLASS`.
        real_classes: class of each real video.
        count: number of labels.
        seed: of the draw.
    """
    if not classes:
        return (NO_CLASS,) * count
    index = {name: label for label, name in enumerate(classes)}
    known = [index[name] for name in real_classes if name in index] or list(range(len(classes)))
    draws = (np.random.default_rng(derive_seed("label", seed, i)) for i in range(count))
    return tuple(known[int(rng.integers(len(known)))] for rng in draws)
