"""Sec. 4.6, appendix A: both solvers against data whose best denoiser is known in closed form.

No network: for Gaussians and for mixtures of them the posterior mean is a formula, and the
probability flow of one variable keeps quantiles, so that where every noise value must end is known.
"""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm
from torch import Tensor

from hpdm_core.diffusion.samplers import (
    draw_like,
    heun_evaluations,
    karras_sigmas,
    sample_euler,
    sample_heun,
)
from tests.paper.tiny import (
    OVERLAPS,
    PointwiseNetwork,
    draw,
    make_pyramid,
    make_settings,
    make_work,
)

MEAN, SPREAD = 0.4, 0.7
WEIGHTS, CENTRES, WIDTHS = (0.3, 0.7), (-0.8, 0.5), (0.15, 0.3)
SIGMA_MAX = 80.0


def gaussian_mean(noisy: Tensor, sigma: float) -> Tensor:
    """E[y | y + sigma eps] for y ~ N(MEAN, SPREAD^2)."""
    return (SPREAD**2 * noisy + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)


def gaussian_end(start: Tensor) -> Tensor:
    """Where the probability flow takes the noise `start`: distances to the mean keep quantiles."""
    return MEAN + (start - MEAN) * SPREAD / math.sqrt(SPREAD**2 + SIGMA_MAX**2)


def mixture_mean(noisy: Tensor, sigma: float, scale: float = 1.0) -> Tensor:
    """E[y | y + sigma eps] for a mixture of two Gaussians divided by `scale`."""
    total, weights = 0.0, 0.0
    for weight, centre, width in zip(WEIGHTS, CENTRES, WIDTHS, strict=True):
        centre, width = centre / scale, width / scale
        variance = width**2 + sigma**2
        share = weight * torch.exp(-((noisy - centre) ** 2) / (2 * variance)) / math.sqrt(variance)
        # Far out both shares underflow; the floor keeps their quotient defined.
        share = share.clamp(min=1e-300)
        total = total + share * (width**2 * noisy + sigma**2 * centre) / variance
        weights = weights + share
    return total / weights


def mixture_cdf(x: np.ndarray, sigma: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return sum(
        weight * norm.cdf((x - centre / scale) / math.sqrt((width / scale) ** 2 + sigma**2))
        for weight, centre, width in zip(WEIGHTS, CENTRES, WIDTHS, strict=True)
    )


def mixture_end(start: Tensor, scale: float = 1.0) -> Tensor:
    """Where the probability flow takes the noise `start`: the same quantile of the data."""
    grid = np.linspace(-4 / scale, 4 / scale, 400_001)
    quantile = mixture_cdf(start.double().numpy(), SIGMA_MAX, scale)
    return torch.from_numpy(np.interp(quantile, mixture_cdf(grid, 0.0, scale), grid))


def sigmas(steps: int) -> tuple[float, ...]:
    return karras_sigmas(steps, sigma_min=0.002, sigma_max=SIGMA_MAX, rho=7.0)


def noise(count: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return SIGMA_MAX * torch.randn(1, count, generator=generator, dtype=torch.float64)


def deterministic_heun(denoise, x: Tensor, steps: int) -> Tensor:
    return sample_heun(denoise, x, sigmas(steps), churn=0.0, noise=pytest.fail)


def euler(denoise, x: Tensor, steps: int) -> Tensor:
    return sample_euler(denoise, x, sigmas(steps))


# Noise levels.


def test_noise_levels_are_those_of_edm():
    """Eq. 5 of Karras et al.: equal steps of sigma^(1/rho)."""
    levels = np.array(sigmas(32))
    assert len(levels) == 33
    assert levels[0] == pytest.approx(80)
    assert levels[-2] == pytest.approx(0.002)
    assert levels[-1] == 0
    steps = np.diff(levels[:-1] ** (1 / 7))
    assert steps == pytest.approx(steps[0])
    assert (np.diff(levels) < 0).all()


def test_rho_says_how_densely_small_noise_is_visited():
    middle = [
        karras_sigmas(9, sigma_min=0.01, sigma_max=1.0, rho=rho)[4] for rho in (1.0, 3.0, 7.0)
    ]
    assert middle[0] == pytest.approx(0.505)
    assert middle[0] > middle[1] > middle[2]


def test_one_step_goes_from_the_largest_noise_to_none():
    assert karras_sigmas(1, sigma_min=0.002, sigma_max=3.0, rho=7.0) == (3.0, 0.0)


# Solvers against closed forms.


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (deterministic_heun, 2)])
def test_solvers_reach_the_gaussian_end_at_their_order(solver, order):
    """Twice the steps: half the error of the first-order solver, a quarter of the second's."""
    x = noise(200)
    errors = [
        (solver(gaussian_mean, x, steps) - gaussian_end(x)).abs().max() for steps in (32, 64, 128)
    ]
    for coarse, fine in pairwise(errors):
        assert (coarse / fine).item() == pytest.approx(2**order, rel=0.25)
    assert errors[-1] < (0.06 if order == 1 else 3e-3)


@pytest.mark.parametrize(("solver", "bound"), [(euler, 0.05), (deterministic_heun, 3e-3)])
def test_solvers_keep_the_quantiles_of_a_mixture(solver, bound):
    x = noise(500)
    error = (solver(mixture_mean, x, 200) - mixture_end(x)).abs()
    assert error.max() < 2 * bound
    assert error.mean() < bound


