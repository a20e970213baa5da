"""Makes a step's batch: draws samples, reads their pixels, averages them to patches (Sec. 4.1).

Axis legend: `b` batch, `c` channels, `t h w` video, `l` level, `n` text tokens, `d` their width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpdm_core.data.clips import ClipPixels, ClipReader, foreign_patch
from hpdm_core.data.entries import VideoEntry
from hpdm_core.data.order import (
    ClipRules,
    ClipSpec,
    choose_caption,
    choose_video,
    draw_sample,
    sample_rng,
)
from hpdm_core.data.pool import Mark
from hpdm_core.data.resample import Region, area_mean
from hpdm_core.data.text_store import TextStore
from hpdm_core.data.video_io import UnusableVideo
from hpdm_core.errors import DataError
from hpdm_core.geometry.pyramid import Pyramid

MOST_ATTEMPTS = 20
# Pixels averaged at once: large enough for speed, small enough for the processor's cache.
PIXELS_AT_ONCE = 1 << 21
# Decoded clips are averaged once they hold this much: a whole batch may not fit in memory.
MOST_WAITING_BYTES = 1 << 23


@dataclass(frozen=True, kw_only=True)
class StepTask:
    """Task of a worker: a step, and the entries known to kill workers."""

    step: int
    excluded: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class MadeBatch:
    """Result of a worker.

    Args:
        patches: (l, b, c, t, h, w) float32.
        offsets: (b, l, 3) int64; float32 where patches are at fractions of a pixel.
        videos: (b,) entry of each sample.
        text: (b, n, d) float32 embeddings and (b, n) bool mask, None without text.
        faults: (entry, reason) of every bad file.
    """

    patches: Tensor
    text: tuple[Tensor, Tensor] | None
    offsets: Tensor
    videos: list[int]
    faults: list[tuple[int, str]]


@dataclass(frozen=True, kw_only=True)
class BatchMaker:
    """Makes this rank's part of any step's batch; picklable, and stateless except for caches.

    Args:
        entries: usable videos.
        reader: reads their pixels.
        rules: how clips are sampled.
        text: embeddings of their captions, None without text.
        seed: of the run.
        batch_size: over all ranks.
        indices: this rank's indices in the batch.
    """

    entries: Sequence[VideoEntry]
    reader: ClipReader
    rules: ClipRules
    text: TextStore | None
    seed: int
    batch_size: int
    indices: range

    def __call__(self, task: StepTask, mark: Mark) -> MadeBatch:
        pyramid, count = self.rules.pyramid, len(self.indices)
        shape = (pyramid.num_levels, count, 3, *pyramid.patch)
        patches = torch.empty(shape)
        taken: list[Taken] = []
        waiting: dict[int, tuple[ClipPixels, ClipSpec]] = {}
        for place, index in enumerate(self.indices):
            sample, clip = self.take(task, index, mark)
            taken.append(sample)
            waiting[place] = clip, sample.spec
            if sum(c.fresh_bytes for c, _ in waiting.values()) > MOST_WAITING_BYTES:
                self.fill(patches, waiting)
                waiting = {}
        self.fill(patches, waiting)
        return self.made(
            patches, torch.from_numpy(np.stack([s.spec.offsets for s in taken])), taken
        )

    def made(self, patches: Tensor, offsets: Tensor, taken: Sequence["Taken"]) -> MadeBatch:
        """Return the batch of (l, b, c, t, h, w) patches in 0..255, which are overwritten."""
        return MadeBatch(
            patches=patches.div_(127.5).sub_(1.0),
            offsets=offsets,
            videos=[s.video for s in taken],
            text=None if self.text is None else self.text.batch([s.caption for s in taken]),
            faults=[fault for s in taken for fault in s.faults],
        )

    def take(self, task: StepTask, index: int, mark: Mark) -> tuple["Taken", ClipPixels]:
        """Draw one sample of the step and read its pixels.

        Raises:
            DataError: hardly any file can be read.
        """
        faults = []
        for attempt in range(MOST_ATTEMPTS):
            rng = sample_rng(self.seed, task.step, index, attempt)
            number = task.step * self.batch_size + index
            video = choose_video(
                rng, seed=self.seed, number=number, count=len(self.entries), attempt=attempt
            )
            if video in task.excluded:
                faults.append((video, "it ended or hung a worker"))
                continue
            spec = draw_sample(rng, self.rules, self.entries[video])
            mark(video)
            try:
                clip = self.reader.read(video, spec)
            except UnusableVideo as error:
                faults.append((video, error.detail))
                continue
            caption = choose_caption(rng, self.entries[video])
            return Taken(video=video, spec=spec, caption=caption, faults=faults), clip
        names = ", ".join(self.entries[video].path for video, _ in faults[:3])
        raise DataError(
            f"{MOST_ATTEMPTS} videos in a row cannot be read ({names}, ...)",
            remedy="check the disk, then run `hpdm prep` again: it repairs what has changed",
        )

    def fill(self, patches: Tensor, samples: dict[int, tuple[ClipPixels, ClipSpec]]) -> None:
        """Write the patches of some samples of the batch, (l, b, c, t, h, w) in 0..255."""
        exact = [place for place, (clip, _) in samples.items() if clip.crop is None]
        for level in range(self.rules.pyramid.num_levels):
            self._fill_exact(patches[level], level, {place: samples[place] for place in exact})
            for place, (clip, spec) in samples.items():
                if clip.crop is not None:
                    patches[level, place] = self._foreign_patch(level, clip, spec)

    def _foreign_patch(self, level: int, clip: ClipPixels, spec: ClipSpec) -> Tensor:
        pyramid = self.rules.pyramid
        region = Region(
            clip=pyramid.resolution[1:],
            stride=pyramid.stride(level)[1:],
            offset=_corner(spec, pyramid, level),
            size=pyramid.patch[1:],
        )
        patch = foreign_patch(clip, self.reader.level_frames(level, spec), region)
        mirrored = patch[..., ::-1] if spec.mirrored else patch
        return torch.from_numpy(np.ascontiguousarray(mirrored))

    def _fill_exact(
        self, out: Tensor, level: int, samples: dict[int, tuple[ClipPixels, ClipSpec]]
    ) -> None:
        """Average clips that need no resizing, many at once."""
        pyramid, exact = self.rules.pyramid, list(samples)
        stride = pyramid.stride(level)
        per_sample = 3 * int(np.prod(pyramid.patch)) * int(np.prod(stride))
        at_once = max(1, PIXELS_AT_ONCE // per_sample)
        for start in range(0, len(exact), at_once):
            places = exact[start : start + at_once]
            areas = [self._exact_area(level, *samples[place]) for place in places]
            frames_at_once = areas[0].shape[1] // pyramid.patch[0]
            mean = area_mean(np.stack(areas), (frames_at_once, *stride[1:]))
            out[places] = torch.from_numpy(mean)

    def _exact_area(self, level: int, clip: ClipPixels, spec: ClipSpec) -> np.ndarray:
        """Return the clip's pixels under a level's patch: (c, t k, h s, w s) uint8."""
        pyramid = self.rules.pyramid
        _, height, width = pyramid.patch
        _, stride_y, stride_x = pyramid.stride(level)
        y, x = _corner(spec, pyramid, level)
        rows = clip.rows[self.reader.level_frames(level, spec).ravel()]
        area = clip.pixels[
            :,
            rows,
            y * stride_y : (y + height) * stride_y,
            x * stride_x : (x + width) * stride_x,
        ]
        return area[..., ::-1] if spec.mirrored else area


@dataclass(frozen=True, kw_only=True)
class Taken:
    """One sample: its entry, clip and caption, and (entry, reason) of bad files before it."""

    video: int
    spec: ClipSpec
    caption: str
    faults: list[tuple[int, str]]


def _corner(spec: ClipSpec, pyramid: Pyramid, level: int) -> tuple[int, int]:
    """Return the patch's (y, x) in the clip as stored, before mirroring."""
    _, y, x = (int(offset) for offset in spec.offsets[level])
    if spec.mirrored:
        x = pyramid.levels[level][2] - pyramid.patch[2] - x
    return y, x
