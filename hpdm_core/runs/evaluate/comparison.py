"""The two sets that `hpdm eval-fvd` compares, set up before anything is computed.

Axis legend: `t h w` frames, rows, columns.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hpdm_core.errors import MetricError, did_you_mean
from hpdm_core.files import json_sha256
from hpdm_core.metrics.extract import ClipSource
from hpdm_core.metrics.inception import NUM_SPLITS, too_few_to_split
from hpdm_core.metrics.protocols import EXAMPLES, MIN_VIDEOS, Protocol, parse_protocol
from hpdm_core.metrics.store import CHUNK
from hpdm_core.pipeline.pipeline import Pipeline
from hpdm_core.runs.evaluate.clips import (
    ClipFormat,
    FileClips,
    GeneratedClips,
    VideoSet,
    common_size,
    draw_labels,
    in_random_order,
    open_videos,
)
from hpdm_core.runs.evaluate.framing import PREPARATIONS, Preparation

# Real clips start at random frames, the same ones in every comparison.
REAL_SEED = 0
KEY_VERSION = 1
# Numbers in a batch of videos; a solver keeps several copies.
VALUES_PER_BATCH = 1 << 28


@dataclass(frozen=True, kw_only=True)
class ClipSet:
    """One of the two sets.

    Args:
        clips: source of its clips.
        wanted: number of usable clips that are scored.
        key: everything that a clip depends on besides its index.
        facts: what is reported of the set.
        is_real: which of the two it is.
        classes: class of each index, None if unknown.
    """

    clips: ClipSource
    wanted: int
    key: Mapping[str, object]
    facts: Mapping[str, object]
    is_real: bool
    classes: tuple[str | None, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two sets of clips in the same format.

    Args:
        protocol: of the comparison.
        frames: of each clip.
        clip_facts: what is reported of the clips.
        fakes: the set that is scored.
        reals: the reference set, None if no score needs one.
        warnings: caveats of the figures.
    """

    protocol: Protocol
    frames: int
    clip_facts: Mapping[str, object]
    fakes: ClipSet
    reals: ClipSet | None
    warnings: tuple[str, ...]


def check_positive(numbers: Mapping[str, int | None]) -> None:
    """Raise MetricError where a number of videos, by option, is below 1."""
    for option, number in numbers.items():
        if number is not None and number < 1:
            raise MetricError(f"{option} is too small", got=number, expected="at least 1")


def choose_protocol(name: str | None, num_fakes: int | None) -> Protocol:
    """Return the named protocol, with another number of fakes where one is given."""
    if name is None:
        raise MetricError("no protocol", expected=f"--protocol with a name such as {EXAMPLES}")
    protocol = parse_protocol(name)
    return protocol if num_fakes is None else replace(protocol, num_fakes=num_fakes)


def choose_preparation(name: str) -> Preparation:
    """Return the preparation of that name, or raise MetricError."""
    for known in PREPARATIONS:
        if name == known:
            return known
    raise MetricError(
        "there is no such --preparation",
        got=name,
        expected=" or ".join(PREPARATIONS),
        remedy=did_you_mean(name, PREPARATIONS),
    )


