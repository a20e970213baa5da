"""Sec. 4.6, appendix A: the solvers against data whose best denoiser is known in closed form.

No network: for Gaussians and for mixtures of them the posterior mean is a formula, and the
probability flow of one variable keeps quantiles, so that where every noise value must end is known.
"""

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm
from torch import Tensor

from hpdm_core.diffusion.samplers import Solver, draw_like, karras_sigmas, sample_multistep
from tests.paper.tiny import (
    OVERLAPS,
    PointwiseNetwork,
    draw,
    make_preconditioning,
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


def mixture_mean(noisy: Tensor, sigma: float) -> Tensor:
    """E[x | x + sigma eps] for a mixture of two Gaussians."""
    total, weights = 0.0, 0.0
    for weight, centre, width in zip(WEIGHTS, CENTRES, WIDTHS, strict=True):
        variance = width**2 + sigma**2
        share = weight * torch.exp(-((noisy - centre) ** 2) / (2 * variance)) / math.sqrt(variance)
        # Far out both shares underflow; the floor keeps their quotient defined.
        share = share.clamp(min=1e-300)
        total = total + share * (width**2 * noisy + sigma**2 * centre) / variance
        weights = weights + share
    return total / weights


def mixture_cdf(x: np.ndarray, sigma: float = 0.0) -> np.ndarray:
    return sum(
        weight * norm.cdf((x - centre) / math.sqrt(width**2 + sigma**2))
        for weight, centre, width in zip(WEIGHTS, CENTRES, WIDTHS, strict=True)
    )


def mixture_end(start: Tensor) -> Tensor:
    """Where the probability flow takes the noise `start`: the same quantile of the data."""
    grid = np.linspace(-4, 4, 400_001)
    quantile = mixture_cdf(start.double().numpy(), SIGMA_MAX)
    return torch.from_numpy(np.interp(quantile, mixture_cdf(grid), grid))


def sigmas(steps: int) -> tuple[float, ...]:
    return karras_sigmas(steps, sigma_min=0.002, sigma_max=SIGMA_MAX, rho=7.0)


def noise(count: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return SIGMA_MAX * torch.randn(1, count, generator=generator, dtype=torch.float64)


def solve(name: str, denoise, x: Tensor, steps: int) -> Tensor:
    return Solver(name=name, steps=steps).solve(denoise, x, noise=pytest.fail)


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


@pytest.mark.parametrize(
    ("name", "order", "bound"),
    [("euler", 1, 0.06), ("heun", 2, 3e-3), ("dpmpp_2m", 2, 1e-2)],
)
def test_solvers_reach_the_gaussian_end_at_their_order(name, order, bound):
    """Twice the steps: half the error of the first-order solver, a quarter of the second's."""
    x = noise(200)
    errors = [
        (solve(name, gaussian_mean, x, steps) - gaussian_end(x)).abs().max()
        for steps in (32, 64, 128)
    ]
    for coarse, fine in pairwise(errors):
        assert (coarse / fine).item() == pytest.approx(2**order, rel=0.25)
    assert errors[-1] < bound


@pytest.mark.parametrize("order", [2, 3])
def test_multistep_solvers_are_exact_to_their_order(order):
    """Between two noise levels, where the last step to zero adds no error of its own.

    The flow of a Gaussian keeps distances to the mean in units of the deviation, so that the true
    end is known at any noise level.
    """
    high, low = 2.0, 0.1
    x = MEAN + math.sqrt(SPREAD**2 + high**2) * torch.linspace(-2, 2, 50, dtype=torch.float64)
    end = MEAN + (x - MEAN) * math.sqrt((SPREAD**2 + low**2) / (SPREAD**2 + high**2))
    errors = []
    for steps in (32, 64, 128, 256):
        # A first step so short that starting with one estimate costs nothing.
        first = high * (1 - 1e-6)
        levels = [high, *np.geomspace(first, first * (1 - 1e-4), 3).tolist()]
        levels += np.geomspace(levels[-1], low, steps + 1)[1:].tolist()
        solved = sample_multistep(gaussian_mean, x, levels, order=order)
        errors.append((solved - end).abs().max().item())
    rates = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert rates[-1] == pytest.approx(order, abs=0.25)
    assert errors[-1] < 1e-4


def test_the_third_order_method_is_exact_for_estimates_quadratic_in_ln_sigma():
    """D(t) = a + b t + c t^2 along t = -ln sigma: the flow's solution is a formula.

    With y' = D - y a particular solution is a + b (t - 1) + c (t^2 - 2 t + 2).
    """
    a, b, c = 0.3, -0.2, 0.1

    def estimate(x: Tensor, sigma: float) -> Tensor:
        t = -math.log(sigma)
        return torch.full_like(x, a + b * t + c * t * t)

    def particular(sigma: float) -> float:
        t = -math.log(sigma)
        return a + b * (t - 1) + c * (t * t - 2 * t + 2)

    levels = [5.0, 5.0 * (1 - 1e-4), 5.0 * (1 - 3e-4), 2.0, 1.1, 0.3]
    x = torch.tensor([[1.7]], dtype=torch.float64)
    solved = sample_multistep(estimate, x, levels, order=3)
    expected = particular(0.3) + (1.7 - particular(5.0)) * 0.3 / 5.0
    assert solved.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "bound"), [("euler", 0.05), ("heun", 3e-3), ("dpmpp_2m", 5e-3), ("dpmpp_3m", 5e-3)]
)
def test_solvers_keep_the_quantiles_of_a_mixture(name, bound):
    x = noise(500)
    error = (solve(name, mixture_mean, x, 200) - mixture_end(x)).abs()
    assert error.max() < 2 * bound
    assert error.mean() < bound


