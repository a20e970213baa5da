"""Video, frames and patches of each sample: pure functions of the seed.

Sample `index` of step `step` is number `step * batch_size + index` of endless epochs, each of
which visits every video once in its own order. There is no other state, so a run resumes
in the middle of an epoch by starting at a later step.

Axis legend: `l` level, `t` frames of the finished clip.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import isqrt
from typing import Literal

import numpy as np

from hpdm_core.data.entries import VideoEntry
from hpdm_core.geometry.pyramid import Pyramid, sample_offsets

ShortClips = Literal["drop", "loop", "hold"]
# Of the Feistel network that orders an epoch.
ROUNDS = 6
MASK = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class ClipRules:
    """How clips are sampled from videos.

    Args:
        pyramid: the levels' resolutions; a clip has the finest one's frames.
        frame_stride: take every n-th frame of the source.
        short_clips: what to do with videos of too few frames.
        flip: mirror half of the clips left to right.
        image_fraction: fraction of samples that are one frame, repeated.
    """

    pyramid: Pyramid
    frame_stride: int
    short_clips: ShortClips
    flip: bool
    image_fraction: float

    @property
    def span(self) -> int:
        """Frames of the source that a clip spans."""
        return (self.pyramid.resolution[0] - 1) * self.frame_stride + 1

    @property
    def min_frames(self) -> int:
        """Frames that a video needs; 0 where any will do."""
        return self.span if self.short_clips == "drop" else 0


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """Frames, mirroring and patches of one sample.

    Args:
        frames: (t,) int64 frames of the source that make up the clip.
        mirrored: whether the clip is mirrored left to right.
        offsets: (l, 3) int64 offsets of the nested patches (Sec. 4.1).
    """

    frames: np.ndarray
    mirrored: bool
    offsets: np.ndarray


def video_at(place: int, *, seed: int, epoch: int, count: int) -> int:
    """Return the video at a place of an epoch's order of `count` videos; needs no memory.

    A Feistel network on pairs (a, b) of digits to the base ceil(sqrt(count)) permutes a domain
    slightly larger than `count`; results outside are permuted again until one is inside
    (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    base = isqrt(count - 1) + 1
    while True:
        high, low = divmod(place, base)
        for key in _round_keys(seed % 2**64, epoch):
            high, low = low, (high + _mixed(low + key)) % base
        place = high * base + low
        if place < count:
            return place


@lru_cache(maxsize=8)
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(map(int, np.random.SeedSequence((seed, epoch)).generate_state(ROUNDS, np.uint64)))


def _mixed(value: int) -> int:
    """Return 64 bits that depend on all bits of `value` (the finaliser of SplitMix64)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


def sample_rng(seed: int, step: int, index: int, attempt: int) -> np.random.Generator:
    """Return the generator of one sample; `attempt` counts bad files before."""
    return np.random.default_rng((seed % 2**64, step, index, attempt))


def choose_video(
    rng: np.random.Generator, *, seed: int, number: int, count: int, attempt: int
) -> int:
    """Return the video of sample `number` of the whole run; after a bad file, any video."""
    if attempt:
        return int(rng.integers(count))
    epoch, place = divmod(number, count)
    return video_at(place, seed=seed, epoch=epoch, count=count)


def draw_sample(rng: np.random.Generator, rules: ClipRules, entry: VideoEntry) -> ClipSpec:
    """Draw the clip's frames and the patches' offsets."""
    frames = _draw_frames(rng, rules, entry.num_frames)
    if rng.random() < rules.image_fraction or entry.is_image:
        frames = np.full_like(frames, frames[rng.integers(len(frames))])
    mirrored = rules.flip and rng.random() < 0.5
    return ClipSpec(frames=frames, mirrored=mirrored, offsets=sample_offsets(rules.pyramid, rng))


def choose_caption(rng: np.random.Generator, entry: VideoEntry) -> str:
    """Return one of a video's captions, '' if it has none."""
    if not entry.more_captions:
        return entry.caption or ""
    return (entry.caption, *entry.more_captions)[rng.integers(1 + len(entry.more_captions))]


def _draw_frames(rng: np.random.Generator, rules: ClipRules, available: int) -> np.ndarray:
    frames = np.arange(0, rules.span, rules.frame_stride)
    if available >= rules.span:
        return frames + rng.integers(available - rules.span + 1)
    if rules.short_clips == "loop":
        return (frames + rng.integers(available)) % available
    return np.minimum(frames, available - 1)
