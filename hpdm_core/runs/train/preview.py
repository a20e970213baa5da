"""Preview videos during training, from EMA weights, at fixed seeds.

Axis legend: `b` videos, `c` channels, `t h w` video, `rows columns` places in the grid.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hpdm_core.build import build_sampling
from hpdm_core.data.dataset import VideoDataset
from hpdm_core.data.pictures import GAP, contact_sheet, video_grid
from hpdm_core.data.text_store import TextStore
from hpdm_core.data.video_io import write_mp4
from hpdm_core.errors import HpdmError
from hpdm_core.pipeline.pipeline import Pipeline
from hpdm_core.pipeline.resources import Resources
from hpdm_core.pipeline.videos import to_uint8
from hpdm_core.progress import Progress
from hpdm_core.recipe.schema import Recipe
from hpdm_core.records import Condition
from hpdm_core.training.parallel import Parallel

logger = logging.getLogger("hpdm.runs")

PREVIEW_HEIGHT = 128
# Videos from all over the split among which captions are chosen.
MOST_READ = 10_000


def make_preview(
    recipe: Recipe,
    network: nn.Module,
    *,
    dataset: VideoDataset,
    folder: Path,
    parallel: Parallel,
    progress: Progress,
    show: Callable[[int, np.ndarray], None],
) -> Callable[[int], None]:
    """Return the function that generates the previews of a step.

    All processes generate the same videos (FSDP2 gathers weights collectively); the main one
    writes `step-NNNNNNNN.mp4`, all videos side by side, and a `.png` of their numbered frames;
    small videos are enlarged. The schedule is that of `--preset fast`: previews show how far
    training is, and are waited for.

    Args:
        recipe: solver, number of videos, conditioning.
        network: holds the EMA weights whenever the function is called.
        dataset: source of classes and captions.
        folder: output folder.
        parallel: this process's rank and device.
        progress: bar of the generated videos.
        show: called with the step and the contact sheet, (h, w, 3) uint8.
    """

    def preview(step: int) -> None:
        condition, captions = preview_conditions(recipe, dataset)
        pipeline = Pipeline(recipe=recipe, network=network, device=parallel.device)
        # Sharded weights are gathered in each pass, so all processes must make the same passes:
        # batch and cache sizes depend on the smallest free memory of all.
        free = parallel.free_memory()
        limit = None if free is None else free / 2e9
        resources = Resources(free=free, cache="gpu", cache_gb=limit)
        try:
            drawn = pipeline.sample(
                range(len(captions)),
                condition,
                settings=build_sampling(recipe, preset="fast"),
                resources=resources,
                progress=progress,
            )
        except HpdmError as error:
            logger.warning("step %d: no previews: %s", step, error)
            return
        videos = to_uint8(drawn).numpy()
        if not parallel.is_main:
            return
        path = folder / f"step-{step:08d}.mp4"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            grid = video_grid(videos, min_height=PREVIEW_HEIGHT, gap=GAP)
            write_mp4(path, grid, recipe.sampling.fps)
            sheet = contact_sheet(list(videos), captions)
            sheet.save(path.with_suffix(".png"))
        except OSError as error:
            logger.warning("step %d: previews could not be written: %s", step, error)
        else:
            logger.info("step %d: previews in %s", step, path)
            show(step, np.asarray(sheet))

    return preview


def preview_conditions(recipe: Recipe, dataset: VideoDataset) -> tuple[Condition, list[str]]:
    """Return the conditions of the previews and a caption for each.

    Classes in turn, captions from all over the training split, or nothing, by what the model is
    conditioned on.
    """
    number, kind = recipe.train.preview_videos, recipe.model.conditioning
    seeds = [f"seed {seed}" for seed in range(number)]
    if kind == "text":
        known = list(dict.fromkeys(dataset.captions(recipe.data.split, most=MOST_READ)))
        texts = [known[seed * len(known) // number] for seed in range(number)]
        tokens, mask = TextStore(dataset.folder).batch(texts)
        condition = Condition(text=tokens, text_mask=mask)
        return condition, [f"{seed}: {text}" for seed, text in zip(seeds, texts, strict=True)]
    if kind == "none":
        return Condition(labels=None), seeds
    labels = [seed % len(dataset.classes) for seed in range(number)]
    named = [f"{seed}: {dataset.classes[c]}" for seed, c in zip(seeds, labels, strict=True)]
    return Condition(labels=torch.tensor(labels)), named
