"""The average against its definition."""

import pytest
import torch
from torch import nn

from hpdm_core.training.ema import Ema, ema_decay


def test_half_life_halves():
    assert ema_decay(10**9, half_life=50.0, ramp=1.0) ** 50 == pytest.approx(0.5)
    assert ema_decay(20, half_life=50.0, ramp=0.1) == pytest.approx(0.5**0.5)


def test_average_follows_its_recurrence():
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    ema = Ema(network, half_life=4.0, ramp=0.3)
    expected = network.weight.detach().double().clone()
    for step in range(1, 30):
        with torch.no_grad():
            network.weight.add_(torch.randn(2, 3))
        ema.update(step)
        keep = 0.5 ** (1 / min(4.0, 0.3 * step))
        expected = keep * expected + (1 - keep) * network.weight.detach().double()
    torch.testing.assert_close(ema.tensors()["weight"].double(), expected, rtol=1e-5, atol=1e-6)
    assert set(ema.tensors()) == {"weight", "bias"}


def test_a_thousand_small_updates_add_up():
    """As they would not in bf16; the average is float32 whatever the arithmetic."""
    network = nn.Linear(2, 2)
    with torch.no_grad():
        network.weight.fill_(1.0)
    ema = Ema(network, half_life=6000.0, ramp=1e9)
    with torch.no_grad():
        network.weight.fill_(1.5)
    for step in range(1, 1001):
        ema.update(step)
    moved = ema.tensors()["weight"] - 1.0
    torch.testing.assert_close(moved, torch.full((2, 2), 0.5 * (1 - 0.5 ** (1000 / 6000))))


def test_swapped_in_shows_the_average_and_gives_back_the_weights_even_after_an_error():
    network = nn.Linear(2, 2)
    ema = Ema(network, half_life=5.0, ramp=1.0)
    before = network.weight.detach().clone()
    with torch.no_grad():
        network.weight.add_(1.0)
    seen = []

    def preview():
        with ema.swapped_in():
            seen.append(network.weight.detach().clone())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        preview()
    assert torch.equal(seen[0], before)
    assert torch.equal(network.weight, before + 1.0)


def test_reset_starts_from_the_present_weights():
    network = nn.Linear(2, 2)
    ema = Ema(network, half_life=5.0, ramp=1.0)
    with torch.no_grad():
        network.weight.mul_(3.0)
    ema.reset()
    assert torch.equal(ema.tensors()["weight"], network.weight)
