"""Small data sets and a stand-in model for the tests of `hpdm eval-fvd`."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from hpdm_core.data.dataset import write_header
from hpdm_core.data.entries import VideoEntry
from hpdm_core.data.manifest import write_manifest
from hpdm_core.data.shapes import SHAPE_CLASSES, render
from hpdm_core.data.video_io import decode_sequential, write_mp4
from hpdm_core.geometry.pyramid import Pyramid
from hpdm_core.pipeline.resources import Resources
from hpdm_core.records import Condition

FRAMES, SIZE = 8, 32
PYRAMID = Pyramid(patch=(4, 16, 16), levels=((4, 16, 16), (FRAMES, SIZE, SIZE)))


def write_shapes(folder: Path, num: int, *, seed: int = 0, frames: int = FRAMES) -> Path:
    """Write a folder of videos, by class."""
    for i in range(num):
        label = i % len(SHAPE_CLASSES)
        video = render(1000 * seed + i, label, frames=frames, size=SIZE)
        write_mp4(folder / SHAPE_CLASSES[label] / f"{i:04d}.mp4", video.frames, 12.5, crf=8)
    return folder


def write_dataset(
    folder: Path, num: int, *, seed: int = 0, labels: list[int] | None = None
) -> Path:
    """Write a prepared data set; every tenth video is of the test split."""
    entries = []
    for i in range(num):
        label = labels[i % len(labels)] if labels else i % len(SHAPE_CLASSES)
        video = render(1000 * seed + i, label, frames=FRAMES, size=SIZE)
        write_mp4(folder / "videos" / f"{i:04d}.mp4", video.frames, 12.5, crf=8)
        entries.append(
            VideoEntry(
                path=f"videos/{i:04d}.mp4",
                num_frames=FRAMES,
                fps=12.5,
                height=SIZE,
                width=SIZE,
                label=label,
                class_name=SHAPE_CLASSES[label],
                split="test" if i % 10 == 9 else "train",
                source=f"{i}",
            )
        )
    write_manifest(folder, entries)
    write_header(folder, {"name": folder.name, "kind": "shapes", "classes": list(SHAPE_CLASSES)})
    return folder


@dataclass
class StandIn:
    """What scoring asks of a `Pipeline`; the video of seed i is the i-th real one."""

    folder: Path
    seeds: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    sha256: str = "f" * 64
    facts: dict = field(default_factory=lambda: {"steps": [2, 2]})
    pyramid: Pyramid = PYRAMID
    classes: tuple[str, ...] = SHAPE_CLASSES
    frame_stride: int = 1

    @property
    def data_folder(self) -> str:
        return str(self.folder)

    def condition_of(self, labels: list[int]) -> Condition:
        self.labels += labels
        return Condition(labels=torch.tensor(labels))

    def sample(
        self, seeds: list[int], condition: Condition, *, level: int, resources: Resources
    ) -> torch.Tensor:
        assert len(seeds) == len(condition.labels) == resources.batch
        self.seeds += seeds
        stride = PYRAMID.stride(level)
        videos = []
        for seed in seeds:
            path = self.folder / "videos" / f"{seed:04d}.mp4"
            video = torch.from_numpy(np.stack(list(decode_sequential(path)))).float()
            video = video[:: stride[0]].movedim(-1, 0)
            pooled = torch.nn.functional.avg_pool3d(video, (1, stride[1], stride[2]))
            # Grey levels are cut off on the way back, so aim at the middle between two.
            videos.append((pooled.round() - 127.75) / 127.5)
        return torch.stack(videos)

    def load(self, checkpoint: str, device: torch.device) -> "StandIn":
        return self
