"""How a detector's Frechet distance grows with degradations of real videos.

    python benchmarks/score_ladder.py --json
    python benchmarks/score_ladder.py --json --data data/vizdoom --num 200
    python benchmarks/score_ladder.py --detector transnetv2 --num 24 --rungs 1,4

Real videos are cut into two disjoint halves. One half is degraded at five strengths of each kind;
its distance from the other half, over the distance of the two halves as they are, is printed: 1
says that the score does not see the degradation.

Axis legend: `n` videos, `t h w` frames, rows, columns.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import degrade
import numpy as np
import torch
from torch import Tensor

from hpdm_core.data.dataset import open_dataset
from hpdm_core.data.shapes import SHAPE_CLASSES, render
from hpdm_core.data.video_io import VideoReader
from hpdm_core.metrics.frechet import FeatureStats, frechet_distance
from hpdm_core.metrics.load import cache_folder, load_metrics

# Seeds that no data set of `hpdm prep shapes` has.
FIRST_SEED = 1 << 50
FRAMES, SIZE = 16, 64
BATCH = 16

Degrade = Callable[[Tensor, float, torch.Generator], Tensor]
Features = Callable[[Tensor], Tensor]


def _grey(std: float) -> float:
    """From the scale [-1, 1] to grey levels."""
    return 127.5 * std


def _noise(video: Tensor, std: float, rng: torch.Generator) -> Tensor:
    return degrade.add_noise(video, _grey(std), rng)


def _block_noise(block: int) -> Degrade:
    return lambda video, std, rng: degrade.add_block_noise(video, _grey(std), rng, block=block)


def _seams(video: Tensor, std: float, rng: torch.Generator) -> Tensor:
    """Tiles of half the frames and a quarter of each side, as three levels of doubling have."""
    frames, height, width = video.shape[:3]
    tile = (frames // 2, height // 4, width // 4)
    return degrade.add_seams(video, _grey(std), rng, tile=tile)


# Strengths: standard deviations on the scale [-1, 1], pixels of blur, fractions of frames.
AMPLITUDES = (0.025, 0.05, 0.1, 0.2, 0.4)
FRACTIONS = (0.2, 0.4, 0.6, 0.8, 1.0)
LADDER: dict[str, tuple[Degrade, tuple[float, ...]]] = {
    "noise": (_noise, AMPLITUDES),
    "block_noise": (_block_noise(4), AMPLITUDES),
    "block_noise_2": (_block_noise(2), AMPLITUDES),
    "seams": (_seams, AMPLITUDES),
    "blur": (lambda video, sigma, _: degrade.blur(video, sigma), (0.5, 1.0, 1.5, 2.0, 3.0)),
    "frozen": (lambda video, share, _: degrade.freeze_frames(video, share), FRACTIONS),
    # Four of five frames in random order are as much disorder as all of them.
    "shuffled": (degrade.shuffle_frames, (0.2, 0.3, 0.4, 0.6, 0.8)),
    "colour": (
        lambda video, amount, _: degrade.shift_colour(video, _grey(amount)),
        (0.1, 0.2, 0.3, 0.4, 0.5),
    ),
}


def ladder(
    first: Tensor,
    second: Tensor,
    features: Features,
    *,
    kinds: Sequence[str] = tuple(LADDER),
    rungs: Sequence[int] = (0, 1, 2, 3, 4),
) -> dict[str, list[float]]:
    """Return by kind the distances of `first` from the degraded `second`, over those undegraded.

    Args:
        first, second: (n, t, h, w, 3) uint8, disjoint halves of real videos.
        features: (b, t, h, w, 3) uint8 -> (b, d).
        kinds: of `LADDER`.
        rungs: which of each kind's five strengths.
    """
    real = FeatureStats.of(_batched(first, features))
    base = frechet_distance(FeatureStats.of(_batched(second, features)), real)
    ratios = {}
    for kind in kinds:
        worsen, strengths = LADDER[kind]
        ratios[kind] = []
        for rung in rungs:
            rng = torch.Generator().manual_seed(0)
            worse = torch.stack([worsen(video, strengths[rung], rng) for video in second])
            distance = frechet_distance(FeatureStats.of(_batched(worse, features)), real)
            ratios[kind].append(distance / base)
    return ratios


def rendered_shapes(num: int) -> Tensor:
    """Return (n, t, h, w, 3) uint8, the classes in turn."""
    videos = [
        render(FIRST_SEED + i, i % len(SHAPE_CLASSES), frames=FRAMES, size=SIZE).frames
        for i in range(num)
    ]
    return torch.stack([torch.from_numpy(video) for video in videos])


def first_clips(folder: Path, num: int) -> Tensor:
    """Return (n, t, h, w, 3) uint8: the first frames of a data set's last videos."""
    entries = open_dataset(folder.parent, folder.name).entries[-num:]
    clips = [VideoReader(folder / entry.path).read(np.arange(FRAMES)) for entry in entries]
    return torch.from_numpy(np.stack(clips))


def detector_features(name: str) -> Features:
    """Return what a detector of `hpdm eval-fvd` makes of videos, without a download."""
    folder = cache_folder() / "detectors"
    device = torch.device("cpu")
    metric = load_metrics(["fvd"], name, folder=folder, device=device, fetch=None)[0]
    return lambda videos: metric.detector(videos, batch=4)


def main() -> None:
    """Print the ratios by kind and strength."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a prepared data set; rendered shapes without")
    parser.add_argument("--num", type=int, default=180, help="videos in both halves together")
    parser.add_argument("--detector", default="bundled", help="as of hpdm eval-fvd")
    parser.add_argument("--rungs", default="0,1,2,3,4", help="which of the five strengths")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plot", type=Path, help="draw the ladder into this picture")
    arguments = parser.parse_args()
    rungs = [int(rung) for rung in arguments.rungs.split(",")]
    videos = (
        rendered_shapes(arguments.num)
        if arguments.data is None
        else first_clips(arguments.data, arguments.num)
    )
    half = len(videos) // 2
    features = detector_features(arguments.detector)
    ratios = ladder(videos[:half], videos[half : 2 * half], features, rungs=rungs)
    strengths = {kind: [LADDER[kind][1][rung] for rung in rungs] for kind in LADDER}
    if arguments.plot:
        draw(ratios, arguments.plot)
    if arguments.json:
        print(json.dumps(ratios | {"strengths": strengths, "num_each": half}))
        return
    for kind, values in ratios.items():
        pairs = zip(strengths[kind], values, strict=True)
        print(f"{kind:14}" + "".join(f"{strength:>8g}: {ratio:<8.3g}" for strength, ratio in pairs))


def draw(ratios: dict[str, list[float]], path: Path) -> None:
    """Plot each kind's ratios over its five strengths, on a logarithmic scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for kind, values in ratios.items():
        axes.plot(
            range(len(values) + 1),
            [1.0, *values],
            marker="o",
            markersize=3,
            label=kind.replace("_", " "),
        )
    axes.set(yscale="log", xlabel="strength, of five", ylabel="distance / that of real halves")
    axes.axhline(1.3, color="grey", linewidth=0.8, linestyle=":")
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=110)


def _batched(videos: Tensor, features: Features) -> Tensor:
    return torch.cat([features(part) for part in videos.split(BATCH)])


if __name__ == "__main__":
    main()
