"""The detector that ships: its accuracy on videos it never saw, its seams, its refusals."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from hpdm_core.data.shapes import SHAPE_CLASSES, render
from hpdm_core.errors import MetricError
from hpdm_core.metrics import degrade
from hpdm_core.metrics.bundled import WEIGHTS, load_bundled, to_network_input

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
    assert DETECTOR.classes == SHAPE_CLASSES
    assert DETECTOR.accuracy > 0.99
    assert DETECTOR.accuracy_damaged > 0.97
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
    assert features.shape == (3, 296)
    assert features.dtype == torch.float32
    assert probabilities.shape == (3, 9)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(3))
    # A row depends on its own video alone.
    torch.testing.assert_close(DETECTOR.features(videos[1:2]), features[1:2], rtol=1e-4, atol=1e-5)


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
    with pytest.raises(MetricError, match=r"not a bundled detector.*train_bundled"):
        load_bundled(path=tmp_path / "absent.safetensors")
    save_file({"head.bias": torch.zeros(12)}, tmp_path / "other.safetensors")
    with pytest.raises(MetricError, match="not a bundled detector"):
        load_bundled(path=tmp_path / "other.safetensors")
