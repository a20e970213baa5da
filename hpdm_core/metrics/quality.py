"""Visible artefacts of generated videos: flicker, pixel noise, seams between tiles, blur.

No reference and no network is needed, but flicker, noise and high frequencies depend on content:
compare them with those of real videos at the same size. Amplitudes are on the scale
[-1, 1] of the model's videos (one grey level is 2 / 255). Measure frames that went through no
lossy codec: H.264 removes noise, and the edges of its blocks of 4 and 8 pixels look like seams.

Axis legend: `b` videos, `t h w` frames, rows, columns, `c` the three colours, `n` block corners.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from einops import rearrange, reduce

from hpdm_core.errors import MetricError

GREY_LEVEL = 2 / 255
# Mean of the smaller half of |z| for a standard normal z: 4 (phi(0) - phi(0.67449)).
HALF_NORMAL_MEAN = 0.324663
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
MIN_SIDE = 4

Positions = tuple[int, ...]
Borders = tuple[Positions, Positions, Positions]


@dataclass(frozen=True, kw_only=True)
class Seams:
    """Step across tile borders over the step beside them; 1 if there are no seams.

    nan where it is undefined (no border along the axis, or nothing but equal pixels); infinity
    where pixels differ at the borders and nowhere beside them.

    Args:
        time: (b,) along frames.
        space: (b,) mean of those along height and width that are defined.
        combined: (b,) mean of those along the three axes that are defined.
    """

    time: np.ndarray
    space: np.ndarray
    combined: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Means over videos; None where a figure is undefined for all of them.

    Args:
        flicker: see `flicker`.
        hh: see `pixel_noise`.
        seams: `Seams.combined`.
        seams_space: `Seams.space`.
        seams_time: `Seams.time`.
        high_frequency: see `high_frequency`.
    """

    flicker: float | None
    hh: float | None
    seams: float | None
    seams_space: float | None
    seams_time: float | None
    high_frequency: float | None


def measure_quality(videos: Iterable[np.ndarray], borders: Borders) -> Quality:
    """Return all measures, averaged over videos; one video is held in memory at a time.

    Args:
        videos: (b, t, h, w, 3) uint8, or videos (t, h, w, 3) uint8 one by one.
        borders: see `seams`.

    Raises:
        MetricError: there is no video, or one has a wrong shape or type.
    """
    rows = []
    for video in videos:
        batch = video[None]
        seam = seams(batch, borders)
        figures = {
            "flicker": flicker(batch),
            "hh": pixel_noise(batch),
            "seams": seam.combined,
            "seams_space": seam.space,
            "seams_time": seam.time,
            "high_frequency": high_frequency(batch),
        }
        rows.append([float(figure[0]) for figure in figures.values()])
    if not rows:
        raise MetricError("no videos to measure", got=0, expected="at least one")
    means = _mean_of_defined(np.array(rows).T).tolist()
    named = zip(figures, means, strict=True)
    return Quality(**{name: None if math.isnan(mean) else mean for name, mean in named})