@pytest.mark.parametrize("churn", [5.0, 40.0])
def test_the_stochastic_solver_draws_from_the_data(churn):
    """Noise put back and taken away again leaves the law as it is."""
    generator = torch.Generator().manual_seed(1)
    x = noise(4000)
    sample = sample_heun(
        mixture_mean,
        x,
        sigmas(64),
        churn=churn,
        noise=lambda: torch.randn(x.shape, generator=generator, dtype=torch.float64),
    )
    # S_noise = 1.003 widens the law by design, far less than this test could tell.
    assert kstest(sample.flatten().numpy(), mixture_cdf).statistic < 0.04
    deterministic = deterministic_heun(mixture_mean, x, 64)
    assert (sample - deterministic).abs().mean() > 0.1


def test_stochasticity_forgets_the_start():
    """The more noise is put back, the less the end depends on where it began."""
    x = noise(2000)
    correlations = []
    for churn in (0.0, 10.0, 80.0):
        generator = torch.Generator().manual_seed(2)
        end = sample_heun(
            gaussian_mean, x, sigmas(64), churn=churn,
            noise=lambda g=generator: torch.randn(x.shape, generator=g, dtype=torch.float64),
        )  # fmt: skip
        correlations.append(torch.corrcoef(torch.cat([x, end]))[0, 1].item())
    assert correlations[0] == pytest.approx(1, abs=1e-6)
    assert correlations[0] > correlations[1] > correlations[2]


def test_evaluations_are_counted_as_made():
    calls = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        calls.append(sigma)
        return gaussian_mean(x, sigma)

    for steps in (1, 2, 17):
        calls.clear()
        deterministic_heun(denoise, noise(3), steps)
        assert len(calls) == heun_evaluations(steps)
        calls.clear()
        euler(denoise, noise(3), steps)
        assert len(calls) == steps


def test_noise_of_a_sample_comes_from_its_own_generator():
    shape = torch.empty(3, 5, 7)
    together = draw_like(shape, [torch.Generator().manual_seed(k) for k in range(3)])
    for k in range(3):
        alone = draw_like(shape[:1], [torch.Generator().manual_seed(k)])
        assert torch.equal(together[k], alone[0])


# The same, through levels, tiles and averaging: `generate` with a pointwise network.


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_tiled_generation_keeps_the_quantiles_of_a_mixture_on_every_level(overlap):
    """Level 0 by the second-order solver, level 1 by the first-order one, at its own scale."""
    pyramid, sigma_in = make_pyramid(2), (1.0, 2.0)

    def ideal(noisy: Tensor, sigma: float, level: int) -> Tensor:
        return mixture_mean(noisy, sigma, sigma_in[level])

    network = PointwiseNetwork(ideal, sigma_in)
    videos = draw(network, pyramid, make_settings((64, 150), overlap=overlap), seeds=(0, 1))
    for level, video in enumerate(videos):
        start = starting_noise(network, pyramid, level)
        expected = sigma_in[level] * mixture_end(start, sigma_in[level])
        error = (video - expected).abs()
        assert error.mean() < (0.01, 0.06)[level]
        assert error.quantile(0.95) < (0.03, 0.15)[level]


def starting_noise(network: PointwiseNetwork, pyramid, level: int) -> Tensor:
    """Recover the noise a level started from: one step with a denoiser that answers it."""
    probe = PointwiseNetwork(lambda noisy, *_: noisy, network.sigma_in)
    scaled = draw(probe, pyramid, make_settings((1,) * (level + 1)), seeds=(0, 1))[level]
    return scaled.double() / network.sigma_in[level]


def test_tiled_generation_draws_gaussians_with_stochasticity():
    """The first level stochastic, as in the paper; means and spreads on both levels."""
    pyramid, sigma_in = make_pyramid(2), (1.0, 2.0)

    def ideal(noisy: Tensor, sigma: float, level: int) -> Tensor:
        scale = sigma_in[level]
        return gaussian_mean(noisy * scale, sigma * scale) / scale

    network = PointwiseNetwork(ideal, sigma_in)
    settings = make_settings((48, 48), churn=20.0, overlap="hw")
    videos = draw(network, pyramid, settings, seeds=range(12), work=make_work(tile_batch=256))
    for video in videos:
        values = video.flatten().double().numpy()
        assert values.mean() == pytest.approx(MEAN, abs=4 * SPREAD / math.sqrt(values.size))
        assert values.std() == pytest.approx(SPREAD, rel=0.08)
        assert kstest(values, partial(norm.cdf, loc=MEAN, scale=SPREAD)).statistic < 0.05


def test_only_level_0_is_stochastic():
    pyramid, sigma_in = make_pyramid(2), (1.0, 2.0)
    network = PointwiseNetwork(lambda noisy, sigma, level: noisy / (1 + sigma**2), sigma_in)
    plain = draw(network, pyramid, make_settings((8, 8)))
    churned = draw(network, pyramid, make_settings((8, 8), churn=20.0))
    assert not torch.allclose(plain[0], churned[0], atol=1e-3)
    assert torch.allclose(plain[1], churned[1], atol=1e-6)  # pointwise: context is not read
