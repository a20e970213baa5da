"""Each measure of quality against a closed form or a slow loop, and rising with its own damage."""

import math
from functools import partial
from itertools import pairwise

import degrade
import numpy as np
import pytest
import torch

from hpdm_core.data.shapes import SHAPE_CLASSES, render
from hpdm_core.errors import MetricError
from hpdm_core.metrics.quality import (
    GREY_LEVEL,
    flicker,
    high_frequency,
    measure_quality,
    pixel_noise,
    seams,
)

NO_BORDERS = ((), (), ())
EVERY_8 = ((2, 4, 6), tuple(range(8, 64, 8)), tuple(range(8, 64, 8)))


@pytest.fixture(scope="module")
def shapes() -> np.ndarray:
    labels = range(len(SHAPE_CLASSES))
    return np.stack([render(label, label, frames=8, size=64).frames for label in labels])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def smooth_noise(rng: np.random.Generator, *, num: int = 16, sigma: float = 3.0) -> np.ndarray:
    """Random periodic videos (b, 8, 64, 64, 3), blurred over rows and columns, moving slowly."""
    frequencies = np.fft.fftfreq(64)
    decay = np.exp(-2 * (np.pi * sigma * np.hypot(frequencies[:, None], frequencies)) ** 2)
    first, second = rng.standard_normal((2, num, 1, 64, 64, 3))
    turn = 0.15 * np.arange(8)[:, None, None, None]
    fields = np.cos(turn) * first + np.sin(turn) * second
    spectrum = np.fft.fft2(fields, axes=(2, 3)) * decay[..., None]
    fields = np.fft.ifft2(spectrum, axes=(2, 3)).real
    return to_uint8(128 + 30 * fields / fields.std())


def to_uint8(levels: np.ndarray) -> np.ndarray:
    return np.round(levels).clip(0, 255).astype(np.uint8)


