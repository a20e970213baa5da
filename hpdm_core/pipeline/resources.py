"""Memory and processes used by sampling; results do not depend on them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch

from hpdm_core.device import available_memory
from hpdm_core.inference.activation_cache import ActivationCache
from hpdm_core.inference.shard import TileShard
from hpdm_core.training.parallel import local_processes

CacheMode = Literal["auto", "gpu", "cpu", "off"]


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Limits on memory, and this process's part.

    Args:
        batch: videos at a time; None: chosen from free memory.
        tile_batch: tiles in one pass of the network; None: chosen from free memory.
        cache: where the activation cache is kept: 'gpu' on the device only, 'cpu' in host
            memory only, 'auto' on the device and then in host memory, 'off' nowhere.
        cache_gb: largest size of that cache in GB; None: chosen from free memory.
        free: bytes free on the device; None: queried. Processes that compute together must
            give the same number.
        shard: this process's part of the tiles.
    """

    batch: int | None = None
    tile_batch: int | None = None
    cache: CacheMode = "auto"
    cache_gb: float | None = None
    free: int | None = None
    shard: TileShard = field(default_factory=TileShard)

    def cache_maker(self, device: torch.device) -> Callable[[], ActivationCache | None]:
        """Return a factory of the cache of one level.

        Args:
            device: where the network is.
        """
        if self.cache == "off":
            return lambda: None
        limit = None if self.cache_gb is None else int(self.cache_gb * 1e9)
        # The processes of a machine share its main memory.
        host = (available_memory(torch.device("cpu")) or 0) // (2 * local_processes())
        host_room = host if limit is None else limit

        def make() -> ActivationCache:
            device_room = host_room
            if device.type == "cuda":
                device_room = torch.cuda.mem_get_info(device)[0] // 2 if limit is None else limit
            # On a CPU both are the same memory, so only one of the two budgets counts.
            use_host = self.cache == "cpu" or (self.cache == "auto" and device.type == "cuda")
            return ActivationCache(
                device=device,
                device_budget=0 if self.cache == "cpu" else device_room,
                host_budget=host_room if use_host else 0,
            )

        return make
