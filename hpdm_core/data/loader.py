"""Batches of nested patches (Sec. 4.1), each a pure function of the seed and the step.

The batch of a step is the same for any number of workers, after any interruption, and its part
on each device the same as without devices. A file that was damaged after preparation is
replaced by another video, counted and logged.

Axis legend: `b` batch, `c` channels, `t h w` video, `l` level.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch

from hpdm_core.data.batch_maker import BatchMaker, MadeBatch, StepTask
from hpdm_core.data.clips import ClipReader
from hpdm_core.data.dataset import VideoDataset
from hpdm_core.data.entries import VideoEntry
from hpdm_core.data.order import ClipRules, ShortClips
from hpdm_core.data.pool import NO_MARK, WorkerLost, WorkerPool
from hpdm_core.data.text_store import TextStore
from hpdm_core.errors import DataError
from hpdm_core.geometry.pyramid import Pyramid
from hpdm_core.records import Condition, PatchBatch

logger = logging.getLogger("hpdm.data")

Conditioning = Literal["none", "class", "text"]
MOST_LOST_WORKERS = 8
BATCHES_AHEAD = 2
MOST_CHECKED = 10_000
SLOW_SECONDS = 60.0
_SLOW = f"no batch for {SLOW_SECONDS:.0f} s; it is waited for (slow storage? few data.workers?)"


class PatchLoader:
    """Endless batches of nested patches from a prepared data set.

    Args:
        dataset: from `open_dataset`.
        pyramid: resolutions of the levels; clips have the finest one.
        batch_size: videos per step over all ranks.
        seed: of order, frames and offsets.
        split: which split of the manifest, or 'all'.
        frame_stride: take every n-th frame of the source.
        short_clips: leave out videos of too few frames, loop them, or hold their last frame.
        flip: mirror half of the clips left to right.
        image_fraction: fraction of samples that are a still, repeated in time.
        conditioning: what `PatchBatch.condition` holds.
        workers: decoding processes; 0 decodes in this process.
        memory_cache_bytes: videos to keep decoded in the memory of each process.
        rank, world_size: this process takes the rank-th contiguous part of each batch.
        timeout: seconds that one video may take before its worker counts as hung.

    Attributes:
        replaced: samples that were replaced because of damaged files.
        bad_files: reason by damaged file.
        maker: makes any step's batch in this process.

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
        image_fraction: float = 0.0,
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
            image_fraction=image_fraction,
        )
        entries = usable_entries(dataset, split, rules)
        text = _check_conditioning(dataset, conditioning, split)
        share = batch_size // world_size
        reader = ClipReader(
            dataset.folder,
            entries,
            pyramid=pyramid,
            memory_cache_bytes=memory_cache_bytes,
        )
        self.maker = BatchMaker(
            entries=entries,
            reader=reader,
            rules=rules,
            text=text,
            seed=seed,
            batch_size=batch_size,
            indices=range(rank * share, (rank + 1) * share),
        )
        self._folder = dataset.folder
        self._conditioning = conditioning
        self._workers = workers
        self._timeout = timeout
        self._pool: WorkerPool[StepTask, MadeBatch] | None = None
        self._excluded: set[int] = set()
        self._lost = 0
        self.replaced = 0
        self.bad_files: dict[Path, str] = {}

    def batches(self, start_step: int) -> Iterator[PatchBatch]:
        """Yield the batches of `start_step` and after, endlessly.

        Raises:
            DataError: hardly any file can be read, or workers keep dying.
        """
        if self._workers == 0:
            made = (
                self.maker(StepTask(step=step, excluded=frozenset()), lambda _: None)
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

    def _from_workers(self, start_step: int) -> Iterator[MadeBatch]:
        self.close()
        self._pool = WorkerPool(
            self.maker,
            workers=self._workers,
            timeout=self._timeout,
            setup=_one_thread,
            preload=__name__,
        )
        ready: dict[int, MadeBatch] = {}
        submitted = start_step
        try:
            for step in itertools.count(start_step):
                while submitted < step + BATCHES_AHEAD * self._workers:
                    self._submit(submitted)
                    submitted += 1
                told = False
                while step not in ready:
                    done = self._pool.collect(within=SLOW_SECONDS)
                    if not done and not told:
                        told = True
                        logger.info("step %d: reading its videos is slow: %s", step, _SLOW)
                    for task, result in done:
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
        self._pool.submit(StepTask(step=step, excluded=frozenset(self._excluded)))

    def _note_loss(self, loss: WorkerLost) -> None:
        self._lost += 1
        name = "no file"
        if loss.mark != NO_MARK:
            self._excluded.add(loss.mark)
            name = str(self._folder / self.maker.entries[loss.mark].path)
        logger.warning("a loader worker was lost on %s: %s", name, loss)
        if loss.mark == NO_MARK or self._lost > MOST_LOST_WORKERS:
            raise DataError(
                f"a loader worker was lost, the last one on {name}: {loss}",
                remedy="is there memory left? lower data.workers or data.memory_cache_gb",
            ) from loss

    def _finish(self, made: MadeBatch) -> PatchBatch:
        entries = self.maker.entries
        for video, reason in made.faults:
            self.replaced += 1
            path = self._folder / entries[video].path
            if path not in self.bad_files:
                self.bad_files[path] = reason
                logger.warning("%s is replaced by another video: %s", path, reason)
        taken = [entries[video] for video in made.videos]
        return PatchBatch(
            patches=tuple(made.patches.unbind(0)),
            offsets=made.offsets,
            condition=self._condition(made, taken),
            indices=torch.tensor(self.maker.indices),
            keys=tuple(entry.path for entry in taken),
        )

    def _condition(self, made: MadeBatch, taken: list[VideoEntry]) -> Condition:
        if self._conditioning == "class":
            return Condition(labels=torch.tensor([entry.label for entry in taken]))
        if made.text is not None:
            embeddings, mask = made.text
            return Condition(text=embeddings, text_mask=mask)
        return Condition()


def _check_conditioning(
    dataset: VideoDataset, conditioning: Conditioning, split: str
) -> TextStore | None:
    """Return the text embeddings if needed; raise DataError if they are missing."""
    if conditioning == "class" and not dataset.classes:
        raise DataError(
            f"data set {dataset.name!r} has no classes",
            remedy="set model.conditioning=none, or prepare videos in a folder per class",
        )
    if conditioning != "text":
        return None
    store = TextStore(dataset.folder)
    # Any other that is missing is named when it is drawn: reading 100M captions takes an hour.
    store.check(["", *dataset.captions(split, most=MOST_CHECKED)])
    return store


def usable_entries(dataset: VideoDataset, split: str, rules: ClipRules) -> Sequence[VideoEntry]:
    """Return the entries of a split that are long enough for a clip.

    Raises:
        DataError: there is none.
    """
    usable = dataset.split(split, min_frames=rules.min_frames)
    if not usable:
        number = len(dataset.split(split))
        raise DataError(
            f"data set {dataset.name!r}, split {split!r}: 0 of {number} videos usable: "
            f"{number} have fewer than {rules.span} frames",
            remedy="set data.short_clips to loop or hold, or lower data.frame_stride or the "
            "frames of pyramid.levels",
        )
    return usable


def _one_thread() -> None:
    torch.set_num_threads(1)
