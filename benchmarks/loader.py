"""Speed of the loader: `python benchmarks/loader.py --json`.

(a) clips per second on one core, against the decoder alone reading the same frames;
(b) the clips per second that keep a GPU busy training a recipe, and the cores that takes;
(c) what a training copy at the recipe's resolution (`hpdm prep --size`) gains over the original.

Rounds alternate over the same samples, and the fastest round of each counts, in seconds of
processor time, to reduce the influence of other load. Videos
are generated (moving shapes), or come from a prepared data set (`--data`, `--name`).
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpdm_core.build import describe
from hpdm_core.data.batch_maker import BatchMaker, StepTask
from hpdm_core.data.dataset import VideoDataset, open_dataset
from hpdm_core.data.loader import PatchLoader
from hpdm_core.data.order import choose_video, draw_sample, sample_rng
from hpdm_core.data.shapes import render
from hpdm_core.data.video_io import VideoReader, write_mp4
from hpdm_core.progress import NoProgress
from hpdm_core.recipe.load import load_recipe
from hpdm_core.recipe.schema import Recipe
from hpdm_core.runs.prep import run_prep_folder


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What everything is measured on.

    Args:
        recipe: whose clips are read.
        clips: clips per round.
        rounds: rounds of which the fastest counts.
        gpu_tflops: arithmetic that a GPU sustains in training.
    """

    recipe: str
    clips: int
    rounds: int
    gpu_tflops: float


def main() -> None:
    setting, data, as_json = _arguments()
    torch.set_num_threads(1)
    recipe = load_recipe(setting.recipe)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if data:
            original = large = open_dataset(*data)
        else:
            original = _make(root, "original", recipe, height=240, width=320)
            large = _make(root, "large", recipe, height=480, width=640)
        copy = _make_copy(root, large, recipe)
        result = asdict(setting) | measure(setting, recipe, original, large, copy)
    if as_json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:34s} {value:.4g}" if isinstance(value, float) else f"{name:34s} {value}")


def measure(
    setting: Setting,
    recipe: Recipe,
    original: VideoDataset,
    large: VideoDataset,
    copy: VideoDataset,
) -> dict[str, Any]:
    """Return every figure.

    Args:
        original: videos of UCF-101's size, or the user's own.
        large: videos that it pays to shrink, or the user's own.
        copy: the same, shrunk to the recipe's resolution.
    """
    contenders: dict[str, Callable[[int], None]] = {}
    for name, dataset in (("original", original), ("large", large), ("copy", copy)):
        maker = _maker(recipe, dataset, setting.clips)
        contenders[f"loader {name}"] = partial(_load, maker)
        contenders[f"decoder {name}"] = partial(_decode, maker, dataset)
    seconds = _fastest(contenders, setting.rounds)
    speed = {name: setting.clips / value for name, value in seconds.items()}
    flops = describe(recipe)["flops_per_video_training"]
    needed = setting.gpu_tflops * 1e12 / flops
    return {
        "share_of_bare_decode": speed["loader original"] / speed["decoder original"],
        "share_of_bare_decode_large": speed["loader large"] / speed["decoder large"],
        "share_of_bare_decode_copy": speed["loader copy"] / speed["decoder copy"],
        "original_size": _size(original),
        "clips_per_second_and_core": speed["loader original"],
        "clips_per_second_and_core_bare": speed["decoder original"],
        "large_size": _size(large),
        "copy_size": _size(copy),
        "clips_per_second_and_core_large": speed["loader large"],
        "clips_per_second_and_core_copy": speed["loader copy"],
        "copy_speedup": speed["loader copy"] / speed["loader large"],
        "tflop_per_clip_training": flops / 1e12,
        "clips_per_second_for_gpu": needed,
        "cores_for_gpu": needed / speed["loader original"],
    }


def _maker(recipe: Recipe, dataset: VideoDataset, clips: int) -> BatchMaker:
    loader = PatchLoader(
        dataset,
        pyramid=recipe.pyramid.build(),
        batch_size=clips,
        seed=0,
        split="all",
        short_clips="loop",
    )
    return loader.maker


def _load(maker: BatchMaker, step: int) -> None:
    maker(StepTask(step=step, excluded=frozenset()), lambda _: None)


def _decode(maker: BatchMaker, dataset: VideoDataset, step: int) -> None:
    """Read the frames of the same samples with the decoder, and nothing else."""
    for index in maker.indices:
        rng = sample_rng(maker.seed, step, index, 0)
        video = choose_video(
            rng,
            seed=maker.seed,
            number=step * maker.batch_size + index,
            count=len(maker.entries),
            attempt=0,
        )
        draw = draw_sample(rng, maker.rules, maker.entries[video])
        VideoReader(dataset.file(maker.entries[video])).read(maker.reader.needed_frames(draw))


def _fastest(contenders: dict[str, Callable[[int], None]], rounds: int) -> dict[str, float]:
    """Return each contender's best seconds per round; all see the same samples."""
    best = dict.fromkeys(contenders, float("inf"))
    for contender in contenders.values():  # warm up: caches of files and weights
        contender(0)
    for step in range(1, rounds + 1):
        times = {}
        for name, contender in contenders.items():
            start = time.process_time()
            contender(step % 2)
            times[name] = time.process_time() - start
        best = {name: min(best[name], times[name]) for name in best}
        print(f"round {step}/{rounds}", file=sys.stderr)
    return best


def _make(root: Path, name: str, recipe: Recipe, *, height: int, width: int) -> VideoDataset:
    """Make some grainy videos, three times as long as a clip."""
    frames = recipe.pyramid.levels[-1][0] * 3
    top = (width - height) // 2
    for index in range(4):
        video = render(index, index, frames=frames, size=width).frames[:, top : top + height]
        grain = np.random.default_rng(index).normal(0, 4, size=video.shape)
        noisy = np.clip(video + grain, 0, 255).astype(np.uint8)
        write_mp4(root / f"made/{name}/{index}.mp4", noisy, 25.0)
    run_prep_folder(root, source=root / "made" / name, name=name, progress=NoProgress())
    return open_dataset(root, name)


def _make_copy(root: Path, large: VideoDataset, recipe: Recipe) -> VideoDataset:
    _, height, width = recipe.pyramid.levels[-1]
    run_prep_folder(
        root,
        source=large.folder / "videos",
        name="copy",
        min_frames=1,
        size=(height, width),
        progress=NoProgress(),
    )
    return open_dataset(root, "copy")


def _size(dataset: VideoDataset) -> str:
    entry = dataset.entries[0]
    return f"{entry.height}x{entry.width}"


def _arguments() -> tuple[Setting, tuple[Path, str] | None, bool]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", default="hpdm_s", help="whose clips are read")
    parser.add_argument("--data", type=Path, help="root of prepared data sets")
    parser.add_argument("--name", help="prepared data set below it")
    parser.add_argument("--clips", type=int, default=12, help="clips per round")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument(
        "--gpu-tflops",
        type=float,
        default=400.0,
        help="TFLOP/s that a GPU sustains (bf16 on one H100: some 40%% of 989)",
    )
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if (given.data is None) != (given.name is None):
        parser.error("--data and --name go together")
    setting = Setting(
        recipe=given.recipe, clips=given.clips, rounds=given.rounds, gpu_tflops=given.gpu_tflops
    )
    return setting, (given.data, given.name) if given.data else None, given.json


if __name__ == "__main__":
    main()
