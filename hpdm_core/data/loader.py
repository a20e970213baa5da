"""Batches of nested patches (Sec. 4.1), each a pure function of the seed and the step.

The batch of a step is the same for any number of workers, after any interruption, and its share
on each device the same as without devices. A file that has gone bad since it was prepared is
replaced by another video, counted and reported.

Axis legend: `b` batch, `c` channels, `t h w` video, `l` level.
"""

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hpdm_core.data.clips import ClipPixels, ClipReader, TemporalDownsampling, foreign_patch
from hpdm_core.data.dataset import VideoDataset, VideoEntry
from hpdm_core.data.order import (
    ClipRules,
    Draw,
    ShortClips,
    choose_video,
    draw_sample,
    sample_rng,
)
from hpdm_core.data.pool import NO_MARK, Mark, WorkerLost, WorkerPool
from hpdm_core.data.resample import Region, area_mean
from hpdm_core.data.video_io import UnusableVideo
from hpdm_core.errors import DataError
from hpdm_core.geometry.pyramid import Pyramid
from hpdm_core.records import Condition, PatchBatch

log = logging.getLogger("hpdm.data")

Conditioning = Literal["none", "class", "text"]
MOST_ATTEMPTS = 20
MOST_LOST_WORKERS = 8
BATCHES_AHEAD = 2
# Pixels averaged in one go: large enough for speed, small enough to stay in the cache.
PIXELS_AT_ONCE = 1 << 21


@dataclass(frozen=True, kw_only=True)
class _Step:
    """What a worker is asked for: a step, and the entries known to kill workers."""

    step: int
    deadly: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class _Made:
    """What a worker sends back.

    Args:
        patches: (l, b, c, t, h, w) float32.
        offsets: (b, l, 3) int64.
        videos: (b,) which entry each sample came from.
        faults: (entry, reason) of every bad file that was met.
    """

    patches: Tensor
    offsets: Tensor
    videos: list[int]
    faults: list[tuple[int, str]]


