"""The learning rate at the points that define it."""

import math

import pytest

from hpdm_core.training.lr import learning_rate


def lr(step, **changes):
    settings = {
        "peak": 2.0,
        "steps": 100,
        "warmup_steps": 10,
        "schedule": "cosine",
        "final_share": 0.1,
    }
    return learning_rate(step, **{**settings, **changes})


def test_warm_up_is_linear_and_reaches_the_peak():
    assert [lr(step) for step in range(10)] == pytest.approx([0.2 * n for n in range(1, 11)])


def test_cosine_passes_its_middle_and_ends_at_its_share():
    assert lr(54) == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert lr(99) == pytest.approx(0.2)
    assert lr(150) == pytest.approx(0.2)
    assert lr(31) == pytest.approx(2 * (0.1 + 0.9 * (1 + math.cos(math.pi * 22 / 90)) / 2))


def test_constant_stays_and_no_warm_up_starts_at_the_peak():
    assert lr(99, schedule="constant") == 2.0
    assert lr(0, schedule="constant", warmup_steps=0) == 2.0
    assert lr(5, warmup_steps=100, steps=50) == pytest.approx(0.12)
