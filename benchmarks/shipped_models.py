"""What the shipped model draws: flicker, pixel noise (HH), seams and high frequencies, beside real.

    python benchmarks/shipped_models.py --json --num 32 --seed 100

Generated videos are measured as frames, before any codec, at the tile borders of their overlap;
real ones are shapes as they are rendered (`hpdm_core/metrics/quality.py`).
"""

import argparse
import json
from dataclasses import asdict

import numpy as np

from hpdm_core import Pipeline
from hpdm_core.data.shapes import SHAPE_CLASSES, render
from hpdm_core.geometry.tiles import tile_borders
from hpdm_core.metrics.quality import measure_quality

OVERLAP = "fhw"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="shipped")
    parser.add_argument("--num", type=int, default=32)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pipe = Pipeline.from_pretrained(options.model, device="cpu")
    seeds = list(range(options.seed, options.seed + options.num))
    classes = [SHAPE_CLASSES[k % len(SHAPE_CLASSES)] for k in range(options.num)]
    frames = pipe(classes=classes, seeds=seeds, overlap=OVERLAP).frames
    frames_per_video, size = frames.shape[1:3]
    drawn = [
        render(k, k % len(SHAPE_CLASSES), frames=frames_per_video, size=size).frames
        for k in range(options.num)
    ]
    pyramid = pipe.recipe.pyramid.build()
    borders = tile_borders(pyramid, pyramid.num_levels - 1, OVERLAP)
    videos = {"generated": frames, "real": np.stack(drawn)}
    result = {name: asdict(measure_quality(some, borders)) for name, some in videos.items()}
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
