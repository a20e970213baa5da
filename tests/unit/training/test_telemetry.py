"""What is shown and recorded."""

import json
import sys
import types
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from hpdm_core.errors import HpdmError
from hpdm_core.training import telemetry
from hpdm_core.training.telemetry import METRICS, Telemetry, trim_metrics
from tests.unit.training.standins import make_plan, run
from tests.unit.training.test_loop import Recorded, broken_at


def lines(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def test_a_line_every_so_often_with_all_figures(tmp_path):
    bar = Recorded()
    run(tmp_path, plan=make_plan(steps=7), progress=bar)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6, 7]
    last = lines(tmp_path)[-1]
    assert {"loss", "loss_0", "loss_1", "grad_norm", "lr", "videos_per_second", "wait_share"} <= (
        last.keys()
    )
    assert last["loss"] == pytest.approx((last["loss_0"] + last["loss_1"]) / 2, rel=1e-4)
    assert last["eta_seconds"] == 0.0
    assert 0 <= last["wait_share"] <= 1
    assert bar.done == 7
    assert set(bar.fields[-1]) == {"loss", "levels", "lr", "videos/s", "waiting"}


def test_a_line_without_a_finite_step_is_still_json(tmp_path):
    run(tmp_path, plan=make_plan(steps=4), loss=broken_at({0, 1}, float("nan")))
    assert "loss" not in lines(tmp_path)[0]
    assert lines(tmp_path)[-1]["skipped"] == 2


def test_lines_after_the_checkpoint_and_torn_ones_are_dropped(tmp_path):
    path = tmp_path / METRICS
    path.write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"ste')
    trim_metrics(tmp_path, 4)
    assert lines(tmp_path) == [{"step": 2}, {"step": 4}]
    trim_metrics(tmp_path / "absent", 4)


def test_figures_that_cannot_be_written_do_not_stop_training(tmp_path, monkeypatch, caplog):
    def full(self, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Telemetry, "_append", full)
    assert run(tmp_path).step == 12
    assert len(caplog.messages) == 1
    assert "training continues" in caplog.messages[0]


def test_tensorboard_events_are_written_where_asked(tmp_path):
    pytest.importorskip("tensorboard")
    sinks = telemetry.open_sinks(tmp_path, start_step=0, tensorboard=True, wandb=False)
    sinks[0].write(3, {"loss": 0.5})
    sinks[0].close()
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert telemetry.open_sinks(tmp_path, start_step=0, tensorboard=False, wandb=False) == ()


def test_tensorboard_gets_the_previews(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    picture = np.zeros((6, 8, 3), np.uint8)
    picture[:, :4] = 255
    sinks = telemetry.open_sinks(tmp_path, start_step=0, tensorboard=True, wandb=False)
    board = Telemetry(tmp_path, Recorded(), log_every=1, steps=9, sinks=sinks)
    board.show(3, picture)
    board.close()
    events = accumulator.EventAccumulator(str(tmp_path)).Reload().Images("previews")
    assert [event.step for event in events] == [3]
    assert np.array_equal(np.asarray(Image.open(BytesIO(events[0].encoded_image_string))), picture)


def test_wandb_gets_figures_and_previews(tmp_path, monkeypatch):
    logged, asked = [], {}

    class Run:
        def log(self, values, *, step):
            logged.append((step, values))

        def finish(self):
            logged.append("finished")

    def init(**settings):
        asked.update(settings)
        return Run()

    stand_in = types.SimpleNamespace(init=init, Image=lambda picture: ("picture", picture.shape))
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    (sink,) = telemetry.open_sinks(tmp_path / "mine", start_step=0, tensorboard=False, wandb=True)
    sink.write(2, {"loss": 0.5})
    sink.show(2, np.zeros((4, 5, 3), np.uint8))
    sink.close()
    assert (asked["id"], asked["resume"]) == ("mine", "allow")
    assert logged == [(2, {"loss": 0.5}), (2, {"previews": ("picture", (4, 5, 3))}), "finished"]


def test_wandb_that_is_absent_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(HpdmError, match=r"pip install wandb, or set train\.wandb=false"):
        telemetry.open_sinks(tmp_path, start_step=0, tensorboard=False, wandb=True)
