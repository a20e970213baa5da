"""Inception Score of class probabilities, with its spread over splits (Salimans et al. 2016).

    IS = exp( mean_i KL( p_i || mean_j p_j ) ) per split; reported: mean and deviation over splits

Axis legend: `n` samples, `k` classes.
"""

import numpy as np
import torch
from torch import Tensor

from hpdm_core.errors import MetricError

SHUFFLE_SEED = 42
NUM_SPLITS = 10


def inception_score(probabilities: Tensor, *, num_splits: int = NUM_SPLITS) -> tuple[float, float]:
    """Return mean and population deviation of the scores of `num_splits` shuffled parts of (n, k).

    Shuffling matters where videos come sorted by class: a split of few classes would score low.
    A split of s samples scores at most about k exp(-(k-1)/(2s)), so figures of different n or
    `num_splits` cannot be compared.

    Raises:
        MetricError: for fewer samples than splits, or rows that are not probabilities.
    """
    probabilities = probabilities.detach().cpu().double()
    if probabilities.ndim != 2 or len(probabilities) < num_splits:
        raise too_few_to_split(len(probabilities), num_splits)
    sums = probabilities.sum(dim=1)
    if bool((probabilities < 0).any()) or not torch.allclose(
        sums, torch.ones_like(sums), atol=1e-3
    ):
        raise MetricError(
            "the classifier's outputs are not probabilities",
            got=f"row sums from {sums.min():.4g} to {sums.max():.4g}",
            expected="rows >= 0 that sum to 1",
            remedy="apply a softmax where the network returns logits",
        )
    order = np.random.RandomState(SHUFFLE_SEED).permutation(len(probabilities))
    shuffled = probabilities[torch.from_numpy(order)]
    num = len(shuffled)
    scores = torch.stack(
        [
            _score(shuffled[i * num // num_splits : (i + 1) * num // num_splits])
            for i in range(num_splits)
        ]
    )
    return float(scores.mean()), float(scores.std(correction=0))


def too_few_to_split(num_videos: int, num_splits: int) -> MetricError:
    """Return the refusal of fewer videos than splits."""
    return MetricError(
        f"too few videos: a class score (IS) is a mean over {num_splits} parts of them",
        got=f"{num_videos} videos",
        expected=f"at least {num_splits}",
        remedy="generate more videos, or leave out --metrics is",
    )


def _score(probabilities: Tensor) -> Tensor:
    # xlogy is 0 for a probability of 0, where p * log p would be NaN.
    marginal = probabilities.mean(dim=0, keepdim=True)
    divergence = torch.xlogy(probabilities, probabilities) - torch.xlogy(probabilities, marginal)
    return divergence.sum(dim=1).mean().exp()
