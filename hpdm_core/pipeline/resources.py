"""How sampling uses memory and processes; none of it changes a video."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch

from hpdm_core.device import available_memory
from hpdm_core.inference.activation_cache import ActivationCache
from hpdm_core.inference.tiled_inference import TileShard

CacheMode = Literal["auto", "gpu", "cpu", "off"]


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What sampling may use.

    Args:
        batch: videos at a time; None chooses by free memory.
        tile_batch: tiles in one pass of the network; None chooses by free memory.
        cache: where activations that do not change over a level's steps are kept: 'gpu' on the
            device alone, 'cpu' in the computer's memory alone, 'auto' on the device and then in
            memory, 'off' nowhere.
        cache_gb: largest size of that cache in GB; None goes by free memory.
        free: bytes free on the device; None asks the device. Several processes that compute
            together must give the same number.
        shard: this process's part of the tiles.
    """

    batch: int | None = None
    tile_batch: int | None = None
    cache: CacheMode = "auto"
    cache_gb: float | None = None
    free: int | None = None
    shard: TileShard = field(default_factory=TileShard)

    def cache_maker(self, device: torch.device) -> Callable[[], ActivationCache | None]:
        """Return what makes the cache of one level.

        Args:
            device: where the network is.
        """
        if self.cache == "off":
            return lambda: None
        limit = None if self.cache_gb is None else int(self.cache_gb * 1e9)
        host_room = (available_memory(torch.device("cpu")) or 0) // 2 if limit is None else limit

        def make() -> ActivationCache:
            device_room = host_room
            if device.type == "cuda":
                device_room = torch.cuda.mem_get_info(device)[0] // 2 if limit is None else limit
            # On a CPU both are the same memory, so that only one of the two budgets may count.
            use_host = self.cache == "cpu" or (self.cache == "auto" and device.type == "cuda")
            return ActivationCache(
                device=device,
                device_budget=0 if self.cache == "cpu" else device_room,
                host_budget=host_room if use_host else 0,
            )

        return make
