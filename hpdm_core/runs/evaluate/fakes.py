"""Fakes made on the fly for `hpdm eval-fvd`: seeds, classes as in the data, a level's own clips.

Axis legend: `b` batch, `c` channels, `t h w` video.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpdm_core.geometry.pyramid import Pyramid
from hpdm_core.records import NO_CLASS
from hpdm_core.runs.models import to_uint8
from hpdm_core.seeds import derive_seed

# (seeds, labels, level) -> videos of that level, (b, 3, t, h, w) float32, about [-1, 1].
Make = Callable[[tuple[int, ...], tuple[int, ...], int], Tensor]


@dataclass(frozen=True, kw_only=True)
class FakeModel:
    """A trained model, as scoring sees it.

    Args:
        sha256: of the weights file.
        settings: all else that a video depends on besides its seed and class, for the record.
        pyramid: the levels.
        classes: class names; empty for a model without classes.
        data: folder of the data set that it was trained on.
        frame_stride: of the clips that it was trained on.
        make: generates videos.
    """

    sha256: str
    settings: Mapping[str, object]
    pyramid: Pyramid
    classes: tuple[str, ...]
    data: str
    frame_stride: int
    make: Make


# (checkpoint, device) -> the model.
OpenModel = Callable[[str, torch.device], FakeModel]


@dataclass(frozen=True, kw_only=True)
class GeneratedClips:
    """Clips of generated videos (a `ClipSource`): place i is the video of seed `seed + i`.

    Args:
        make: generates videos.
        seed: of the first video.
        labels: class of each video.
        level: which level's videos.
        frames: number of frames of a clip.
        stride: every n-th frame.
        batch: videos per call.
    """

    make: Make
    seed: int
    labels: tuple[int, ...]
    level: int
    frames: int
    stride: int
    batch: int

    def __len__(self) -> int:
        return len(self.labels)

    def clips(self, start: int, stop: int) -> Iterator[np.ndarray]:
        for first in range(start, stop, self.batch):
            places = range(first, min(first + self.batch, stop))
            seeds = tuple(self.seed + place for place in places)
            labels = tuple(self.labels[place] for place in places)
            videos = to_uint8(self.make(seeds, labels, self.level))
            last = self.frames * self.stride
            yield from videos[:, : last : self.stride].numpy()


def draw_labels(
    classes: Sequence[str], real_classes: Sequence[str | None], *, count: int, seed: int
) -> tuple[int, ...]:
    """Return `count` labels distributed as the real videos' classes are.

    Label i is that of a real video drawn for (seed, i), so more fakes begin with the same ones.
    Real videos of classes that the model does not know do not count; without any that it knows,
    classes are equally likely.

    Args:
        classes: that the model knows; without any, all labels are `NO_CLASS`.
        real_classes: class of each real video.
        count: number of labels.
        seed: of the draw.
    """
    if not classes:
        return (NO_CLASS,) * count
    index = {name: label for label, name in enumerate(classes)}
    known = [index[name] for name in real_classes if name in index] or list(range(len(classes)))
    draws = (np.random.default_rng(derive_seed("label", seed, i)) for i in range(count))
    return tuple(known[int(rng.integers(len(known)))] for rng in draws)
