"""The loop: micro-batches, cuts, skipped steps, stopping, full disks, broken loaders."""

import logging
import os
import signal
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from hpdm_core.errors import CheckpointError, DataError, DivergedError
from hpdm_core.training import batches as batches_module
from hpdm_core.training import checkpoint, store
from hpdm_core.training.batches import keep_levels, levels_chances, levels_of_step, split_batch
from hpdm_core.training.loop import train_step
from hpdm_core.training.parallel import clip_gradients, start_parallel
from hpdm_core.training.stopping import Interrupted, StopRequest
from tests.unit.training.standins import (
    LEVELS,
    assert_equal,
    contents,
    make_batch,
    make_batches,
    make_plan,
    make_state,
    run,
    tiny_loss,
)


def one_step(plan, *, dropout=0.0, loss=tiny_loss, stop=None):
    parallel = start_parallel("cpu", mode="ddp")
    state = make_state(parallel, dropout=dropout)
    batch = make_batch(0, rows=range(8))
    report = train_step(
        state, batch, loss=loss, plan=plan, parallel=parallel, stop=stop or StopRequest()
    )
    return state, report


def test_the_loss_falls(tmp_path):
    state = run(tmp_path, plan=make_plan(steps=60, checkpoint_every=60))
    batch = make_batch(1000, rows=range(64))
    fresh = make_state(start_parallel("cpu", mode="ddp"))
    before = tiny_loss(fresh.network.eval(), batch, seed=0, step=0).total
    after = tiny_loss(state.network.eval(), batch, seed=0, step=0).total
    assert after < 0.6 * before


@pytest.mark.parametrize("size", [1, 3, 4, 8, 100])
def test_micro_batches_give_the_same_update(size):
    whole, whole_report = one_step(make_plan())
    parts, parts_report = one_step(make_plan(micro_batch=size))
    for name, tensor in contents(whole).items():
        torch.testing.assert_close(contents(parts)[name], tensor, rtol=1e-4, atol=1e-6)
    assert parts_report.loss == pytest.approx(whole_report.loss, rel=1e-5)
    assert parts_report.per_level == pytest.approx(whole_report.per_level, rel=1e-5)


def test_levels_are_averaged_over_the_samples_that_count_in_them():
    """Level 1 counts in the first three samples: a micro-batch without any of them adds nothing."""

    def partly(network, batch, *, seed, step):
        losses = tiny_loss(network, batch, seed=seed, step=step)
        counts = torch.stack([torch.ones(len(batch.indices)), (batch.indices < 3).float()])
        sums = (counts * (1.0 + batch.indices)).sum(1)
        return replace(losses, sums=sums, counts=counts.sum(1))

    for size in (8, 4, 3, 1):
        _, report = one_step(make_plan(micro_batch=size), loss=partly)
        assert report.per_level == pytest.approx((4.5, 2.0))


def test_split_keeps_every_row_once():
    batch = make_batch(3, rows=range(7))
    parts = split_batch(batch, 3)
    assert [len(part.indices) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([part.patches[1] for part in parts]), batch.patches[1])
    assert torch.cat([part.condition.labels for part in parts]).tolist() == (
        batch.condition.labels.tolist()
    )
    assert sum((part.keys for part in parts), ()) == batch.keys


def test_cuts_leave_out_the_finest_levels_in_their_share_of_steps():
    counts = [levels_of_step(step, seed=0, levels=4, drop_prob=0.6) for step in range(2000)]
    cut = [count for count in counts if count < 4]
    assert len(cut) / 2000 == pytest.approx(0.6, abs=0.05)
    for levels in (1, 2, 3):
        assert cut.count(levels) / len(cut) == pytest.approx(1 / 3, abs=0.05)
    assert {levels_of_step(step, seed=0, levels=4, drop_prob=0.0) for step in range(50)} == {4}
    batch = make_batch(0, rows=range(2))
    assert len(keep_levels(batch, 1).patches) == 1
    assert len(keep_levels(batch, LEVELS).patches) == LEVELS


