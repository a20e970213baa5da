"""Precision, recall, density and coverage of fakes, from nearest neighbours in feature space.

With a ball about each video whose radius is the distance to its k-th nearest neighbour in its set:
- precision: fraction of fakes inside some real's ball (Kynkaanniemi et al. 2019): how real they
  are;
- recall: fraction of reals inside some fake's ball: how much of the data they cover;
- density: mean number of reals' balls that a fake lies in, over k (Naeem et al. 2020);
- coverage: fraction of reals whose ball holds a fake (the same).

Precision and recall move with single outliers, density and coverage hardly. All depend on the
numbers of videos: compare at the same.

Axis legend: `n` fakes, `m` reals, `d` feature width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hpdm_core.errors import MetricError

NEIGHBOURS = 5
NUM_RESAMPLES = 200
QUANTILES = (0.025, 0.975)
NAMES = ("precision", "recall", "density", "coverage")


@dataclass(frozen=True, kw_only=True)
class Fraction:
    """One of the four, a mean over videos.

    Args:
        value: the mean.
        std: deviation of the mean over resampled videos, the balls as they are.
        interval: ends of the 95% bootstrap interval.
    """

    value: float
    std: float
    interval: tuple[float, float]


def precision_recall(
    fakes: Tensor, reals: Tensor, *, neighbours: int = NEIGHBOURS
) -> dict[str, Tensor]:
    """Return what each video adds to the four: (n,) or (m,) float64, whose means they are.

    Args:
        fakes: (n, d) features.
        reals: (m, d) features.
        neighbours: k, less than n and m.

    Raises:
        MetricError: a set has too few videos, or the widths differ.
    """
    for name, rows in (("fakes", fakes), ("real videos", reals)):
        if rows.ndim != 2 or len(rows) <= neighbours:
            raise MetricError(
                f"too few {name} for {neighbours} nearest neighbours of each",
                got=len(rows),
                expected=f"at least {neighbours + 1}",
                remedy="give more videos, or leave out prdc",
            )
    if fakes.shape[1] != reals.shape[1]:
        raise MetricError(
            "the two sets' features come from different detectors",
            got=f"widths {fakes.shape[1]} and {reals.shape[1]}",
        )
    fakes, reals = fakes.detach().cpu().double(), reals.detach().cpu().double()
    between = _distances(fakes, reals)  # (n, m)
    in_real = between < _radii(reals, neighbours)  # (n, m): fake i in the ball of real j
    in_fake = between < _radii(fakes, neighbours)[:, None]  # (n, m): real j in that of fake i
    return {
        "precision": in_real.any(dim=1).double(),
        "recall": in_fake.any(dim=0).double(),
        "density": in_real.double().sum(dim=1) / neighbours,
        "coverage": in_real.any(dim=0).double(),
    }


def estimate_prdc(
    fakes: Tensor, reals: Tensor, *, seed: int, num_resamples: int = NUM_RESAMPLES
) -> dict[str, Fraction]:
    """Return the four with their spread; arguments and errors as `precision_recall`.

    Args:
        seed: of the bootstrap over the videos that a figure is the mean of.
        num_resamples: of the bootstrap.
    """
    rng = torch.Generator().manual_seed(seed)
    quantiles = torch.tensor(QUANTILES, dtype=torch.float64)
    shares = {}
    for name, parts in precision_recall(fakes, reals).items():
        rows = torch.randint(len(parts), (num_resamples, len(parts)), generator=rng)
        means = parts[rows].mean(dim=1)
        low, high = torch.quantile(means, quantiles).tolist()
        shares[name] = Fraction(
            value=float(parts.mean()), std=float(means.std()), interval=(low, high)
        )
    return shares


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """Return (n, m) distances; without matrix products, whose rounding moves close pairs."""
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(features: Tensor, neighbours: int) -> Tensor:
    """Return (n,): the distance from each to its k-th nearest neighbour other than itself."""
    return _distances(features, features).kthvalue(neighbours + 1, dim=1).values
