"""Classifier-free guidance: each sample runs with and without its condition (Ho and Salimans 2022).

Axis legend: `b` batch; `...` the axes of a video.
"""

import torch
from torch import Tensor

from hpdm_core.records import Condition


def with_and_without(condition: Condition, batch: int, *, device: torch.device) -> Condition:
    """Return (2 b,) rows: the (b,) rows of the condition, then 'none' as often.

    Args:
        condition: (b,) rows.
        batch: b.
        device: where the condition is.
    """
    rows = torch.arange(2 * batch, device=device)
    return condition.select(rows % batch).drop(rows >= batch)


def guided(estimates: Tensor, guidance: float) -> Tensor:
    """Return D_none + guidance (D_condition - D_none); 0 is unconditional, 1 conditional.

    Args:
        estimates: (2 b, ...) in the order of `with_and_without`.
    """
    conditional, unconditional = estimates.chunk(2)
    return unconditional + guidance * (conditional - unconditional)