@pytest.mark.parametrize(("levels", "drop_prob"), [(3, 0.4), (2, 1.0), (1, 0.4), (3, 0.0)])
def test_chances_of_levels_are_those_of_training(levels, drop_prob):
    chances = levels_chances(levels=levels, drop_prob=drop_prob)
    found = Counter(
        levels_of_step(step, seed=0, levels=levels, drop_prob=drop_prob) for step in range(4000)
    )
    assert found.keys() <= chances.keys()
    assert sum(chances.values()) == pytest.approx(1)
    for count, chance in chances.items():
        assert found[count] / 4000 == pytest.approx(chance, abs=0.03)


def test_a_cut_step_moves_no_weight_of_the_levels_left_out():
    state, report = one_step(make_plan(level_drop_prob=1.0))
    fresh = make_state(start_parallel("cpu", mode="ddp"), dropout=0.0)
    assert len(report.per_level) == LEVELS - 1
    assert torch.equal(state.network.fine.weight, fresh.network.fine.weight)
    assert not torch.equal(state.network.read.weight, fresh.network.read.weight)


def test_clipping_scales_to_the_norm():
    params = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))]
    params[0].grad, params[1].grad = torch.tensor([3.0, 0, 0]), torch.tensor([0, 4.0])
    assert float(clip_gradients(params, 1.0)) == pytest.approx(5.0)
    assert params[0].grad[0].item() == pytest.approx(0.6, rel=1e-5)
    assert float(clip_gradients(params, 10.0)) == pytest.approx(1.0, rel=1e-5)
    assert params[1].grad[1].item() == pytest.approx(0.8, rel=1e-5)


def test_bf16_changes_the_loss_but_keeps_float32_weights():
    _, full_report = one_step(make_plan())
    half, half_report = one_step(make_plan(precision="bf16"))
    assert half_report.loss != full_report.loss
    assert half_report.loss == pytest.approx(full_report.loss, rel=0.05)
    assert {t.dtype for t in contents(half).values()} == {torch.float32}


def broken_at(steps, value):
    """Return a loss that is `value` at some steps."""

    def loss(network, batch, *, seed, step):
        losses = tiny_loss(network, batch, seed=seed, step=step)
        if step in steps:
            return replace(losses, total=losses.total * value)
        return losses

    return loss


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_skipped_counted_and_named(tmp_path, value):
    state = run(tmp_path, loss=broken_at({5}, value))
    assert (state.step, state.skipped) == (12, 1)
    assert all(torch.isfinite(tensor).all() for tensor in contents(state).values())


def test_a_skipped_step_changes_nothing_but_the_count():
    state, report = one_step(make_plan(), loss=broken_at({0}, float("nan")))
    fresh = make_state(start_parallel("cpu", mode="ddp"), dropout=0.0)
    assert not report.finite
    for (name, one), other in zip(
        state.network.named_parameters(), fresh.network.parameters(), strict=True
    ):
        assert torch.equal(one, other), name
    assert (state.step, state.skipped) == (1, 1)


class Recorded:
    """A progress bar that keeps what it is told."""

    def __init__(self):
        self.fields, self.done, self.bars = [], 0, []

    def start(self, description, total, done=0):
        self.bars.append(f"{description} {done}/{total}")

    def stop(self): ...

    def advance(self, amount=1, **fields):
        self.done += amount
        self.fields += [fields] if fields else []


def test_ten_such_steps_in_a_row_stop_with_advice(tmp_path, caplog):
    with pytest.raises(DivergedError, match=r"10 steps in a row .*lower optim.lr"):
        run(tmp_path, loss=broken_at(range(1, 12), float("nan")))
    assert "video-1-0" in caplog.messages[0]
    assert len(caplog.messages) == 10


def test_nine_such_steps_do_not(tmp_path):
    assert run(tmp_path, loss=broken_at(range(1, 10), float("nan"))).skipped == 9


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_rest_equals_the_uninterrupted_run(tmp_path, number):
    def signalling(network, batch, *, seed, step):
        if step == 6:
            os.kill(os.getpid(), number)
        return tiny_loss(network, batch, seed=seed, step=step)

    handler = signal.getsignal(number)
    with pytest.raises(Interrupted, match="stopped at step 7"):
        run(tmp_path / "a", loss=signalling)
    assert signal.getsignal(number) == handler
    assert checkpoint.list_checkpoints(tmp_path / "a" / "checkpoints")[-1].name == "step-00000007"
    assert_equal(run(tmp_path / "a"), run(tmp_path / "b"))