def plan_comparison(
    protocol: Protocol,
    *,
    model: Pipeline | None,
    samples: Path | None,
    real: str | Path | None,
    split: str | None,
    seed: int,
    batch: int | None,
    needs_real: bool,
    uses_real: bool,
    preparation: Preparation = "hpdm",
) -> Comparison:
    """Set up the two sets.

    Args:
        needs_real: a score compares with real videos.
        uses_real: a score stands beside that of real videos, where there are any.
        preparation: of clips from files, see `ClipFormat`.

    Raises:
        MetricError: they cannot be compared so.
    """
    if (model is None) == (samples is None):
        raise MetricError(
            "say what to score", expected="one of --checkpoint and --samples, and not both"
        )
    source = real or (model.data_folder if model is not None else None)
    if source is None and needs_real:
        raise MetricError("no real videos to compare with", expected="--real DATA")
    reals = None
    if source is not None and (needs_real or uses_real or model is not None):
        reals = open_videos(Path(source), split=split, default_split="train")
    if model is not None:
        fakes, spec, warnings = _generated(protocol, model, reals, seed=seed, batch=batch)
    else:
        fakes, spec, warnings = _from_folder(protocol, samples, seed=seed, preparation=preparation)
    spec = replace(spec, preparation=preparation)
    wanted = reals is not None and (needs_real or uses_real)
    real_set = _real_set(reals, spec) if wanted else None
    if real_set is not None and fakes.facts["sha256"] == real_set.facts["sha256"]:
        warnings.append("the fakes are the real videos themselves: their distance means nothing")
    return Comparison(
        protocol=replace(protocol, num_fakes=fakes.wanted),
        frames=spec.frames,
        clip_facts={
            "frames": spec.frames,
            "stride": protocol.stride,
            "real_stride": spec.stride,
            "size": [side // s for side, s in zip(spec.size, spec.shrink, strict=True)],
            "level": protocol.level,
            "preparation": preparation,
        },
        fakes=fakes,
        reals=real_set,
        warnings=tuple(warnings),
    )


def check_counts(comparison: Comparison, metrics: Sequence[str], *, force: bool) -> None:
    """Raise MetricError where there are too few videos for a figure that means something.

    Args:
        metrics: names of what is scored.
        force: compute a Fréchet distance of however few.
    """
    source, there = (comparison.fakes.facts.get(key) for key in ("source", "of"))
    if there is not None and comparison.fakes.wanted > there:
        raise MetricError(
            f"{source} holds too few videos for {comparison.protocol.name}",
            got=there,
            expected=comparison.fakes.wanted,
            remedy=f"add videos, or score what is there with --num-fakes {there}",
        )
    if "is" in metrics and comparison.fakes.wanted < NUM_SPLITS:
        raise too_few_to_split(comparison.fakes.wanted, NUM_SPLITS)
    if "fvd" not in metrics or force:
        return
    for name, clip_set in (("fakes", comparison.fakes), ("real videos", comparison.reals)):
        if clip_set is not None and clip_set.wanted < MIN_VIDEOS:
            raise _too_few(name, clip_set.wanted)


def _real_set(videos: VideoSet, spec: ClipFormat) -> ClipSet:
    facts = {
        "source": str(videos.source),
        "split": videos.split,
        "sha256": videos.sha256,
        "count": len(videos.files),
        "start": f"random, seed {REAL_SEED}",
    }
    key = {"version": KEY_VERSION, "videos": videos.sha256, "split": videos.split} | asdict(spec)
    return ClipSet(
        clips=FileClips(files=videos.files, spec=spec),
        wanted=len(videos.files),
        key=key,
        facts=facts,
        is_real=True,
        classes=tuple(file.class_name for file in videos.files),
    )


def _from_folder(
    protocol: Protocol, folder: Path, *, seed: int, preparation: Preparation
) -> tuple[ClipSet, ClipFormat, list[str]]:
    if protocol.level is not None:
        raise MetricError(
            f"protocol {protocol.name} needs a model's pyramid",
            got="--samples",
            remedy="give --checkpoint, or a protocol with frames such as fvd512_16f",
        )
    videos = open_videos(folder, split=None, default_split="all")
    wanted = protocol.num_fakes or len(videos.files)
    size, is_common = common_size(videos.files)
    warnings = [] if is_common else [f"the fakes differ in size; all clips are {size[0]}x{size[1]}"]
    spec = ClipFormat(
        frames=protocol.frames, stride=protocol.stride, size=size, preparation=preparation
    )
    files = in_random_order(videos, seed)
    key = {"version": KEY_VERSION, "videos": videos.sha256, "order": seed} | asdict(spec)
    clip_set = ClipSet(
        clips=FileClips(files=files, spec=spec),
        wanted=wanted,
        key=key,
        facts={
            "source": str(folder),
            "sha256": videos.sha256,
            "count": wanted,
            "of": len(videos.files),
            "order_seed": seed,
            "start": "first frame",
        },
        is_real=False,
        classes=tuple(file.class_name for file in files),
    )
    return clip_set, replace(spec, start_seed=REAL_SEED), warnings


def _generated(
    protocol: Protocol, model: Pipeline, reals: VideoSet | None, *, seed: int, batch: int | None
) -> tuple[ClipSet, ClipFormat, list[str]]:
    if protocol.num_fakes is None:
        raise MetricError(
            f"protocol {protocol.name} takes all fakes there are, and a model makes endless ones",
            remedy="give --num-fakes, or a protocol such as fvd2048_16f",
        )
    level, frames, spec, warnings = _model_clips(protocol, model)
    real_classes = () if reals is None else tuple(file.class_name for file in reals.files)
    labels = draw_labels(model.classes, real_classes, count=protocol.num_fakes, seed=seed)
    known = sorted({name for name in real_classes if name in model.classes})
    key = {
        "version": KEY_VERSION,
        "weights": model.sha256,
        "settings": model.facts,
        "seed": seed,
        "level": level,
        "frames": frames,
        "stride": protocol.stride,
        # Label i depends on how often each class occurs in the real data.
        "labels": json_sha256(sorted(str(name) for name in real_classes) if known else []),
    }
    clips = GeneratedClips(
        pipeline=model,
        seed=seed,
        labels=labels,
        level=level,
        frames=frames,
        stride=protocol.stride,
        batch=batch or _batch(model),
    )
    clip_set = ClipSet(
        clips=clips,
        wanted=protocol.num_fakes,
        key=key,
        facts={
            "source": "generated",
            "sha256": model.sha256,
            "count": protocol.num_fakes,
            "seeds": [seed, seed + protocol.num_fakes - 1],
            "classes": "as in the real data" if known else "uniform" if model.classes else "none",
            "settings": model.facts,
        },
        is_real=False,
        classes=tuple(model.classes[label] if model.classes else None for label in labels),
    )
    return clip_set, spec, warnings


def _model_clips(protocol: Protocol, model: Pipeline) -> tuple[int, int, ClipFormat, list[str]]:
    """Return level and frames of the fakes, the format of the reals' clips, and warnings."""
    levels, finest = model.pyramid.levels, model.pyramid.resolution
    if protocol.level is not None:
        if protocol.level >= len(levels):
            raise MetricError(
                f"the model has no level {protocol.level}", expected=f"0 to {len(levels) - 1}"
            )
        strides = model.pyramid.stride(protocol.level)
        spec = ClipFormat(
            frames=levels[protocol.level][0],
            stride=strides[0] * model.frame_stride,
            size=finest[1:],
            shrink=strides[1:],
            start_seed=REAL_SEED,
        )
        return protocol.level, spec.frames, spec, []
    if protocol.frames * protocol.stride > finest[0]:
        raise MetricError(
            f"the model's videos are too short for {protocol.name}",
            got=f"{finest[0]} frames",
            expected=f"at least {protocol.frames * protocol.stride}",
        )
    warnings = []
    if model.frame_stride != 1:
        warnings.append(
            f"the model was trained on every {model.frame_stride}. frame, and {protocol.name} "
            f"takes every {protocol.stride}. of the real videos: see fvdN_levelL"
        )
    spec = ClipFormat(
        frames=protocol.frames, stride=protocol.stride, size=finest[1:], start_seed=REAL_SEED
    )
    return len(levels) - 1, protocol.frames, spec, warnings


def _batch(model: Pipeline) -> int:
    """Return the videos per batch: at most a chunk of features."""
    values = 3 * math.prod(model.pyramid.resolution)
    return max(1, min(CHUNK, VALUES_PER_BATCH // values))


def _too_few(name: str, count: int) -> MetricError:
    return MetricError(
        f"too few {name} for a Fréchet distance that means something",
        got=count,
        expected=f"at least {MIN_VIDEOS}",
        remedy="the distance grows as videos get fewer; with --force it is computed all the same, "
        "and an estimate of its bias is printed beside it",
    )