def test_multistep_solvers_need_fewer_evaluations_than_eulers_method():
    """At equal evaluations, on a mixture: each order is nearer to the true end than the last."""
    x = noise(500)
    errors = [
        (solve(name, mixture_mean, x, 40) - mixture_end(x)).abs().mean().item()
        for name in ("euler", "dpmpp_2m", "dpmpp_3m")
    ]
    assert errors[0] > 3 * errors[1] > 3 * errors[2]


@pytest.mark.parametrize("name", ["heun", "euler"])
@pytest.mark.parametrize("churn", [5.0, 40.0])
def test_the_stochastic_solvers_draw_from_the_data(name, churn):
    """Noise put back and taken away again leaves the law as it is."""
    generator = torch.Generator().manual_seed(1)
    x, steps = noise(4000), 64 if name == "heun" else 256
    sample = Solver(name=name, steps=steps, churn=churn).solve(
        mixture_mean,
        x,
        noise=lambda: torch.randn(x.shape, generator=generator, dtype=torch.float64),
    )
    # S_noise = 1.003 widens the law by design, far less than this test could tell.
    assert kstest(sample.flatten().numpy(), mixture_cdf).statistic < 0.05
    deterministic = solve(name, mixture_mean, x, steps)
    assert (sample - deterministic).abs().mean() > 0.1


def test_stochasticity_forgets_the_start():
    """The more noise is put back, the less the end depends on where it began."""
    x = noise(2000)
    correlations = []
    for churn in (0.0, 10.0, 80.0):
        generator = torch.Generator().manual_seed(2)
        end = Solver(name="heun", steps=64, churn=churn).solve(
            gaussian_mean, x,
            noise=lambda g=generator: torch.randn(x.shape, generator=g, dtype=torch.float64),
        )  # fmt: skip
        correlations.append(torch.corrcoef(torch.cat([x, end]))[0, 1].item())
    assert correlations[0] == pytest.approx(1, abs=1e-6)
    assert correlations[0] > correlations[1] > correlations[2]


def test_noise_is_put_back_between_its_bounds_and_by_its_factor():
    """S_min, S_max and S_noise: EDM, algorithm 2."""
    solver = Solver(name="euler", steps=20, churn=10.0, s_min=0.1, s_max=5.0)
    put_back = [sigma for sigma in solver.sigmas if solver.churned(sigma) > sigma]
    assert put_back == [sigma for sigma in solver.sigmas if 0.1 <= sigma <= 5.0]
    ratio = solver.churned(put_back[0]) / put_back[0]
    assert ratio == pytest.approx(1 + min(10 / 20, math.sqrt(2) - 1))
    ones, seen = torch.ones(1, 4, dtype=torch.float64), []

    def note(x: Tensor, sigma: float) -> Tensor:
        seen.append(x)
        return 0 * x

    for factor in (0.5, 1.0):
        solver = Solver(name="euler", steps=1, churn=1.0, sigma_max=1.0, s_noise=factor)
        solver.solve(note, 0 * ones, noise=lambda: ones)
    assert torch.allclose(seen[1], 2 * seen[0])
    assert seen[1].min() > 0


