"""The built-in data set: textured shapes that slide, fall, rise, grow or shrink.

A class is a shape and a motion; colours, positions and sizes vary. Shape, colour and motion show on
the coarsest level; the objects' checkerboard of single pixels vanishes under any area mean by two,
so that only a finest level of the rendered size can show it.

Axis legend: `t h w` frames, rows, columns.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SHAPES = ("circle", "square", "triangle")
MOTIONS = ("sliding-right", "sliding-left", "falling", "rising", "growing", "shrinking")
SHAPE_CLASSES = tuple(f"{shape}-{motion}" for shape in SHAPES for motion in MOTIONS)

TEXTURE_AMPLITUDE = 0.11


class Colour(NamedTuple):
    """A colour's name and its (red, green, blue) in [0, 1]."""

    name: str
    rgb: tuple[float, float, float]


OBJECT_COLOURS = (
    Colour("red", (0.86, 0.22, 0.20)),
    Colour("orange", (0.88, 0.55, 0.16)),
    Colour("yellow", (0.86, 0.82, 0.25)),
    Colour("green", (0.25, 0.75, 0.35)),
    Colour("cyan", (0.25, 0.75, 0.82)),
    Colour("pink", (0.86, 0.45, 0.75)),
)
BACKGROUND_COLOURS = (
    Colour("navy", (0.10, 0.14, 0.36)),
    Colour("brown", (0.30, 0.19, 0.12)),
    Colour("grey", (0.28, 0.28, 0.30)),
    Colour("purple", (0.26, 0.12, 0.32)),
)


@dataclass(frozen=True, kw_only=True)
class ShapeVideo:
    """One rendered video.

    Args:
        frames: (t, h, w, 3) uint8.
        caption: of the video.
    """

    frames: np.ndarray
    caption: str


def render(seed: int, label: int, *, frames: int, size: int) -> ShapeVideo:
    """Draw one video; the same arguments give the same pixels.

    Args:
        seed: any integer >= 0; of colours, size and position.
        label: index into `SHAPE_CLASSES`.
        frames: number of frames.
        size: height and width in pixels.
    """
    rng = np.random.default_rng((seed, label))
    shape, motion = SHAPE_CLASSES[label].split("-", 1)
    colour = OBJECT_COLOURS[rng.integers(len(OBJECT_COLOURS))]
    background = BACKGROUND_COLOURS[rng.integers(len(BACKGROUND_COLOURS))]
    centres, radii = _trajectory(motion, frames, rng)
    backdrop = _backdrop(background, size, rng)
    covered = coverage(shape, centres, radii, size=size)[..., None]
    inked = np.asarray(colour.rgb) + texture(size)[..., None]
    pixels = backdrop + covered * (inked - backdrop)
    return ShapeVideo(
        frames=np.round(255 * pixels.clip(0, 1)).astype(np.uint8),
        caption=(
            f"{_article(colour.name)} {shape} {motion.replace('-', ' to the ')} "
            f"over a {background.name} background"
        ),
    )


def coverage(shape: str, centres: np.ndarray, radii: np.ndarray, *, size: int) -> np.ndarray:
    """Return (t, h, w): the fraction of each pixel inside the shape, from its signed distance.

    Args:
        shape: one of `SHAPES`.
        centres: (t, 2) as (y, x) in units of the frame's side, from the frame's centre.
        radii: (t,) in the same units.
        size: height and width in pixels.
    """
    grid_y, grid_x = (np.indices((size, size)) + 0.5) / size - 0.5
    y = grid_y - centres[:, 0, None, None]
    x = grid_x - centres[:, 1, None, None]
    radius = radii[:, None, None]
    if shape == "circle":
        outside = np.hypot(x, y) - radius
    elif shape == "square":
        outside = np.maximum(abs(x), abs(y)) - 0.88 * radius
    else:
        # An equilateral triangle, tip up: the distance to the farthest of its three sides.
        outside = np.maximum(y, 0.5 * (np.sqrt(3.0) * abs(x) - y)) - 0.62 * radius
    return np.clip(0.5 - outside * size, 0.0, 1.0)


def texture(size: int) -> np.ndarray:
    """Return the checkerboard of single pixels (h, w) that is added to objects' colours."""
    return TEXTURE_AMPLITUDE * (1.0 - 2.0 * (np.indices((size, size)).sum(axis=0) % 2))


def _trajectory(
    motion: str, frames: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return centres (t, 2) as (y, x) and radii (t,), in units of the frame's side."""
    forward = motion in ("sliding-right", "falling", "growing")
    time = np.linspace(-1.0, 1.0, frames) * (1 if forward else -1)
    reach, radius = rng.uniform(0.14, 0.22), rng.uniform(0.15, 0.26)
    centres = np.tile(rng.uniform(-0.13, 0.13, size=2), (frames, 1))
    radii = np.full(frames, radius)
    if motion.startswith("sliding"):
        centres[:, 1] = 0.5 * centres[:, 1] + reach * time
    elif motion in ("falling", "rising"):
        centres[:, 0] = 0.5 * centres[:, 0] + reach * time
    else:
        radii = radius * (1.0 + 0.45 * time)
    return centres, radii


def _backdrop(colour: Colour, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return (h, w, 3): the colour, shaded along a random direction."""
    y, x = (np.indices((size, size)) + 0.5) / size - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    shade = 1.0 + 0.5 * (np.cos(angle) * x + np.sin(angle) * y)
    return np.asarray(colour.rgb) * shade[..., None]


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"
