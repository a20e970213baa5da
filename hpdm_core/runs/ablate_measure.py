"""One unit of a table, carried out: train what is not trained yet, measure, draw its videos."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from hpdm_core import __version__
from hpdm_core.build import describe
from hpdm_core.device import device_name, resolve_device
from hpdm_core.pipeline.pipeline import Pipeline
from hpdm_core.progress import Progress, Silent, process_rank
from hpdm_core.recipe.schema import Recipe
from hpdm_core.reports.ablations import Column, Scale, Table, protocol_of
from hpdm_core.runs.ablate_model import open_row, write_clips
from hpdm_core.runs.ablate_step import measure_memory, measure_speed, with_some_classes
from hpdm_core.runs.ablate_units import Unit
from hpdm_core.runs.eval_fvd import run_eval_fvd
from hpdm_core.runs.train import run_train

SCORES, VIDEOS = "scores", "videos"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Carries out units.

    Args:
        table, name: whose.
        scale, scale_name: how large.
        folder: of the table's results.
        device: 'auto', 'cpu' or 'cuda'.
        first_seed: whose videos are drawn for the report.
        progress: shown to the user.
    """

    table: Table
    name: str
    scale: Scale
    scale_name: str
    folder: Path
    device: str
    first_seed: int
    progress: Progress

    def run(self, unit: Unit) -> dict[str, Any]:
        """Return the unit's line for rows.jsonl."""
        began = time.monotonic()
        trained = self._train(unit) if unit.trained else None
        figures: dict[str, dict] = {}
        details: dict[str, Any] = {}
        figures |= self._scores(unit, details)
        for column in self.table.columns:
            if column.measure.kind == "step":
                self.progress.say(f"timing steps of {unit.row.title}: {column.heading}")
                figures[column.key] = self._step(unit.recipes[column.key], column)
        figures |= _counts(self.table, unit)
        line = {
            "table": self.name,
            "scale": self.scale_name,
            "row": unit.row.key,
            "title": unit.row.title,
            "seed": unit.seed,
            "key": unit.key,
            "figures": figures,
            "checkpoint": None if unit.folder is None else str(unit.checkpoint),
            "training": trained,
            "videos": self._videos(unit),
            "machine": machine(self.device),
            "versions": {"hpdm": __version__, "torch": torch.__version__},
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - began, 1),
        }
        return line | {"details": details}

    def _train(self, unit: Unit) -> dict[str, Any]:
        """Train, or go on with a training that was interrupted; a finished one is taken."""
        assert unit.folder is not None
        done = unit.folder / "checkpoints" / f"step-{unit.recipe.train.steps:08d}"
        if done.is_dir():
            return {"run": str(unit.folder), "taken": True}
        result = run_train(
            unit.recipe, out=unit.folder, device=self.device, dry_run=False, progress=self.progress
        )
        kept = ("run", "steps", "parameters", "skipped_steps", "last", "seconds_training")
        return {key: result[key] for key in kept} | {"taken": False}

    def _scores(self, unit: Unit, details: dict[str, Any]) -> dict[str, dict]:
        """Score once per protocol; columns with the same one share the call."""
        figures: dict[str, dict] = {}
        by_protocol: dict[str, list[Column]] = {}
        for column in self.table.columns:
            if column.measure.kind == "score":
                by_protocol.setdefault(protocol_of(self.scale, column), []).append(column)
        for protocol, columns in by_protocol.items():
            result = self._score(unit, protocol, [column.measure.of for column in columns])
            details[protocol] = result
            for column in columns:
                figures[column.key] = _figure_of(result, column)
        return figures

    def _score(self, unit: Unit, protocol: str, metrics: list[str]) -> dict[str, Any]:
        return run_eval_fvd(
            checkpoint=str(unit.checkpoint),
            real=str(unit.real),
            protocol=protocol,
            metrics=metrics,
            detector=self.scale.detector,
            out=unit.folder / SCORES / unit.key,
            device=self.device,
            seed=unit.sampling_seed,
            force=self.scale.force,
            progress=Silent(progress=self.progress),
            load_model=self._opener(unit),
        )

    def _opener(self, unit: Unit) -> Callable[[str, torch.device], Pipeline]:
        return lambda ref, device: open_row(unit, device)

    def _step(self, recipe: Recipe, column: Column) -> dict[str, Any]:
        device = resolve_device(self.device)
        if column.measure.of == "memory":
            return measure_memory(recipe, device)
        return measure_speed(recipe, device, batches=self.scale.batches, rounds=self.scale.rounds)

    def _videos(self, unit: Unit) -> list[dict[str, str]]:
        wanted = self.scale.videos and unit.folder is not None and unit.seed == self.first_seed
        if not wanted or process_rank() != 0:
            return []
        model = open_row(unit, resolve_device(self.device))
        fps = unit.recipe.sampling.fps
        clips = write_clips(unit, model, self.folder / VIDEOS, num=self.scale.videos, fps=fps)
        return [{"caption": clip.caption, "file": f"{VIDEOS}/{clip.path.name}"} for clip in clips]


def machine(device: str) -> dict[str, Any]:
    """Say what the figures were measured on, without naming the computer."""
    found = resolve_device(device)
    return {
        "name": device_name(found),
        "processor": device_name(torch.device("cpu")),
        "device": str(found),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _figure_of(result: dict[str, Any], column: Column) -> dict[str, Any]:
    score = next(s for s in result["scores"] if s["metric"] == column.measure.of)
    kept = ("value", "std", "name", "num_fakes", "num_reals", "bias_of_few_fakes", "named_right")
    figure = {key: score[key] for key in kept if key in score}
    clip = result["clip"]
    size = "x".join(str(side) for side in (clip["frames"], *clip["size"]))
    return figure | {
        "protocol": result["protocol"],
        "of": f"{score['num_fakes']:,} videos of {size}",
    }


def _counts(table: Table, unit: Unit) -> dict[str, dict]:
    """Return the figures that need nothing but recipes."""
    figures: dict[str, dict] = {}
    wanted = [column for column in table.columns if column.measure.kind == "count"]
    if wanted:
        # Only these columns differ by nothing but what is counted.
        counted = describe(with_some_classes(unit.recipes[wanted[0].key]))
        flat = counted | {"parameters": counted["parameters"]["total"]}
        figures |= {c.key: {"value": flat[c.measure.of], "name": "counted"} for c in wanted}
    for column in table.columns:
        if column.measure.kind == "recipe":
            value = _field(unit.recipes[column.key], column.measure.of)
            figures[column.key] = {"value": None, "text": _in_words(value), "name": "recipe"}
    return figures


def _field(recipe: Recipe, path: str) -> Any:
    value: Any = recipe
    for name in path.split("."):
        value = value[int(name)] if isinstance(value, tuple) else getattr(value, name)
    return value


def _in_words(value: Any) -> str:
    if isinstance(value, tuple):
        return "/".join(str(item) for item in value)
    return f"{value:,.10g}" if isinstance(value, int | float) else str(value)
