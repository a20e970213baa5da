"""Frechet distance between two sets of features, each taken as a Gaussian (FVD: I3D features).

    d^2 = |mu_1 - mu_2|^2 + tr C_1 + tr C_2 - 2 tr (C_1 C_2)^(1/2)

All in float64. The last trace needs no matrix square root: with C_i = A_i A_i^T it is the sum of
the singular values of A_1^T A_2, which stays exact for fewer samples than dimensions. Covariances
divide by N, as the evaluation code that the paper's figures come from does.

Axis legend: `n` samples, `d` feature width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from einops import einsum
from torch import Tensor

from hpdm_core.errors import MetricError

EPS = 2.0**-52


@dataclass(frozen=True, kw_only=True)
class FeatureStats:
    """Count, mean and scatter of features: all that the distance needs.

    Args:
        count: number of samples.
        mean: (d,) float64.
        scatter: (d, d) float64, the sum of outer products of the centred features.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @staticmethod
    def of(features: Tensor) -> FeatureStats:
        """Return the statistics of features (n, d), n >= 1.

        Raises:
            MetricError: for another shape, or a feature that is not finite.
        """
        if features.ndim != 2 or 0 in features.shape:
            raise MetricError(
                "features have a wrong shape", got=tuple(features.shape), expected="(n, d)"
            )
        features = features.detach().cpu().double()
        broken = (~features.isfinite().all(dim=1)).nonzero()
        if len(broken):
            raise MetricError(
                f"{len(broken)} of {len(features)} videos have features that are not finite",
                got=f"the first at row {int(broken[0])}",
                remedy="look at that video: a broken file or an exploded sample",
            )
        mean = features.mean(dim=0)
        centred = features - mean
        scatter = einsum(centred, centred, "n d, n e -> d e")
        return FeatureStats(count=len(features), mean=mean, scatter=scatter)

    def covariance(self, *, unbiased: bool = False) -> Tensor:
        """Return the covariance (d, d): over N, or over N - 1 where `unbiased`."""
        return self.scatter / (self.count - 1 if unbiased else self.count)

    @cached_property
    def scatter_root(self) -> Tensor:
        """Return A (d, r) with A A^T = scatter, without directions that are only rounding."""
        values, vectors = torch.linalg.eigh(self.scatter)
        kept = values > values[-1] * len(values) * EPS
        return vectors[:, kept] * values[kept].sqrt()


def frechet_distance(first: FeatureStats, second: FeatureStats, *, unbiased: bool = False) -> float:
    """Return the (squared) Frechet distance of the two Gaussians; 0 for equal statistics.

    Args:
        first, second: at least two samples each, of the same width.
        unbiased: covariances over N - 1, to compare with code that does so.

    Raises:
        MetricError: for fewer than two samples or different widths.
    """
    for name, stats in (("first", first), ("second", second)):
        if stats.count < 2:
            raise MetricError(
                f"the {name} set has too few videos for a covariance",
                got=stats.count,
                expected="at least 2 (and 256 for a figure that means something)",
            )
    if len(first.mean) != len(second.mean):
        raise MetricError(
            "the two sets' features come from different detectors",
            got=f"widths {len(first.mean)} and {len(second.mean)}",
        )
    less = 1 if unbiased else 0
    scale = ((first.count - less) * (second.count - less)) ** -0.5
    cross = scale * einsum(first.scatter_root, second.scatter_root, "d n, d m -> n m")
    overlap = torch.linalg.svdvals(cross).sum() if 0 not in cross.shape else cross.new_zeros(())
    spread = sum(stats.covariance(unbiased=unbiased).trace() for stats in (first, second))
    gap = (first.mean - second.mean).square().sum()
    distance = float(gap + spread - 2 * overlap)
    # Rounding may push a distance of zero below it, and nothing else may.
    assert distance >= -1e-9 * float(spread), f"negative Frechet distance {distance}"
    return max(distance, 0.0)
