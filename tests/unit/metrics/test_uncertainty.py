"""Spread, bias and course of the distance over fakes, against what Gaussians really do."""

import pytest
import torch

from hpdm_core.metrics.frechet import FeatureStats, frechet_distance
from hpdm_core.metrics.uncertainty import bootstrap_std, distance_by_count, small_sample_bias

WIDTH = 16


def draw(num: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(num, WIDTH, generator=rng, dtype=torch.float64) + shift


REAL = FeatureStats.of(draw(20_000, 0))


def distance(fakes: torch.Tensor) -> float:
    return frechet_distance(FeatureStats.of(fakes), REAL)


def test_bootstrap_agrees_with_the_spread_of_fresh_draws():
    fresh = torch.tensor([distance(draw(400, seed, 0.5)) for seed in range(1, 120)]).std()
    estimate = bootstrap_std(draw(400, 1000, 0.5), REAL, seed=0, num_resamples=100)
    assert estimate == pytest.approx(float(fresh), rel=0.35)
    assert bootstrap_std(draw(400, 1000, 0.5), REAL, seed=0, num_resamples=100) == estimate


def test_bootstrap_far_away_is_the_standard_error_of_a_mean():
    """Far away the distance is about (mean - 10)^2, so its deviation is 20 s / n^(1/2)."""
    fakes = draw(400, 3)[:, :1]
    real = FeatureStats.of(draw(400, 4)[:, :1] + 10)
    expected = 2 * float(real.mean[0] - fakes.mean()) * float(fakes.std()) / 400**0.5
    assert bootstrap_std(fakes, real, seed=0, num_resamples=200) == pytest.approx(
        expected, rel=0.15
    )


def test_bias_estimate_agrees_with_the_bias():
    # Same law, so that all of the distance is bias; a single draw says little.
    sets = [draw(400, seed) for seed in range(1, 41)]
    estimate = sum(small_sample_bias(fakes, REAL, seed=0) for fakes in sets) / len(sets)
    assert estimate == pytest.approx(sum(map(distance, sets)) / len(sets), rel=0.1)


def test_bias_of_sorted_videos_is_no_larger():
    fakes = draw(400, 7)
    fakes[:200] += 3  # two classes, one after the other
    by_class = frechet_distance(FeatureStats.of(fakes[:200]), REAL)
    assert small_sample_bias(fakes, REAL, seed=0) < 0.1 * by_class
    assert small_sample_bias(fakes[:3], REAL, seed=0) is None


def test_distance_falls_with_the_number_of_fakes():
    fakes = draw(2048, 8)
    course = distance_by_count(fakes, REAL, (128, 256, 512, 2048, 10_000))
    assert [count for count, _ in course] == [128, 256, 512, 2048]
    values = [value for _, value in course]
    assert values == sorted(values, reverse=True)
    assert values[-1] == distance(fakes)
