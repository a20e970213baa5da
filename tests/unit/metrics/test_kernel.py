"""The kernel distance against loops over pairs, closed forms and its own spread."""

from itertools import permutations, product

import pytest
import torch

from hpdm_core.errors import MetricError
from hpdm_core.metrics.kernel import JEDI, KID, estimate_kernel_distance, kernel_distance


def draw(num: int, *, width: int = 4, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(num, width, generator=rng) + shift


def slow(first: torch.Tensor, second: torch.Tensor) -> float:
    """The definition, pair by pair."""

    def k(x: list[float], y: list[float]) -> float:
        return (sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3

    x, y = first.double().tolist(), second.double().tolist()
    inside = [[k(a, b) for a, b in permutations(rows, 2)] for rows in (x, y)]
    between = [k(a, b) for a, b in product(x, y)]
    means = [sum(values) / len(values) for values in (*inside, between)]
    return means[0] + means[1] - 2 * means[2]


def test_it_is_the_mean_over_pairs():
    first, second = draw(5), draw(7, seed=1, shift=0.5)
    assert kernel_distance(first, second) == pytest.approx(slow(first, second), rel=1e-12)
    assert kernel_distance(second, first) == pytest.approx(kernel_distance(first, second))


def test_two_points_in_one_dimension_have_a_closed_form():
    """All x at a, all y at b: (a^2 + 1)^3 + (b^2 + 1)^3 - 2 (ab + 1)^3."""
    a, b = 0.7, -1.2
    value = kernel_distance(torch.full((3, 1), a).double(), torch.full((2, 1), b).double())
    assert value == pytest.approx((a * a + 1) ** 3 + (b * b + 1) ** 3 - 2 * (a * b + 1) ** 3)


def test_it_is_unbiased_for_few_samples():
    """The mean over many small sets is the distance of the distributions.

    In one dimension with x ~ N(0, 1), y ~ N(s, 1): E k = E (xy + 1)^3 = 1 + 3 m1^2 + 3 m2^2 + m3^2
    by raw moments of the two factors.
    """
    s = 0.8
    x, y = (0.0, 1.0, 0.0), (s, 1 + s * s, s**3 + 3 * s)

    def mean_kernel(p: tuple, q: tuple) -> float:
        return 1 + sum(c * a * b for c, a, b in zip((3, 3, 1), p, q, strict=True))

    expected = mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)
    rng = torch.Generator().manual_seed(0)
    values = torch.tensor(
        [
            kernel_distance(torch.randn(4, 1, generator=rng), torch.randn(5, 1, generator=rng) + s)
            for _ in range(2000)
        ]
    )
    error = float(values.std()) / 2000**0.5
    assert float(values.mean()) == pytest.approx(expected, abs=4 * error)


def test_one_distribution_scores_about_zero_and_another_more():
    same = kernel_distance(draw(400), draw(400, seed=1))
    other = kernel_distance(draw(400), draw(400, seed=1, shift=0.3))
    assert abs(same) < 0.03 < 0.1 < other


def test_subsets_and_the_bootstrap_lie_about_the_value():
    first, second = draw(300), draw(200, seed=1, shift=0.3)
    found = estimate_kernel_distance(first, second, seed=0, subset_size=50)
    assert found.value == kernel_distance(first, second)
    assert found.subset_size == 50
    assert abs(found.subset_mean - found.value) < 4 * found.subset_std / 100**0.5
    low, high = found.interval
    assert low < found.value < high
    assert (high - low) < 4 * found.subset_std
    again = estimate_kernel_distance(first, second, seed=0, subset_size=50)
    assert again == found
    assert estimate_kernel_distance(first, second, seed=1).subset_size == 200


def test_the_interval_covers_the_distributions_distance():
    """Of 20 draws of one distribution, about 19 intervals hold 0."""
    hits = 0
    for seed in range(20):
        found = estimate_kernel_distance(
            draw(60, seed=2 * seed),
            draw(60, seed=2 * seed + 1),
            seed=seed,
            num_subsets=2,
            num_resamples=100,
        )
        hits += found.interval[0] <= 0 <= found.interval[1]
    assert hits >= 17


def test_jedis_kernel_on_their_own_example():
    """Their code gives 270.7 for these two sets, before the factor of 100."""
    first = torch.arange(1.0, 10.0).reshape(3, 3)
    second = torch.tensor([[7.0, 6, 5], [4, 3, 2], [1, 1, 8], [0, 2, 5]])
    pairs = [(x, y) for x, y in ((first, first), (second, second), (first, second))]
    means = [sum((a @ b / 3) ** 2 for a in x for b in y) / (len(x) * len(y)) for x, y in pairs]
    expected = 100 * float(means[0] + means[1] - 2 * means[2])
    assert kernel_distance(first, second, kernel=JEDI) == pytest.approx(expected, rel=1e-6)
    assert expected / 100 == pytest.approx(270.7, abs=0.06)


def test_jedis_kernel_hardly_sees_a_sign_and_kids_does():
    rows = draw(50)
    assert kernel_distance(rows, -rows, kernel=JEDI) == pytest.approx(0, abs=1e-9)
    assert kernel_distance(rows + 1, -rows - 1, kernel=KID) > 1


def test_the_spread_is_that_of_a_second_moment():
    """Against y = 0 JEDi's distance of x ~ N(0, 1) in one dimension is 100 (mean x^2)^2.

    With a mean of m and a deviation of s over n draws, its own deviation is 200 m s / n^(1/2).
    """
    x, y = draw(400, width=1), torch.zeros(50, 1)
    found = estimate_kernel_distance(x, y, seed=0, kernel=JEDI, num_subsets=2)
    square = x.double().square()
    assert found.value == pytest.approx(100 * float(square.mean()) ** 2)
    expected = 200 * float(square.mean()) * float(square.std()) / 400**0.5
    assert found.std == pytest.approx(expected, rel=0.15)
    low, high = found.interval
    assert low < found.value < high
    assert high - low == pytest.approx(2 * 1.96 * expected, rel=0.2)


def test_two_videos_have_an_interval():
    found = estimate_kernel_distance(draw(2), draw(2, seed=1), seed=0)
    assert all(abs(end) < 1e6 for end in (*found.interval, found.std))


def test_refusals():
    with pytest.raises(MetricError, match=r"got \(1, 4\); expected \(n, d\) with at least 2 rows"):
        kernel_distance(draw(1), draw(5))
    with pytest.raises(MetricError, match="widths 4 and 3"):
        kernel_distance(draw(5), draw(5, width=3))
    with pytest.raises(MetricError, match="not finite"):
        kernel_distance(draw(5), draw(5) / 0)
