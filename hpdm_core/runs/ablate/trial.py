"""Execution of a trial: train unless trained, measure, generate its videos."""

import logging
import platform
import re
import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hpdm_core import __version__
from hpdm_core.build import describe
from hpdm_core.data.dataset import open_dataset
from hpdm_core.data.video_io import write_mp4
from hpdm_core.device import device_name, resolve_device
from hpdm_core.errors import DivergedError, MetricError
from hpdm_core.pipeline.pipeline import Pipeline
from hpdm_core.pipeline.videos import to_uint8
from hpdm_core.progress import Progress, process_rank
from hpdm_core.recipe.load import recipe_from_yaml, recipe_to_yaml
from hpdm_core.recipe.schema import Recipe
from hpdm_core.records import NO_CLASS
from hpdm_core.reports.ablations import QUALITY, Column, Overrides, Scale, Table, protocol_of
from hpdm_core.reports.findings import DIVERGED
from hpdm_core.runs.ablate.profiling import (
    measure_memory,
    measure_relative_speed,
    measure_speed,
    with_some_classes,
)
from hpdm_core.runs.ablate.samplers import SamplerMeter
from hpdm_core.runs.ablate.trials import Trial
from hpdm_core.runs.evaluate.run import run_eval_fvd
from hpdm_core.runs.train.run import run_train

logger = logging.getLogger("hpdm.runs")

SCORES, VIDEOS = "scores", "videos"


