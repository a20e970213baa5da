"""What is done with a given video: upscale, edit, inpaint, extend.

Axis legend: `b` videos, `c` channels, `t h w` frames, rows, columns.
"""

import hashlib
import math
from dataclasses import dataclass, replace

import numpy as np

from hpdm_core.errors import HpdmError
from hpdm_core.geometry.pyramid import Pyramid, Size3
from hpdm_core.inference.generate import SamplingSettings, solver_calls
from hpdm_core.inference.given import (
    Continuation,
    Given,
    lower_levels,
    lower_masks,
    num_windows,
)
from hpdm_core.pipeline.inputs import Source, mask_on_grid

MOST_REPEATS, MOST_FRAMES = 100, 100_000


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What is done with a given video.

    Args:
        source: the video.
        upscale: take it for the finished lower levels and generate the finer ones.
        level: with `upscale`, the level that it is brought to; None: the finest lower level that
            is no larger than the video, else the coarsest.
        consistent: with `upscale`, whether the result, brought down again, is the video.
        strength: how much of each level's schedule is sampled, from 0 (the video is kept) to 1
            (nothing of it is used); one for all levels or one for each; empty: 1.
        mask: (1 or t, y, x) bool in the video's pixels, what is generated; the others are kept.
        repeats: how often each step is made, with `mask`; one for all levels or one for each.
        continues: whether the video is continued in time.
        first_frames: frames that are kept then; None: all.
        extend: frames to add; None: up to the model's length.
        context_noise: noise level of finished levels in the context of finer ones; None: the
            recipe's.

    Raises:
        HpdmError: options that exclude each other, or out of range.
    """

    source: Source
    upscale: bool = False
    level: int | None = None
    consistent: bool = True
    strength: tuple[float, ...] = ()
    mask: np.ndarray | None = None
    repeats: tuple[int, ...] = (1,)
    continues: bool = False
    first_frames: int | None = None
    extend: int | None = None
    context_noise: float | None = None

    def __post_init__(self) -> None:
        named = {
            "--upscale": self.upscale,
            "--strength": bool(self.strength),
            "--mask": self.mask is not None,
            "--first-frames or --extend": self.continues,
        }
        got = [name for name, on in named.items() if on]
        # Strength and mask go together: what is under the mask starts from the video then.
        if len(got) != 1 and got != ["--strength", "--mask"]:
            raise HpdmError(
                "a given video is upscaled, edited or extended",
                got=" and ".join(got) or "none of them",
                expected="one of --upscale, --strength or --mask, --first-frames or --extend",
            )
        if any(not 0 <= value <= 1 for value in self.strength):
            raise HpdmError("strength is out of range", got=list(self.strength), expected="0 to 1")
        counts = {
            "--repeats": (min(self.repeats), MOST_REPEATS),
            "repeats": (max(self.repeats), MOST_REPEATS),
            "--extend": (self.extend, MOST_FRAMES),
            "--first-frames": (self.first_frames, MOST_FRAMES),
        }
        for name, (value, most) in counts.items():
            if value is not None and not 1 <= value <= most:
                raise HpdmError(f"{name} counts", got=value, expected=f"from 1 to {most:,}")
        if self.context_noise is not None and not 0 < self.context_noise <= 1:
            raise HpdmError(
                "context noise is a noise level", got=self.context_noise, expected="above 0, to 1"
            )
        if not self.consistent and not self.upscale:
            raise HpdmError("--no-consistent belongs to --upscale", got="no upscaling")
        if max(self.repeats) > 1 and self.mask is None:
            raise HpdmError("--repeats belongs to --mask", got="no mask")

    def facts(self) -> dict[str, object]:
        """Everything that the result depends on besides the settings, for records."""
        masked = None if self.mask is None else hashlib.sha256(np.packbits(self.mask)).hexdigest()
        return {
            "input": self.source.name,
            "input_sha256": self.source.sha256(),
            "upscale": self.upscale,
            "level": self.level,
            "consistent": self.consistent,
            "mask_sha256": masked,
            "first_frames": self.first_frames,
            "extend": self.extend,
        }

    def settings(self, settings: SamplingSettings, pyramid: Pyramid) -> SamplingSettings:
        """Return sampling settings that start where the given video says.

        Raises:
            HpdmError: there is not one strength per level, or no level to upscale from.
        """
        sigma = settings.context_sigma if self.context_noise is None else self.context_noise
        solvers, count = settings.solvers, len(settings.solvers)
        if self.upscale:
            level = self.upscaled_level(pyramid)
            strengths = [0.0 if k <= level else 1.0 for k in range(count)]
        else:
            strengths = _by_level("strength", self.strength or (1.0,), count)
        repeats = _by_level("repeats", self.repeats, count)
        return replace(
            settings,
            context_sigma=sigma,
            solvers=tuple(
                replace(s, skip=s.steps - math.ceil(s.steps * strength), repeats=times)
                for s, strength, times in zip(solvers, strengths, repeats, strict=True)
            ),
        )

    def upscaled_level(self, pyramid: Pyramid) -> int:
        """Return the level that the video is taken for.

        Raises:
            HpdmError: the model has one level, or not the level asked for.
        """
        lower = range(pyramid.num_levels - 1)
        if not lower or (self.level is not None and self.level not in lower):
            raise HpdmError(
                "upscaling starts from a level below the finest",
                got=f"level {self.level} of {pyramid.num_levels}",
                expected=f"0 to {lower[-1]}" if lower else "a model with two levels or more",
            )
        if self.level is not None:
            return self.level
        size = self.source.size
        fitting = [
            k for k in lower
            if all(a <= b for a, b in zip(pyramid.sizes[k][1:], size, strict=True))
        ]  # fmt: skip
        return max(fitting, default=0)

    def given(self, pyramid: Pyramid, *, fps: float) -> Given | Continuation:
        """Read the video and bring it to the levels' grids.

        Args:
            pyramid: the levels.
            fps: frames per second of the finest level.

        Raises:
            HpdmError: the video is too short, or the mask covers nothing or everything.
        """
        finest = pyramid.num_levels - 1
        level = self.upscaled_level(pyramid) if self.upscale else finest
        frames, *size = pyramid.sizes[level]
        rate = fps / pyramid.stride(level)[0]
        if self.continues:
            return self._continuation(tuple(size), rate, frames)
        video, places = self.source.on_grid(tuple(size), rate=rate, most=frames, least=frames)
        masks = ()
        if self.mask is not None:
            masks = lower_masks(pyramid, mask_on_grid(self.mask, tuple(size), places))
        exact = pyramid if self.upscale and self.consistent else None
        return Given(videos=lower_levels(pyramid, video, level), generated=masks, pyramid=exact)

    def result_size(self, pyramid: Pyramid, given: Given | Continuation) -> Size3:
        """Return (t, h, w) of the result."""
        frames, h, w = pyramid.sizes[-1]
        return (given.frames if isinstance(given, Continuation) else frames), h, w

    def _continuation(self, size: tuple[int, int], rate: float, length: int) -> Continuation:
        least = self.first_frames or 1
        known, _ = self.source.on_grid(size, rate=rate, most=self.first_frames, least=least)
        have = known.shape[2]
        frames = max(length, have) if self.extend is None else have + self.extend
        if frames == have:
            raise HpdmError(
                "nothing is left to generate",
                got=f"{have} first frames, and a model of {length}",
                remedy="say how many frames to add: --extend, or frames= in Python",
            )
        return Continuation(known=known, frames=frames)


def _by_level(name: str, values: tuple, count: int) -> tuple:
    """Return one value for each level.

    Raises:
        HpdmError: there are neither one nor as many as levels.
    """
    values = values * count if len(values) == 1 else values
    if len(values) != count:
        raise HpdmError(
            f"{name} has the wrong number of values",
            got=f"{len(values)} of them",
            expected=f"one for all levels, or {count}, coarsest first",
        )
    return values


def calls_of(
    settings: SamplingSettings, given: Given | Continuation | None, pyramid: Pyramid
) -> int:
    """Return how often solvers call the denoiser for one batch of videos.

    Args:
        pyramid: the levels, those of the canvas if there is one.
    """
    calls = sum(solver_calls(settings, k) for k in range(len(settings.solvers)))
    if isinstance(given, Continuation):
        calls *= num_windows(pyramid, have=given.known.shape[2], frames=given.frames)
    return calls