def flicker(videos: np.ndarray, *, block: int | None = None) -> np.ndarray:
    """Return the deviation over time of the mean colour of a block in each of the four corners.

    The standard deviation over frames, averaged over corners and colours. 0 for backgrounds that
    stand still; where the camera moves, that of real videos is the value to meet.

    Args:
        videos: (b, t, h, w, 3) uint8.
        block: side of a block in pixels; a 16th of the shorter side where None.

    Returns:
        (b,) float64 on the scale [-1, 1]; nan for videos of one frame.

    Raises:
        MetricError: for videos of another shape or type, or a block that does not fit.
    """
    _check(videos)
    side = min(videos.shape[2:4])
    block = max(1, side // 16) if block is None else block
    if not 1 <= block <= side:
        raise MetricError(
            "the corner block does not fit into the frame", got=block, expected=f"1 to {side}"
        )
    if videos.shape[1] == 1:
        return np.full(len(videos), np.nan)
    ends = (slice(None, block), slice(-block, None))
    corners = np.stack([videos[:, :, rows, columns] for rows in ends for columns in ends])
    colours = reduce(corners.astype(np.float64), "n b t h w c -> b t n c", "mean")
    return reduce(GREY_LEVEL * colours.std(axis=1), "b n c -> b", "mean")


def pixel_noise(videos: np.ndarray) -> np.ndarray:
    """Return a robust estimate of the standard deviation of white pixel noise.

    Each 2x2 block [[p, q], [r, s]] of each colour has the diagonal Haar coefficient
    HH = (p - q - r + s) / 2, which keeps the deviation of white noise and removes smooth content.
    The mean of the smaller half of |HH|, over 0.3247, is then that deviation. This is Donoho's
    median(|HH|) / 0.6745 with the mean below the median for the median, which in whole grey
    levels could only take multiples of 0.006. Right to 4% from a deviation of 2 grey levels on.

    Noise in less than half of the picture hardly shows, and fine regular texture counts as noise.

    Args:
        videos: (b, t, h, w, 3) uint8; the last row or column of an odd side is left out.

    Returns:
        (b,) float64 on the scale [-1, 1].

    Raises:
        MetricError: for videos of another shape or type.
    """
    _check(videos)
    height, width = (side // 2 * 2 for side in videos.shape[2:4])
    pixels = videos[:, :, :height, :width].astype(np.int16)
    columns = pixels[:, :, :, ::2] - pixels[:, :, :, 1::2]
    hh = abs(columns[:, :, ::2] - columns[:, :, 1::2]) / 2
    ranked = np.sort(rearrange(hh, "b t h w c -> b (t h w c)"), axis=1)
    smaller = ranked[:, : ranked.shape[1] // 2]
    return GREY_LEVEL * smaller.mean(axis=1) / HALF_NORMAL_MEAN


def seams(videos: np.ndarray, borders: Borders) -> Seams:
    """Return how much pixels differ across tile borders, relative to the steps right beside them.

    Along an axis, with D(p) the mean |x[p] - x[p - 1]| over the other axes and the colours, it is
    the sum of D(p) over borders p divided by the sum of the mean of D(p - 1) and D(p + 1). Nearest
    neighbours, because how much pixels differ depends on the place in the picture (objects in the
    middle): a comparison with all other positions finds seams in real videos.

    A tile's border is also a token's: for the part that all tokens' edges have in it, pass those
    that lie on no tile's border. Real videos with repeated frames have steps of their own in time.

    Args:
        videos: (b, t, h, w, 3) uint8.
        borders: positions along frames, height and width; p is the step from index p - 1 to p.
            A neighbour that is a border itself, or outside the video, is left out; so is a
            border without neighbours.

    Raises:
        MetricError: for videos of another shape or type, or a position outside the video.
    """
    _check(videos)
    ratios = np.stack([_seams_along(videos, axis, borders[axis - 1]) for axis in (1, 2, 3)])
    return Seams(
        time=ratios[0], space=_mean_of_defined(ratios[1:].T), combined=_mean_of_defined(ratios.T)
    )


def high_frequency(videos: np.ndarray) -> np.ndarray:
    """Return the amplitude of the finest detail: spatial frequencies above half of Nyquist's.

    The root of the mean power density of luma over all frequencies of radius above 0.25 cycles
    per pixel, from the 2D Fourier transform of each frame under a Hann window.
    White noise of deviation s, equal in all colours, gives s. Over the figure of real videos,
    blur gives less than 1 and noise more.

    Args:
        videos: (b, t, h, w, 3) uint8. The window makes the middle of the frame count most.

    Returns:
        (b,) float64 on the scale [-1, 1].

    Raises:
        MetricError: for videos of another shape or type.
    """
    _check(videos)
    height, width = videos.shape[2:4]
    luma = GREY_LEVEL * (videos @ LUMA)  # (b, t, h, w)
    window = np.outer(_hann(height), _hann(width))
    power = abs(np.fft.fft2(window * luma)) ** 2 / (window**2).sum()
    fine = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)) > 0.25
    return np.sqrt(reduce(power[..., fine], "b t n -> b", "mean"))


def _seams_along(videos: np.ndarray, axis: int, positions: Positions) -> np.ndarray:
    """Return the ratio along one axis of (b, t, h, w, c), (b,), nan where it is undefined."""
    size = videos.shape[axis]
    outside = [p for p in positions if not 0 < p < size]
    if outside:
        raise MetricError(
            f"border outside the video along {('frames', 'height', 'width')[axis - 1]}",
            got=outside[0],
            expected=f"1 to {size - 1}",
            remedy="a border p lies between the indices p - 1 and p",
        )
    at_borders, beside = np.zeros(len(videos)), np.zeros(len(videos))
    pixels = np.moveaxis(videos.astype(np.int16), axis, 0)
    for p in sorted(set(positions)):
        near = [q for q in (p - 1, p + 1) if 0 < q < size and q not in positions]
        if near:
            at_borders += _step(pixels, p)
            beside += np.mean([_step(pixels, q) for q in near], axis=0)
    undefined = (at_borders == 0) & (beside == 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(undefined, np.nan, at_borders / beside)


def _step(pixels: np.ndarray, position: int) -> np.ndarray:
    """Return the mean absolute step to `position` along the first axis, (b,) grey levels."""
    step = abs(pixels[position] - pixels[position - 1])
    return step.mean(axis=(1, 2, 3))


def _hann(size: int) -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(size) + 0.5) / size)


def _mean_of_defined(rows: np.ndarray) -> np.ndarray:
    """Return the mean of each row (n, m) over what is not nan, nan where nothing is."""
    defined = ~np.isnan(rows)
    count = defined.sum(axis=1)
    total = np.where(defined, rows, 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _check(videos: np.ndarray) -> None:
    good = isinstance(videos, np.ndarray) and videos.dtype == np.uint8 and videos.ndim == 5
    if not good or videos.shape[-1] != 3 or 0 in videos.shape or min(videos.shape[2:4]) < MIN_SIDE:
        raise MetricError(
            "videos cannot be measured",
            got=f"{getattr(videos, 'dtype', type(videos).__name__)} {np.shape(videos)}",
            expected=f"a NumPy array (b, t, h, w, 3) of uint8, sides of at least {MIN_SIDE}",
            remedy="bring generated videos to 0..255 first",
        )
