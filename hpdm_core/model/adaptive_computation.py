"""Adaptive computation: each block runs only on the lowest levels (Sec. 4.3, Listing 1).

Axis legend: `b` batch, `l` level, `n` tokens, `d` width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def blocks_of(levels_per_block: Sequence[int], level: int) -> tuple[int, ...]:
    """Return the blocks that run on `level`: the last ones where loads rise, as in the paper."""
    return tuple(block for block, load in enumerate(levels_per_block) if load > level)


def block_passes(levels_per_block: Sequence[int], level: int) -> int:
    """Return how many blocks run on `level`: its cost in one forward pass."""
    return len(blocks_of(levels_per_block, level))


def stack_levels(per_level: Sequence[Tensor]) -> Tensor:
    """Stack the levels along the batch, so that a block runs on all of them in one call.

    Args:
        per_level: (b, n, d) of each level, coarsest first.

    Returns:
        (l * b, n, d), level by level.
    """
    return torch.cat(list(per_level)) if len(per_level) > 1 else per_level[0]


def unstack_levels(stacked: Tensor, levels: int) -> list[Tensor]:
    """Undo `stack_levels`."""
    return list(stacked.chunk(levels))
