"""The detector that ships: accuracy on videos it never saw, what its distance sees, refusals."""

import hashlib
import math
from itertools import pairwise

import degrade
import numpy as np
import pytest
import score_ladder
import torch
from safetensors.torch import save_file

from hpdm_core.data.shapes import SHAPE_CLASSES, render
from hpdm_core.data.walk_scenes import WALK_CLASSES
from hpdm_core.data.walks import WalkOptions, installed_engine
from hpdm_core.errors import MetricError
from hpdm_core.metrics.bundled import FLOOR, WEIGHTS, load_bundled, statistics, to_network_input

DETECTOR = load_bundled()


def shapes(num: int, *, frames: int, size: int, first_seed: int = 5_000_000) -> torch.Tensor:
    videos = [
        render(first_seed + i, i % len(SHAPE_CLASSES), frames=frames, size=size).frames
        for i in range(num)
    ]
    return torch.stack([torch.from_numpy(video) for video in videos])


def share_right(videos: torch.Tensor) -> float:
    labels = torch.arange(len(videos)) % len(SHAPE_CLASSES)
    return float((DETECTOR.probabilities(videos).argmax(dim=1) == labels).double().mean())


def test_it_ships_with_what_is_known_of_it():
    assert DETECTOR.classes == (*SHAPE_CLASSES, *WALK_CLASSES)
    assert set(DETECTOR.accuracy) == set(DETECTOR.accuracy_damaged) == {"shapes", "walks"}
    assert min(DETECTOR.accuracy.values()) > 0.99
    assert min(DETECTOR.accuracy_damaged.values()) > 0.85
    assert DETECTOR.sha256 == hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert WEIGHTS.stat().st_size < 4 * 2**20


@pytest.mark.parametrize(("frames", "size"), [(4, 32), (8, 32), (16, 64), (32, 48)])
def test_it_names_new_videos_of_any_length_and_size(frames, size):
    assert share_right(shapes(54, frames=frames, size=size)) >= 0.98


def test_it_survives_damage_that_generated_videos_have():
    rng = torch.Generator().manual_seed(0)
    videos = shapes(54, frames=16, size=64)
    for damage in (
        lambda v: degrade.add_noise(v, 12, rng),
        lambda v: degrade.blur(v, 1.0),
        lambda v: degrade.compress_h264(v, 32),
        lambda v: (v.float() * 0.7 + 40).to(torch.uint8),
    ):
        assert share_right(torch.stack([damage(video) for video in videos])) >= 0.94


def test_features_and_probabilities():
    videos = shapes(3, frames=8, size=32)
    features, probabilities = DETECTOR.features(videos), DETECTOR.probabilities(videos)
    assert features.shape == (3, 269)
    assert features.dtype == torch.float32
    assert probabilities.shape == (3, 30)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(3))
    # A row depends on its own video alone.
    torch.testing.assert_close(DETECTOR.features(videos[1:2]), features[1:2], rtol=1e-4, atol=1e-5)


def test_the_ladder_rises_and_weak_blocks_and_seams_are_seen():
    """Benchmark `score_ladder.py` at a small size: strengths 0.05, 0.1 and 0.4 (or alike)."""
    videos = score_ladder.rendered_shapes(36)
    ratios = score_ladder.ladder(videos[:18], videos[18:], DETECTOR.features, rungs=(1, 2, 4))
    assert set(ratios) == set(score_ladder.LADDER)
    for kind, values in ratios.items():
        assert all(a < b for a, b in pairwise([1.0, *values])), (kind, values)
    for kind in ("block_noise", "block_noise_2", "seams"):
        assert ratios[kind][0] >= 1.3, (kind, ratios[kind])


def test_weak_blocks_and_seams_are_seen_in_walks():
    pytest.importorskip("vizdoom")
    options = WalkOptions(frames=16, size=64, seed=50, engine=installed_engine())
    walks = [options.draw(WALK_CLASSES[i % 12], i // 12).frames for i in range(48)]
    videos = torch.from_numpy(np.stack(walks))
    labels = torch.arange(48) % 12 + len(SHAPE_CLASSES)
    named = torch.cat([DETECTOR.probabilities(part).argmax(dim=1) for part in videos.split(24)])
    assert float((named == labels).double().mean()) >= 0.95
    kinds = ("block_noise", "block_noise_2", "seams")
    halves = (videos[:24], videos[24:])
    ratios = score_ladder.ladder(*halves, DETECTOR.features, kinds=kinds, rungs=(1,))
    assert all(ratio >= 1.3 for (ratio,) in ratios.values()), ratios


def test_statistics_of_checks_are_those_of_a_slow_loop():
    """Steps at multiples of 4 alone: the grid of 4 and its parts respond, by the closed form."""
    video = torch.zeros(1, 3, 16, 64, 64)
    video += 0.2 * (torch.arange(64) // 4 % 2)
    found = statistics(video)[0]
    log_ratio = math.log((0.2 + FLOOR) / FLOOR)
    along_width = found[-5:-2]
    # Every second multiple of 2 is a step; every multiple of 4 and of 8 is.
    expected = torch.tensor([15 / 31, 1.0, 1.0]) * log_ratio
    torch.testing.assert_close(along_width, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[-8:-5], torch.zeros(3), atol=1e-4, rtol=0)
    steps = 0.2 * 15 / 63 + FLOOR
    assert float(found[3]) == pytest.approx(math.log(steps), abs=1e-4)


def test_input_is_scaled_and_left_as_it_is_where_it_fits():
    videos = shapes(1, frames=16, size=64)
    expected = videos.float().movedim(-1, 1) / 127.5 - 1
    torch.testing.assert_close(to_network_input(videos), expected)
    assert to_network_input(shapes(2, frames=5, size=30)).shape == (2, 3, 16, 64, 64)


def test_refusals(tmp_path):
    with pytest.raises(MetricError, match="at least 4 frames"):
        DETECTOR.features(shapes(1, frames=3, size=32))
    with pytest.raises(MetricError, match=r"expected uint8 \(b, t, h, w, 3\)"):
        DETECTOR.features(shapes(1, frames=8, size=32).float())
    with pytest.raises(MetricError, match=r"not a bundled detector.*train_detector"):
        load_bundled(path=tmp_path / "absent.safetensors")
    save_file({"head.bias": torch.zeros(12)}, tmp_path / "other.safetensors")
    with pytest.raises(MetricError, match="not a bundled detector"):
        load_bundled(path=tmp_path / "other.safetensors")
