"""A given video in sampling: where a level starts from, and which of its pixels are known.

Where pixels are known, the estimate of the clean video is replaced by them. The flow is then
dx/dsigma = (x - known) / sigma there, which every solver follows exactly: such pixels are known +
sigma eps at each noise level, and the known ones themselves at the end (the replacement of Song
et al. 2021 and Lugmayr et al. 2022, with one noise for all steps).

On level 0, where the layout is decided, replacement alone comes too late: at high noise, known
pixels say little about the others. There they guide the estimate D: given x, the covariance of the
clean video is sigma^2 J with J the Jacobian of D, so that among Gaussians its mean, given the known
pixels y = K x0 too, is D + J K (K J K)^-1 (y - K D) (moment matching, Rozet et al. 2024). The
inverse is taken by one step of conjugate gradients, which costs one product with J, transposed as J
is symmetric.

Axis legend: `b` samples, `c` channels, `t h w` video; `k i j` pixels that one of a level covers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import reduce, repeat
from torch import Tensor

from hpdm_core.geometry.pyramid import Pyramid, Size3
from hpdm_core.seeds import derive_seed

# Noise level down to which an estimate is guided; below, known pixels take their places.
GUIDED_ABOVE = 0.05
# Further passes that a guided evaluation costs: one with a graph, and back through it (measured).
GUIDED_PASSES = 3
# Length of the change by guidance over that of the difference from the known pixels, at most.
MOST_CHANGE = 10.0
TINY = 1e-12
# J^T w of an estimate at (x, sigma), from (x, sigma, w).
PullBack = Callable[[Tensor, float, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Given:
    """A given video on the levels' grids.

    Args:
        videos: per level (b or 1, c, t, h, w) float32 in [-1, 1]; finer levels may be absent.
        generated: per level (1, 1, t, h, w) bool, which pixels are generated, the others being
            known; empty: all are.
        pyramid: the levels, if those without a video are to be consistent with the finest one
            that has: brought down, their estimates are it, as its part of them is exchanged
            (the range-space part of DDNM, Wang et al. 2023).
    """

    videos: tuple[Tensor, ...]
    generated: tuple[Tensor, ...] = ()
    pyramid: Pyramid | None = None

    def started(self, noise: Tensor, level: int, *, from_video: bool) -> Tensor:
        """Return a level's start: the known pixels, or the whole video, with noise.

        Args:
            noise: (b, c, t, h, w) of the first noise level.
            level: index of the level.
            from_video: start from the whole video.
        """
        if from_video:
            return self.videos[level].to(noise) + noise
        if not self.generated:
            return noise
        known = ~self.generated[level].to(noise.device)
        return noise + known * self.videos[level].to(noise)

    def guides(self, level: int, sigma: float = math.inf) -> bool:
        """Whether known pixels guide the estimates of a level at a noise level."""
        if level > 0 or sigma < GUIDED_ABOVE or not self.generated:
            return False
        return not bool(self.generated[level].all())

    def guided(self, denoised: Tensor, x: Tensor, sigma: float, *, pull_back: PullBack) -> Tensor:
        """Return an estimate of level 0, guided towards agreement with the known pixels.

        Args:
            denoised: (b, c, t, h, w) estimate of the clean video.
            x: the video with noise that it is of.
            sigma: noise level of `x`.
            pull_back: of this estimate.
        """
        missing = self.held(denoised, 0) - denoised  # 0 where pixels are generated
        change = pull_back(x, sigma, missing)
        along, size = _inner(missing, change), _inner(missing, missing)
        # A network's Jacobian is not quite symmetric: no change is longer than MOST_CHANGE allows.
        least = (size * _inner(change, change)).sqrt() / MOST_CHANGE
        step = size / torch.maximum(along, least).clamp(min=TINY)
        return denoised + torch.where(along > 0, step, 0.0) * change

    def held(self, denoised: Tensor, level: int) -> Tensor:
        """Return an estimate of the clean video with what is known in its place."""
        last = len(self.videos) - 1
        if self.pyramid is not None and level > last:
            down = _reduced(self.pyramid, denoised, level, last, "mean")
            missing = self.videos[last].to(denoised) - down
            k, i, j = _ratios(self.pyramid, level, last)
            # In time too, though only one frame of a span may count: else that one would flicker.
            return denoised + repeat(missing, "b c t h w -> b c (t k) (h i) (w j)", k=k, i=i, j=j)
        if not self.generated:
            return denoised
        generated = self.generated[level].to(denoised.device)
        return torch.where(generated, denoised, self.videos[level].to(denoised))


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """A given video that is continued in time.

    Args:
        known: (1, c, t, h, w) float32 in [-1, 1], its frames at the finest level's size.
        frames: frames of the result, more than those of `known`.
    """

    known: Tensor
    frames: int


def lower_levels(pyramid: Pyramid, video: Tensor, level: int) -> tuple[Tensor, ...]:
    """Bring a level's video down: those of all levels up to `level`, as training makes them.

    Args:
        video: (b, c, t, h, w) of the level's size.
    """
    return tuple(_reduced(pyramid, video, level, k, "mean") for k in range(level + 1))


def lower_masks(pyramid: Pyramid, generated: Tensor) -> tuple[Tensor, ...]:
    """Bring a mask down: a pixel is generated if any of the finest that it is made of is.

    Args:
        generated: (1, 1, t, h, w) bool of the finest level's size.
    """
    finest = pyramid.num_levels - 1
    masks = (_reduced(pyramid, generated.float(), finest, k, "max") for k in range(finest + 1))
    return tuple(mask > 0 for mask in masks)


def continue_video(
    draw: Callable[..., tuple[Tensor, ...]],
    pyramid: Pyramid,
    continuation: Continuation,
    *,
    seeds: Sequence[int],
) -> Tensor:
    """Continue a video in windows, each holding the last frames so far.

    Args:
        draw: `generate` with all arguments but `seeds` and `given`.
        pyramid: the levels.
        continuation: the given video and the length of the result.
        seeds: one per sample; each window's noise comes from one derived from it.

    Returns:
        (b, c, t, h, w), of which the first frames are the known ones.
    """
    known, frames = continuation.known, continuation.frames
    length = pyramid.sizes[-1][0]
    video = known.expand(len(seeds), *known.shape[1:])
    window = 0
    while video.shape[2] < frames:
        held, added = next_window(pyramid, have=video.shape[2], frames=frames)
        start = video[:, :, -held:]
        # What follows is generated; the values there only fill the shape.
        rest = start[:, :, -1:].expand(-1, -1, length - held, -1, -1)
        generated = torch.zeros(1, 1, *pyramid.sizes[-1], dtype=torch.bool)
        generated[:, :, held:] = True
        given = Given(
            videos=lower_levels(pyramid, torch.cat([start, rest], 2), pyramid.num_levels - 1),
            generated=lower_masks(pyramid, generated),
        )
        drawn = tuple(derive_seed(seed, "window", window) for seed in seeds)
        made = draw(seeds=drawn, given=given)[-1]
        video = torch.cat([video, made[:, :, held : held + added]], dim=2)
        window += 1
    return video


def next_window(pyramid: Pyramid, *, have: int, frames: int) -> tuple[int, int]:
    """Return how many of the last frames a window holds, and how many it adds.

    It holds half of its frames. Where the half would end with a tile, it is half a tile more: a
    tile that begins with what is generated would see nothing of the frames before it but their
    coarser levels, and show a seam. Frames after level 0's last one, which stands at the start of
    its span, have none on their far side and hardly move: they are left to the next window, unless
    one window makes the whole result.

    Args:
        pyramid: the levels; a window is as long as the finest.
        have: frames so far.
        frames: frames of the result.
    """
    length, tile = pyramid.sizes[-1][0], pyramid.patch[0]
    if frames <= length:
        return have, frames - have
    picked = pyramid.temporal_downsampling == "stride"
    usable = length - (pyramid.stride(0)[0] - 1 if picked else 0)
    half = length // 2
    if half % tile == 0:
        half += tile // 2 if half + tile // 2 < usable else -(tile // 2)
    held = min(have, max(half, usable - (frames - have)))
    return held, min(usable - held, frames - have)


def num_windows(pyramid: Pyramid, *, have: int, frames: int) -> int:
    """Return how many windows `continue_video` takes."""
    windows = 0
    while have < frames:
        have += next_window(pyramid, have=have, frames=frames)[1]
        windows += 1
    return windows


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each sample, (b, 1, 1, 1, 1)."""
    return reduce(a * b, "b c t h w -> b 1 1 1 1", "sum")


def _reduced(pyramid: Pyramid, video: Tensor, level: int, to: int, how: str) -> Tensor:
    """Return a level's video on the grid of the level `to`, at or below it."""
    k, i, j = _ratios(pyramid, level, to)
    if pyramid.temporal_downsampling == "stride":
        video, k = video[:, :, ::k], 1
    return reduce(video, "b c (t k) (h i) (w j) -> b c t h w", how, k=k, i=i, j=j)


def _ratios(pyramid: Pyramid, level: int, to: int) -> Size3:
    """Return how many pixels of a level one of the level `to` covers, per axis."""
    pairs = zip(pyramid.levels[level], pyramid.levels[to], strict=True)
    return tuple(fine // coarse for fine, coarse in pairs)
