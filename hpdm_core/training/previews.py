"""When previews may be drawn: at most 2% of the time trained, and a minute."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hpdm_core.training.parallel import Parallel

logger = logging.getLogger("hpdm.training")

MOST_SHARE = 0.02
# So that a short run is shown as it goes.
FREE_SECONDS = 60.0


@dataclass(kw_only=True)
class PreviewBudget:
    """Time spent on the previews of this start of a run.

    Args:
        parallel: all processes do as the main one.
        clock: seconds.
    """

    parallel: Parallel
    clock: Callable[[], float] = time.perf_counter
    _spent: float = 0.0
    _last: float = 0.0
    _told: bool = False

    def allows(self, step: int, *, trained: float) -> bool:
        """Return whether another preview that costs what the last one did is within the budget.

        The first preview that is left out is logged, and the first after one was drawn again.

        Args:
            step: for the log.
            trained: seconds trained since the start, without previews.
        """
        needed = self._spent + self._last - FREE_SECONDS
        if self.parallel.from_main(int(needed <= MOST_SHARE * trained)):
            self._told = False
            return True
        if not self._told:
            wait = max(0.0, needed / MOST_SHARE - trained)
            logger.info(
                "step %d: no previews for some %.0f minutes of training: the last took %.0f s, and "
                "they may take %.0f%% of the time (train.preview_every)",
                step, wait / 60, self._last, 100 * MOST_SHARE,
            )  # fmt: skip
        self._told = True
        return False

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Measure a preview."""
        begun = self.clock()
        yield
        self._last = self.clock() - begun
        self._spent += self._last
