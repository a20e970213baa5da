"""Precision, recall, density and coverage against loops, and in cases that are clear by eye."""

import math

import pytest
import torch

from hpdm_core.errors import MetricError
from hpdm_core.metrics.prdc import NAMES, estimate_prdc, precision_recall


def draw(num: int, *, seed: int = 0, shift: float = 0.0, width: int = 3) -> torch.Tensor:
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed)) + shift


def slow(fakes: torch.Tensor, reals: torch.Tensor, k: int) -> dict[str, float]:
    """The four definitions, video by video."""
    x, y = fakes.double().tolist(), reals.double().tolist()

    def radius(rows: list, i: int) -> float:
        return sorted(math.dist(rows[i], row) for j, row in enumerate(rows) if j != i)[k - 1]

    real_balls = [(row, radius(y, i)) for i, row in enumerate(y)]
    fake_balls = [(row, radius(x, i)) for i, row in enumerate(x)]

    def holding(balls: list, point: list) -> int:
        return sum(math.dist(centre, point) < r for centre, r in balls)

    return {
        "precision": sum(holding(real_balls, p) > 0 for p in x) / len(x),
        "recall": sum(holding(fake_balls, p) > 0 for p in y) / len(y),
        "density": sum(holding(real_balls, p) for p in x) / len(x) / k,
        "coverage": sum(any(math.dist(c, p) < r for p in x) for c, r in real_balls) / len(y),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_they_are_what_loops_count(k):
    fakes, reals = draw(30, shift=0.7), draw(40, seed=1)
    found = precision_recall(fakes, reals, neighbours=k)
    expected = slow(fakes, reals, k)
    assert tuple(found) == NAMES
    for name in NAMES:
        assert float(found[name].mean()) == pytest.approx(expected[name], abs=1e-12), name


def test_a_set_against_itself_is_perfect_and_one_far_away_is_not():
    reals = draw(60)
    same = estimate_prdc(reals, reals, seed=0)
    assert [same[name].value for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    # Every ball holds its own centre and the k - 1 neighbours inside its border.
    assert same["density"].value == pytest.approx(1)
    far = estimate_prdc(reals + 100, reals, seed=0)
    assert [far[name].value for name in NAMES] == [0, 0, 0, 0]


def test_fakes_of_one_mode_are_precise_and_recall_half():
    reals = torch.cat([draw(50), draw(50, seed=1, shift=50)])
    found = estimate_prdc(draw(50, seed=2), reals, seed=0)
    assert found["precision"].value > 0.9
    assert found["recall"].value == pytest.approx(0.5, abs=0.06)
    assert found["coverage"].value == pytest.approx(0.5, abs=0.06)


def test_the_spread_is_that_of_a_mean():
    """For indicators of mean p over n videos: the square root of p (1 - p) / n."""
    found = estimate_prdc(draw(200, shift=1), draw(200, seed=1), seed=0)
    for name in ("precision", "recall", "coverage"):
        p = found[name].value
        assert 0.1 < p < 0.99
        assert found[name].std == pytest.approx((p * (1 - p) / 200) ** 0.5, rel=0.2)
        assert found[name].interval[0] <= p <= found[name].interval[1]


def test_refusals():
    with pytest.raises(MetricError, match=r"too few fakes for 5 .*got 5; expected at least 6"):
        precision_recall(draw(5), draw(9))
    with pytest.raises(MetricError, match="too few real videos"):
        precision_recall(draw(9), draw(5))
    with pytest.raises(MetricError, match="widths 3 and 2"):
        precision_recall(draw(9), draw(9, width=2))