@dataclass(frozen=True, kw_only=True)
class TrialRunner:
    """Executes trials.

    Args:
        table, name: of the trials.
        scale, scale_name: of the trials.
        folder: of the table's results.
        device: 'auto', 'cpu' or 'cuda'.
        first_seed: the seed whose videos are in the report.
        progress: progress bar.
    """

    table: Table
    name: str
    scale: Scale
    scale_name: str
    folder: Path
    device: str
    first_seed: int
    progress: Progress

    @cached_property
    def _meter(self) -> SamplerMeter:
        return SamplerMeter(scale=self.scale, device=self.device, progress=self.progress)

    def run(self, trial: Trial) -> dict[str, Any]:
        """Return the trial's line for rows.jsonl."""
        began = time.monotonic()
        trained = self._train(trial) if trial.trained else None
        diverged = trained is not None and "diverged" in trained
        figures: dict[str, dict] = {}
        details: dict[str, Any] = {}
        figures |= self._diverged() if diverged else self._scores(trial, details)
        figures |= self._samplers(trial)
        for column in self.table.columns:
            if column.measure.kind == "step":
                logger.info("timing steps of %s: %s", trial.row.title, column.heading)
                figures[column.key] = self._step(trial, column)
        figures |= _counts(self.table, trial)
        line = {
            "table": self.name,
            "scale": self.scale_name,
            "row": trial.row.key,
            "title": trial.row.title,
            "seed": trial.seed,
            "key": trial.key,
            "figures": figures,
            "checkpoint": None if trial.folder is None else str(trial.checkpoint),
            "training": trained,
            "videos": [] if diverged else self._videos(trial),
            "machine": machine(self.device),
            "versions": {"hpdm": __version__, "torch": torch.__version__},
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - began, 1),
        }
        return line | {"details": details}

    def _train(self, trial: Trial) -> dict[str, Any]:
        """Train, or resume a training that was interrupted; a finished one is reused.

        One that diverges is a result too: {"run", "diverged"}.
        """
        assert trial.folder is not None
        done = trial.folder / "checkpoints" / f"step-{trial.recipe.train.steps:08d}"
        if done.is_dir():
            return {"run": str(trial.folder), "taken": True}
        try:
            result = run_train(
                trial.recipe,
                out=trial.folder,
                device=self.device,
                dry_run=False,
                progress=self.progress,
            )
        except DivergedError as error:
            logger.warning("%s, seed %d: %s", trial.row.title, trial.seed, error)
            return {"run": str(trial.folder), "diverged": str(error)}
        kept = ("run", "steps", "parameters", "skipped_steps", "last", "seconds_training")
        return {key: result[key] for key in kept} | {"taken": False}

    def _diverged(self) -> dict[str, dict]:
        """Return a word in place of every score."""
        scores = (column for column in self.table.columns if column.measure.kind == "score")
        return {column.key: {"value": None, "text": DIVERGED} for column in scores}

    def _scores(self, trial: Trial, details: dict[str, Any]) -> dict[str, dict]:
        """Score once per protocol; columns with the same protocol share it."""
        figures: dict[str, dict] = {}
        by_protocol: dict[str, list[Column]] = {}
        for column in self.table.columns:
            if column.measure.kind == "score":
                by_protocol.setdefault(protocol_of(self.scale, column), []).append(column)
        for protocol, columns in by_protocol.items():
            metrics = dict.fromkeys(_metric(column.measure.of) for column in columns)
            result = self._score(trial, protocol, list(metrics))
            details[protocol] = result
            for column in columns:
                figures[column.key] = _figure_of(result, column)
        return figures

    def _samplers(self, trial: Trial) -> dict[str, dict]:
        """Measure the row's schedule, all its columns from the same videos."""
        columns = [column for column in self.table.columns if column.measure.kind == "sampler"]
        if not columns:
            return {}
        pipeline = open_row(trial, resolve_device(self.device))
        logger.info("sampling with %s", trial.row.title)
        found = self._meter.measure(pipeline, real=trial.real, seed=trial.sampling_seed)
        return {column.key: found[column.measure.of] for column in columns}

    def _score(self, trial: Trial, protocol: str, metrics: list[str]) -> dict[str, Any]:
        return run_eval_fvd(
            checkpoint=str(trial.checkpoint),
            real=str(trial.real),
            protocol=protocol,
            metrics=metrics,
            detector=self.scale.detector,
            out=trial.folder / SCORES / trial.key,
            device=self.device,
            seed=trial.sampling_seed,
            force=self.scale.force,
            progress=self.progress,
            load_model=lambda _, device: open_row(trial, device),
        )

    def _step(self, trial: Trial, column: Column) -> dict[str, Any]:
        device, recipe = resolve_device(self.device), trial.recipes[column.key]
        if column.measure.of == "memory":
            return measure_memory(recipe, device)
        batches, rounds = self.scale.batches, self.scale.rounds
        if column.measure.of == "videos_per_second":
            return measure_speed(recipe, device, batches=batches, rounds=rounds)
        baseline = trial.baselines[column.key]
        return measure_relative_speed(recipe, baseline, device, batches=batches, rounds=rounds)

    def _videos(self, trial: Trial) -> list[dict[str, str]]:
        """Generate a row's videos for the report; rows of a table share seeds and classes."""
        num = self.scale.videos
        wanted = num and trial.folder is not None and trial.seed == self.first_seed
        if not wanted or process_rank() != 0:
            return []
        pipeline = open_row(trial, resolve_device(self.device))
        classes, drawn = pipeline.classes, []
        for i in range(num):
            seed = trial.sampling_seed + i
            label = i * max(1, len(classes) // num) % len(classes) if classes else NO_CLASS
            video = to_uint8(pipeline.sample([seed], pipeline.condition_of([label])))[0].numpy()
            file = f"{VIDEOS}/{trial.row.key}_{seed}.mp4"
            write_mp4(self.folder / file, video, trial.recipe.sampling.fps, threads=1)
            shows = classes[label] if classes else "video"
            drawn.append({"caption": f"{shows}, seed {seed}", "file": file})
        return drawn


def open_row(trial: Trial, device: torch.device) -> Pipeline:
    """Return the model of a trial's row.

    Raises:
        CheckpointError: there is none.
        MetricError: it is conditioned on text, and the real data has no classes to name.
    """
    pipeline = Pipeline.from_pretrained(trial.checkpoint, device=device)
    pipeline = replace(
        pipeline,
        recipe=_resampled(pipeline.recipe, trial.row.sampling),
        num_levels=None if trial.row.level is None else trial.row.level + 1,
    )
    if pipeline.recipe.model.conditioning != "text":
        return pipeline
    classes = open_dataset(trial.real.parent, trial.real.name).classes
    if not classes:
        raise MetricError(
            f"{trial.real} has no classes, whose names would be the prompts",
            remedy="prepare UCF-101: `hpdm prep ucf101 ./data`",
        )
    prompts = tuple(in_words(name) for name in classes)
    return replace(pipeline, classes=tuple(classes), class_prompts=prompts)


def in_words(class_name: str) -> str:
    """Turn a class's name into a prompt: ApplyEyeMakeup becomes 'apply eye makeup'."""
    parts = re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+", class_name)
    return " ".join(parts).lower()


def _resampled(recipe: Recipe, changes: Overrides) -> Recipe:
    if not changes:
        return recipe
    # Read again: copies are not checked.
    changed = recipe_to_yaml(recipe.with_fields("sampling", changes))
    return recipe_from_yaml(changed, f"recipe {recipe.name} with {changes}")


def machine(device: str) -> dict[str, Any]:
    """Describe the hardware of a measurement, without naming the computer."""
    found = resolve_device(device)
    return {
        "name": device_name(found),
        "processor": device_name(torch.device("cpu")),
        "device": str(found),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _metric(of: str) -> str:
    """Return the metric of `hpdm eval-fvd` that has a figure."""
    return "quality" if of in QUALITY else of


def _figure_of(result: dict[str, Any], column: Column) -> dict[str, Any]:
    of = column.measure.of
    named = "name" if of in QUALITY else "metric"
    score = next(s for s in result["scores"] if s[named] == of)
    kept = ("value", "std", "name", "num_fakes", "num_reals", "bias_of_few_fakes", "named_right")
    figure = {key: score[key] for key in kept if key in score}
    clip = result["clip"]
    size = "x".join(str(side) for side in (clip["frames"], *clip["size"]))
    about = f"{score['num_fakes']:,} videos of {size}"
    if score.get("real_value") is not None:
        about += f" (real videos {score['real_value']:.3g})"
    if score["value"] is None:
        figure["text"] = "undefined"
    return figure | {"protocol": result["protocol"], "of": about}


def _counts(table: Table, trial: Trial) -> dict[str, dict]:
    """Return the figures that depend only on recipes."""
    figures: dict[str, dict] = {}
    wanted = [column for column in table.columns if column.measure.kind == "count"]
    if wanted:
        # Columns that differ only in what is counted.
        counted = describe(with_some_classes(trial.recipes[wanted[0].key]))
        flat = counted | {"parameters": counted["parameters"]["total"]}
        figures |= {c.key: {"value": flat[c.measure.of], "name": "counted"} for c in wanted}
    for column in table.columns:
        if column.measure.kind == "recipe":
            value = _field(trial.recipes[column.key], column.measure.of)
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
