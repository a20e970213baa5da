"""One process's part of the tiles of a video, and what several processes agree on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TileShard:
    """This process's part of the tiles of one video (`--shard tiles`).

    Args:
        rank: of this process.
        world_size: number of processes.
        sum_over_processes: all-reduces a tensor in place.
    """

    rank: int = 0
    world_size: int = 1
    sum_over_processes: Callable[[Tensor], None] = lambda _: None

    def part_of(self, items: Tensor) -> Tensor:
        """Return this process's part of some items (i,), which may be empty."""
        return items.tensor_split(self.world_size)[self.rank]

    def any_process(self, flag: bool, device: torch.device) -> bool:
        """Return whether `flag` is set in any process; every process must ask."""
        if self.world_size == 1:
            return flag
        count = torch.tensor([float(flag)], device=device)
        self.sum_over_processes(count)
        return count.item() > 0

    def attempt(self, function: Callable[[], T], device: torch.device) -> tuple[T | None, bool]:
        """Return the function's result, and whether memory ran out in any process.

        Raises:
            torch.cuda.OutOfMemoryError: memory ran out, and there is no other process.
        """
        result = None
        try:
            result = function()
        except torch.cuda.OutOfMemoryError:
            if self.world_size == 1:
                raise
        return result, self.any_process(result is None, device)
