"""The loss of ten CPU steps does not change unless it is meant to."""

import json

import pytest
import torch

from tests.golden.ten_steps import VALUES, ten_steps


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "muon"])
def test_ten_steps(optimizer, one_thread):
    """Meant to change? `python -m tests.golden.ten_steps` writes the values anew."""
    expected = json.loads(VALUES.read_text())[optimizer]
    found = ten_steps(optimizer)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-4), name


def test_a_different_seed_gives_different_losses(monkeypatch, one_thread):
    """The values depend on what they ought to: this is no constant."""
    monkeypatch.setattr(torch, "manual_seed", lambda seed: torch.default_generator.manual_seed(1))
    expected = json.loads(VALUES.read_text())["adamw"]
    assert ten_steps("adamw")["loss"] != pytest.approx(expected["loss"], rel=1e-4)
