"""Muon for the blocks' weight matrices, AdamW for the rest (Jordan et al. 2024; Liu et al. 2025).

Muon's update is the momentum's nearest orthogonal matrix, approximately, so that all directions of
a weight matrix learn at the same rate. Equals `torch.optim.Muon`, but batches matrices of the same
shape and supports sharded parameters (FSDP2): each process gathers and orthogonalises the whole
matrix and keeps its own shard. AdamW is torch's own.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from hpdm_core.training.lamb import parameter_groups
from hpdm_core.training.sharding import gathered, local, local_all, own_shard

# Coefficients of the quintic iteration, and the RMS of AdamW's updates that Muon's are scaled to.
QUINTIC, NEWTON_SCHULZ_STEPS = (3.4445, -4.7750, 2.0315), 5
ADAMW_RMS = 0.2
# Matrices of one shape are stacked up to this many elements: bounds the memory of a step.
MAX_STACKED_ELEMENTS = 1 << 25


class Muon(Optimizer):
    """Muon in groups with `use_muon=True`, AdamW in the others, at the same learning rate.

    b = momentum b + (1 - momentum) g;  u = orthogonalise(momentum b + (1 - momentum) g)
    x = (1 - lr weight_decay) x - 0.2 sqrt(max(rows, columns)) lr u

    The factor gives the update the root mean square of AdamW's (Liu et al. 2025), so that both
    share `lr`. Newton-Schulz runs in bfloat16 on CUDA, as torch's does; on CPUs, of which many
    compute bfloat16 slowly, in `cpu_dtype`.

    Args:
        groups: from `muon_groups`; tensors of groups with `use_muon=True` have two axes.
        lr: learning rate.
        betas: decay of AdamW's moments.
        eps: added to the root of AdamW's second moment.
        momentum: decay of Muon's (Nesterov) momentum.
        cpu_dtype: of Newton-Schulz iterations on a CPU.
    """

    def __init__(
        self,
        groups: list[dict],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        momentum: float = 0.95,
        cpu_dtype: torch.dtype = torch.float32,
    ) -> None:
        self._cpu_dtype = cpu_dtype
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "momentum": momentum,
            "weight_decay": 0.0,
            "use_muon": False,
            "fused": True,  # tells torch to keep AdamW's step counts on the parameters' device
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters that have a gradient (collective where they are sharded)."""
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if group["use_muon"]:
                for stack in _stacks(params):
                    self._step_muon(group, stack)
            elif params:
                self._step_adamw(group, params)

    def _step_muon(self, group: dict, params: list[Tensor]) -> None:
        """Update matrices of one shape."""
        for param in params:
            if not self.state[param]:
                self.state[param]["momentum_buffer"] = torch.zeros_like(param)
        weights, grads = local_all(params), local_all(param.grad for param in params)
        buffers = local_all(self.state[param]["momentum_buffer"] for param in params)
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, buffers, group["momentum"])
        dtype = torch.bfloat16 if weights[0].is_cuda else self._cpu_dtype
        whole = torch.stack(
            [gathered(u.to(dtype), like=p) for u, p in zip(updates, params, strict=True)]
        )
        whole = orthogonalise(whole).to(weights[0].dtype)
        shards = [own_shard(u, like=p) for u, p in zip(whole.unbind(), params, strict=True)]
        scale = ADAMW_RMS * math.sqrt(max(params[0].shape))
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, shards, alpha=-group["lr"] * scale)

    def _step_adamw(self, group: dict, params: list[Tensor]) -> None:
        for param in params:
            if not self.state[param]:
                self.state[param]["step"] = torch.zeros((), device=local(param).device)
                self.state[param]["exp_avg"] = torch.zeros_like(param)
                self.state[param]["exp_avg_sq"] = torch.zeros_like(param)
        states = [self.state[param] for param in params]
        adamw(
            local_all(params),
            local_all(param.grad for param in params),
            local_all(state["exp_avg"] for state in states),
            local_all(state["exp_avg_sq"] for state in states),
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring the singular values of each matrix near 1 by five Newton-Schulz iterations.

    The coefficients raise small values fast and do not converge: values end between 0.7 and 1.2.

    Args:
        matrices: (n, rows, columns); computed in its own dtype.

    Returns:
        (n, rows, columns).
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = QUINTIC
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def muon_groups(network: nn.Module, *, weight_decay: float) -> list[dict]:
    """Split the parameters: the blocks' matrices for Muon, all others as `parameter_groups` does.

    Embeddings, tokenizer, detokenizer and fusion layers stay with AdamW: orthogonal updates are
    made for the hidden layers.

    Returns:
        Groups for `Muon`, without empty ones.
    """
    hidden = [param for param in network.blocks.parameters() if param.ndim == 2]
    groups = [{"params": hidden, "weight_decay": weight_decay, "use_muon": True}]
    taken = set(hidden)
    for group in parameter_groups(network, weight_decay=weight_decay):
        rest = [param for param in group["params"] if param not in taken]
        groups.append({"params": rest, "weight_decay": group["weight_decay"], "use_muon": False})
    return [group for group in groups if group["params"]]


def _stacks(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield lists of same-shaped matrices."""
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for param in params:
        by_shape.setdefault(param.shape, []).append(param)
    for shape, same in by_shape.items():
        count = max(1, MAX_STACKED_ELEMENTS // shape.numel())
        for start in range(0, len(same), count):
            yield same[start : start + count]
