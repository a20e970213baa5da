"""Solvers over `denoise(x, sigma)`, for one level at a time (Karras et al. 2022; appendix A).

They work on the scaled video y = x / sigma_in, whose noisy form is y + sigma eps, so that EDM's
algorithms hold unchanged; `denoise` returns an estimate of y.

Axis legend: `b` batch; `...` the axes of a video.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
Noise = Callable[[], Tensor]

# EDM, Table 5: where noise is put back, and how much of it.
CHURN_FROM, CHURN_TO, CHURN_NOISE = 0.05, 50.0, 1.003


def karras_sigmas(
    steps: int, *, sigma_min: float, sigma_max: float, rho: float
) -> tuple[float, ...]:
    """Return steps + 1 falling noise levels that end with 0 (EDM, Eq. 5)."""
    if steps == 1:
        return (sigma_max, 0.0)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    levels = [(high + i / (steps - 1) * (low - high)) ** rho for i in range(steps)]
    return (*levels, 0.0)


def sample_heun(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], *, churn: float, noise: Noise
) -> Tensor:
    """Solve with second-order steps and put noise back on the way (EDM, algorithm 2).

    Args:
        denoise: estimate of the clean y from (y + sigma eps, sigma).
        x: (b, ...) noise of standard deviation sigmas[0].
        sigmas: falling noise levels, the last one 0.
        churn: S_churn; 0 is deterministic and draws no noise.
        noise: draws standard normal noise of the shape of `x`.
    """
    steps = len(sigmas) - 1
    for sigma, sigma_next in pairwise(sigmas):
        if churn > 0 and CHURN_FROM <= sigma <= CHURN_TO:
            gamma = min(churn / steps, math.sqrt(2) - 1)
            raised = sigma * (1 + gamma)
            x = x + CHURN_NOISE * math.sqrt(raised**2 - sigma**2) * noise()
            sigma = raised
        slope = (x - denoise(x, sigma)) / sigma
        guess = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            slope_next = (guess - denoise(guess, sigma_next)) / sigma_next
            guess = x + (sigma_next - sigma) * 0.5 * (slope + slope_next)
        x = guess
    return x


def sample_euler(denoise: Denoise, x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Solve with deterministic first-order steps (DDIM; later levels of the pyramid).

    Args:
        denoise: estimate of the clean y from (y + sigma eps, sigma).
        x: (b, ...) noise of standard deviation sigmas[0].
        sigmas: falling noise levels, the last one 0.
    """
    for sigma, sigma_next in pairwise(sigmas):
        denoised = denoise(x, sigma)
        x = denoised + (x - denoised) * (sigma_next / sigma)
    return x


def heun_evaluations(steps: int) -> int:
    """Return how often `sample_heun` calls the denoiser: twice a step, once in the last."""
    return 2 * steps - 1


def draw_like(x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw standard normal noise like `x`, each sample from its own CPU generator."""
    rows = [torch.randn(x.shape[1:], generator=generator) for generator in generators]
    return torch.stack(rows).to(x)
