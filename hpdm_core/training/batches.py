"""Rows and levels of a batch: micro-batches, pyramid cuts, and loaders that start again.

Axis legend: `b` batch, `l` level.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from hpdm_core.errors import DataError, HpdmError
from hpdm_core.records import PatchBatch
from hpdm_core.seeds import derive_seed

MAX_RESTARTS = 3


def split_batch(batch: PatchBatch, size: int | None) -> list[PatchBatch]:
    """Split a batch into runs of at most `size` rows; one run where `size` is None."""
    rows = len(batch.indices)
    if size is None or size >= rows:
        return [batch]
    return [_rows(batch, slice(start, start + size)) for start in range(0, rows, size)]


def keep_levels(batch: PatchBatch, levels: int) -> PatchBatch:
    """Return the batch with its coarsest `levels` levels only."""
    return replace(batch, patches=batch.patches[:levels])


def levels_of_step(step: int, *, seed: int, levels: int, cuts: float) -> int:
    """Return how many of the coarsest levels step `step` trains (random cuts, appendix D).

    With probability `cuts` the finest levels are left out, and the number of levels that stay is
    uniform over 1 .. levels - 1. The same on all devices.
    """
    rng = np.random.default_rng(derive_seed(seed, "cut", step))
    if levels > 1 and rng.random() < cuts:
        return int(rng.integers(1, levels))
    return levels


class BatchStream:
    """Batches from a loader that is started again where it stopped when it breaks.

    A batch depends on the step alone, so a new loader continues with the very batch at which the
    old one broke (a decoding process that was killed, say).

    Args:
        make: starts batches at a step, such as `PatchLoader.batches`.
        start_step: step of the first batch.
        say: told about restarts.
    """

    def __init__(
        self,
        make: Callable[[int], Iterator[PatchBatch]],
        start_step: int,
        *,
        say: Callable[[str], None],
    ) -> None:
        self._make = make
        self._batches = make(start_step)
        self._say = say
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
                self._say(f"step {self.step}: the loader broke ({error}); starting it again")
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