def with_noise(videos: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    return to_uint8(videos + std * rng.standard_normal(videos.shape))


def blurred(videos: np.ndarray, sigma: float) -> np.ndarray:
    return np.stack([degrade.blur(torch.from_numpy(v), sigma).numpy() for v in videos])


def rises(values: list[float]) -> bool:
    return all(low < high for low, high in pairwise(values))


# Flicker.


def test_flicker_of_known_corners():
    videos = np.full((1, 4, 64, 64, 3), 100, dtype=np.uint8)
    videos[0, ::2, :4, :4, 0] += 6  # red of one corner of four: 3 levels about its mean
    videos[0, :, 20:40, 20:40] = np.arange(4)[:, None, None, None] * 50  # not a corner
    assert flicker(videos) == pytest.approx([GREY_LEVEL * 3 / (4 * 3)])
    # A block of another size averages the change with what stands still around it.
    assert flicker(videos, block=8) == pytest.approx([GREY_LEVEL * 3 / 12 / 4])


def test_flicker_grows_with_noise_as_the_mean_of_a_block_does(rng):
    still = np.full((40, 16, 64, 64, 3), 128, dtype=np.uint8)
    assert (flicker(still) == 0).all()
    noisy = [flicker(with_noise(still, std, rng)).mean() for std in (4, 8, 16)]
    assert rises(noisy)
    # A mean of 16 pixels; the deviation of 16 samples is biased by the known factor c4.
    c4 = math.sqrt(2 / 16) * math.exp(math.lgamma(8) - math.lgamma(7.5))
    assert noisy[2] == pytest.approx(GREY_LEVEL * 16 / 4 * c4, rel=0.03)


def test_flicker_tells_blocks_that_change_from_blocks_that_stay(rng):
    blocks = 20 * rng.standard_normal((6, 8, 16, 16, 3))
    constant = np.broadcast_to(blocks[:, :1], blocks.shape)
    changing, staying = (
        to_uint8(128 + b.repeat(4, axis=2).repeat(4, axis=3)) for b in (blocks, constant)
    )
    assert flicker(changing).mean() > 0.1
    assert (flicker(staying) == 0).all()


def test_flicker_is_zero_for_static_backgrounds_and_frozen_videos(shapes, rng):
    assert (flicker(shapes) == 0).all()
    frozen = np.repeat(smooth_noise(rng)[:, :1], 8, axis=1)
    assert (flicker(frozen) == 0).all()


def test_one_frame_has_no_flicker(shapes):
    assert np.isnan(flicker(shapes[:, :1])).all()


# Pixel noise.


@pytest.mark.parametrize("std", [2.0, 5.0, 15.0])
def test_white_noise_of_a_deviation_reads_as_that_deviation(std, rng):
    noisy = with_noise(smooth_noise(rng, num=4, sigma=4.0), std, rng)
    rounded = math.hypot(std, 1 / math.sqrt(12))
    assert pixel_noise(noisy).mean() == pytest.approx(GREY_LEVEL * rounded, rel=0.04)


def test_pixel_noise_equals_donohos_median_up_to_its_steps(rng):
    video = with_noise(smooth_noise(rng, num=1), 12, rng)[0].astype(float)
    hh = [
        (frame[y, x] - frame[y, x + 1] - frame[y + 1, x] + frame[y + 1, x + 1]) / 2
        for frame in video
        for y in range(0, 64, 2)
        for x in range(0, 64, 2)
    ]
    donoho = np.median(np.abs(hh)) / 0.674490
    ours = float(pixel_noise(video.astype(np.uint8)[None])[0])
    assert ours == pytest.approx(GREY_LEVEL * donoho, abs=GREY_LEVEL * 0.25 / 0.674490)


def test_pixel_noise_ignores_flat_pictures_gradients_and_a_noisy_corner(rng):
    ramp = 2 * np.arange(64)[:, None, None] + np.arange(64)[:, None]
    videos = np.broadcast_to(to_uint8(ramp), (1, 2, 64, 64, 3)).copy()
    assert pixel_noise(videos) == 0
    videos[:, :, :40, :40] = rng.integers(0, 256, (1, 2, 40, 40, 3))  # 39% of the picture
    assert pixel_noise(videos) == 0
    assert pixel_noise(videos[:, :, :41, :41]) > 0.5


# Seams.


@pytest.mark.parametrize("spacing", [8, 16])
def test_no_seams_in_smooth_content(spacing, rng):
    borders = ((2, 4, 6), tuple(range(spacing, 64, spacing)), tuple(range(spacing, 64, spacing)))
    found = seams(smooth_noise(rng), borders)
    for ratio in (found.space, found.time, found.combined):
        assert ratio.mean() == pytest.approx(1, abs=0.02)


def test_no_seams_in_objects_that_gather_in_the_middle(shapes):
    """Against steps all over the frame, the middle's texture would read as seams of 1.15."""
    assert seams(shapes, EVERY_8).space.mean() == pytest.approx(1, abs=0.03)
    step = np.abs(np.diff(shapes.astype(float), axis=3)).mean(axis=(0, 1, 2, 4))
    at_border = np.isin(np.arange(1, 64), EVERY_8[2])
    assert step[at_border].mean() / step[~at_border].mean() > 1.1


@pytest.mark.parametrize("strength", [1, 3])
def test_steps_at_borders_of_a_ramp_in_closed_form(strength):
    """Steps of 2 along a row, of 2 + 2 strength where a tile begins: 1 + strength."""
    borders = ((), (), tuple(range(8, 64, 8)))
    columns = 2 * np.arange(64) + 2 * strength * (np.arange(64) // 8)
    videos = np.broadcast_to(to_uint8(columns)[:, None], (2, 3, 64, 64, 3))
    found = seams(videos, borders)
    assert found.space == pytest.approx([1 + strength] * 2)
    assert found.combined == pytest.approx(found.space)
    assert np.isnan(found.time).all()


def test_tiles_with_offsets_over_noise_in_closed_form(rng):
    """Steps of white noise are normal with variance 2 n^2, across a border 2 n^2 + 2 o^2."""
    noise, borders = 8, ((4,), (16, 32, 48), (16, 32, 48))
    found = []
    for offset in (0, 4, 8, 16):
        tiles = offset * rng.standard_normal((120, 2, 4, 4, 3))
        tiles = tiles.repeat(4, axis=1).repeat(16, axis=2).repeat(16, axis=3)
        videos = with_noise(128 + tiles, noise, rng)
        expected = math.sqrt(1 + (offset / noise) ** 2)
        measured = seams(videos, borders)
        assert measured.space.mean() == pytest.approx(expected, rel=0.02)
        assert measured.time.mean() == pytest.approx(expected, rel=0.04)
        found.append(measured.combined.mean())
        if offset == 16:  # away from the borders there is nothing to see
            elsewhere = seams(videos, ((2,), (8, 24), (8, 24)))
            assert elsewhere.combined.mean() == pytest.approx(1, abs=0.01)
    assert rises(found)


def test_seams_as_a_slow_loop_finds_them(rng):
    """Borders side by side, at the ends, and alone; axis by axis."""
    videos = rng.integers(0, 256, (2, 6, 9, 10, 3)).astype(np.uint8)
    borders = ((1, 4), (3, 4, 8), (5,))
    found = seams(videos, borders)
    for index, video in enumerate(videos.astype(float)):
        ratios = []
        for axis in range(3):
            size = video.shape[axis]
            step = {
                p: np.abs(video.take(p, axis) - video.take(p - 1, axis)).mean()
                for p in range(1, size)
            }
            over = under = 0.0
            for p in borders[axis]:
                near = [step[q] for q in (p - 1, p + 1) if q in step and q not in borders[axis]]
                over += step[p]
                under += sum(near) / len(near)
            ratios.append(over / under)
        assert found.time[index] == pytest.approx(ratios[0])
        assert found.space[index] == pytest.approx((ratios[1] + ratios[2]) / 2)
        assert found.combined[index] == pytest.approx(sum(ratios) / 3)


def test_seams_are_undefined_without_borders_neighbours_or_steps(shapes):
    for borders in (NO_BORDERS, (tuple(range(1, 8)), (), ())):
        found = seams(shapes, borders)
        assert all(np.isnan(r).all() for r in (found.time, found.space, found.combined))
    still = np.repeat(shapes[:, :1], 8, axis=1)
    found = seams(still, EVERY_8)
    assert np.isnan(found.time).all()
    assert np.allclose(found.combined, found.space)
    # Frames that change at borders only: no neighbour to compare with, but surely seams.
    assert np.isinf(seams(np.repeat(shapes[:, ::2], 2, axis=1), EVERY_8).time).all()


def test_a_border_outside_the_video_is_refused(shapes):
    with pytest.raises(MetricError, match="outside the video along height; got 64; expected 1 to"):
        seams(shapes, ((), (8, 64), ()))


# High frequencies.


def test_white_noise_has_its_deviation_at_high_frequencies(rng):
    grey = with_noise(np.full((20, 4, 64, 48, 1), 128), 10, rng)
    assert high_frequency(grey.repeat(3, axis=4)).mean() == pytest.approx(GREY_LEVEL * 10, rel=0.02)


@pytest.mark.parametrize(("cycles", "share"), [(12, 0.0), (20, 1.0), (28, 1.0)])
def test_a_wave_counts_above_half_of_nyquist_only(cycles, share):
    """Parseval: a wave's power a^2 / 2 over all bins, spread over the share of high ones."""
    wave = 60 * np.cos(2 * np.pi * cycles * np.arange(64) / 64)
    videos = np.broadcast_to(to_uint8(128 + wave)[:, None], (1, 1, 64, 64, 3))
    frequencies = np.fft.fftfreq(64)
    high = sum(fx**2 + fy**2 > 1 / 16 for fx in frequencies for fy in frequencies)
    expected = share * GREY_LEVEL * 60 * math.sqrt(0.5 * 64**2 / high)
    assert high_frequency(videos)[0] == pytest.approx(expected, rel=0.02, abs=0.004)


def test_high_frequency_falls_with_blur_and_rises_with_noise(shapes, rng):
    clear = high_frequency(shapes)
    soft = [high_frequency(blurred(shapes, sigma)) / clear for sigma in (2.0, 1.0, 0.5)]
    noisy = [high_frequency(with_noise(shapes, std, rng)) / clear for std in (5, 10, 20)]
    assert rises([float(r.mean()) for r in (*soft, np.ones(1), *noisy)])


# All of them.


def test_quality_is_the_mean_of_each_measure(rng):
    videos = with_noise(smooth_noise(rng, num=3), 5, rng)
    quality = measure_quality(videos, EVERY_8)
    found = seams(videos, EVERY_8)
    assert quality.flicker == pytest.approx(flicker(videos).mean())
    assert quality.hh == pytest.approx(pixel_noise(videos).mean())
    assert quality.seams == pytest.approx(found.combined.mean())
    assert quality.seams_space == pytest.approx(found.space.mean())
    assert quality.seams_time == pytest.approx(found.time.mean())
    assert quality.high_frequency == pytest.approx(high_frequency(videos).mean())
    assert measure_quality(iter(videos), EVERY_8) == quality


def test_quality_of_one_frame_without_borders_leaves_out_what_it_cannot_say(shapes):
    quality = measure_quality(shapes[:, :1], NO_BORDERS)
    assert quality.flicker is None
    assert quality.seams is quality.seams_space is quality.seams_time is None
    assert quality.hh is not None
    assert quality.high_frequency > 0


def test_a_mean_leaves_out_videos_without_a_figure(shapes):
    still = np.repeat(shapes[:1, :1], 8, axis=1)
    both = measure_quality([still[0], shapes[1]], EVERY_8)
    assert both.seams_time == pytest.approx(seams(shapes[1:2], EVERY_8).time[0])


@pytest.mark.parametrize(
    "measure", [flicker, pixel_noise, partial(seams, borders=NO_BORDERS), high_frequency]
)
@pytest.mark.parametrize(
    ("videos", "message"),
    [
        (np.zeros((1, 4, 8, 8, 3), dtype=np.float32), r"got float32 \(1, 4, 8, 8, 3\)"),
        (np.zeros((4, 8, 8, 3), dtype=np.uint8), r"uint8 \(4, 8, 8, 3\); expected a NumPy array"),
        (np.zeros((1, 4, 8, 8, 1), dtype=np.uint8), "bring generated videos to 0..255"),
        (np.zeros((1, 4, 2, 8, 3), dtype=np.uint8), "sides of at least 4"),
        (torch.zeros(1, 4, 8, 8, 3, dtype=torch.uint8), "got torch.uint8"),
    ],
)
def test_other_shapes_and_types_are_refused(measure, videos, message):
    with pytest.raises(MetricError, match=message):
        measure(videos)


def test_no_videos_and_no_fitting_block_are_refused(shapes):
    with pytest.raises(MetricError, match="no videos to measure"):
        measure_quality([], NO_BORDERS)
    with pytest.raises(MetricError, match="does not fit into the frame; got 65; expected 1 to 64"):
        flicker(shapes, block=65)
