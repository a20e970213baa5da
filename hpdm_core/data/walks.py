"""The data set of first-person walks, rendered and written like any other data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpdm_core.data.plan import (
    MOST_RENDERED,
    Job,
    Plan,
    SourceVideo,
    check_range,
    write_rendered,
)
from hpdm_core.data.transcode import Transcoded
from hpdm_core.data.walk_path import draw_path
from hpdm_core.data.walk_render import (
    MAX_SIZE,
    MIN_SIZE,
    VARIANTS,
    engine_of_this_process,
    import_vizdoom,
    layouts,
)
from hpdm_core.data.walk_scenes import SCENES, WALK_CLASSES
from hpdm_core.errors import DataError, did_you_mean
from hpdm_core.seeds import derive_seed

FPS = 16.0
WALKS_CRF = 12
# Longer walks are possible only at a slow pace.
MAX_FRAMES = 128


@dataclass(frozen=True, kw_only=True)
class Walk:
    """One rendered walk.

    Args:
        frames: (t, h, w, 3) uint8.
        caption: of the walk.
    """

    frames: np.ndarray
    caption: str


@dataclass(frozen=True, kw_only=True)
class WalkOptions:
    """How walks are rendered.

    Args:
        frames: frames of each video.
        size: height and width in pixels.
        seed: random seed.
        engine: name and version of what renders; another one may render other pixels.
    """

    frames: int
    size: int
    seed: int
    engine: str

    def __post_init__(self) -> None:
        check_range("size", self.size, MIN_SIZE, MAX_SIZE)
        check_range("frames", self.frames, 1, MAX_FRAMES)
        if self.size % 2:
            raise DataError("--size must be even", got=self.size, expected=self.size + 1)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "frames": self.frames,
            "size": self.size,
            "seed": self.seed,
            "engine": self.engine,
            "crf": WALKS_CRF,
        }

    def __call__(self, job: Job) -> Transcoded:
        scene, _, number = job.video.name.rpartition("-")
        walk = self.draw(scene, int(number))
        return write_rendered(job, walk.frames, caption=walk.caption, fps=FPS, crf=WALKS_CRF)

    def draw(self, scene: str, number: int) -> Walk:
        """Render walk `number` of a scene; the same arguments give the same pixels."""
        rng = np.random.default_rng(derive_seed("walk", self.seed, scene, number))
        index = WALK_CLASSES.index(scene)
        map_index = index * VARIANTS + int(rng.integers(VARIANTS))
        path = draw_path(layouts()[map_index], self.frames, rng)
        frames = engine_of_this_process(self.size).render(map_index, path)
        return Walk(frames=frames, caption=f"{path.motion} in {SCENES[index].words}")


def choose_scenes(names: Sequence[str]) -> tuple[str, ...]:
    """Return the scenes to render, each once, in their own order; all of them for no names.

    Raises:
        DataError: there is no scene of that name.
    """
    for name in names:
        if name not in WALK_CLASSES:
            raise DataError(
                "there is no such scene",
                got=repr(name),
                expected=", ".join(WALK_CLASSES),
                remedy=did_you_mean(name, WALK_CLASSES),
            )
    return tuple(name for name in WALK_CLASSES if name in names or not names)


def plan_walks(
    folder: Path,
    *,
    name: str,
    num: int,
    scenes: Sequence[str],
    options: WalkOptions,
    workers: int | None,
) -> Plan:
    """Plan `num` walks; the scenes alternate.

    Args:
        scenes: which scenes, and so classes; all where it is empty.

    Raises:
        DataError: there is no such scene, or `num` is out of range.
    """
    classes = choose_scenes(scenes)
    check_range("num", num, 1, MOST_RENDERED)
    turns = [(classes[index % len(classes)], index // len(classes)) for index in range(num)]
    videos = [
        SourceVideo(file=None, name=f"{scene}-{number:05d}", class_name=scene)
        for scene, number in turns
    ]
    return Plan(
        folder=folder,
        name=name,
        kind="vizdoom",
        classes=classes,
        source="rendered by hpdm",
        videos=videos,
        make=options,
        settings=options.settings,
        workers=workers,
    )


def installed_engine() -> str:
    """Return name and version of the engine.

    Raises:
        DataError: it is not installed.
    """
    return f"vizdoom {import_vizdoom().__version__}"
