"""Naming of generated videos by their nearest clip, on clips of one colour each."""

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def figures(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from text_to_video import figures

    yield figures
    del sys.modules["text_to_video"]


def plain(grey: int, *, seed: int) -> np.ndarray:
    """A grey clip (4, 36, 64, 3) with noise of ten grey levels."""
    noise = np.random.default_rng(seed).normal(0, 10, (4, 36, 64, 3))
    return np.clip(grey + noise, 0, 255).astype(np.uint8)


def test_a_video_is_named_by_the_nearest_of_all_clips(figures):
    # Two clips of "dusk", one of "noon" and one of "night".
    clips = [plain(grey, seed=k) for k, grey in enumerate((80, 100, 200, 30))]
    captions = ["dusk", "dusk", "noon", "night"]
    # Drawn as: the second clip of dusk, noon as noon, night as a clip of dusk.
    drawn = np.stack([plain(grey, seed=9 + k) for k, grey in enumerate((104, 190, 75))])
    result = figures(drawn, ["dusk", "noon", "night"], clips, captions, side=(18, 32))
    assert result["named_right"] == pytest.approx(2 / 3)
    assert result["named_wrong"] == ["night"]
    assert result["named_right_by_chance"] == pytest.approx((2 / 4 + 1 / 4 + 1 / 4) / 3)
    assert result["hh"]["ratio_median"] == pytest.approx(1, abs=0.05)


def test_flicker_stands_beside_the_clips_of_the_same_caption(figures):
    still = np.full((4, 36, 64, 3), 100, np.uint8)
    blinking = still.copy()
    blinking[::2] += 40
    faint = still.copy()
    faint[::2] += 10
    result = figures(blinking[None], ["a"], [faint, blinking], ["a", "b"], side=(18, 32))
    assert result["flicker"]["ratio_largest"] == pytest.approx(4)
    assert result["named_wrong"] == ["a"]
