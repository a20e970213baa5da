"""Data passed between parts: conditions, batches of patch pyramids, and interfaces as protocols.

Axis legend: `b` batch, `c` channels, `t h w` video, `l` level, `n` tokens,
`m` latents, `d` width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from hpdm_core.geometry.boxes import Box

NO_CLASS = -1
# Raised when the same weights, settings and seeds give other videos: kept features, rows of tables
# and folders of videos say which they are of. 2: parents of tiles by the true times of frames.
SAMPLING_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What generation is conditioned on: a class, a text, or nothing.

    Args:
        labels: (b,) int64 class indices, `NO_CLASS` for none; None for models without classes.
        text: (b, n, d) token embeddings; None for models without text.
        text_mask: (b, n) bool, True for valid tokens; a row without any is 'no text'.
    """

    labels: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None

    def to(self, device: torch.device) -> "Condition":
        return self._map(lambda x: x.to(device, non_blocking=True))

    def select(self, index: Tensor | slice) -> "Condition":
        """Return the rows at `index` (repeats allowed: one condition for many tiles)."""
        return self._map(lambda x: x[index])

    def drop(self, rows: Tensor) -> "Condition":
        """Return the condition with 'none' in the given rows (classifier-free guidance).

        Args:
            rows: (b,) bool, True where the condition is dropped.
        """
        labels, mask = self.labels, self.text_mask
        return Condition(
            labels=None if labels is None else torch.where(rows, NO_CLASS, labels),
            text=self.text,
            text_mask=None if mask is None else mask & ~rows[:, None],
        )

    def dropped(self) -> "Condition":
        """Return 'none' in every row."""
        return Condition(
            labels=None if self.labels is None else torch.full_like(self.labels, NO_CLASS),
            text=self.text,
            text_mask=None if self.text_mask is None else torch.zeros_like(self.text_mask),
        )

    def _map(self, function) -> "Condition":
        return Condition(
            labels=None if self.labels is None else function(self.labels),
            text=None if self.text is None else function(self.text),
            text_mask=None if self.text_mask is None else function(self.text_mask),
        )


@dataclass(frozen=True, kw_only=True)
class PatchBatch:
    """Clean nested patches of a batch of videos: what the loader yields and the loss takes.

    Args:
        patches: per level (b, c, t, h, w) float32 in [-1, 1], all of the patch size.
        offsets: (b, l, 3) int64 offsets in pixels of each level's own grid (or float32, for
            patches at fractions of a pixel).
        condition: one row per video; nothing by default, for networks without classes and text.
        indices: (b,) int64 index of each sample in the global batch of this step, the same on
            any number of processes: noise is drawn per (seed, step, index). 0 .. b - 1 by default.
        keys: (b,) names of the videos, for messages; their indices by default.
    """

    patches: tuple[Tensor, ...]
    offsets: Tensor
    condition: Condition = Condition()
    indices: Tensor = None  # never None once made
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # The way to fill in defaults that depend on other fields in a frozen dataclass.
        if self.indices is None:
            object.__setattr__(self, "indices", torch.arange(len(self.offsets)))
        if not self.keys:
            object.__setattr__(self, "keys", tuple(str(k) for k in self.indices.tolist()))

    def to(self, device: torch.device) -> "PatchBatch":
        return replace(
            self,
            patches=tuple(p.to(device, non_blocking=True) for p in self.patches),
            offsets=self.offsets.to(device, non_blocking=True),
            condition=self.condition.to(device),
        )


@dataclass(frozen=True, kw_only=True)
class LevelOutput:
    """Network output for the patches of one level.

    Args:
        output: (b, c, t, h, w); (0,) where only latents and features were computed.
        latents: (b, m, d) final latents; m is 0 for networks without.
        features: what finer levels need of these patches, each with one row per patch.
    """

    output: Tensor
    latents: Tensor
    features: tuple[Tensor, ...]


class Network(Protocol):
    """What the training loss calls: all levels of a pyramid in one pass."""

    def __call__(
        self,
        inputs: tuple[Tensor, ...],
        c_noise: Tensor,
        boxes: tuple[Box, ...],
        condition: Condition,
        latents: tuple[Tensor, ...] | None,
        *,
        latents_only: bool = False,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return outputs and final latents by level; arguments as of `HPDM.forward`."""
        ...


class LevelNetwork(Protocol):
    """What tiled inference calls: one level at a time, coarse to fine."""

    def run_level(
        self,
        inputs: Tensor,
        c_noise: Tensor,
        *,
        level: int,
        condition: Condition,
        context: tuple[Tensor, ...],
        latents: Tensor | None,
        latents_only: bool = False,
    ) -> LevelOutput:
        """Run one level whose context is known; arguments as of `HPDM.run_level`."""
        ...

    def context(
        self, features: Sequence[tuple[Tensor, ...]], boxes: tuple[Box, ...]
    ) -> tuple[Tensor, ...]:
        """Return what patches need of their lower levels; arguments as of `HPDM.context`."""
        ...
