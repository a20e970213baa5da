"""Comparison of parametrisations and other settings: one change to a recipe, equal steps or time.

    python benchmarks/parametrisation.py --json --steps 4000 --seeds 3
    python benchmarks/parametrisation.py --compare optimiser --minutes 10
    python benchmarks/parametrisation.py --compare token

Trains `recipes/learning_tiny.yaml` on moving shapes for each variant and seed, then measures the
error by level and noise (lower levels finished), and of generated videos their flicker, pixel noise
(HH) and seams at tile borders (`hpdm_core/metrics/quality.py`), and those of real videos.
Finished trainings in the same --out are reused.
"""

import argparse
import json
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from noise_by_level import error_table

from hpdm_core.data.dataset import open_dataset
from hpdm_core.data.pictures import contact_sheet
from hpdm_core.data.video_io import decode_sequential
from hpdm_core.geometry.tiles import tile_borders
from hpdm_core.metrics.quality import Quality, measure_quality
from hpdm_core.model import hpdm
from hpdm_core.model.tokenizer import Positions
from hpdm_core.pipeline.pipeline import Pipeline
from hpdm_core.progress import NoProgress
from hpdm_core.recipe.load import load_recipe
from hpdm_core.recipe.schema import Recipe
from hpdm_core.runs.prep import run_prep_shapes
from hpdm_core.runs.train.run import run_train

OVERLAP = "fhw"
# No field of a recipe: position and class tables start with a standard deviation of 0.02, as the
# latents do, in place of sinusoids and 1.
SMALL_TABLES = "tables=0.02"
# No override is the recipe itself: v-prediction, AdamW, RIN blocks, tokens of 1x4x4 pixels. It is
# trained once for all comparisons.
COMPARISONS = {
    "parametrisation": {
        "v": [],
        "x": ["diffusion.parametrisation=x"],
        "snapvideo": ["diffusion.parametrisation=snapvideo"],
    },
    "optimiser": {"adamw": [], "muon": ["optim.name=muon"], "lamb": ["optim.name=lamb"]},
    "block": {"rin": [], "transformer": ["model.block=transformer"]},
    "token": {
        "1x4x4": [],
        "1x2x2": ["model.token=[1,2,2]"],
        "1x1x1": ["model.token=[1,1,1]", "model.data_width=32"],
    },
    # The median of sigma halved, and doubled, on every level.
    "noise": {
        "recipe": [],
        "smaller": ["diffusion.noise_mean=[-0.4,-1.7,-2.3]"],
        "larger": ["diffusion.noise_mean=[1.0,-0.3,-0.9]"],
    },
    "start": {"recipe": [], "tables of 0.02": [SMALL_TABLES]},
    "context": {
        "clean 0.3": [],
        "clean 0": ["diffusion.clean_context=0"],
        "average": ["pyramid.temporal_downsampling=average"],
    },
}
QUALITY = ("flicker", "hh", "seams", "high_frequency")


def make_variant(options: argparse.Namespace, overrides: list[str], seed: int) -> Recipe:
    """Return the recipe of one training."""
    common = [
        f"data.root={options.out / 'data'}",
        "data.name=shapes",
        "train.checkpoint_every=1000000",
        "train.log_every=100",
        f"train.steps={options.steps}",
        f"train.seed={seed}",
    ]
    fields = [text for text in overrides if text != SMALL_TABLES]
    return load_recipe(options.recipe, [*common, *options.set, *fields])


def small_tables(positions: Positions) -> list[torch.Tensor]:
    """Return random position tables of standard deviation 0.02, in place of sinusoids."""
    return [hpdm.TABLE_STD * torch.randn(table.shape) for table in positions.tables]


def label(overrides: list[str]) -> str:
    """Name a training by what it changes."""
    return "_".join(text.replace("=", "-") for text in overrides) or "recipe"