@pytest.mark.parametrize("waited_for", [0, 7])
def test_a_signal_while_a_batch_is_waited_for_is_heard_at_once(tmp_path, waited_for):
    def stuck(start_step):
        for batch in make_batches(start_step):
            if start_step == waited_for:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)
            yield batch
            start_step += 1

    drawn = []
    said = "stopped at step 7, saved in" if waited_for else "stopped before the first step"
    with pytest.raises(Interrupted, match=said):
        run(tmp_path / "a", batches=stuck, preview=drawn.append)
    assert drawn == ([7] if waited_for else [])
    assert_equal(run(tmp_path / "a"), run(tmp_path / "b"))


def test_a_second_signal_does_not_wait(tmp_path):
    def impatient(network, batch, *, seed, step):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt) as caught:
        run(tmp_path, loss=impatient)
    assert not isinstance(caught.value, Interrupted)


def full_disk_at(monkeypatch, steps):
    """Let writing fail half way through a checkpoint of the given steps."""
    write = checkpoint.write_tensors

    def failing(path, tensors, metadata):
        if int(metadata["step"]) in steps and path.name == checkpoint.EMA:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write(path, tensors, metadata)

    monkeypatch.setattr(store.checkpoint, "write_tensors", failing)


def test_a_full_disk_is_logged_and_training_continues(tmp_path, monkeypatch, caplog):
    full_disk_at(monkeypatch, {8})
    state = run(tmp_path)
    assert state.step == 12
    assert "step 8: checkpoint could not be written: [Errno 28]" in caplog.messages[0]
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000012"]


def test_a_full_disk_at_the_end_is_an_error_and_the_rest_can_be_done_later(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole")
    full_disk_at(monkeypatch, {8, 12})
    with pytest.raises(CheckpointError, match=r"last checkpoint \(step 12\).*free space"):
        run(tmp_path / "a")
    monkeypatch.undo()
    assert_equal(run(tmp_path / "a"), whole)


def breaking_loader(times):
    """Return a loader that breaks `times` times at step 5."""
    left = [times]

    def batches(start_step):
        for step, batch in enumerate(make_batches(start_step), start_step):
            if step == 5 and left[0]:
                left[0] -= 1
                raise RuntimeError("worker (pid 7) was killed")
            yield batch

    return batches


def test_a_loader_that_breaks_is_started_again_at_the_same_batch(tmp_path, caplog):
    state = run(tmp_path / "a", batches=breaking_loader(2))
    assert_equal(state, run(tmp_path / "b"))
    assert len(caplog.messages) == 2
    assert "step 5: the loader broke (worker (pid 7) was killed)" in caplog.messages[0]


def test_a_loader_that_keeps_breaking_is_an_error(tmp_path):
    with pytest.raises(DataError, match=f"broke {batches_module.MAX_RESTARTS} times at step 5"):
        run(tmp_path, batches=breaking_loader(99))


def test_previews_are_drawn_when_planned_and_change_nothing(tmp_path):
    drawn = []
    state = run(tmp_path / "a", plan=make_plan(preview_every=5), preview=drawn.append)
    assert drawn == [5, 10, 12]  # and at the end
    assert_equal(state, run(tmp_path / "b"))


@pytest.mark.parametrize(("at", "stops"), [(12, False), (5, True)])
def test_a_signal_while_previews_are_drawn_skips_them(tmp_path, caplog, at, stops):
    caplog.set_level(logging.INFO, logger="hpdm")
    begun = []

    def drawing(step):
        begun.append(step)
        if step == at:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

    said = "stopped at step 5, saved in"
    with pytest.raises(Interrupted, match=said) if stops else nullcontext():
        run(tmp_path / "a", plan=make_plan(preview_every=5), preview=drawing)
    assert begun == [step for step in (5, 10, 12) if step <= at]  # and not begun once more
    assert f"step {at}: no previews, interrupted" in caplog.messages
    assert_equal(run(tmp_path / "a"), run(tmp_path / "b"))


def test_the_stop_flag_is_reported():
    stop = StopRequest()
    stop.signal_name = "SIGINT"
    assert one_step(make_plan(), stop=stop)[1].stop
    assert not one_step(make_plan())[1].stop
