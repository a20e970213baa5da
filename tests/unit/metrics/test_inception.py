"""Inception Score: closed forms, splits, and refusals."""

import math

import pytest
import torch

from hpdm_core.errors import MetricError
from hpdm_core.metrics.inception import inception_score


def test_certain_and_balanced_predictions_score_the_number_of_classes():
    probabilities = torch.eye(7).repeat(20, 1)  # probabilities of exactly 0 must not give NaN
    mean, std = inception_score(probabilities, num_splits=1)
    assert mean == pytest.approx(7.0, rel=1e-12)
    assert std == 0.0


def test_one_answer_to_everything_scores_one():
    same = torch.tensor([0.5, 0.25, 0.25]).repeat(50, 1)
    assert inception_score(same)[0] == pytest.approx(1.0, rel=1e-12)


def test_two_kinds_of_rows_by_hand():
    # Half the rows (0.8, 0.2), half (0.2, 0.8): KL to (0.5, 0.5) is the same for all.
    rows = torch.tensor([[0.8, 0.2], [0.2, 0.8]], dtype=torch.float64).repeat(30, 1)
    expected = math.exp(0.8 * math.log(1.6) + 0.2 * math.log(0.4))
    assert inception_score(rows, num_splits=1)[0] == pytest.approx(expected, rel=1e-12)


def test_splits_are_shuffled_and_their_mean_and_population_deviation_reported():
    sorted_by_class = torch.eye(10).repeat_interleave(50, dim=0)
    mean, std = inception_score(sorted_by_class, num_splits=10)
    assert mean > 8  # one class per split would give 1
    assert 0 < std < 1
    assert inception_score(sorted_by_class, num_splits=10) == (mean, std)


def test_smaller_splits_score_lower():
    probabilities = torch.eye(101).repeat(20, 1)[:2000]
    scores = [inception_score(probabilities, num_splits=n)[0] for n in (1, 4, 10)]
    assert scores[0] > scores[1] > scores[2]
    # The formula in the docstring: 101 exp(-100 / (2 * 200)) is 78.7.
    assert scores[2] == pytest.approx(101 * math.exp(-100 / 400), rel=0.05)


def test_refusals():
    with pytest.raises(MetricError, match="too few videos"):
        inception_score(torch.eye(5), num_splits=10)
    with pytest.raises(MetricError, match=r"not probabilities.*softmax"):
        inception_score(torch.randn(50, 5), num_splits=5)
    with pytest.raises(MetricError, match="not probabilities"):
        inception_score(torch.full((50, 5), torch.nan), num_splits=5)
