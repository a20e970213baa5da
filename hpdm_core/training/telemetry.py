"""Metrics of a run: progress bar, metrics.jsonl, TensorBoard and W&B.

Metrics never stop training: a file that cannot be written is logged once.

Axis legend: `l` level, `h w` rows and columns of a picture.
"""

import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Protocol

import numpy as np
import torch

from hpdm_core.errors import HpdmError
from hpdm_core.files import read_whole_lines, write_text
from hpdm_core.progress import Progress

logger = logging.getLogger("hpdm.training")

METRICS = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Result of one step, the same on every process.

    Args:
        step: steps done, this one included.
        loss: mean over the global batch.
        per_level: the same by level; only the remaining levels under level dropout.
        grad_norm: before clipping.
        lr: learning rate used.
        videos: in the global batch.
        finite: whether the update was made.
        skipped: updates skipped so far.
        stop: whether any process was asked to stop.
    """

    step: int
    loss: float
    per_level: tuple[float, ...]
    grad_norm: float
    lr: float
    videos: int
    finite: bool
    skipped: int
    stop: bool


class Sink(Protocol):
    """Destination of metrics and previews besides the run's folder."""

    def write(self, step: int, scalars: dict[str, float]) -> None: ...

    def show(self, step: int, picture: np.ndarray) -> None: ...

    def close(self) -> None: ...


class TensorBoardSink:
    """TensorBoard events in the run's folder."""

    def __init__(self, folder: Path, *, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=start_step + 1)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def show(self, step: int, picture: np.ndarray) -> None:
        self._writer.add_image("previews", picture, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """A Weights & Biases run, resumed under the name of its folder."""

    def __init__(self, folder: Path, *, start_step: int) -> None:
        try:
            import wandb
        except ImportError:
            raise HpdmError(
                "train.wandb is on, but wandb is not installed",
                remedy="pip install wandb, or set train.wandb=false",
            ) from None
        self._picture = wandb.Image
        self._run = wandb.init(
            project="hpdm", name=folder.name, id=folder.name, dir=str(folder), resume="allow"
        )

    def write(self, step: int, scalars: dict[str, float]) -> None:
        self._run.log(scalars, step=step)

    def show(self, step: int, picture: np.ndarray) -> None:
        self._run.log({"previews": self._picture(picture)}, step=step)

    def close(self) -> None:
        self._run.finish()


class Telemetry:
    """Shows and records the result of each step.

    Args:
        folder: the run's folder; None on processes other than the main one.
        progress: progress bar; started and stopped by the caller.
        log_every: steps between lines.
        steps: steps in all.
        sinks: other destinations of metrics and previews.
    """

    def __init__(
        self,
        folder: Path | None,
        progress: Progress,
        *,
        log_every: int,
        steps: int,
        sinks: tuple[Sink, ...] = (),
    ) -> None:
        self._folder = folder
        self._progress = progress
        self._log_every = log_every
        self._steps = steps
        self._sinks = sinks
        self._values: defaultdict[str, list[float]] = defaultdict(list)  # since the last line
        self._mark = (time.perf_counter(), 0.0)
        self._videos = 0
        self._since = 0
        self._failed = False
        self.last: dict[str, object] = {}

    def record(self, report: StepReport, *, wait_seconds: float, seconds: float) -> None:
        """Record one step; write a line when one is due.

        Args:
            report: of the step.
            wait_seconds: time spent waiting for data since the start of this process.
            seconds: time spent training over all starts.
        """
        self._since += 1
        self._videos += report.videos
        if report.finite:
            self._values["loss"].append(report.loss)
            self._values["grad_norm"].append(report.grad_norm)
            for level, value in enumerate(report.per_level):
                self._values[f"loss_{level}"].append(value)
        if report.step % self._log_every and report.step != self._steps and not report.stop:
            self._progress.advance(1)
            return
        line = self._line(report, wait_seconds, seconds)
        self._progress.advance(1, **_fields(line))
        self._write(line)

    def show(self, step: int, picture: np.ndarray) -> None:
        """Pass a preview (h, w, 3) uint8 to the sinks."""
        for sink in self._sinks:
            self._guarded(lambda sink=sink: sink.show(step, picture))

    def close(self) -> None:
        for sink in self._sinks:
            self._guarded(sink.close)

    def _line(self, report: StepReport, wait_seconds: float, seconds: float) -> dict[str, object]:
        now = time.perf_counter()
        elapsed = max(now - self._mark[0], 1e-9)
        line = {
            "step": report.step,
            **{name: fmean(values) for name, values in self._values.items()},
            "lr": report.lr,
            "videos_per_second": self._videos / elapsed,
            "wait_share": min(1.0, (wait_seconds - self._mark[1]) / elapsed),
            "skipped": report.skipped,
            "seconds": seconds,
            "eta_seconds": (self._steps - report.step) * elapsed / self._since,
        }
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            line["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
        self._mark, self._videos, self._since = (now, wait_seconds), 0, 0
        self._values.clear()
        return {name: float(f"{v:.6g}") if isinstance(v, float) else v for name, v in line.items()}

    def _write(self, line: dict[str, object]) -> None:
        self.last = line
        if self._folder is not None:
            self._guarded(lambda: self._append(json.dumps(line)))
        scalars = {name: value for name, value in line.items() if name != "step"}
        for sink in self._sinks:
            self._guarded(lambda sink=sink: sink.write(line["step"], scalars))

    def _append(self, text: str) -> None:
        with (self._folder / METRICS).open("a") as file:
            file.write(text + "\n")

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            if not self._failed:
                logger.warning("metrics cannot be written (%s); training continues", error)
            self._failed = True


def open_sinks(
    folder: Path, *, start_step: int, tensorboard: bool, wandb: bool
) -> tuple[Sink, ...]:
    """Open TensorBoard if installed, and W&B if requested.

    Raises:
        HpdmError: W&B was asked for and is not installed.
    """
    sinks: list[Sink] = []
    if tensorboard and find_spec("tensorboard"):
        sinks.append(TensorBoardSink(folder, start_step=start_step))
    if wandb:
        sinks.append(WandbSink(folder, start_step=start_step))
    return tuple(sinks)


def trim_metrics(folder: Path, step: int) -> None:
    """Drop lines after `step` (a killed run's after its last checkpoint) and partial ones."""
    path = folder / METRICS
    if not path.is_file():
        return
    kept = [line for line in read_whole_lines(path) if _has_step(line) and line["step"] <= step]
    write_text(path, "".join(f"{json.dumps(line)}\n" for line in kept))


def _has_step(line: object) -> bool:
    return isinstance(line, dict) and isinstance(line.get("step"), int)


def _fields(line: dict[str, object]) -> dict[str, str]:
    levels = [f"{v:.3f}" for name, v in line.items() if name.startswith("loss_")]
    return {
        "loss": f"{line['loss']:.4f}" if "loss" in line else "not finite",
        "levels": " ".join(levels),
        "lr": f"{line['lr']:.2e}",
        "videos/s": f"{line['videos_per_second']:.1f}",
        "waiting": f"{line['wait_share']:.0%}",
    }
