"""Training patches at fractions of a pixel, interpolated: only for `hpdm ablate claims`.

The paper takes patches at whole pixels of their level, since trilinear interpolation smooths them
and videos came out blurred (Sec. 4.5). A patch between pixels is the weighted mean of the eight
patches at the whole pixels around it.

Axis legend: `b` batch, `c` channels, `t h w` video, `l` level.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hpdm_core.data.batch_maker import MOST_ATTEMPTS, BatchMaker, MadeBatch, StepTask, Taken
from hpdm_core.data.entries import VideoEntry
from hpdm_core.data.order import sample_rng
from hpdm_core.data.pool import Mark
from hpdm_core.geometry.pyramid import Pyramid


@dataclass(frozen=True, kw_only=True)
class FractionalBatchMaker:
    """Makes the batches of a `BatchMaker`, of the same clips, with patches anywhere in them.

    Args:
        maker: draws videos, frames and captions.
    """

    maker: BatchMaker

    @property
    def entries(self) -> Sequence[VideoEntry]:
        return self.maker.entries

    @property
    def indices(self) -> range:
        return self.maker.indices

    def __call__(self, task: StepTask, mark: Mark) -> MadeBatch:
        pyramid = self.maker.rules.pyramid
        taken = [self.maker.take(task, index, mark)[0] for index in self.indices]
        # No attempt to read a video has this number, so that nothing else has these draws.
        draws = [sample_rng(self.maker.seed, task.step, i, MOST_ATTEMPTS) for i in self.indices]
        offsets = np.stack([draw_fractional_offsets(pyramid, rng) for rng in draws])  # (b, l, 3)
        pairs = zip(taken, offsets, strict=True)
        patches = torch.stack([self._patches(sample, own) for sample, own in pairs], dim=1)
        return self.maker.made(patches, torch.from_numpy(offsets).float(), taken)

    def _patches(self, sample: Taken, offsets: np.ndarray) -> Tensor:
        """Return one sample's patches (l, c, t, h, w) in 0..255 at offsets (l, 3)."""
        pyramid = self.maker.rules.pyramid
        whole = np.floor(offsets).astype(np.int64)
        fraction, last = offsets - whole, np.asarray(pyramid.levels) - pyramid.patch
        total = torch.zeros(pyramid.num_levels, 1, 3, *pyramid.patch)
        for corner in itertools.product((0, 1), repeat=3):
            weight = np.where(corner, fraction, 1 - fraction).prod(axis=1)  # (l,)
            spec = replace(sample.spec, offsets=np.minimum(whole + corner, last))
            patches = torch.empty_like(total)
            self.maker.fill(patches, {0: (self.maker.reader.read(sample.video, spec), spec)})
            total += torch.from_numpy(weight).float().reshape(-1, 1, 1, 1, 1, 1) * patches
        return total[:, 0]


def draw_fractional_offsets(pyramid: Pyramid, rng: np.random.Generator) -> np.ndarray:
    """Draw one nested patch per level, coarse to fine, uniformly over all places in its parent.

    Returns:
        (l, 3) float64 offsets in pixels of each level's own grid.
    """
    offsets = np.zeros((pyramid.num_levels, 3))
    for level in range(1, pyramid.num_levels):
        growth = np.asarray(pyramid.growth(level))
        room = (growth - 1) * np.asarray(pyramid.patch)
        offsets[level] = growth * offsets[level - 1] + room * rng.random(3)
    return offsets