@pytest.mark.parametrize("name", ["heun", "euler", "dpmpp_2m", "dpmpp_3m"])
@pytest.mark.parametrize("churn", [0.0, 5.0])
def test_evaluations_are_foretold_as_made(name, churn):
    calls = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        calls.append(sigma)
        return gaussian_mean(x, sigma)

    for steps in (1, 2, 17):
        calls.clear()
        stochastic = churn if name in ("heun", "euler") else 0.0
        solver = Solver(name=name, steps=steps, churn=stochastic)
        solver.solve(denoise, noise(3), noise=lambda: torch.zeros(1, 3, dtype=torch.float64))
        assert tuple(calls) == solver.evaluated_sigmas()
        assert len(calls) == (2 * steps - 1 if name == "heun" else steps)


def test_noise_of_a_sample_comes_from_its_own_generator():
    shape = torch.empty(3, 5, 7)
    together = draw_like(shape, [torch.Generator().manual_seed(k) for k in range(3)])
    for k in range(3):
        alone = draw_like(shape[:1], [torch.Generator().manual_seed(k)])
        assert torch.equal(together[k], alone[0])


# The same, through levels, tiles and averaging: `generate` with a pointwise network.


@pytest.mark.parametrize("parametrisation", ["v", "x", "snapvideo"])
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_tiled_generation_keeps_the_quantiles_of_a_mixture_on_every_level(overlap, parametrisation):
    """Level 0 by the second-order solver, level 1 by the first-order one; any parametrisation."""
    pyramid = make_pyramid(2)
    network = PointwiseNetwork(
        lambda noisy, sigma, level: mixture_mean(noisy, sigma),
        make_preconditioning(2, parametrisation),
    )
    videos = draw(network, pyramid, make_settings((64, 150), overlap=overlap), seeds=(0, 1))
    for level, video in enumerate(videos):
        error = (video - mixture_end(starting_noise(network, pyramid, level))).abs()
        assert error.mean() < (0.01, 0.06)[level]
        assert error.quantile(0.95) < (0.03, 0.15)[level]


def starting_noise(network: PointwiseNetwork, pyramid, level: int) -> Tensor:
    """Recover the noise a level started from: one step with a denoiser that answers it."""
    probe = PointwiseNetwork(lambda noisy, *_: noisy, network.preconditioning)
    return draw(probe, pyramid, make_settings((1,) * (level + 1)), seeds=(0, 1))[level].double()


def test_tiled_generation_draws_gaussians_with_stochasticity():
    """The first level stochastic, as in the paper; means and spreads on both levels."""
    network = PointwiseNetwork(
        lambda noisy, sigma, level: gaussian_mean(noisy, sigma), make_preconditioning(2)
    )
    settings = make_settings((48, 48), churn=20.0, overlap="hw")
    work = make_work(tile_batch=256)
    videos = draw(network, make_pyramid(2), settings, seeds=range(12), work=work)
    for video in videos:
        values = video.flatten().double().numpy()
        assert values.mean() == pytest.approx(MEAN, abs=4 * SPREAD / math.sqrt(values.size))
        assert values.std() == pytest.approx(SPREAD, rel=0.08)
        assert kstest(values, partial(norm.cdf, loc=MEAN, scale=SPREAD)).statistic < 0.05


def test_solvers_and_noise_ranges_may_differ_by_level():
    """What one level is given changes that level alone, for a network that reads no context."""
    network = PointwiseNetwork(
        lambda noisy, sigma, level: mixture_mean(noisy, sigma), make_preconditioning(2)
    )
    pyramid, settings = make_pyramid(2), make_settings((6, 6))
    plain = draw(network, pyramid, settings)
    for level in range(2):
        for change in ({"name": "dpmpp_3m"}, {"steps": 9}, {"sigma_max": 3.0}, {"sigma_min": 0.2}):
            solvers = list(settings.solvers)
            solvers[level] = replace(solvers[level], **change)
            changed = draw(network, pyramid, replace(settings, solvers=tuple(solvers)))
            assert not torch.allclose(plain[level], changed[level], atol=1e-3)
            assert torch.equal(plain[1 - level], changed[1 - level])
