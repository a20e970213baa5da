"""A checkpoint as `hpdm eval-fvd` sees it: what it was trained on, and a function that samples.

Axis legend: `b` batch, `c` channels, `t h w` video.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from hpdm_core.device import available_memory, set_precision
from hpdm_core.errors import MetricError
from hpdm_core.inference.generate import TOKENS_PER_CALL, ExecutionOptions, generate
from hpdm_core.records import Condition
from hpdm_core.runs.evaluate.fakes import FakeModel
from hpdm_core.runs.models import LoadedModel, cache_maker, load_model


def open_model(ref: str, device: torch.device) -> FakeModel:
    """Return the model of a run folder, checkpoint folder or weights file, with its EMA weights.

    Raises:
        CheckpointError: there is none.
        MetricError: it is conditioned on text, so that the protocol cannot say what to draw.
    """
    model = load_model(ref, device)
    recipe = model.recipe
    if recipe.model.conditioning == "text":
        raise MetricError(
            f"{ref} draws what a text says, and no protocol names the texts",
            remedy="draw videos with `hpdm sample --prompt` and give them as --samples",
        )
    by_class = recipe.model.conditioning == "class"

    def condition_of(labels: tuple[int, ...]) -> Condition:
        return Condition(labels=torch.tensor(labels) if by_class else None)

    return fake_model(
        model, device, classes=model.classes if by_class else (), condition_of=condition_of
    )


def fake_model(
    model: LoadedModel,
    device: torch.device,
    *,
    classes: tuple[str, ...],
    condition_of: Callable[[tuple[int, ...]], Condition],
    num_levels: int | None = None,
    facts: Mapping[str, object] | None = None,
) -> FakeModel:
    """Return a loaded model as scoring sees it.

    Args:
        model: what draws.
        device: where it is.
        classes: what labels stand for.
        condition_of: labels to what the network reads.
        num_levels: of the pyramid, from the coarsest; None takes all.
        facts: what else a video depends on, beside the sampling settings.
    """
    recipe, pyramid = model.recipe, model.pyramid
    set_precision(recipe.train.precision, device=device)
    work = ExecutionOptions(
        device=device,
        tile_batch=max(1, TOKENS_PER_CALL[device.type] // math.prod(model.network.grid)),
        make_cache=cache_maker(
            "auto", device, free=available_memory(torch.device("cpu")), limit=None
        ),
    )

    def make(seeds: tuple[int, ...], labels: tuple[int, ...], level: int) -> Tensor:
        condition = condition_of(labels).to(device)
        return _videos(model, work, seeds=seeds, condition=condition, level=level)

    levels = pyramid.levels[:num_levels]
    return FakeModel(
        sha256=model.sha256,
        settings=asdict(model.settings) | dict(facts or {}),
        pyramid=replace(pyramid, levels=levels),
        classes=classes,
        data=str(Path(recipe.data.root) / recipe.data.name),
        # A coarser level shows every n-th frame of the finest.
        frame_stride=recipe.data.frame_stride * pyramid.stride(len(levels) - 1)[0],
        make=make,
    )


def _videos(
    model: LoadedModel,
    work: ExecutionOptions,
    *,
    seeds: tuple[int, ...],
    condition: Condition,
    level: int,
) -> Tensor:
    """Return (b, c, t, h, w) of one level; finer ones are not made."""
    levels = generate(
        model.denoiser,
        model.pyramid,
        replace(model.settings, solvers=model.settings.solvers[: level + 1]),
        seeds=seeds,
        condition=condition,
        work=work,
    )
    return levels[level]
