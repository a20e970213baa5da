"""docs/python.md: the blocks on training run as they stand, one after the other, and train."""

import re
from pathlib import Path

import pytest
import torch

from hpdm_core.build import build_network, build_schedule
from hpdm_core.recipe.load import load_recipe

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"
_, TRAINING = PAGE.read_text(encoding="utf-8").split("## Train on your own tensors")
FIRST, SECOND = re.findall(r"```python\n(.*?)```", TRAINING, re.DOTALL)


def run_block(block: str, names: dict) -> None:
    exec(compile(block, str(PAGE), "exec"), names)


def test_the_blocks_train_a_network_on_tensors():
    torch.manual_seed(0)
    names: dict = {}
    run_block(FIRST, names)
    torch.manual_seed(0)
    before = build_network(names["recipe"]).state_dict()
    after = {name: weight.clone() for name, weight in names["network"].state_dict().items()}
    assert names["step"] == 1
    assert names["loss"].total.isfinite()
    assert names["loss"].per_level.shape == (3,)
    assert moved(before, after)

    run_block(SECOND, names)
    assert names["loss"].total.isfinite()
    assert moved(after, names["network"].state_dict())
    warmup = names["recipe"].optim.lr * 2 / names["recipe"].optim.warmup_steps
    assert names["optimizer"].param_groups[0]["lr"] == pytest.approx(warmup)
    ema = names["ema"].tensors()
    assert moved(after, ema)
    assert moved(names["network"].state_dict(), ema)


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    """Say whether most tensors differ (some have no gradient until others have moved)."""
    changed = [not torch.equal(before[name], after[name]) for name in after]
    return sum(changed) > 0.8 * len(changed)


def test_the_loop_is_eight_lines():
    loop = FIRST[FIRST.index("optimizer = ") :]
    assert len(loop.strip().splitlines()) == 8


def test_the_schedule_is_the_recipes():
    """Of each of the recipe's settings: peak, warm-up, length, final fraction, kind."""
    optim = ["optim.lr=2", "optim.warmup_steps=10", "optim.final_lr_fraction=0.1"]
    settings = [*optim, "train.steps=50"]
    schedule = build_schedule(load_recipe("small", settings))
    assert schedule(4) == pytest.approx(1.0)
    assert schedule(9) == pytest.approx(2.0)
    assert schedule(29) == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert schedule(49) == pytest.approx(0.2)
    constant = build_schedule(load_recipe("small", [*settings, "optim.schedule=constant"]))
    assert constant(49) == 2.0
