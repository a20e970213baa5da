"""Kernel distance between two sets of features: the squared maximum mean discrepancy.

With k(x, y) = (x . y / d + 1)^3, as KID (Binkowski et al. 2018) uses,

    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j).

It is unbiased, so it needs no correction for few videos and may come out below 0 for sets of one
distribution. Nothing is assumed of the features' distribution.
`JEDI` is the distance of the code that Luo et al. (2024) published: k = (x . y / d)^2, with pairs
i = j, times 100. These pairs raise it by about 1/n, and without the 1 it compares second moments
alone: sets that differ only in the sign of their features have distance 0.

Axis legend: `n` samples of the first set, `m` of the second, `d` feature width.
"""

from dataclasses import dataclass

import torch
from einops import einsum
from torch import Tensor

from hpdm_core.errors import MetricError

NUM_SUBSETS = 100
SUBSET_SIZE = 1000
NUM_RESAMPLES = 200
# 95% of a bootstrap's distances lie between these quantiles.
QUANTILES = (0.025, 0.975)

# (n, n), (m, m), (n, m): the kernel of every pair.
Blocks = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """k(x, y) = (x . y / d + constant)^degree, and the distance that is made of it.

    Args:
        label: what the distance is called.
        degree, constant: of the polynomial.
        pairs_with_itself: whether pairs i = j count.
        factor: of the whole distance.
    """

    label: str
    degree: int
    constant: float
    pairs_with_itself: bool
    factor: float

    @property
    def formula(self) -> str:
        """The kernel as text."""
        inner = "x . y / d + 1" if self.constant else "x . y / d"
        return f"({inner})^{self.degree}"


KID = Kernel(label="kernel distance", degree=3, constant=1.0, pairs_with_itself=False, factor=1.0)
JEDI = Kernel(
    label="JEDi's kernel distance", degree=2, constant=0.0, pairs_with_itself=True, factor=100.0
)


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


def kernel_distance(first: Tensor, second: Tensor, *, kernel: Kernel = KID) -> float:
    """Return the squared MMD of features (n, d) and (m, d), both of at least two rows.

    Raises:
        MetricError: for other shapes, or a feature that is not finite.
    """
    return kernel.factor * _distance(_blocks(first, second, kernel), kernel)


def estimate_kernel_distance(
    first: Tensor,
    second: Tensor,
    *,
    seed: int,
    kernel: Kernel = KID,
    num_subsets: int = NUM_SUBSETS,
    subset_size: int = SUBSET_SIZE,
    num_resamples: int = NUM_RESAMPLES,
) -> KernelDistance:
    """Return the distance of features (n, d) and (m, d) with its spread.

    Args:
        seed: of subsets and resampling.
        kernel: `KID` or `JEDI`.
        num_subsets: random subsets without replacement.
        subset_size: samples of each set in a subset; fewer where a set has fewer.
        num_resamples: of the bootstrap.

    Raises:
        MetricError: as `kernel_distance`.
    """
    blocks = _blocks(first, second, kernel)
    value = _distance(blocks, kernel)
    rng = torch.Generator().manual_seed(seed)
    n, m = blocks[2].shape
    size = min(subset_size, n, m)
    subsets = [
        _distance(
            _rows_of(blocks, torch.randperm(n, generator=rng)[:size],
                     torch.randperm(m, generator=rng)[:size]),
            kernel,
        )
        for _ in range(num_subsets)
    ]  # fmt: skip
    # The bootstrap leaves pairs i = j out; where they count, they move it as a whole.
    ones = torch.ones(n, dtype=torch.float64), torch.ones(m, dtype=torch.float64)
    offset = value - _of_weights(blocks, *ones)
    draws = [
        offset + _of_weights(blocks, _counts(n, rng), _counts(m, rng)) for _ in range(num_resamples)
    ]
    found, resampled = (
        kernel.factor * torch.tensor(values, dtype=torch.float64) for values in (subsets, draws)
    )
    low, high = torch.quantile(resampled, torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    return KernelDistance(
        value=kernel.factor * value,
        subset_mean=float(found.mean()),
        subset_std=float(found.std()),
        subset_size=size,
        std=float(resampled.std()),
        interval=(low, high),
    )


def _blocks(first: Tensor, second: Tensor, kernel: Kernel) -> Blocks:
    """Return the kernel within the first set, within the second, and between them."""
    first, second = _checked(first), _checked(second)
    if first.shape[1] != second.shape[1]:
        raise MetricError(
            "the two sets' features come from different detectors",
            got=f"widths {first.shape[1]} and {second.shape[1]}",
        )

    def of(x: Tensor, y: Tensor) -> Tensor:
        products = einsum(x, y, "n d, m d -> n m") / x.shape[1]
        return (products + kernel.constant) ** kernel.degree

    return of(first, first), of(second, second), of(first, second)


def _distance(blocks: Blocks, kernel: Kernel) -> float:
    """Return the distance before the factor."""
    xx, yy, xy = blocks
    if kernel.pairs_with_itself:
        return float(xx.mean() + yy.mean() - 2 * xy.mean())
    return float(_off_diagonal_mean(xx) + _off_diagonal_mean(yy) - 2 * xy.mean())


def _off_diagonal_mean(block: Tensor) -> Tensor:
    num = len(block)
    return (block.sum() - block.diagonal().sum()) / (num * (num - 1))


def _rows_of(blocks: Blocks, rows: Tensor, columns: Tensor) -> Blocks:
    xx, yy, xy = blocks
    return xx[rows][:, rows], yy[columns][:, columns], xy[rows][:, columns]


def _of_weights(blocks: Blocks, first: Tensor, second: Tensor) -> float:
    """Return the distance of sets in which sample i occurs `first[i]` or `second[i]` times.

    Pairs of one sample with its own copies are left out as i = j is: they would raise the distance.
    """
    xx, yy, xy = blocks
    within = _weighted_mean(xx, first) + _weighted_mean(yy, second)
    between = first @ xy @ second / (first.sum() * second.sum())
    return float(within - 2 * between)


def _weighted_mean(block: Tensor, counts: Tensor) -> Tensor:
    same = counts.square()
    total = counts @ block @ counts - same @ block.diagonal()
    return total / (counts.sum().square() - same.sum())


def _counts(num: int, rng: torch.Generator) -> Tensor:
    """Return (num,): how often each sample was drawn; at least two different ones were."""
    while True:
        counts = torch.bincount(torch.randint(num, (num,), generator=rng), minlength=num)
        # A single sample has no pairs.
        if int(counts.max()) < num:
            return counts.double()


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
