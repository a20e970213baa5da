"""Small data sets on disk, and the real ones where they are at hand."""

import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from hpdm_core.data import prepare as prepare_module
from hpdm_core.data.dataset import VideoDataset, open_dataset
from hpdm_core.data.entries import write_json_lines
from hpdm_core.data.folders import plan_folder
from hpdm_core.data.plan import DecodingOptions
from hpdm_core.data.prepare import prepare
from hpdm_core.data.video_io import write_mp4
from hpdm_core.progress import NoProgress


def smooth_video(seed: int, *, frames: int = 24, height: int = 48, width: int = 64) -> np.ndarray:
    """Return (t, h, w, 3) uint8: slow waves, which the codec keeps to within a few levels."""
    rng = np.random.default_rng(seed)
    t, y, x = np.meshgrid(
        np.arange(frames) / 24, np.arange(height) / 48, np.arange(width) / 48, indexing="ij"
    )
    waves = [
        np.sin(2 * np.pi * (a * t + b * y + c * x + d))
        for a, b, c, d in rng.uniform(-0.4, 0.4, size=(3, 4))
    ]
    return np.round(127.5 + 90 * np.stack(waves, axis=-1)).astype(np.uint8)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep small preparations out of worker processes, which take longer to start."""
    monkeypatch.setattr(prepare_module, "WORTH_WORKERS", 100)


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos of two classes: 24 frames of 48x64, and one short one."""
    folder = tmp_path_factory.mktemp("waves")
    for index, name in enumerate(["a/0", "a/1", "a/2", "b/3", "b/4", "b/5"]):
        frames = 10 if name == "b/5" else 24
        write_mp4(folder / f"source/{name}.mp4", smooth_video(index, frames=frames), 12.0)
    return folder / "source"


@pytest.fixture(scope="session")
def prepared(video_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan = plan_folder(
        tmp_path_factory.mktemp("data") / "waves",
        name="waves",
        source=video_folder,
        options=DecodingOptions(min_frames=2),
        workers=2,
    )
    prepare(plan, NoProgress())
    return plan.folder


@pytest.fixture
def dataset(prepared: Path, tmp_path: Path) -> VideoDataset:
    """The prepared videos, in a copy that the test may spoil."""
    shutil.copytree(prepared, tmp_path / "data/waves")
    return open_dataset(tmp_path / "data", "waves")


@pytest.fixture
def json_dataset(dataset: VideoDataset) -> VideoDataset:
    """The same with a manifest of JSON lines, as earlier versions wrote it."""
    lines = [asdict(entry) for entry in dataset.entries]
    write_json_lines(dataset.folder / "manifest.jsonl", lines)
    (dataset.folder / "manifest.arrow").unlink()
    return open_dataset(dataset.folder.parent, dataset.name)
