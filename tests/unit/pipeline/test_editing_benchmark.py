"""What benchmarks of given videos compare with, by hand; their pictures, by shape."""

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """Scripts of the folder import each other."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in set(sys.modules) - before:
        if (BENCHMARKS / f"{name}.py").exists():
            del sys.modules[name]


@pytest.fixture
def held(pipe):
    """Two random videos of the tiny model's size, (4, 16, 16)."""
    from edit_uses import Held

    videos = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), dtype=np.uint8)
    return Held(
        pipe=pipe,
        videos=videos,
        names=pipe.classes[:2],
        others=videos,
        options={"steps": (1, 1), "overlap": "none"},
    )


def test_simple_ways_of_filling_the_middle_third(held):
    import edit_uses

    made, real = edit_uses.inpaint(held, "middle columns"), held.videos
    assert all(made[way].shape == real.shape for way in made)
    outside = np.r_[0:5, 11:16]
    for videos in made.values():
        assert np.array_equal(videos[:, :, :, outside], real[:, :, :, outside])
    for column, source in ((5, 4), (7, 4), (8, 11), (10, 11)):
        assert np.array_equal(made["border copied"][:, :, :, column], real[:, :, :, source])
    mean = real[1, 2][:, outside].mean(axis=(0, 1))
    assert abs(made["mean colour"][1, 2, 3, 7] - mean).max() <= 0.5


def test_simple_ways_of_filling_the_lower_third(held):
    import edit_uses

    made, real = edit_uses.inpaint(held, "lower rows"), held.videos
    for videos in made.values():
        assert np.array_equal(videos[:, :, :11], real[:, :, :11])
    assert (made["border copied"][:, :, 11:] == real[:, :, 10:11]).all()
    assert (made["input"][:, :, 11:] == 128).all()
    assert not np.array_equal(made["inpainted"], real)


def test_upscaling_starts_from_level_0_of_the_real_videos(held):
    import edit_uses

    made = edit_uses.upscale(held)
    blocks = held.videos.astype(float).reshape(2, 2, 2, 8, 2, 8, 2, 3)[:, :, 0].mean((3, 5))
    assert made["input"].shape == (2, 2, 8, 8, 3)
    assert abs(made["input"] - blocks).max() <= 1  # rounding to bytes, here and there
    assert made["bicubic"].shape == made["upscaled"].shape == held.videos.shape


def test_psnr_of_one_grey_level():
    import editing

    grey = np.full((4, 16, 16, 3), 100, np.uint8)
    assert editing.psnr(grey + np.uint8(1), grey) == pytest.approx(20 * np.log10(255))


def test_extending_is_measured_by_window(held):
    import editing

    figures = editing.extending(held)
    for name in ("contrast", "colour", "detail"):
        values = figures[f"{name}_by_window"]
        assert len(values) == editing.WINDOWS
        assert all(value > 0 for value in values)
    assert figures["seam_in_time.windows"] > 0
    assert figures["seam_in_time.other tiles"] > 0


def test_every_picture_is_drawn(held):
    import editing_pictures

    frames = {"extended": 4 + 2 * editing_pictures.WINDOWS}  # each adds two
    for name, draw in editing_pictures.PICTURES.items():
        picture = draw(held)
        assert picture.dtype == np.uint8
        assert picture.shape[0] == frames.get(name, 4)
        assert picture.shape[-1] == 3
