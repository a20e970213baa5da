"""Learning rate over the steps: linear warm-up, then a cosine or a constant (Sec. 4.6, Table 8)."""

import math
from typing import Literal

Schedule = Literal["cosine", "constant"]


def learning_rate(
    step: int, *, peak: float, steps: int, warmup_steps: int, schedule: Schedule, final_share: float
) -> float:
    """Return the learning rate of one update.

    The first update has peak / warmup_steps, update number warmup_steps has the peak; a cosine
    then falls to final_share * peak at the last update.

    Args:
        step: updates done before this one, from 0.
        peak: largest learning rate.
        steps: updates in all.
        warmup_steps: updates of linear warm-up.
        schedule: what follows the warm-up.
        final_share: the last learning rate as a fraction of the peak (cosine).
    """
    number = step + 1
    if number <= warmup_steps:
        return peak * number / warmup_steps
    if schedule == "constant":
        return peak
    done = min(1.0, (number - warmup_steps) / max(1, steps - warmup_steps))
    return peak * (final_share + (1 - final_share) * (1 + math.cos(math.pi * done)) / 2)
