"""A row's model as scoring sees it: other sampling settings, fewer levels, class names as prompts.

Axis legend: `b` batch, `t h w` video.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from hpdm_core.data.dataset import open_dataset
from hpdm_core.data.video_io import write_mp4
from hpdm_core.errors import MetricError
from hpdm_core.recipe.load import recipe_from_yaml, recipe_to_yaml
from hpdm_core.recipe.schema import Recipe
from hpdm_core.records import NO_CLASS, Condition
from hpdm_core.reports.ablations import Overrides
from hpdm_core.reports.html import Clip
from hpdm_core.runs.ablate.trials import Trial
from hpdm_core.runs.evaluate.fakes import FakeModel
from hpdm_core.runs.evaluate.model import fake_model
from hpdm_core.runs.models import LoadedModel, load_model, to_uint8
from hpdm_core.runs.sample.conditions import Conditions, Request


def open_row(trial: Trial, device: torch.device) -> FakeModel:
    """Return the model of a trial's row.

    Raises:
        CheckpointError: there is none.
        MetricError: it is conditioned on text, and the real data has no classes to name.
    """
    loaded = load_model(str(trial.checkpoint), device)
    model = replace(loaded, recipe=_resampled(loaded.recipe, trial.row.sampling))
    num_levels = None if trial.row.level is None else trial.row.level + 1
    kind = model.recipe.model.conditioning
    if kind == "text":
        return _drawing_class_names(trial, model, device, num_levels=num_levels)

    def condition_of(labels: tuple[int, ...]) -> Condition:
        return Condition(labels=torch.tensor(labels) if kind == "class" else None)

    return fake_model(
        model,
        device,
        classes=model.classes if kind == "class" else (),
        condition_of=condition_of,
        num_levels=num_levels,
    )


def in_words(class_name: str) -> str:
    """Write a class's name as a prompt: ApplyEyeMakeup becomes 'apply eye makeup'."""
    parts = re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+", class_name)
    return " ".join(parts).lower()


def write_clips(
    trial: Trial, model: FakeModel, folder: Path, *, num: int, fps: float
) -> list[Clip]:
    """Draw a row's videos for the report; rows of a table share seeds and classes."""
    step = max(1, len(model.classes) // num)
    labels = tuple(i * step % len(model.classes) if model.classes else NO_CLASS for i in range(num))
    seeds = tuple(trial.sampling_seed + i for i in range(num))
    level = model.pyramid.num_levels - 1
    clips = []
    for seed, label in zip(seeds, labels, strict=True):
        path = folder / f"{trial.row.key}_{seed}.mp4"
        video = to_uint8(model.make((seed,), (label,), level))[0].numpy()
        write_mp4(path, iter(video), fps, threads=1)
        shows = model.classes[label] if model.classes else "video"
        clips.append(Clip(row=trial.row.key, caption=f"{shows}, seed {seed}", path=path))
    return clips


def _resampled(recipe: Recipe, changes: Overrides) -> Recipe:
    if not changes:
        return recipe
    sampling = recipe.sampling.model_copy(update=changes)
    changed = recipe.model_copy(update={"sampling": sampling})
    # Read again: copies are not checked.
    return recipe_from_yaml(recipe_to_yaml(changed), f"recipe {recipe.name} with {changes}")


def _drawing_class_names(
    trial: Trial, model: LoadedModel, device: torch.device, *, num_levels: int | None
) -> FakeModel:
    """Return a text-to-video model that draws the real data's classes by their names."""
    classes = open_dataset(trial.real.parent, trial.real.name).classes
    if not classes:
        raise MetricError(
            f"{trial.real} has no classes, whose names would be the prompts",
            remedy="prepare UCF-101: `hpdm prep ucf101 ./data`",
        )
    requests = _requests(classes)
    conditions = Conditions(model.recipe, requests, text_encoder=None, device=device)

    def condition_of(labels: tuple[int, ...]) -> Condition:
        return conditions.of([requests[label] for label in labels])

    return fake_model(
        model,
        device,
        classes=classes,
        condition_of=condition_of,
        num_levels=num_levels,
        facts={"prompts": [request.prompt for request in requests]},
    )


def _requests(classes: Sequence[str]) -> list[Request]:
    return [
        Request(index=i, seed=0, class_name=name, prompt=in_words(name))
        for i, name in enumerate(classes)
    ]
