"""Exponential moving average of the weights, by half-life (Sec. 4.6; Karras et al. 2022).

Kept in float32 (in bf16 the small updates vanish) and, under sharding, shard by shard: the average
is pointwise, so each process averages its own shards.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hpdm_core.training.sharding import local_all, reshard


def ema_decay(step: int, *, half_life: float, ramp: float) -> float:
    """Return the decay of one update.

    decay = 0.5 ^ (1 / h) with h = min(half_life, ramp * step): the half-life grows with the run
    until it reaches its value, so that the EMA of a short run forgets its initialisation.

    Args:
        step: updates done, this one included (from 1).
        half_life: steps after which a weight's contribution has halved.
        ramp: largest half-life as a fraction of the steps done.
    """
    return 0.5 ** (1 / min(half_life, ramp * step))


class Ema:
    """EMA weights of a network.

    Args:
        network: the network, already sharded if it will be.
        half_life: steps after which a weight's contribution has halved.
        ramp: largest half-life as a fraction of the steps done.
    """

    def __init__(self, network: nn.Module, *, half_life: float, ramp: float) -> None:
        self.half_life = half_life
        self.ramp = ramp
        self._network = network
        self._names = [name for name, _ in network.named_parameters()]
        self._weights = list(network.parameters())
        self._ema = [w.detach().to(torch.float32, copy=True) for w in self._weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update with the network's weights after update number `step` (from 1)."""
        share = 1 - ema_decay(step, half_life=self.half_life, ramp=self.ramp)
        torch._foreach_lerp_(local_all(self._ema), local_all(self._weights), share)

    def tensors(self) -> dict[str, Tensor]:
        """Return the EMA weights by parameter name, sharing memory with this object."""
        return dict(zip(self._names, self._ema, strict=True))

    @torch.no_grad()
    def reset(self) -> None:
        """Reset to the network's current weights."""
        torch._foreach_copy_(local_all(self._ema), local_all(self._weights))

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Context in which the network holds the EMA weights (previews)."""
        weights, ema = local_all(self._weights), local_all(self._ema)
        with torch.no_grad():
            own = [weight.clone() for weight in weights]
            reshard(self._network)
            torch._foreach_copy_(weights, ema)
        try:
            yield
        finally:
            with torch.no_grad():
                reshard(self._network)
                torch._foreach_copy_(weights, own)
