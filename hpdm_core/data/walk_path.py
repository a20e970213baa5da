"""Paths of first-person walks: smooth, clear of walls, with a description in words.

A path is drawn at random and kept if it stays clear of everything solid and has an open view;
if none is found the walk becomes slower, down to turning on the spot.

Axis legend: `n` candidates, `t` frames. Places are map units, angles degrees anticlockwise from
east.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt

from hpdm_core.data.walk_map import CELL, Layout

# Turning of each half of a walk: 1 to the left, -1 to the right.
MOTIONS = {
    "walking straight ahead": (0, 0),
    "walking forward and turning left": (1, 1),
    "walking forward and turning right": (-1, -1),
    "walking forward and turning left and then right": (1, -1),
    "walking forward and turning right and then left": (-1, 1),
}
# Map units and degrees per frame.
SPEEDS = (8.0, 12.0)
TURNS = (1.2, 2.6)
WOBBLE = 0.15
# Units from the eye to the nearest wall, and ahead to the wall that it looks at.
CLEARANCE = 40.0
OUTLOOK = 160.0
CANDIDATES = 256
SLOWER = 0.85
# Steps of the grid on which distances to walls are known.
FINE = 8


@dataclass(frozen=True, kw_only=True)
class WalkPath:
    """Where the eye is in each frame.

    Args:
        places: (t, 2) float64, x and y in map units.
        angles: (t,) float64, degrees.
        motion: one of `MOTIONS`.
    """

    places: np.ndarray
    angles: np.ndarray
    motion: str


def draw_path(layout: Layout, frames: int, rng: np.random.Generator) -> WalkPath:
    """Draw a walk of `frames` frames through a map."""
    distances = wall_distances(layout)
    motion = list(MOTIONS)[rng.integers(len(MOTIONS))]
    pace = 1.0
    while True:
        places, angles = _candidates(layout, MOTIONS[motion], frames, pace, rng)
        good = np.flatnonzero(_is_clear(distances, places, angles))
        if len(good):
            return WalkPath(places=places[good[0]], angles=angles[good[0]], motion=motion)
        pace *= SLOWER


def wall_distances(layout: Layout) -> np.ndarray:
    """Return the distance to the nearest solid cell, in map units, on a grid of `CELL / FINE`."""
    free = ~layout.solid().repeat(FINE, axis=0).repeat(FINE, axis=1)
    return distance_transform_edt(free) * (CELL / FINE)


def _candidates(
    layout: Layout,
    halves: tuple[int, int],
    frames: int,
    pace: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return places (n, t, 2) and angles (n, t)."""
    free = np.argwhere(~layout.solid())
    cells = free[rng.integers(len(free), size=CANDIDATES)]
    start = (cells[:, ::-1] + rng.uniform(0.0, 1.0, size=(CANDIDATES, 2))) * CELL
    rates = _turn_rates(halves, frames, rng)
    angles = rng.uniform(0.0, 360.0, size=(CANDIDATES, 1)) + np.cumsum(rates, axis=1)
    speed = pace * rng.uniform(*SPEEDS, size=(CANDIDATES, 1))
    radians = np.deg2rad(angles)
    steps = speed[..., None] * np.stack([np.cos(radians), np.sin(radians)], axis=-1)
    return start[:, None] + np.cumsum(steps, axis=1) - steps[:, :1], angles


def _turn_rates(halves: tuple[int, int], frames: int, rng: np.random.Generator) -> np.ndarray:
    """Return degrees per frame (n, t): a gentle swell in each half, and a slight wobble."""
    time = (np.arange(frames) + 0.5) / frames
    swell = np.sin(np.pi * time) if halves[0] == halves[1] else abs(np.sin(2 * np.pi * time))
    sign = np.where(time < 0.5, halves[0], halves[1])
    peak = rng.uniform(*TURNS, size=(CANDIDATES, 1))
    phase = rng.uniform(0.0, 2 * np.pi, size=(CANDIDATES, 1))
    return peak * sign * swell + WOBBLE * np.sin(2 * np.pi * time + phase)


def _is_clear(distances: np.ndarray, places: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Return (n,) bool: clear of walls all the way, with an outlook in every frame."""
    clear = (_look_up(distances, places) >= CLEARANCE).all(axis=1)
    radians = np.deg2rad(angles)
    ahead = np.stack([np.cos(radians), np.sin(radians)], axis=-1)
    for reach in np.arange(CELL / 2, OUTLOOK + 1, CELL / 2):
        clear &= (_look_up(distances, places + reach * ahead) > 0).all(axis=1)
    return clear


def _look_up(distances: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the distances at `places` (..., 2); 0 outside the map."""
    index = np.floor(places * (FINE / CELL)).astype(int)
    inside = ((index >= 0) & (index < len(distances))).all(axis=-1)
    index = index.clip(0, len(distances) - 1)
    return np.where(inside, distances[index[..., 1], index[..., 0]], 0.0)
