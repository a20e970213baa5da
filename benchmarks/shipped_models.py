"""What a shipped model draws, measured beside real videos of its kind.

    python benchmarks/shipped_models.py --json --model shapes
    python benchmarks/shipped_models.py --json --model walks --num 160 --data data/vizdoom

The bundled detector names the class of each generated video; flicker, pixel noise (HH), seams at
the tile borders of the overlap and high frequencies are those of `hpdm_core/metrics/quality.py`;
for shapes, each frame's best-fitting rendering (`benchmarks/shape_fit.py`) tells whether outlines
and texture are right. Generated videos are measured as frames, before any codec. Real shapes are
rendered, real walks read from `--data`.
"""

import argparse
import json
import statistics
from dataclasses import asdict
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from shape_fit import best_psnr

from hpdm_core import Pipeline
from hpdm_core.data.dataset import open_dataset
from hpdm_core.data.shapes import SHAPE_CLASSES, render
from hpdm_core.data.video_io import VideoReader
from hpdm_core.geometry.tiles import tile_borders
from hpdm_core.metrics.bundled import load_bundled
from hpdm_core.metrics.quality import measure_quality

# Real shapes have seeds that no data set of `hpdm prep shapes` has.
REAL_SEED = 1 << 50


def figures(pipe: Pipeline, frames: np.ndarray, real: np.ndarray, *, overlap: str) -> dict:
    """Return every measure of videos (b, t, h, w, 3) uint8, whose classes take turns."""
    named_right = partial(load_bundled().named_right, among=pipe.classes)
    names, real_names = (list(islice(cycle(pipe.classes), len(v))) for v in (frames, real))
    borders = tile_borders(pipe.pyramid, pipe.pyramid.num_levels - 1, overlap)
    result = {
        "class_named_right": named_right(torch.from_numpy(frames), names),
        "class_named_right_real": named_right(torch.from_numpy(real), real_names),
        "generated": asdict(measure_quality(frames, borders)),
        "real": asdict(measure_quality(real, borders)),
    }
    if set(pipe.classes) <= set(SHAPE_CLASSES):
        fits = [
            best_psnr(frame, name.split("-")[0])
            for video, name in zip(frames, names, strict=True)
            for frame in video
        ]
        result["best_fit_psnr_median"] = statistics.median(fits)
        result["best_fit_psnr_lowest_tenth"] = float(np.quantile(fits, 0.1))
    return result


def real_shapes(classes: tuple[str, ...], *, frames: int, size: int, num: int) -> np.ndarray:
    """Return rendered shapes (b, t, h, w, 3) uint8 whose classes take turns."""
    labels = islice(cycle([SHAPE_CLASSES.index(name) for name in classes]), num)
    drawn = [
        render(REAL_SEED + k, label, frames=frames, size=size) for k, label in enumerate(labels)
    ]
    return np.stack([video.frames for video in drawn])


def real_clips(folder: Path, classes: tuple[str, ...], *, frames: int, num: int) -> np.ndarray:
    """Return first frames of prepared videos, (b, t, h, w, 3) uint8, whose classes take turns."""
    dataset = open_dataset(str(folder.parent), folder.name)
    turns = {
        name: iter([entry for entry in dataset.entries if entry.class_name == name])
        for name in classes
    }
    chosen = [next(turns[name]) for name in islice(cycle(classes), num)]
    return np.stack([VideoReader(folder / e.path).read(np.arange(frames)) for e in chosen])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="shipped", help="name, run folder or weights file")
    parser.add_argument("--data", type=Path, help="real videos (default: rendered shapes)")
    parser.add_argument("--num", type=int, default=180)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--overlap", default="hw")
    parser.add_argument("--preset", choices=("paper", "fast"), default="paper")
    parser.add_argument("--out", type=Path, help="keep the generated videos' frames (.npy)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pipe = Pipeline.from_pretrained(options.model, device="cpu")
    num_frames, size = pipe.pyramid.resolution[:2]
    seeds = list(range(options.seed, options.seed + options.num))
    names = list(islice(cycle(pipe.classes), options.num))
    drawn = pipe(classes=names, seeds=seeds, overlap=options.overlap, preset=options.preset)
    frames = drawn.frames
    if options.out is not None:
        np.save(options.out, frames)
    if options.data is None:
        real = real_shapes(pipe.classes, frames=num_frames, size=size, num=options.num)
    else:
        real = real_clips(options.data, pipe.classes, frames=num_frames, num=options.num)
    result = {"model": options.model, "step": pipe.step, "videos": options.num}
    result |= {"overlap": options.overlap, "preset": options.preset}
    result |= figures(pipe, frames, real, overlap=options.overlap)
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
