"""Kernel distance between two sets of features: the squared maximum mean discrepancy.

With k(x, y) = (x . y / d + 1)^3, as KID (Binkowski et al. 2018) uses,

    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j).

It is unbiased, so it needs no correction for few videos and may come out below 0 for sets of one
distribution. Nothing is assumed of the features' distribution.
JEDi (Luo et al. 2024) is another one of the kind: k = (x . y / d)^2, with i = j, times 100.

Axis legend: `n` samples of the first set, `m` of the second, `d` feature width.
"""

from dataclasses import dataclass

import torch
from einops import einsum
from torch import Tensor

from hpdm_core.errors import MetricError

DEGREE = 3
NUM_SUBSETS = 100
SUBSET_SIZE = 1000
NUM_RESAMPLES = 200
# 95% of a bootstrap's distances lie between these quantiles.
QUANTILES = (0.025, 0.975)


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """The distance and how sure it is.

    Args:
        value: over all samples.
        subset_mean: mean over random subsets of both sets, as KID is reported.
        subset_std: deviation over these subsets, divided by N - 1.
        subset_size: samples of each set in a subset.
        std: deviation of `value` over the bootstrap: both sets drawn anew with replacement.
        interval: ends of the 95% interval of the same.
    """

    value: float
    subset_mean: float
    subset_std: float
    subset_size: int
    std: float
    interval: tuple[float, float]


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """Return the unbiased squared MMD of features (n, d) and (m, d), both of at least two rows.

    Raises:
        MetricError: for other shapes, or a feature that is not finite.
    """
    first, second = _checked(first), _checked(second)
    if first.shape[1] != second.shape[1]:
        raise MetricError(
            "the two sets' features come from different detectors",
            got=f"widths {first.shape[1]} and {second.shape[1]}",
        )
    within = _off_diagonal_mean(_kernel(first, first)) + _off_diagonal_mean(_kernel(second, second))
    return float(within - 2 * _kernel(first, second).mean())


def estimate_kernel_distance(
    first: Tensor,
    second: Tensor,
    *,
    seed: int,
    num_subsets: int = NUM_SUBSETS,
    subset_size: int = SUBSET_SIZE,
    num_resamples: int = NUM_RESAMPLES,
) -> KernelDistance:
    """Return the distance of features (n, d) and (m, d) with its spread.

    Args:
        seed: of subsets and resampling.
        num_subsets: random subsets without replacement.
        subset_size: samples of each set in a subset; fewer where a set has fewer.
        num_resamples: of the bootstrap.

    Raises:
        MetricError: as `kernel_distance`.
    """
    value = kernel_distance(first, second)
    first, second = _checked(first), _checked(second)
    blocks = _kernel(first, first), _kernel(second, second), _kernel(first, second)
    rng = torch.Generator().manual_seed(seed)
    n, m = len(first), len(second)
    size = min(subset_size, n, m)
    subsets = torch.tensor(
        [
            _of_subset(blocks, torch.randperm(n, generator=rng)[:size],
                       torch.randperm(m, generator=rng)[:size])
            for _ in range(num_subsets)
        ],
        dtype=torch.float64,
    )  # fmt: skip
    draws = torch.tensor(
        [
            _of_weights(blocks, _counts(n, rng), _counts(m, rng))
            for _ in range(num_resamples)
        ],
        dtype=torch.float64,
    )  # fmt: skip
    low, high = torch.quantile(draws, torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    return KernelDistance(
        value=value,
        subset_mean=float(subsets.mean()),
        subset_std=float(subsets.std()),
        subset_size=size,
        std=float(draws.std()),
        interval=(low, high),
    )


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    """Return (n, m): the cubic kernel of every pair."""
    return (einsum(first, second, "n d, m d -> n m") / first.shape[1] + 1) ** DEGREE


def _off_diagonal_mean(kernel: Tensor) -> Tensor:
    num = len(kernel)
    return (kernel.sum() - kernel.diagonal().sum()) / (num * (num - 1))


def _of_subset(blocks: tuple[Tensor, Tensor, Tensor], rows: Tensor, columns: Tensor) -> float:
    xx, yy, xy = blocks
    within = _off_diagonal_mean(xx[rows][:, rows]) + _off_diagonal_mean(yy[columns][:, columns])
    return float(within - 2 * xy[rows][:, columns].mean())


def _of_weights(blocks: tuple[Tensor, Tensor, Tensor], first: Tensor, second: Tensor) -> float:
    """Return the distance of sets in which sample i occurs `first[i]` or `second[i]` times.

    Pairs of one sample with its own copies are left out as i = j is: they would raise the distance.
    """
    xx, yy, xy = blocks
    within = _weighted_mean(xx, first) + _weighted_mean(yy, second)
    between = first @ xy @ second / (first.sum() * second.sum())
    return float(within - 2 * between)


def _weighted_mean(kernel: Tensor, counts: Tensor) -> Tensor:
    same = counts.square()
    total = counts @ kernel @ counts - same @ kernel.diagonal()
    return total / (counts.sum().square() - same.sum())


def _counts(num: int, rng: torch.Generator) -> Tensor:
    rows = torch.randint(num, (num,), generator=rng)
    return torch.bincount(rows, minlength=num).double()


def _checked(features: Tensor) -> Tensor:
    if features.ndim != 2 or len(features) < 2 or features.shape[1] == 0:
        raise MetricError(
            "features have a wrong shape",
            got=tuple(features.shape),
            expected="(n, d) with at least 2 rows",
        )
    features = features.detach().cpu().double()
    if not bool(features.isfinite().all()):
        raise MetricError(
            "a video has features that are not finite",
            remedy="look at the videos: a broken file or an exploded sample",
        )
    return features
