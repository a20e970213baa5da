"""The order of an epoch: a permutation that needs no memory."""

from collections import Counter

import numpy as np
import pytest

from hpdm_core.data.order import choose_video, sample_rng, video_at


def order(seed: int, epoch: int, count: int) -> list[int]:
    return [video_at(place, seed=seed, epoch=epoch, count=count) for place in range(count)]


@pytest.mark.parametrize("count", [*range(1, 70), 1000, 1023, 1024, 1025, 4099])
def test_every_epoch_visits_every_video_once(count):
    assert sorted(order(3, 1, count)) == list(range(count))


def test_orders_differ_by_seed_and_epoch():
    found = {tuple(order(seed, epoch, 50)) for seed in (0, 1, -1, 2**64 - 2) for epoch in range(5)}
    assert len(found) == 20
    assert order(5, 2, 50) == order(5 + 2**64, 2, 50)


def test_every_video_is_as_likely_at_every_place():
    orders = [order(0, epoch, 6) for epoch in range(12_000)]
    cells = np.zeros((6, 6))
    for found in orders:
        cells[np.arange(6), found] += 1
    statistic = ((cells - 2000) ** 2 / 2000).sum()  # chi-squared, 25 degrees of freedom
    assert statistic < 60
    # All 720 orders occur; 16.7 times each on average.
    assert len(Counter(map(tuple, orders))) == 720


def test_neighbours_do_not_stay_neighbours():
    found = np.array(order(0, 0, 100_000))
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(found, np.arange(100_000))[0, 1]) < 0.02


def test_a_hundred_million_places_cost_nothing_to_prepare():
    last = video_at(10**8 - 1, seed=0, epoch=7, count=10**8)
    assert 0 <= last < 10**8


def test_numbers_run_through_endless_epochs():
    chosen = [
        choose_video(sample_rng(0, 0, 0, 0), seed=0, number=n, count=7, attempt=0)
        for n in range(21)
    ]
    assert all(sorted(chosen[i : i + 7]) == list(range(7)) for i in (0, 7, 14))
    assert chosen[:7] != chosen[7:14]
