"""Previews take at most 2% of the time trained, and a minute."""

import logging

import pytest

from hpdm_core.training import loop, previews
from hpdm_core.training.parallel import start_parallel
from hpdm_core.training.previews import FREE_SECONDS, MOST_SHARE, PreviewBudget
from tests.unit.training.standins import make_plan, run, tiny_loss


class Clock:
    """A clock that moves when it is told to."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """The loop's and the budget's clock."""
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(
        loop, "PreviewBudget",
        lambda parallel: PreviewBudget(parallel=parallel, clock=clock.perf_counter),
    )  # fmt: skip
    return clock


def train_with(clock: Clock, folder, *, step_seconds: float, preview_seconds: float, steps: int):
    """Train with a preview after every step; return the steps of the previews."""
    drawn = []

    def loss(network, batch, *, seed, step):
        clock.now += step_seconds
        return tiny_loss(network, batch, seed=seed, step=step)

    def preview(step: int) -> None:
        clock.now += preview_seconds
        drawn.append(step)

    plan = make_plan(steps=steps, preview_every=1, checkpoint_every=steps)
    run(folder, plan=plan, loss=loss, preview=preview)
    return drawn


def test_the_share_is_held_at_every_moment(tmp_path, clock):
    """30 s previews after 100 s steps: two within the free minute, then one every 15 steps."""
    drawn = train_with(clock, tmp_path, step_seconds=100.0, preview_seconds=30.0, steps=60)
    assert drawn == [1, 2, 15, 30, 45, 60]
    for step in drawn[:-1]:  # the last one, of the finished model, is drawn in any case
        spent = 30.0 * (drawn.index(step) + 1)
        assert spent <= FREE_SECONDS + MOST_SHARE * 100.0 * step


def test_cheap_previews_are_all_drawn_and_dear_ones_at_the_end(tmp_path, clock):
    cheap = train_with(clock, tmp_path / "a", step_seconds=100.0, preview_seconds=1.9, steps=40)
    assert cheap == list(range(1, 41))
    dear = train_with(clock, tmp_path / "b", step_seconds=1.0, preview_seconds=500.0, steps=10)
    assert dear == [1, 10]


def test_one_line_tells_of_those_left_out(tmp_path, clock, caplog):
    with caplog.at_level(logging.INFO, logger="hpdm.training"):
        train_with(clock, tmp_path, step_seconds=100.0, preview_seconds=30.0, steps=40)
    said = [r.getMessage() for r in caplog.records if "no previews" in r.getMessage()]
    assert [line.split(":")[0] for line in said] == ["step 3", "step 16", "step 31"]
    assert "for some 20 minutes of training: the last took 30 s, and they may take 2%" in said[0]


def test_processes_do_as_the_main_one(monkeypatch):
    budget = PreviewBudget(parallel=start_parallel("cpu", mode="ddp"))
    monkeypatch.setattr(previews.Parallel, "from_main", lambda self, number: 0)
    assert not budget.allows(1, trained=1e9)
