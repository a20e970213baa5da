"""Sanity on real videos: every kind of damage raises the score, and more damage raises it more."""

import itertools
from functools import partial
from pathlib import Path

import degrade
import pytest
import torch

from hpdm_core.metrics.bundled import load_bundled
from hpdm_core.metrics.frechet import FeatureStats, frechet_distance
from hpdm_core.runs.evaluate.clips import ClipFormat, VideoFile, extract_clip

SPEC = ClipFormat(frames=16, stride=2, size=(96, 96))
NUM_CLIPS = 24


@pytest.fixture(scope="module")
def clips(shared_data: Path) -> list[torch.Tensor]:
    paths = sorted((shared_data / "captioned").glob("*.mp4"))[::3][:NUM_CLIPS]
    if len(paths) < NUM_CLIPS:
        pytest.skip(f"needs {NUM_CLIPS} captioned real videos in {shared_data}")
    clips = [extract_clip(VideoFile(name=path.name, path=path), SPEC) for path in paths]
    return [torch.from_numpy(clip) for clip in clips]


@pytest.fixture(scope="module")
def features():
    detector = load_bundled()
    return lambda clips: detector.features(torch.stack(clips))


@pytest.fixture(scope="module")
def real(clips, features) -> FeatureStats:
    return FeatureStats.of(features(clips))


def noise(clip: torch.Tensor, std: float) -> torch.Tensor:
    return degrade.add_noise(clip, std, torch.Generator().manual_seed(int(clip.sum()) % 1000))


def shuffle(clip: torch.Tensor, share: float) -> torch.Tensor:
    rng = torch.Generator().manual_seed(int(clip.sum()) % 1000)
    return degrade.shuffle_frames(clip, share, rng)


LADDERS = {
    "noise": (noise, (5, 10, 20, 40)),
    "blur": (degrade.blur, (0.5, 1, 2, 4)),
    "shuffled frames": (shuffle, (0.2, 0.5, 1.0)),
    "frozen frames": (degrade.freeze_frames, (0.25, 0.5, 0.75, 1.0)),
    "compression": (degrade.compress_h264, (20, 30, 40, 48)),
}


@pytest.mark.parametrize("name", LADDERS)
def test_more_damage_scores_worse(name, clips, features, real):
    damage, strengths = LADDERS[name]
    distances = [frechet_distance(FeatureStats.of(features(clips)), real)]
    assert distances[0] < 1e-6
    for strength in strengths:
        damaged = list(map(partial(damage_by, damage, strength), clips))
        distances.append(frechet_distance(FeatureStats.of(features(damaged)), real))
    assert all(a < b for a, b in itertools.pairwise(distances)), distances


def damage_by(damage, strength, clip):
    return damage(clip, strength)
