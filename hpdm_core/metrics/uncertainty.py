"""Uncertainty of a Frechet distance: spread, bias, and dependence on the number of fakes (Fig. 8).

Axis legend: `n` samples, `d` feature width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hpdm_core.metrics.frechet import FeatureStats, frechet_distance

NUM_RESAMPLES = 50


def bootstrap_std(
    fakes: Tensor, real: FeatureStats, *, seed: int, num_resamples: int = NUM_RESAMPLES
) -> float:
    """Return the standard deviation of the distance over resampled sets of fakes.

    Only the spread is meaningful: a resampled set holds about 63% different videos, so its mean
    distance is that of a smaller set.

    Args:
        fakes: (n, d) features.
        real: statistics to compare with.
        seed: of the resampling.
        num_resamples: at least 2; each costs one distance.
    """
    rng = torch.Generator().manual_seed(seed)
    distances = []
    for _ in range(num_resamples):
        rows = torch.randint(len(fakes), (len(fakes),), generator=rng)
        distances.append(frechet_distance(FeatureStats.of(fakes[rows]), real))
    return float(torch.tensor(distances, dtype=torch.float64).std())


def small_sample_bias(fakes: Tensor, real: FeatureStats, *, seed: int) -> float | None:
    """Return about how much the distance is too high because there are only n fakes.

    The distance is symmetric: with the arguments exchanged, the bias of few real videos.

    The bias falls as 1/n (Chong and Forsyth 2020), so the mean distance of the two halves exceeds
    that of the whole by as much as the whole exceeds that of infinitely many fakes.

    Args:
        fakes: (n, d) features; fewer than four say nothing, and give None.
        real: statistics to compare with.
        seed: of the halving; sorted videos must not fall into halves by class.
    """
    order = torch.randperm(len(fakes), generator=torch.Generator().manual_seed(seed))
    fakes = fakes[order]
    half = len(fakes) // 2
    if half < 2:
        return None
    halves = [
        frechet_distance(FeatureStats.of(part), real)
        for part in (fakes[:half], fakes[half : 2 * half])
    ]
    whole = frechet_distance(FeatureStats.of(fakes[: 2 * half]), real)
    return sum(halves) / 2 - whole


def distance_by_count(
    fakes: Tensor, real: FeatureStats, counts: Sequence[int]
) -> list[tuple[int, float]]:
    """Return (count, distance) of the first `count` fakes, for all counts there are (Fig. 8)."""
    return [
        (count, frechet_distance(FeatureStats.of(fakes[:count]), real))
        for count in counts
        if 2 <= count <= len(fakes)
    ]
