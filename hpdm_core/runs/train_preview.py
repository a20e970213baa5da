"""Preview videos during training, from the averaged weights, at the same seeds each time.

Axis legend: `b` videos, `c` channels, `t h w` video, `rows columns` places in the grid.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from hpdm_core.data.video_io import contact_sheet, write_mp4
from hpdm_core.diffusion.denoiser import LevelDenoiser
from hpdm_core.geometry.tiles import parse_overlap
from hpdm_core.inference.generate import SamplingSettings, Work, generate
from hpdm_core.recipe.schema import Recipe
from hpdm_core.records import Condition
from hpdm_core.training.parallel import Parallel

COLUMNS = 4


def make_preview(
    recipe: Recipe,
    network: nn.Module,
    *,
    classes: tuple[str, ...],
    folder: Path,
    parallel: Parallel,
    say: Callable[[str], None],
) -> Callable[[int], None]:
    """Return the function that draws the previews of a step.

    All processes draw the same videos (under FSDP2 each needs the others' weights); the main one
    writes `step-NNNNNNNN.mp4`, all videos side by side, and a `.png` of their frames.

    Args:
        recipe: solver, number of videos, conditioning.
        network: holds the averaged weights whenever the function is called.
        classes: names, shown by turns where the model is conditioned on classes.
        folder: where files go.
        parallel: this process's place.
        say: told where the previews are, or why they could not be written.
    """
    number = recipe.train.preview_videos
    labels = _labels(recipe, number)

    def preview(step: int) -> None:
        videos = _draw(recipe, network, labels, parallel.device)
        if not parallel.is_main:
            return
        captions = [
            f"seed {seed}" if labels is None else f"seed {seed}: {classes[labels[seed]]}"
            for seed in range(number)
        ]
        path = folder / f"step-{step:08d}.mp4"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_mp4(path, grid(videos), recipe.sampling.fps)
            contact_sheet(list(videos), captions).save(path.with_suffix(".png"))
        except OSError as error:
            say(f"step {step}: previews could not be written: {error}")
        else:
            say(f"step {step}: previews in {path}")

    return preview


def grid(videos: np.ndarray) -> np.ndarray:
    """Put videos side by side, row by row; black where the last row has none.

    Args:
        videos: (b, t, h, w, c) uint8.

    Returns:
        (t, rows * h, columns * w, c) uint8.
    """
    columns = min(COLUMNS, len(videos))
    missing = -len(videos) % columns
    padded = np.concatenate([videos, np.zeros_like(videos[:1]).repeat(missing, axis=0)])
    return rearrange(padded, "(rows columns) t h w c -> t (rows h) (columns w) c", columns=columns)


def _draw(
    recipe: Recipe, network: nn.Module, labels: list[int] | None, device: torch.device
) -> np.ndarray:
    """Return (b, t, h, w, c) uint8 at the finest level."""
    sampling, number = recipe.sampling, recipe.train.preview_videos
    settings = SamplingSettings(
        steps=sampling.steps,
        overlap=parse_overlap(sampling.overlap),
        guidance=sampling.guidance,
        sigma_min=sampling.sigma_min,
        sigma_max=sampling.sigma_max,
        rho=sampling.rho,
        churn=sampling.churn,
        context_sigma=sampling.context_sigma,
        self_conditioning=recipe.model.self_conditioning > 0,
    )
    condition = Condition(labels=None if labels is None else torch.tensor(labels))
    levels = generate(
        LevelDenoiser(network=network, sigma_in=recipe.diffusion.sigma_in),
        recipe.pyramid.build(),
        settings,
        seeds=tuple(range(number)),
        condition=condition.to(device),
        work=Work(
            device=device,
            tile_batch=recipe.train.micro_batch or recipe.train.batch_size,
            make_cache=lambda: None,
        ),
    )
    return to_uint8(levels[-1])


def to_uint8(videos: Tensor) -> np.ndarray:
    """Turn (b, c, t, h, w) in [-1, 1] into (b, t, h, w, c) in 0..255."""
    pixels = ((videos.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return rearrange(pixels, "b c t h w -> b t h w c").numpy()


def _labels(recipe: Recipe, number: int) -> list[int] | None:
    """Return the classes by turns; None where the model knows none."""
    if recipe.model.conditioning != "class":
        return None
    return [index % recipe.model.num_classes for index in range(number)]
