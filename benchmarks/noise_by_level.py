"""Where a model's error lies: by level and noise, with finished and with noisy lower levels.

    python benchmarks/noise_by_level.py --checkpoint shipped --data data/shapes --json

The noise of a level is given as the effective one, sigma * sigma_in: its standard deviation beside
videos in [-1, 1]. Beside the errors stands the share of training draws below each noise.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor

from hpdm_core.data.dataset import open_dataset
from hpdm_core.diffusion.preconditioning import add_noise, coefficients, noise_label
from hpdm_core.geometry.boxes import pyramid_boxes
from hpdm_core.records import PatchBatch
from hpdm_core.runs.models import LoadedModel, load_model
from hpdm_core.runs.train_data import open_loader

EFFECTIVE = (0.05, 0.15, 0.5, 1.0, 2.0, 4.0)


def share_below(mean: float, std: float, bound: float) -> float:
    """Return the share of a log-normal law under `bound`."""
    return 0.5 * (1 + math.erf((math.log(bound) - mean) / (std * math.sqrt(2))))


@torch.no_grad()
def errors(model: LoadedModel, batch: PatchBatch, level: int, lower: float | None) -> list[float]:
    """Return the mean squared error of the denoised patches of `level` at each effective noise.

    Args:
        lower: effective noise of the lower levels; None gives them the level's own.
    """
    boxes = pyramid_boxes(model.pyramid, batch.offsets)[: level + 1]
    results = []
    for effective in EFFECTIVE:
        inputs, labels, noisy = [], [], []
        for k in range(level + 1):
            amount = effective if k == level or lower is None else lower
            sigma_in = model.recipe.diffusion.sigma_in[k]
            sigma = torch.full((len(batch.indices),), amount / sigma_in)
            noise = torch.randn(batch.patches[k].shape, generator=torch.Generator().manual_seed(k))
            noisy.append(add_noise(batch.patches[k], noise, sigma, sigma_in))
            inputs.append(coefficients(sigma, sigma_in).c_in * noisy[-1])
            labels.append(noise_label(sigma))
        outputs, _ = model.network(
            tuple(inputs), torch.stack(labels, dim=1), boxes, batch.condition, None
        )
        scales = coefficients(sigma, sigma_in)
        denoised = scales.c_skip * noisy[-1] + scales.c_out * outputs[level]
        results.append(_mean_square(denoised - batch.patches[level]))
    return results


def _mean_square(x: Tensor) -> float:
    return x.square().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="shipped")
    parser.add_argument("--data", type=Path, default=Path("data/shapes"))
    parser.add_argument("--videos", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model = load_model(options.checkpoint, torch.device("cpu"))
    recipe = model.recipe
    dataset = open_dataset(str(options.data.parent), options.data.name)
    loader = open_loader(recipe, dataset, batch_size=options.videos, workers=0)
    batch = next(loader.batches(0))
    loader.close()
    rows = []
    for level in range(model.pyramid.num_levels):
        mean, std = recipe.diffusion.noise_mean[level], recipe.diffusion.noise_std[level]
        sigma_in = recipe.diffusion.sigma_in[level]
        rows.append(
            {
                "level": level,
                "effective_noise": EFFECTIVE,
                "share_of_draws_below": [
                    round(share_below(mean + math.log(sigma_in), std, e), 3) for e in EFFECTIVE
                ],
                "error_with_clean_lower_levels": errors(
                    model, batch, level, recipe.sampling.context_sigma
                ),
                "error_with_lower_levels_as_noisy": errors(model, batch, level, None),
            }
        )
    result = {"checkpoint": str(model.path), "step": model.step, "levels": rows}
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
