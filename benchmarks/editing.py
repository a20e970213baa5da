"""Given videos against simple ways: upscaling, inpainting, extending, and memory of canvases.

    python benchmarks/editing.py --checkpoint shipped
    python benchmarks/editing.py --checkpoint shipped --part inpaint --num 18 --json
    python benchmarks/editing.py --checkpoint runs/walks --data held_back/vizdoom

A model of shapes is measured on shapes rendered with seeds that no data set has; for others, give
`--data`, a data set prepared with another seed than the model's (`hpdm prep vizdoom held_back
--seed 1 --num 60`). Every part is printed as it finishes. What `editing_pictures.py` draws is
made by the same functions (`edit_uses.py`).

Axis legend: `b` videos, `t h w` frames, rows, columns.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import edit_uses as uses
import numpy as np
import torch

from hpdm_core import Pipeline
from hpdm_core.errors import HpdmError
from hpdm_core.metrics.bundled import load_bundled
from hpdm_core.metrics.kernel import kernel_distance
from hpdm_core.metrics.quality import high_frequency, seams
from hpdm_core.pipeline.plan import memory_estimate
from hpdm_core.pipeline.resources import Resources
from hpdm_core.progress import NoProgress

WINDOWS = 8
CANVAS_FACTORS = (1, 2, 4)  # of height and width: 1, 4 and 16 times the area
CANVAS_CACHE_GB = 0.05
MEGABYTE = 1e6

Figures = dict[str, float | list[float]]


def upscaling(held: uses.Held) -> Figures:
    """Detail, likeness and consistency of level 0's true videos upscaled; bicubic beside them.

    Kernel distances are those of the bundled detector's features from other real videos'; that of
    the real videos themselves says what is possible.
    """
    made = uses.upscale(held)
    freely = uses.upscale(held, consistent=False)["upscaled"]
    detector = load_bundled()

    def features(videos: np.ndarray) -> torch.Tensor:
        return torch.cat([detector.features(torch.from_numpy(video[None])) for video in videos])

    others, detail = features(held.others), high_frequency(made["real"]).mean()
    true = uses.level_0(held.pipe, made["real"])
    figures = {}
    for way in ("upscaled", "bicubic", "real"):
        figures[f"high_frequency_over_real.{way}"] = high_frequency(made[way]).mean() / detail
        figures[f"kernel_distance.{way}"] = kernel_distance(features(made[way]), others)
    for way, videos in {**made, "not held": freely}.items():
        if way in ("upscaled", "bicubic", "not held"):
            again = uses.level_0(held.pipe, videos)
            figures[f"brought_down_rms.{way}"] = _rms(again, true)
    return figures


def inpainting(held: uses.Held) -> Figures:
    """PSNR in dB where a third of the frame is hidden, the mean over videos, by way of filling."""
    figures, outside = {}, []
    for third in uses.THIRDS:
        made = uses.inpaint(held, third)
        rows, columns = uses.hidden(held.videos.shape[2:4], third)
        region = np.s_[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        for way in ("inpainted", "mean colour", "border copied"):
            pairs = zip(made[way], made["real"], strict=True)
            values = [psnr(video[region], real[region]) for video, real in pairs]
            figures[f"psnr_db.{third}.{way}"] = float(np.mean(values))
        change = abs(made["inpainted"].astype(int) - made["real"])
        change[(slice(None), *region)] = 0
        outside.append(change.max())
    return figures | {"largest_difference_outside": float(max(outside))}


def extending(held: uses.Held) -> Figures:
    """What is left of contrast, colour and detail in each window, and the steps at its border.

    Contrast is the deviation of a frame's pixels, colour the mean difference of the largest and
    the smallest channel. All over those of the given frames: drift to grey is a fall of both.
    A seam is the step across a border over the steps beside it (1: none). Beside that of windows
    stand those of tiles within the windows, and of the given videos.
    """
    videos, length = uses.extend(held, WINDOWS), held.videos.shape[1]
    (kept, step), tile = uses.window_plan(held), held.pipe.pyramid.patch[0]
    starts = [length + k * step for k in range(WINDOWS)]
    # In each window, the borders of tiles among the frames that it adds.
    tiles = [p for p in range(kept + 1, kept + step) if p % tile == 0]
    others = [start + p - kept for start in starts for p in tiles]
    figures = {}
    for name, measure in (("contrast", _contrast), ("colour", _colour), ("detail", _detail)):
        given = measure(held.videos)
        figures[f"{name}_by_window"] = [
            round(float(measure(videos[:, p : p + step]) / given), 3) for p in starts
        ]
    borders = {
        "windows": (videos, starts),
        "other tiles": (videos, others),
        "real": (held.videos, list(range(tile, length, tile))),
    }
    steps = {name: seams(made, (tuple(at), (), ())).time for name, (made, at) in borders.items()}
    # Undefined where nothing lies between two borders, as in windows that add one frame.
    defined = {name: ratios for name, ratios in steps.items() if np.isfinite(ratios).all()}
    return figures | {f"seam_in_time.{name}": ratios.mean() for name, ratios in defined.items()}


def canvases(checkpoint: str) -> Figures:
    """Peak memory of one process in MB by area, and what is left without the videos' own.

    With one step and no overlap, as memory depends on neither but for the cache, which is limited,
    and the latents of latent self-conditioning, which are counted where a model has them.
    """
    figures = {}
    for factor in CANVAS_FACTORS:
        # A process of its own for each: a peak is never forgotten.
        fresh = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=fresh) as pool:
            parts = pool.submit(_peak, checkpoint, factor).result()
        for name, value in parts.items():
            figures[f"{name}_mb.{factor**2}x"] = round(value / MEGABYTE, 1)
    return figures


def _peak(checkpoint: str, factor: int) -> dict[str, float]:
    """Sample one canvas; return bytes: the peak, of videos and latents, and the rest."""
    torch.set_num_threads(1)
    pipe = Pipeline.from_pretrained(checkpoint, device="cpu")
    frames, height, width = pipe.pyramid.resolution
    size = (frames, factor * height, factor * width)
    resources = Resources(cache_gb=CANVAS_CACHE_GB)
    steps = [1] * pipe.pyramid.num_levels
    asked = {"classes": pipe.classes[:1], "seeds": 0, "size": size, "steps": steps}
    pipe(**asked, overlap="none", resources=resources, progress=NoProgress())
    # ru_maxrss is in kilobytes on Linux.
    peak = 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    settings = replace(pipe.settings, size=None if factor == 1 else size, overlap="")
    parts = memory_estimate(pipe.recipe, pipe.batch_sizes(settings, 1, resources))
    own = {name: float(parts[name]) for name in ("videos", "latents")}
    return {"peak": peak, **own, "rest": peak - sum(own.values())}


def psnr(video: np.ndarray, real: np.ndarray) -> float:
    """Return the PSNR in dB of two videos, uint8."""
    return float(-20 * np.log10(_rms(video / 255.0, real / 255.0)))


def _contrast(videos: np.ndarray) -> float:
    return videos.astype(float).std(axis=(2, 3)).mean()


def _colour(videos: np.ndarray) -> float:
    return (videos.max(axis=-1).astype(float) - videos.min(axis=-1)).mean()


def _detail(videos: np.ndarray) -> float:
    return high_frequency(videos).mean()


def _rms(a: np.ndarray | torch.Tensor, b: np.ndarray | torch.Tensor) -> float:
    return float(((a - b) ** 2).mean() ** 0.5)


PARTS: dict[str, Callable[[uses.Held], Figures]] = {
    "upscale": upscaling,
    "inpaint": inpainting,
    "extend": extending,
}


def main() -> None:
    """Measure the parts that are asked for, and print each as it finishes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="shipped", help="run, checkpoint, weights")
    parser.add_argument("--data", type=Path, help="a prepared data set the model has not seen")
    parser.add_argument("--part", action="append", choices=(*PARTS, "canvas"), help="only this")
    parser.add_argument("--num", type=int, default=3, help="videos of each part")
    parser.add_argument("--others", type=int, default=90, help="real videos of kernel distances")
    parser.add_argument("--preset", choices=("paper", "fast"), help="of sampling")
    parser.add_argument("--overlap", help="of tiles")
    parser.add_argument("--json", action="store_true", help="print one JSON object a part")
    args = parser.parse_args()
    pipe = Pipeline.from_pretrained(args.checkpoint, device="cpu")
    options = {"preset": args.preset, "overlap": args.overlap}
    held = uses.hold_back(pipe, args.data, num=args.num, num_others=args.others, options=options)
    for part in args.part or (*PARTS, "canvas"):
        start = time.monotonic()
        made = canvases(args.checkpoint) if part == "canvas" else PARTS[part](held)
        figures = {name: v if isinstance(v, list) else float(v) for name, v in made.items()}
        seconds = round(time.monotonic() - start, 1)
        num = 1 if part == "canvas" else args.num
        line = {"part": part, "step": pipe.step, "videos": num, "seconds": seconds}
        if args.json:
            print(json.dumps(line | figures), flush=True)
            continue
        print(f"{part} (videos: {num}, {seconds:g} s)")
        for name, value in figures.items():
            shown = value if isinstance(value, list) else f"{value:.4g}"
            print(f"  {name:36} {shown}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except HpdmError as error:
        sys.exit(f"Error: {error}")