def train_variant(options: argparse.Namespace, overrides: list[str], seed: int) -> dict:
    """Train one variant and measure it; return its row."""
    name = f"{label(overrides)}-{seed}"
    recipe = make_variant(options, overrides, seed)
    if options.minutes is not None:
        # A short run tells the time of a step, and so how many there are time for.
        probe = recipe.with_fields("train", {"steps": 30})
        seconds = _train(probe, options.out / "probe" / name)["seconds_training"] / 30
        steps = max(1, round(60 * options.minutes / seconds))
        recipe = make_variant(options, [*overrides, f"train.steps={steps}"], seed)
    folder = options.out / "runs" / name
    with ExitStack() as started:
        if SMALL_TABLES in overrides:
            started.enter_context(patch.object(Positions, "initial", small_tables))
            started.enter_context(patch.object(hpdm, "CLASS_STD", hpdm.TABLE_STD))
        summary = _train(recipe, folder)
    model = Pipeline.from_pretrained(folder, device="cpu")
    table = error_table(model, options.out / "data/shapes", videos=options.videos)
    videos = sample(model, options.samples)
    pictures = options.out / "pictures"
    pictures.mkdir(exist_ok=True)
    shown = list(videos[:9])
    names = [f"seed {k}" for k in range(len(shown))]
    contact_sheet(shown, names).save(pictures / f"{name}.png")
    return {
        "overrides": overrides,
        "seed": seed,
        "steps": summary["steps"],
        "seconds": summary["seconds_training"],
        "loss": summary["last"],
        "error": [row["error_with_clean_lower_levels"] for row in table],
        **quality(model, videos),
    }


def _train(recipe: Recipe, folder: Path) -> dict:
    return run_train(recipe, out=folder, device="cpu", dry_run=False, progress=NoProgress())


def sample(model: Pipeline, number: int) -> np.ndarray:
    """Draw videos of all classes by turns: (b, t, h, w, 3) uint8."""
    return model(seeds=range(number), progress=NoProgress()).frames


def quality(model: Pipeline, videos: np.ndarray) -> dict[str, float]:
    """Return the measures of videos at the model's tile borders."""
    borders = tile_borders(model.pyramid, model.pyramid.num_levels - 1, model.settings.overlap)
    found: Quality = measure_quality(videos, borders)
    return {name: getattr(found, name) for name in QUALITY}


def real_videos(options: argparse.Namespace, number: int) -> np.ndarray:
    """Read videos of the data set, spread over its classes."""
    dataset = open_dataset(str(options.out / "data"), "shapes")
    entries = dataset.entries[:: max(1, len(dataset.entries) // number)][:number]
    paths = [dataset.folder / entry.path for entry in entries]
    return np.stack([np.stack(list(decode_sequential(path)))[:16] for path in paths])


def summarise(rows: list[dict]) -> dict:
    """Return the means over seeds, and their standard deviations where there are several."""
    errors = np.mean([row["error"] for row in rows], axis=0)
    result = {"error": np.round(errors, 5).tolist()}
    for name in QUALITY:
        values = [row[name] for row in rows]
        result[name] = round(statistics.fmean(values), 4)
        if len(values) > 1:
            result[f"{name}_sd"] = round(statistics.stdev(values), 4)
    result["steps"] = [row["steps"] for row in rows]
    result["minutes"] = [round(row["seconds"] / 60, 1) for row in rows]
    return result


def measure(options: argparse.Namespace) -> dict:
    """Train and measure all variants; return the figures by name."""
    options.out.mkdir(parents=True, exist_ok=True)
    if not (options.out / "data/shapes/dataset.yaml").exists():
        run_prep_shapes(options.out / "data", num=options.clips, progress=NoProgress())
    lines = options.out / "rows.jsonl"
    rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    variants = COMPARISONS[options.compare]
    for seed in range(options.seeds):
        for name, overrides in variants.items():
            if any((row["overrides"], row["seed"]) == (overrides, seed) for row in rows):
                continue
            began = time.perf_counter()
            rows.append(train_variant(options, overrides, seed))
            with lines.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            if not options.json:
                print(f"{name}, seed {seed}: {time.perf_counter() - began:.0f} s")
    result = {
        name: summarise([row for row in rows if row["overrides"] == overrides][: options.seeds])
        for name, overrides in variants.items()
    }
    model = Pipeline.from_pretrained(options.out / "runs" / "recipe-0", device="cpu")
    result["real"] = quality(model, real_videos(options, options.samples))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compare", choices=list(COMPARISONS), default="parametrisation")
    parser.add_argument("--recipe", default="learning_tiny")
    parser.add_argument("--set", nargs="*", default=[], help="overrides for every training")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--minutes", type=float, help="equal minutes in place of equal steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=900)
    parser.add_argument("--videos", type=int, default=128, help="real videos for the errors")
    parser.add_argument("--samples", type=int, default=27, help="generated videos")
    parser.add_argument("--out", type=Path, default=Path("runs/parametrisation"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.out = options.out.absolute()
    result = measure(options)
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
