"""The pictures of `docs/editing.md`: each use of a given video, as an animated WebP.

    python benchmarks/editing_pictures.py --checkpoint shipped --out docs/media
    python benchmarks/editing_pictures.py --picture inpainted --out pictures

The given videos are those of `editing.py`: rendered with seeds that no data set has, or `--data`.

Axis legend: `b` videos, `t h w` frames, rows, columns.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import edit_uses as uses
import numpy as np

from hpdm_core import Pipeline
from hpdm_core.data.pictures import labelled_row, write_webp
from hpdm_core.errors import HpdmError

NUM = 3  # rows
STRENGTHS = (0.4, 0.6, 0.8)
WINDOWS = 8
CANVAS_WIDTHS = 4  # times the model's width


def upscaled(held: uses.Held) -> np.ndarray:
    """Level 0's true videos, interpolated, upscaled, and as they were."""
    made = uses.upscale(held)
    made["input"] = _blocks(made["input"], held.videos.shape[1:4])
    return _rows(made)


def inpainted(held: uses.Held) -> np.ndarray:
    """The middle third of the columns hidden, a copy of the border, inpainted, and as it was."""
    made = uses.inpaint(held, "middle columns")
    return _rows({way: made[way] for way in ("input", "border copied", "inpainted", "real")})


def edited(held: uses.Held) -> np.ndarray:
    """Videos edited with the next class, by strength."""
    classes = held.pipe.classes
    made = {"input": held.videos}
    for strength in STRENGTHS:
        videos = []
        for k, video in enumerate(held.videos):
            asked = held.asked(k)
            if held.names:
                asked["classes"] = classes[(classes.index(held.names[k]) + 1) % len(classes)]
            videos.append(held.pipe.edit(video, strength=strength, **asked).frames)
        made[f"strength {strength:g}"] = np.concatenate(videos)
    return _rows(made)


def extended(held: uses.Held) -> np.ndarray:
    """Videos continued by windows, side by side."""
    videos = uses.extend(held, WINDOWS)
    given, frames = held.videos.shape[1], videos.shape[1]
    labels = [f"{given} given frames, then {frames - given} generated"] * len(videos)
    return labelled_row(list(videos), labels)


def canvas(held: uses.Held) -> np.ndarray:
    """A video several times as wide as the model's."""
    frames, height, width = held.pipe.pyramid.resolution
    size = (frames, height, CANVAS_WIDTHS * width)
    video = held.pipe(size=size, **held.asked(0)).frames[0]
    label = f"{frames}x{height}x{size[2]} from a model of {frames}x{height}x{width}"
    return labelled_row([video], [label])


PICTURES: dict[str, Callable[[uses.Held], np.ndarray]] = {
    "upscaled": upscaled,
    "inpainted": inpainted,
    "edited": edited,
    "extended": extended,
    "canvas": canvas,
}


def _rows(made: dict[str, np.ndarray]) -> np.ndarray:
    """Put ways side by side and videos below each other: (t, h, w, 3) uint8."""
    rows = [labelled_row(list(row), list(made)) for row in zip(*made.values(), strict=True)]
    return np.concatenate(rows, axis=1)


def _blocks(small: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """Show every pixel of (b, t, h, w, 3) as a block of a larger size (t, h, w)."""
    for axis, target in enumerate(size, start=1):
        small = small.repeat(target // small.shape[axis], axis=axis)
    return small


def main() -> None:
    """Draw the pictures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="shipped", help="run, checkpoint, weights")
    parser.add_argument("--data", type=Path, help="a prepared data set the model has not seen")
    parser.add_argument("--picture", action="append", choices=PICTURES, help="only this")
    parser.add_argument("--out", type=Path, default=Path("docs/media"))
    args = parser.parse_args()
    pipe = Pipeline.from_pretrained(args.checkpoint, device="cpu")
    held = uses.hold_back(pipe, args.data, num=NUM, num_others=0, options={})
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.picture or PICTURES:
        path = args.out / f"{name}.webp"
        write_webp(path, PICTURES[name](held), pipe.recipe.sampling.fps)
        print(path, flush=True)


if __name__ == "__main__":
    try:
        main()
    except HpdmError as error:
        sys.exit(f"Error: {error}")
