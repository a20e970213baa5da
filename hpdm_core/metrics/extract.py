"""From clips to stored detector outputs, in constant memory and resumable.

Axis legend: `n` videos, `t h w` video, `d` output width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from hpdm_core.metrics.detectors import Detector
from hpdm_core.metrics.store import CHUNK, Chunk, FeatureStore


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """In place of a clip that could not be used.

    Args:
        reason: in words, naming the video.
    """

    reason: str


class ClipSource(Protocol):
    """Clips in a fixed order, accessed by index."""

    def __len__(self) -> int: ...

    def clips(self, start: int, stop: int) -> Iterator[np.ndarray | Skipped]:
        """Yield the clips at places start..stop-1: (t, h, w, 3) uint8, all of one shape."""
        ...


def extract(
    source: ClipSource,
    targets: Sequence[tuple[Detector, FeatureStore]],
    *,
    count: int,
    batch: int,
    rank: int = 0,
    world_size: int = 1,
    on_clips: Callable[[int], None] = lambda count: None,
) -> None:
    """Fill the stores for the first `count` clips; each clip is loaded once for all detectors.

    Args:
        source: of the clips.
        targets: detectors, each with the store of its outputs.
        count: number of places to fill.
        batch: clips per pass of a detector.
        rank, world_size: this process takes every world_size-th chunk of all, so that processes
            that start at different times still share them without a gap.
        on_clips: called with the number of newly finished clips.
    """
    lacking = [(detector, store, set(store.missing(count))) for detector, store in targets]
    todo = sorted(set().union(*(ranges for _, _, ranges in lacking)))
    for start, stop in todo:
        if start // CHUNK % world_size != rank:
            continue
        clips = list(source.clips(start, stop))
        kept = [place for place, clip in enumerate(clips) if not isinstance(clip, Skipped)]
        skipped = tuple(
            (start + i, clip.reason) for i, clip in enumerate(clips) if isinstance(clip, Skipped)
        )
        videos = torch.from_numpy(np.stack([clips[i] for i in kept])) if kept else None
        for detector, store, ranges in lacking:
            if (start, stop) in ranges:
                outputs = torch.zeros(0, 0) if videos is None else detector(videos, batch=batch)
                store.put(
                    Chunk(
                        start=start,
                        stop=stop,
                        places=start + torch.tensor(kept, dtype=torch.int64),
                        outputs=outputs,
                        skipped=skipped,
                    )
                )
        on_clips(stop - start)
