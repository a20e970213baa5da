"""A row's model for scoring: sampling settings, number of levels, class names as prompts.

Axis legend: `b` batch, `t h w` video.
"""

import re
from dataclasses import replace
from pathlib import Path

import torch

from hpdm_core.data.dataset import open_dataset
from hpdm_core.data.video_io import write_mp4
from hpdm_core.errors import MetricError
from hpdm_core.pipeline.pipeline import Pipeline
from hpdm_core.pipeline.videos import to_uint8
from hpdm_core.recipe.load import recipe_from_yaml, recipe_to_yaml
from hpdm_core.recipe.schema import Recipe
from hpdm_core.records import NO_CLASS
from hpdm_core.reports.ablations import Overrides
from hpdm_core.reports.html import Clip
from hpdm_core.runs.ablate.trials import Trial


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


def write_clips(
    trial: Trial, pipeline: Pipeline, folder: Path, *, num: int, fps: float
) -> list[Clip]:
    """Generate a row's videos for the report; rows of a table share seeds and classes."""
    classes = pipeline.classes
    step = max(1, len(classes) // num)
    labels = tuple(i * step % len(classes) if classes else NO_CLASS for i in range(num))
    seeds = tuple(trial.sampling_seed + i for i in range(num))
    clips = []
    for seed, label in zip(seeds, labels, strict=True):
        path = folder / f"{trial.row.key}_{seed}.mp4"
        video = to_uint8(pipeline.sample([seed], pipeline.condition_of([label])))[0].numpy()
        write_mp4(path, iter(video), fps, threads=1)
        shows = classes[label] if classes else "video"
        clips.append(Clip(row=trial.row.key, caption=f"{shows}, seed {seed}", path=path))
    return clips


def _resampled(recipe: Recipe, changes: Overrides) -> Recipe:
    if not changes:
        return recipe
    sampling = recipe.sampling.model_copy(update=changes)
    changed = recipe.model_copy(update={"sampling": sampling})
    # Read again: copies are not checked.
    return recipe_from_yaml(recipe_to_yaml(changed), f"recipe {recipe.name} with {changes}")
