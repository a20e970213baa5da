"""Rows and levels of a batch: micro-batches, level dropout, and loaders that restart.

Axis legend: `b` batch, `l` level.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from hpdm_core.errors import DataError, HpdmError
from hpdm_core.records import PatchBatch
from hpdm_core.seeds import derive_seed

logger = logging.getLogger("hpdm.training")

MAX_RESTARTS = 3


def split_batch(batch: PatchBatch, size: int | None) -> list[PatchBatch]:
    """Split a batch into parts of at most `size` rows; one part if `size` is None."""
    rows = len(batch.indices)
    if size is None or size >= rows:
        return [batch]
    return [_rows(batch, slice(start, start + size)) for start in range(0, rows, size)]


def keep_levels(batch: PatchBatch, levels: int) -> PatchBatch:
    """Return the batch with its coarsest `levels` levels only."""
    return replace(batch, patches=batch.patches[:levels])


def levels_of_step(step: int, *, seed: int, levels: int, drop_prob: float) -> int:
    """Return how many of the coarsest levels step `step` trains (level dropout, appendix D).

    With probability `drop_prob` the finest levels are dropped; the number of remaining levels is
    uniform over 1 .. levels - 1. The same on all devices.
    """
    rng = np.random.default_rng(derive_seed(seed, "cut", step))
    if levels > 1 and rng.random() < drop_prob:
        return int(rng.integers(1, levels))
    return levels


def levels_chances(*, levels: int, drop_prob: float) -> dict[int, float]:
    """Return the probability of each number of levels that `levels_of_step` gives."""
    if levels == 1 or drop_prob == 0:
        return {levels: 1.0}
    return dict.fromkeys(range(1, levels), drop_prob / (levels - 1)) | {levels: 1 - drop_prob}


class BatchStream:
    """Batches from a loader that is restarted where it stopped if it fails.

    A batch depends on the step alone, so a new loader continues with the batch at which the
    old one failed (for example a killed decoding process).

    Args:
        make: starts batches at a step, such as `PatchLoader.batches`.
        start_step: step of the first batch.
    """

    def __init__(
        self,
        make: Callable[[int], Iterator[PatchBatch]],
        start_step: int,
    ) -> None:
        self._make = make
        self._batches = make(start_step)
        self.step = start_step
        self.wait_seconds = 0.0

    def next(self) -> PatchBatch:
        """Return the next step's batch; the time it took is added to `wait_seconds`.

        Raises:
            DataError: the loader broke several times at the same step.
        """
        begun = time.perf_counter()
        for _ in range(MAX_RESTARTS):
            try:
                batch = next(self._batches)
            except HpdmError:
                raise
            except (RuntimeError, OSError, EOFError) as error:
                logger.warning("step %d: the loader broke (%s); restarting it", self.step, error)
                self._batches = self._make(self.step)
            else:
                self.step += 1
                self.wait_seconds += time.perf_counter() - begun
                return batch
        raise DataError(
            f"the loader broke {MAX_RESTARTS} times at step {self.step}",
            remedy="set data.workers=0 to see why, or fewer workers if memory ran out",
        )


def _rows(batch: PatchBatch, rows: slice) -> PatchBatch:
    return PatchBatch(
        patches=tuple(patch[rows] for patch in batch.patches),
        offsets=batch.offsets[rows],
        condition=batch.condition.select(rows),
        indices=batch.indices[rows],
        keys=batch.keys[rows],
    )
