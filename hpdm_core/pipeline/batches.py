"""Batches of videos that fit into memory, one after another.

Axis legend: `b` videos, `c` channels, `t h w` frames, rows, columns.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hpdm_core.device import available_memory
from hpdm_core.geometry.canvas import on_canvas
from hpdm_core.inference.generate import SamplingSettings
from hpdm_core.inference.given import Continuation, Given
from hpdm_core.pipeline.editing import calls_of
from hpdm_core.pipeline.plan import BatchSizes, choose_batch_sizes, describe_sampling
from hpdm_core.pipeline.resources import Resources
from hpdm_core.progress import Progress
from hpdm_core.records import Condition

if TYPE_CHECKING:
    from hpdm_core.pipeline.pipeline import Pipeline


def sample_batches(
    pipe: "Pipeline",
    seeds: Sequence[int],
    condition: Condition,
    *,
    level: int,
    settings: SamplingSettings,
    resources: Resources,
    progress: Progress,
    given: Given | Continuation | None,
) -> Tensor:
    """Generate the videos of one level; see `Pipeline.sample`."""
    sizes = pipe.batch_sizes(settings, len(seeds), resources)
    settings = replace(settings, solvers=settings.solvers[: level + 1])
    calls = calls_of(settings, given, on_canvas(pipe.pyramid, settings.size))
    starts = range(0, len(seeds), sizes.videos)
    chunks = [slice(start, start + sizes.videos) for start in starts]
    progress.start("generating videos", len(chunks) * calls)
    try:
        videos = [
            pipe.generate(
                seeds[chunk],
                condition.select(chunk),
                settings=settings,
                tile_batch=sizes.tiles,
                resources=resources,
                advance=lambda k, _: progress.advance(1, level=f"{k + 1}/{level + 1}"),
                given=given,
            )[-1]
            for chunk in chunks
        ]
    finally:
        progress.stop()
    return torch.cat(videos)


def sizes_for(
    pipe: "Pipeline", settings: SamplingSettings, count: int, resources: Resources
) -> BatchSizes:
    """Return the batch sizes for `count` videos; see `Pipeline.batch_sizes`."""
    free = resources.free
    return choose_batch_sizes(
        pipe.recipe,
        describe_sampling(pipe.recipe, settings),
        free=available_memory(pipe.device) if free is None else free,
        count=count,
        device_type=pipe.device.type,
        cached=resources.cache != "off",
        videos=resources.batch,
        tiles=resources.tile_batch,
    )