@dataclass(frozen=True, kw_only=True)
class BatchMaker:
    """Makes this rank's share of any step's batch; picklable, and stateless but for the cache."""

    entries: tuple[VideoEntry, ...]
    reader: ClipReader
    rules: ClipRules
    seed: int
    batch_size: int
    indices: range

    def __call__(self, task: _Step, mark: Mark) -> _Made:
        pyramid, count = self.rules.pyramid, len(self.indices)
        shape = (pyramid.num_levels, count, 3, *pyramid.patch)
        patches = torch.empty(shape)
        taken = [self._take(task, index, mark) for index in self.indices]
        for level in range(pyramid.num_levels):
            self._fill_level(patches[level], level, [(s.clip, s.draw) for s in taken])
        return _Made(
            patches=patches.div_(127.5).sub_(1.0),
            offsets=torch.from_numpy(np.stack([s.draw.offsets for s in taken])),
            videos=[s.video for s in taken],
            faults=[fault for s in taken for fault in s.faults],
        )

    def _take(self, task: _Step, index: int, mark: Mark) -> "_Taken":
        faults = []
        for attempt in range(MOST_ATTEMPTS):
            rng = sample_rng(self.seed, task.step, index, attempt)
            number = task.step * self.batch_size + index
            video = choose_video(
                rng, seed=self.seed, number=number, count=len(self.entries), attempt=attempt
            )
            if video in task.deadly:
                faults.append((video, "it ended or hung a worker"))
                continue
            draw = draw_sample(rng, self.rules, self.entries[video])
            mark(video)
            try:
                clip = self.reader.read(video, draw)
            except UnusableVideo as error:
                faults.append((video, error.detail))
                continue
            return _Taken(video=video, clip=clip, draw=draw, faults=faults)
        names = ", ".join(self.entries[video].path for video, _ in faults[:3])
        raise DataError(
            f"{MOST_ATTEMPTS} videos in a row cannot be read ({names}, ...)",
            remedy="check the disk, then run `hpdm prep` again: it mends what has changed",
        )

    def _fill_level(self, out: Tensor, level: int, samples: list[tuple[ClipPixels, Draw]]) -> None:
        """Write the patches of one level, (b, c, t, h, w) in 0..255."""
        pyramid = self.rules.pyramid
        exact = [place for place, (clip, _) in enumerate(samples) if clip.crop is None]
        for place, (clip, draw) in enumerate(samples):
            if clip.crop is not None:
                region = Region(
                    clip=pyramid.resolution[1:],
                    stride=pyramid.stride(level)[1:],
                    offset=_corner(draw, pyramid, level),
                    size=pyramid.patch[1:],
                )
                patch = foreign_patch(clip, self.reader.level_frames(level, draw), region)
                out[place] = patch.flip(-1) if draw.mirrored else patch
        stride = pyramid.stride(level)
        per_sample = 3 * int(np.prod(pyramid.patch)) * int(np.prod(stride))
        at_once = max(1, PIXELS_AT_ONCE // per_sample)
        for start in range(0, len(exact), at_once):
            places = exact[start : start + at_once]
            areas = [self._exact_area(level, *samples[place]) for place in places]
            frames_at_once = areas[0].shape[1] // pyramid.patch[0]
            mean = area_mean(np.stack(areas), (frames_at_once, *stride[1:]))
            out[places] = torch.from_numpy(mean)

    def _exact_area(self, level: int, clip: ClipPixels, draw: Draw) -> np.ndarray:
        """Return the clip's pixels under a level's patch: (c, t k, h s, w s) uint8."""
        pyramid = self.rules.pyramid
        _, height, width = pyramid.patch
        _, stride_y, stride_x = pyramid.stride(level)
        y, x = _corner(draw, pyramid, level)
        rows = clip.rows[self.reader.level_frames(level, draw).ravel()]
        area = clip.pixels[
            :,
            rows,
            y * stride_y : (y + height) * stride_y,
            x * stride_x : (x + width) * stride_x,
        ]
        return area[..., ::-1] if draw.mirrored else area


@dataclass(frozen=True, kw_only=True)
class _Taken:
    video: int
    clip: ClipPixels
    draw: Draw
    faults: list[tuple[int, str]]


def _corner(draw: Draw, pyramid: Pyramid, level: int) -> tuple[int, int]:
    """Return the patch's (y, x) in the clip as it is stored, that is before mirroring."""
    _, y, x = (int(offset) for offset in draw.offsets[level])
    if draw.mirrored:
        x = pyramid.levels[level][2] - pyramid.patch[2] - x
    return y, x


class PatchLoader:
    """Endless batches of nested patches from a prepared data set.

    Args:
        dataset: from `open_dataset`.
        pyramid: resolutions of the levels; clips have the finest one.
        batch_size: videos per step over all ranks.
        seed: decides order, frames and places.
        split: which split of the manifest, or 'all'.
        frame_stride: take every n-th frame of the source.
        short_clips: leave out videos of too few frames, loop them, or hold their last frame.
        flip: mirror half of the clips left to right.
        image_share: share of samples that are a still, repeated in time.
        temporal_downsampling: coarser levels take every k-th frame, or the mean of k.
        conditioning: what `PatchBatch.condition` holds.
        workers: decoding processes; 0 decodes in this one.
        memory_cache_bytes: videos to keep decoded in the memory of each process.
        rank, world_size: this process takes the rank-th contiguous share of each batch.
        timeout: seconds that a batch may take before its worker is taken for hung.

    Attributes:
        replaced: samples that were replaced because a file had gone bad.
        bad_files: reason by file, for the files that had.
        usable: how many videos of the split can be used, in words.

    Raises:
        DataError: no usable video, or the data set lacks what `conditioning` needs.
    """

    def __init__(
        self,
        dataset: VideoDataset,
        *,
        pyramid: Pyramid,
        batch_size: int,
        seed: int,
        split: str = "train",
        frame_stride: int = 1,
        short_clips: ShortClips = "drop",
        flip: bool = False,
        image_share: float = 0.0,
        temporal_downsampling: TemporalDownsampling = "stride",
        conditioning: Conditioning = "none",
        workers: int = 0,
        memory_cache_bytes: int = 0,
        rank: int = 0,
        world_size: int = 1,
        timeout: float = 300.0,
    ) -> None:
        if batch_size % world_size:
            raise DataError(
                "train.batch_size must divide over the devices",
                got=f"{batch_size} videos on {world_size} devices",
                remedy=f"choose a multiple of {world_size}",
            )
        rules = ClipRules(
            pyramid=pyramid,
            frame_stride=frame_stride,
            short_clips=short_clips,
            flip=flip,
            image_share=image_share,
        )
        self.usable, entries = _usable_entries(dataset, split, rules)
        self._check_conditioning(dataset, conditioning)
        share = batch_size // world_size
        reader = ClipReader(
            dataset.folder,
            entries,
            pyramid=pyramid,
            temporal_downsampling=temporal_downsampling,
            memory_cache_bytes=memory_cache_bytes,
        )
        self._maker = BatchMaker(
            entries=entries,
            reader=reader,
            rules=rules,
            seed=seed,
            batch_size=batch_size,
            indices=range(rank * share, (rank + 1) * share),
        )
        self._folder = dataset.folder
        self._conditioning = conditioning
        self._workers = workers
        self._timeout = timeout
        self._pool: WorkerPool[_Step, _Made] | None = None
        self._deadly: set[int] = set()
        self._lost = 0
        self.replaced = 0
        self.bad_files: dict[Path, str] = {}

    @staticmethod
    def _check_conditioning(dataset: VideoDataset, conditioning: Conditioning) -> None:
        if conditioning == "class" and not dataset.classes:
            raise DataError(
                f"data set {dataset.name!r} has no classes",
                remedy="set model.conditioning=none, or prepare videos in a folder per class",
            )

    def batches(self, start_step: int) -> Iterator[PatchBatch]:
        """Yield the batches of `start_step` and after, without end.

        Raises:
            DataError: hardly any file can be read, or workers keep dying.
        """
        if self._workers == 0:
            made = (
                self._maker(_Step(step=step, deadly=frozenset()), lambda _: None)
                for step in itertools.count(start_step)
            )
        else:
            made = self._from_workers(start_step)
        for batch in made:
            yield self._finish(batch)

    def close(self) -> None:
        """End the workers; safe to call twice."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _from_workers(self, start_step: int) -> Iterator[_Made]:
        self.close()
        self._pool = WorkerPool(
            self._maker, workers=self._workers, timeout=self._timeout, setup=_one_thread
        )
        ready: dict[int, _Made] = {}
        submitted = start_step
        try:
            for step in itertools.count(start_step):
                while submitted < step + BATCHES_AHEAD * self._workers:
                    self._submit(submitted)
                    submitted += 1
                while step not in ready:
                    for task, result in self._pool.collect():
                        if isinstance(result, WorkerLost):
                            self._note_loss(result)
                            self._submit(task.step)
                        elif isinstance(result, Exception):
                            raise result
                        else:
                            ready[task.step] = result
                yield ready.pop(step)
        finally:
            self.close()

    def _submit(self, step: int) -> None:
        self._pool.submit(_Step(step=step, deadly=frozenset(self._deadly)))

    def _note_loss(self, loss: WorkerLost) -> None:
        self._lost += 1
        name = "no file"
        if loss.mark != NO_MARK:
            self._deadly.add(loss.mark)
            name = str(self._folder / self._maker.entries[loss.mark].path)
        log.warning("a loader worker was lost on %s: %s", name, loss)
        if loss.mark == NO_MARK or self._lost > MOST_LOST_WORKERS:
            raise DataError(
                f"a loader worker was lost, the last one on {name}: {loss}",
                remedy="is there memory left? lower data.workers or data.memory_cache_gb",
            ) from loss

    def _finish(self, made: _Made) -> PatchBatch:
        entries = self._maker.entries
        for video, reason in made.faults:
            self.replaced += 1
            path = self._folder / entries[video].path
            if path not in self.bad_files:
                self.bad_files[path] = reason
                log.warning("%s is replaced by another video: %s", path, reason)
        taken = [entries[video] for video in made.videos]
        return PatchBatch(
            patches=tuple(made.patches.unbind(0)),
            offsets=made.offsets,
            condition=self._condition(taken),
            indices=torch.tensor(self._maker.indices),
            keys=tuple(entry.path for entry in taken),
        )

    def _condition(self, taken: list[VideoEntry]) -> Condition:
        if self._conditioning == "class":
            return Condition(labels=torch.tensor([entry.label for entry in taken]))
        return Condition()


def _usable_entries(
    dataset: VideoDataset, split: str, rules: ClipRules
) -> tuple[str, tuple[VideoEntry, ...]]:
    """Return the entries long enough for a clip, and how many they are in words."""
    entries = dataset.split(split)
    usable = tuple(entry for entry in entries if rules.usable(entry))
    words = f"{len(usable)} of {len(entries)} videos usable"
    if len(usable) < len(entries):
        words += f": {len(entries) - len(usable)} have fewer than {rules.span} frames"
    if not usable:
        raise DataError(
            f"data set {dataset.name!r}, split {split!r}: {words}",
            remedy="set data.short_clips to loop or hold, or lower data.frame_stride or the "
            "frames of pyramid.levels",
        )
    return words, usable


def _one_thread() -> None:
    torch.set_num_threads(1)
