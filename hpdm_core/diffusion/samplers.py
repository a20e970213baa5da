"""Probability flow ODE solvers over `denoise(x, sigma)`, for one level at a time (appendix A).

All work on x + sigma eps in the video's own units. Heun's and Euler's method may add noise in
every step (Karras et al. 2022, algorithm 2); the multistep methods of Lu et al. 2022 (DPM-Solver++)
take one evaluation per step and reuse earlier estimates.

Axis legend: `b` batch; `...` the axes of a video.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
Noise = Callable[[], Tensor]
SolverName = Literal["heun", "euler", "dpmpp_2m", "dpmpp_3m"]


@dataclass(frozen=True, kw_only=True)
class Solver:
    """The solver of one level.

    Args:
        name: 'heun' (second order, two evaluations per step), 'euler' (first order, DDIM),
            'dpmpp_2m' or 'dpmpp_3m' (second and third order, multistep).
        steps: solver steps.
        sigma_min, sigma_max: smallest and largest noise level.
        rho: exponent of the noise schedule; larger values take more steps at low noise.
        churn: EDM's S_churn, for 'heun' and 'euler'; 0 is deterministic and draws no noise.
        s_min, s_max: noise levels between which noise is added.
        s_noise: factor on the added noise.
        skip: steps left out at the start: sampling starts from a given video with less noise
            than sigma_max (SDEdit, Meng et al. 2022); all of them leave the video as it is.
        repeats: how often each step is made; before a repetition, noise takes the video back to
            the step's start (RePaint, Lugmayr et al. 2022). More than once, the multistep
            methods take Euler's steps, as their earlier estimates are then of other noise.
    """

    name: SolverName
    steps: int
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    churn: float = 0.0
    s_min: float = 0.05
    s_max: float = 50.0
    s_noise: float = 1.003
    skip: int = 0
    repeats: int = 1

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The noise schedule, steps - skip + 1 values."""
        return karras_sigmas(
            self.steps, sigma_min=self.sigma_min, sigma_max=self.sigma_max, rho=self.rho
        )[self.skip :]

    @property
    def start(self) -> float:
        """The noise level that sampling starts at."""
        return self.sigma_max if self.skip == 0 else self.sigmas[0]

    def solve(self, denoise: Denoise, x: Tensor, *, noise: Noise) -> Tensor:
        """Denoise `x` to a clean video.

        Args:
            denoise: estimate of the clean x from (x + sigma eps, sigma).
            x: (b, ...) at the noise level `start`.
            noise: draws standard normal noise of the shape of `x`.
        """
        if self.name in ("dpmpp_2m", "dpmpp_3m") and self.repeats == 1:
            order = 2 if self.name == "dpmpp_2m" else 3
            return sample_multistep(denoise, x, self.sigmas, order=order)
        return sample_edm(denoise, x, self, noise=noise)

    def evaluated_sigmas(self) -> tuple[float, ...]:
        """Return the noise level of each evaluation, in order."""
        levels = []
        for sigma, sigma_next in pairwise(self.sigmas):
            for _ in range(self.repeats if sigma_next > 0 else 1):
                levels.append(self.churned(sigma))
                if self.name == "heun" and sigma_next > 0:
                    levels.append(sigma_next)
        return tuple(levels)

    def churned(self, sigma: float) -> float:
        """Return sigma_hat, the noise level after noise is added at `sigma`."""
        if self.churn == 0 or not self.s_min <= sigma <= self.s_max:
            return sigma
        return sigma * (1 + min(self.churn / self.steps, math.sqrt(2) - 1))


def karras_sigmas(
    steps: int, *, sigma_min: float, sigma_max: float, rho: float
) -> tuple[float, ...]:
    """Return steps + 1 falling noise levels that end with 0 (EDM, Eq. 5)."""
    if steps == 1:
        return (sigma_max, 0.0)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    levels = [(high + i / (steps - 1) * (low - high)) ** rho for i in range(steps)]
    return (*levels, 0.0)


def sample_edm(
    denoise: Denoise,
    x: Tensor,
    solver: Solver,
    *,
    noise: Noise,
    sigmas: Sequence[float] | None = None,
) -> Tensor:
    """Solve with stochastic Heun or Euler steps (EDM, algorithm 2).

    `sigmas` are falling noise levels, in place of the solver's.
    """
    for sigma, sigma_next in pairwise(solver.sigmas if sigmas is None else sigmas):
        for repeat in range(solver.repeats if sigma_next > 0 else 1):
            if repeat > 0:  # back to the step's start, where the video has more noise
                x = x + math.sqrt(sigma**2 - sigma_next**2) * noise()
            sigma_hat = solver.churned(sigma)
            if sigma_hat > sigma:
                x = x + solver.s_noise * math.sqrt(sigma_hat**2 - sigma**2) * noise()
            d_cur = (x - denoise(x, sigma_hat)) / sigma_hat
            x_next = x + (sigma_next - sigma_hat) * d_cur
            if solver.name == "heun" and sigma_next > 0:
                d_prime = (x_next - denoise(x_next, sigma_next)) / sigma_next
                x_next = x + (sigma_next - sigma_hat) * 0.5 * (d_cur + d_prime)
            x = x_next
    return x


def sample_multistep(denoise: Denoise, x: Tensor, sigmas: Sequence[float], *, order: int) -> Tensor:
    """Solve with one evaluation per step, from the last `order` estimates (DPM-Solver++).

    With t = -ln sigma the flow is dx/dt = D - x. Over a step of length h its solution is
    e^-h x + integral of e^-(h - s) D(t + s) ds, where D is extrapolated by the polynomial through
    the last estimates. With order 2 and equal steps of t this differs from DPM-Solver++(2M), which
    weights the difference by (1 - e^-h) h / 2, only in terms of third order; that weight is used.

    Args:
        denoise: estimate of the clean x from (x + sigma eps, sigma).
        x: (b, ...) noise of standard deviation sigmas[0].
        sigmas: falling noise levels; the last one may be 0.
        order: 2 or 3; the first steps use the estimates there are.
    """
    times: list[float] = []
    estimates: list[Tensor] = []
    for sigma, sigma_next in pairwise(sigmas):
        times = [-math.log(sigma), *times[: order - 1]]
        estimates = [denoise(x, sigma), *estimates[: order - 1]]
        if sigma_next == 0:
            return estimates[0]
        h = -math.log(sigma_next) - times[0]
        gain = -math.expm1(-h)  # 1 - e^-h
        x_next = (1 - gain) * x + gain * estimates[0]
        if len(times) > 1:
            slope = (estimates[0] - estimates[1]) / (times[0] - times[1])
        if len(times) == 2:
            # DPM-Solver++(2M); in the third-order method, its first step with two estimates.
            x_next = x_next + gain * h / 2 * slope
        if len(times) > 2:
            before = (estimates[1] - estimates[2]) / (times[1] - times[2])
            curvature = (slope - before) / (times[0] - times[2])
            linear = h - gain  # integral of e^-(h - s) s ds
            square = h**2 - 2 * linear  # the same of s^2
            x_next = x_next + linear * slope
            x_next = x_next + (square + (times[0] - times[1]) * linear) * curvature
        x = x_next
    return x


def draw_like(x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw standard normal noise like `x`, each sample from its own CPU generator."""
    rows = [torch.randn(x.shape[1:], generator=generator) for generator in generators]
    return torch.stack(rows).to(x)
