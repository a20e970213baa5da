"""Frechet distance: closed forms, invariances, few samples, and every way of summing up."""

import numpy as np
import pytest
import torch
from einops import einsum

from hpdm_core.errors import MetricError
from hpdm_core.metrics.frechet import FeatureStats, frechet_distance


def gaussian(seed: int, num: int, width: int, scale: float = 1.0) -> torch.Tensor:
    """Correlated features away from the origin."""
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=rng, dtype=torch.float64) / width**0.5
    return scale * (torch.randn(num, width, generator=rng, dtype=torch.float64) @ mix + 3.0)


def rotation(width: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(99)
    return torch.linalg.qr(torch.randn(width, width, generator=rng, dtype=torch.float64)).Q


def stats_with(mean: torch.Tensor, covariance: torch.Tensor) -> FeatureStats:
    return FeatureStats(count=1000, mean=mean, scatter=covariance * 1000)


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    return frechet_distance(FeatureStats.of(x), FeatureStats.of(y))


def by_qr(x: torch.Tensor, y: torch.Tensor) -> float:
    """The same distance from the features themselves, never forming a covariance."""
    roots = [torch.linalg.qr((z - z.mean(dim=0)) / len(z) ** 0.5, mode="r").R for z in (x, y)]
    overlap = torch.linalg.svdvals(einsum(roots[0], roots[1], "n d, m d -> n m")).sum()
    spread = sum(root.square().sum() for root in roots)
    return float((x.mean(dim=0) - y.mean(dim=0)).square().sum() + spread - 2 * overlap)


def test_commuting_covariances_have_a_closed_form():
    width, q = 12, rotation(12)
    rng = np.random.default_rng(0)
    s1, s2 = (torch.from_numpy(rng.uniform(0, 3, width)) for _ in range(2))
    m1, m2 = (torch.from_numpy(rng.normal(size=width)) for _ in range(2))
    first = stats_with(m1, q @ torch.diag(s1**2) @ q.T)
    second = stats_with(m2, q @ torch.diag(s2**2) @ q.T)
    expected = (s1 - s2).square().sum() + (m1 - m2).square().sum()
    assert frechet_distance(first, second) == pytest.approx(float(expected), rel=1e-12)


def test_one_dimension_by_hand():
    # Means 1 and 4, deviations 1 and 2 (over N): 3^2 + 1^2.
    x = torch.tensor([[0.0], [2.0]])
    y = torch.tensor([[2.0], [6.0]])
    assert distance(x, y) == pytest.approx(10.0, rel=1e-12)
    # Over N - 1 the deviations are sqrt(2) and sqrt(8).
    unbiased = frechet_distance(FeatureStats.of(x), FeatureStats.of(y), unbiased=True)
    assert unbiased == pytest.approx(9.0 + (8**0.5 - 2**0.5) ** 2, rel=1e-12)


def test_two_by_two_covariances_that_do_not_commute():
    # tr (C1 C2)^(1/2) of 2x2 matrices is sqrt(tr(C1 C2) + 2 sqrt(det C1 det C2)).
    c1 = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    c2 = torch.tensor([[1.0, -0.8], [-0.8, 3.0]], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    root = ((c1 @ c2).trace() + 2 * (c1.det() * c2.det()).sqrt()).sqrt()
    expected = float(c1.trace() + c2.trace() - 2 * root)
    got = frechet_distance(stats_with(zero, c1), stats_with(zero, c2))
    assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n1", "n2"), [(500, 700), (30, 700), (30, 20), (64, 64), (2, 2)])
def test_agrees_with_qr_of_the_features_also_for_fewer_samples_than_dimensions(n1, n2):
    x, y = gaussian(1, n1, 64), gaussian(2, n2, 64, scale=1.3)
    assert distance(x, y) == pytest.approx(by_qr(x, y), rel=1e-9)


def test_agrees_with_the_matrix_square_root():
    scipy_linalg = pytest.importorskip("scipy.linalg")
    x, y = gaussian(1, 800, 32), gaussian(2, 600, 32)
    c1, c2 = np.cov(x.T, bias=True), np.cov(y.T, bias=True)
    root = scipy_linalg.sqrtm(c1 @ c2).real
    expected = float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(c1 + c2 - 2 * root)
    assert distance(x, y) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("num", [40, 500])
def test_equal_sets_have_distance_zero(num):
    x = gaussian(3, num, 64)
    assert distance(x, x.clone()) < 1e-9 * float(x.var(dim=0).sum())
    assert distance(x, x.flip(0)) < 1e-9 * float(x.var(dim=0).sum())


@pytest.mark.parametrize("num", [20, 300])
def test_symmetry_and_invariances(num):
    x, y = gaussian(4, num, 48), gaussian(5, num + 10, 48, scale=0.7)
    whole = distance(x, y)
    q = rotation(48)
    assert distance(y, x) == pytest.approx(whole, rel=1e-9)
    assert distance(x @ q, y @ q) == pytest.approx(whole, rel=1e-9)
    assert distance(x + 7, y + 7) == pytest.approx(whole, rel=1e-9)
    assert distance(3 * x, 3 * y) == pytest.approx(9 * whole, rel=1e-9)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    assert distance(x[:, order], y[:, order]) == pytest.approx(whole, rel=1e-9)


def test_a_shift_alone_adds_its_squared_length():
    x = gaussian(6, 300, 24)
    shift = torch.linspace(-1, 1, 24, dtype=torch.float64)
    assert distance(x, x + shift) == pytest.approx(float(shift.square().sum()), rel=1e-9)


def test_directions_without_spread_do_no_harm():
    x, y = gaussian(7, 300, 24), gaussian(8, 300, 24)
    still = torch.full((300, 5), 2.0, dtype=torch.float64)
    wide = distance(torch.cat([x, still], 1), torch.cat([y, still], 1))
    assert wide == pytest.approx(distance(x, y), rel=1e-10)
    assert distance(still, still) == 0.0


def test_the_covariance_is_torchs_far_from_the_origin():
    x = gaussian(9, 257, 40) * 100 + 1e4  # plain sums would lose digits
    stats = FeatureStats.of(x)
    assert stats.count == 257
    torch.testing.assert_close(
        stats.covariance(unbiased=True), torch.cov(x.T), rtol=1e-10, atol=1e-8
    )


def test_float32_features_are_summed_in_float64():
    x = (gaussian(11, 400, 16) + 1000).float()
    assert distance(x, x.double()) < 1e-8


def test_refusals():
    x = gaussian(1, 10, 4)
    with pytest.raises(MetricError, match=r"first set has too few videos.*got 1"):
        distance(x[:1], x)
    with pytest.raises(MetricError, match="second set has too few"):
        distance(x, x[:1])
    with pytest.raises(MetricError, match="different detectors; got widths 4 and 3"):
        distance(x, x[:, :3])
    with pytest.raises(MetricError, match="wrong shape"):
        FeatureStats.of(x[0])
    broken = x.clone()
    broken[3, 1] = torch.inf
    broken[7, 0] = torch.nan
    with pytest.raises(
        MetricError, match=r"2 of 10 videos have features that are not finite.*row 3"
    ):
        FeatureStats.of(broken)
