"""The built-in data set of moving shapes, rendered and written like any other data set."""

from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from hpdm_core.data.plan import (
    MOST_RENDERED,
    Job,
    Plan,
    SourceVideo,
    check_range,
    write_rendered,
)
from hpdm_core.data.shapes import SHAPE_CLASSES, ShapeVideo, render
from hpdm_core.data.transcode import Transcoded
from hpdm_core.seeds import derive_seed

FPS = 12.5
# The objects' texture of single pixels must survive the codec.
SHAPES_CRF = 8
# Least and most pixels along a side, and frames.
SIDE, FRAMES = (8, 1024), (1, 1024)


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """Settings of the rendering.

    Args:
        frames: frames of each video.
        size: height and width in pixels.
        seed: random seed.
    """

    frames: int
    size: int
    seed: int

    def __post_init__(self) -> None:
        check_range("size", self.size, *SIDE)
        check_range("frames", self.frames, *FRAMES)

    @property
    def settings(self) -> dict[str, Any]:
        return {"frames": self.frames, "size": self.size, "seed": self.seed, "crf": SHAPES_CRF}

    def __call__(self, job: Job) -> Transcoded:
        video = self.draw(int(job.video.name.rpartition("-")[2]))
        return write_rendered(job, video.frames, caption=video.caption, fps=FPS, crf=SHAPES_CRF)

    def draw(self, index: int) -> ShapeVideo:
        """Return video number `index`; classes alternate."""
        seed = derive_seed("shapes", self.seed, index)
        return render(seed, index % len(SHAPE_CLASSES), frames=self.frames, size=self.size)


def plan_shapes(
    folder: Path, *, name: str, num: int, options: RenderOptions, workers: int | None
) -> Plan:
    """Plan `num` videos of shapes.

    Raises:
        DataError: `num` is out of range.
    """
    check_range("num", num, 1, MOST_RENDERED)
    videos = [
        SourceVideo(file=None, name=f"shape-{index:06d}", class_name=name_of_class)
        for index, name_of_class in zip(range(num), cycle(SHAPE_CLASSES), strict=False)
    ]
    return Plan(
        folder=folder,
        name=name,
        kind="shapes",
        classes=SHAPE_CLASSES,
        source="built in",
        videos=videos,
        make=options,
        settings=options.settings,
        workers=workers,
    )
