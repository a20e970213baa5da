"""How much StyleGAN-V's way of cutting clips differs from ours, on the same real videos.

    python benchmarks/preparation.py --json --data data/ucf101/videos --num 60

Every video is cut both ways, from its first frame on. Printed are the mean absolute difference of
pixels in grey levels, and the bundled detector's Frechet distance between the two ways, beside that
between the videos of even and of odd index, cut our way.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from hpdm_core.data.folders import find_videos
from hpdm_core.metrics.bundled import load_bundled
from hpdm_core.metrics.extract import Skipped
from hpdm_core.metrics.frechet import FeatureStats, frechet_distance
from hpdm_core.runs.evaluate.clips import ClipFormat, VideoFile, extract_clip


def main() -> None:
    """Print the three figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder of videos")
    parser.add_argument("--num", type=int, default=60)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    files = [VideoFile(name=name, path=path) for name, path in find_videos(arguments.data)]
    size = (arguments.size, arguments.size)
    features, differences = [], []
    for file in files[: arguments.num]:
        clips = [
            extract_clip(file, ClipFormat(frames=16, stride=1, size=size, preparation=way))
            for way in ("hpdm", "stylegan-v")
        ]
        if any(isinstance(clip, Skipped) for clip in clips):
            continue
        differences.append(np.abs(clips[0].astype(float) - clips[1]).mean())
        features.append(load_bundled().features(torch.from_numpy(np.stack(clips))))
    ours, theirs = torch.stack(features).unbind(dim=1)
    result = {
        "videos": len(differences),
        "pixel_difference": float(np.mean(differences)),
        "distance": _distance(ours, theirs),
        "distance_of_halves": _distance(ours[::2], ours[1::2]),
    }
    print(json.dumps(result) if arguments.json else result)


def _distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return frechet_distance(FeatureStats.of(first), FeatureStats.of(second))


if __name__ == "__main__":
    main()
