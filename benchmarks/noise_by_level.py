"""Denoising error by level and noise level, with finished and with noisy lower levels.

    python benchmarks/noise_by_level.py --checkpoint shipped --data data/shapes --json

Also reports the fraction of training draws below each noise level.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor

from hpdm_core.build import build_diffusion, build_loader, build_preconditioning
from hpdm_core.data.dataset import open_dataset
from hpdm_core.diffusion.preconditioning import add_noise
from hpdm_core.geometry.boxes import pyramid_boxes
from hpdm_core.pipeline.pipeline import Pipeline
from hpdm_core.records import PatchBatch

SIGMAS = (0.05, 0.15, 0.5, 1.0, 2.0, 4.0)


def share_below(mean: float, std: float, bound: float) -> float:
    """Return the share of a log-normal law under `bound`."""
    return 0.5 * (1 + math.erf((math.log(bound) - mean) / (std * math.sqrt(2))))


@torch.no_grad()
def errors(model: Pipeline, batch: PatchBatch, level: int, lower: float | None) -> list[float]:
    """Return the mean squared error of the denoised patches of `level` at each noise level.

    Args:
        lower: noise level of the lower levels; None gives them the level's own.
    """
    boxes = pyramid_boxes(model.pyramid, batch.offsets)[: level + 1]
    preconditioning = build_preconditioning(model.recipe)
    results = []
    for sigma in SIGMAS:
        inputs, c_noise = [], []
        for k in range(level + 1):
            amount = sigma if k == level or lower is None else lower
            sigmas = torch.full((len(batch.indices),), amount)
            noise = torch.randn(batch.patches[k].shape, generator=torch.Generator().manual_seed(k))
            noisy, scales = add_noise(batch.patches[k], noise, sigmas), preconditioning[k](sigmas)
            inputs.append(scales.c_in * noisy)
            c_noise.append(scales.c_noise)
        outputs, _ = model.network(
            tuple(inputs), torch.stack(c_noise, dim=1), boxes, batch.condition, None
        )
        results.append(_mean_square(scales.denoised(noisy, outputs[level]) - batch.patches[level]))
    return results


def error_table(model: Pipeline, data: Path, *, videos: int) -> list[dict]:
    """Return a row per level.

    Args:
        model: what denoises.
        data: folder of the data set.
        videos: how many of its videos are noised.
    """
    dataset = open_dataset(str(data.parent), data.name)
    loader = build_loader(model.recipe, dataset, batch_size=videos, workers=0)
    batch = next(loader.batches(0))
    loader.close()
    diffusion = build_diffusion(model.recipe)
    rows = []
    for level in range(model.pyramid.num_levels):
        mean, std = diffusion.noise_mean[level], diffusion.noise_std[level]
        rows.append(
            {
                "level": level,
                "sigma": SIGMAS,
                "share_of_draws_below": [round(share_below(mean, std, s), 3) for s in SIGMAS],
                "error_with_clean_lower_levels": errors(
                    model, batch, level, diffusion.context_sigma
                ),
                "error_with_lower_levels_as_noisy": errors(model, batch, level, None),
            }
        )
    return rows


def _mean_square(x: Tensor) -> float:
    return x.square().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="shipped")
    parser.add_argument("--data", type=Path, default=Path("data/shapes"))
    parser.add_argument("--videos", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model = Pipeline.from_pretrained(options.checkpoint, device="cpu")
    rows = error_table(model, options.data, videos=options.videos)
    result = {"checkpoint": model.path.name, "step": model.step, "levels": rows}
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
