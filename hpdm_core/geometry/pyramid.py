"""The pyramid of levels and the nested patches drawn from it (Sec. 4, 4.1; Fig. 2).

Level 0 is the coarsest. A level has a full resolution (t, h, w); the patch has the same size on
every level, and on level 0 the patch is the whole video. Offsets are whole pixels of a level's own
grid (Sec. 4.5, "integer patch coordinates").

Axis legend: `l` level, `t h w` frames, rows, columns.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Size3 = tuple[int, int, int]
AXES = "fhw"
AXIS_NAMES = ("frames", "height", "width")
TemporalDownsampling = Literal["stride", "average"]


@dataclass(frozen=True, kw_only=True)
class Pyramid:
    """Resolutions of all levels, coarsest first, and the patch size that they share.

    Args:
        patch: (t, h, w) pixels of a patch, the same on every level.
        levels: (t, h, w) full resolution of each level; `levels[0] == patch`, and every axis of a
            level is a whole multiple of the same axis one level down.
        temporal_downsampling: a coarser level has every k-th frame ('stride') or the mean of k
            frames ('average').
        canvas: (t, h, w) of a video larger than the finest level, which windows of it cover
            (`on_canvas`); `levels` stay what a window and all that is nested in it are seen as.
    """

    patch: Size3
    levels: tuple[Size3, ...]
    temporal_downsampling: TemporalDownsampling = "stride"
    canvas: Size3 | None = None

    def __post_init__(self) -> None:
        for problem in pyramid_problems(self.patch, self.levels):
            raise ValueError(problem)

    @property
    def num_levels(self) -> int:
        return len(self.levels)

    @property
    def resolution(self) -> Size3:
        """(t, h, w) of the finished video."""
        return self.levels[-1]

    @property
    def sizes(self) -> tuple[Size3, ...]:
        """(t, h, w) of each level of the video that is generated: of the canvas, if any."""
        if self.canvas is None:
            return self.levels
        strides = (self.stride(level) for level in range(self.num_levels))
        return tuple(
            tuple(side // step for side, step in zip(self.canvas, stride, strict=True))
            for stride in strides
        )

    def scale(self, level: int) -> tuple[float, float, float]:
        """Return s_l per axis: the fraction of the full video that a patch of `level` covers."""
        return tuple(p / r for p, r in zip(self.patch, self.levels[level], strict=True))

    def growth(self, level: int) -> Size3:
        """Return how much each axis grows from level - 1 to `level` (1 where it does not)."""
        coarse = self.levels[level - 1]
        return tuple(r // c for r, c in zip(self.levels[level], coarse, strict=True))

    def time_shift(self, level: int) -> float:
        """Return how much earlier a frame of `level` is than the centre of its span.

        A subsampled frame is at the time of the first of the k finest frames in its span,
        (k - 1) / 2 of them before the span's centre; a mean of k is at the centre.

        Returns:
            a fraction of the whole video, 0 on the finest level.
        """
        if self.temporal_downsampling == "average":
            return 0.0
        return (self.stride(level)[0] - 1) / (2 * self.resolution[0])

    def stride(self, level: int) -> Size3:
        """Return how many finest-level pixels one pixel of `level` spans, per axis."""
        return tuple(r // c for r, c in zip(self.resolution, self.levels[level], strict=True))


def window_step(patch: int) -> int:
    """Return the stride of overlapping tiles along an axis: half a patch, a whole one if odd."""
    return patch // 2 if patch % 2 == 0 else patch


def pyramid_problems(patch: Size3, levels: tuple[Size3, ...]) -> list[str]:
    """Return the problems of a pyramid as messages; empty if it is valid."""
    if not levels:
        return ["levels is empty; list at least one (frames, height, width)"]
    problems = []
    if tuple(levels[0]) != tuple(patch):
        problems.append(
            f"level 0 is {list(levels[0])} but the patch is {list(patch)}; "
            "the coarsest level is one patch, so both must be equal"
        )
    for index in range(1, len(levels)):
        coarse, fine = levels[index - 1], levels[index]
        for axis, size, c, f in zip(AXIS_NAMES, patch, coarse, fine, strict=True):
            if f % c:
                problems.append(
                    f"level {index} has {axis} {f}, which is not a whole multiple of level "
                    f"{index - 1}'s {c}; choose {c * max(1, round(f / c))}"
                )
            if f > c and size % 2:
                problems.append(
                    f"patch has an odd {axis} {size} although level {index} grows along it; "
                    "tiles overlap by half a patch, so make it even"
                )
        if tuple(fine) == tuple(coarse):
            problems.append(f"level {index} equals level {index - 1} {list(fine)}; remove one")
    return problems


def sample_offsets(pyramid: Pyramid, rng: np.random.Generator) -> np.ndarray:
    """Draw one nested patch per level, coarse to fine (Sec. 4.1).

    On an axis that grows by g, the offset is uniform over [g o, g o + (g - 1) patch], where o is
    the parent's offset: all offsets at which the patch is inside its parent.

    Returns:
        (l, 3) int64 offsets in pixels of each level's own grid.
    """
    offsets = np.zeros((pyramid.num_levels, 3), dtype=np.int64)
    for level in range(1, pyramid.num_levels):
        growth = np.asarray(pyramid.growth(level))
        low = growth * offsets[level - 1]
        room = (growth - 1) * np.asarray(pyramid.patch)
        offsets[level] = low + rng.integers(0, room + 1)
    return offsets
