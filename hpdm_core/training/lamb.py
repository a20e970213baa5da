"""LAMB: layer-wise adaptive moments for large batches (You et al. 2020, Algorithm 2; Sec. 4.6).

Uses torch's foreach operations, so that a step costs a few calls for any number of parameters.
Sharded parameters (FSDP2) are updated on their local shards; only the norms of the trust ratio are
summed over the devices.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from hpdm_core.training.sharding import local, local_all, shard_group


class Lamb(Optimizer):
    """LAMB with bias correction and the identity as the scaling function phi.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  m', v' = m / (1 - b1^t), v / (1 - b2^t)
    u = m' / (sqrt(v') + eps) + weight_decay x;  x = x - lr ||x|| / ||u|| u

    The ratio ||x|| / ||u|| is taken per tensor, and is 1 where either norm is zero (a tensor
    initialised at zero could otherwise never change) and in groups with `adapt=False`.

    Args:
        params: tensors or groups; a group may set `weight_decay=0` and `adapt=False`.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: factor on the weights that are added to the update.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "adapt": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(group, params)

    def _update(self, group: dict, params: list[Tensor]) -> None:
        weights = local_all(params)
        moments = self._moments(params, [local(p.grad) for p in params], group["betas"])
        updates = self._directions(*moments, betas=group["betas"], eps=group["eps"])
        if group["weight_decay"]:
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        if group["adapt"]:
            ratios = trust_ratios(weights, updates, group=shard_group(params[0]))
            torch._foreach_mul_(updates, list(ratios.unbind()))
        torch._foreach_add_(weights, updates, alpha=-group["lr"])

    def _moments(
        self, params: list[Tensor], grads: list[Tensor], betas: tuple[float, float]
    ) -> tuple[list[Tensor], list[Tensor], list[int]]:
        """Update the moments; return both and each parameter's number of updates."""
        for param in params:
            if not self.state[param]:
                self.state[param]["step"] = torch.zeros(())
                self.state[param]["exp_avg"] = torch.zeros_like(param)
                self.state[param]["exp_avg_sq"] = torch.zeros_like(param)
        states = [self.state[param] for param in params]
        steps = [state["step"] for state in states]
        first = local_all(state["exp_avg"] for state in states)
        second = local_all(state["exp_avg_sq"] for state in states)
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(first, grads, 1 - betas[0])
        torch._foreach_mul_(second, betas[1])
        torch._foreach_addcmul_(second, grads, grads, 1 - betas[1])
        return first, second, [int(step) for step in steps]

    @staticmethod
    def _directions(
        first: list[Tensor],
        second: list[Tensor],
        steps: list[int],
        *,
        betas: tuple[float, float],
        eps: float,
    ) -> list[Tensor]:
        """Return m' / (sqrt(v') + eps) as new tensors."""
        denominators = torch._foreach_sqrt(second)
        torch._foreach_div_(denominators, [(1 - betas[1] ** t) ** 0.5 for t in steps])
        torch._foreach_add_(denominators, eps)
        torch._foreach_mul_(denominators, [1 - betas[0] ** t for t in steps])
        return list(torch._foreach_div(first, denominators))


def trust_ratios(
    weights: list[Tensor], updates: list[Tensor], *, group: dist.ProcessGroup | None
) -> Tensor:
    """Return ||weight|| / ||update|| per tensor, 1 where either is zero.

    Args:
        weights: local shards of the weights.
        updates: local shards of the updates.
        group: the processes that hold the other shards; None where tensors are whole.

    Returns:
        (n,) on the weights' device.
    """
    norms = torch.stack([*torch._foreach_norm(weights), *torch._foreach_norm(updates)])
    if group is not None:
        squares = norms.square()
        dist.all_reduce(squares, group=group)
        norms = squares.sqrt()
    weight, update = norms.chunk(2)
    return torch.where((weight > 0) & (update > 0), weight / update, 1.0)


def parameter_groups(network: nn.Module, *, weight_decay: float) -> list[dict]:
    """Split the parameters into matrices, and biases and norm gains, which neither decay nor adapt.

    Embeddings (latents, positions, classes) count as matrices, as in RIN's diffusion configuration,
    which excludes only biases and gains: without a trust ratio, one step at lr 5e-3 would move an
    embedding of standard deviation 0.02 by about a quarter of its norm.

    Returns:
        Groups for `Lamb` or `torch.optim.AdamW` (which ignores `adapt`), without empty ones.
    """
    matrices, rest = [], []
    for param in network.parameters():
        (rest if param.ndim <= 1 else matrices).append(param)
    groups = [
        {"params": matrices, "weight_decay": weight_decay, "adapt": True},
        {"params": rest, "weight_decay": 0.0, "adapt": False},
    ]
    return [group for group in groups if group["params"]]
