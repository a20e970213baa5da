"""`hpdm prep`: prepare a data set of shapes, walks, a folder, UCF-101 or captions."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpdm_core.data.captions import plan_captions
from hpdm_core.data.commit import commit, find_sharded
from hpdm_core.data.folders import plan_folder
from hpdm_core.data.manifest import open_manifest
from hpdm_core.data.plan import MIN_FRAMES, DecodingOptions, Plan, PrepShard
from hpdm_core.data.prepare import describe, prepare
from hpdm_core.data.synthetic import RenderOptions, plan_shapes
from hpdm_core.data.ucf101 import plan_ucf101
from hpdm_core.data.ucf101_source import check_source, describe_source, obtain
from hpdm_core.data.walks import WalkOptions, installed_engine, plan_walks
from hpdm_core.errors import DataError
from hpdm_core.locks import lock_folder
from hpdm_core.names import plain_name
from hpdm_core.progress import Progress


def run_prep_shapes(
    root: Path,
    *,
    progress: Progress,
    name: str = "shapes",
    num: int = 2000,
    size: int = 64,
    frames: int = 16,
    seed: int = 0,
    workers: int | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Generate the built-in data set in `root/name`.

    Args:
        num: number of videos; the classes alternate.
        size: height and width in pixels.
        frames: frames of each video.
        seed: random seed.
        workers: processes; None uses every core.
        dry_run: plan only.
    """
    options = RenderOptions(frames=frames, size=size, seed=seed)
    plan = plan_shapes(root / name, name=name, num=num, options=options, workers=workers)
    return _carry_out(plan, progress, dry_run=dry_run)


def run_prep_vizdoom(
    root: Path,
    *,
    progress: Progress,
    name: str = "vizdoom",
    num: int = 2400,
    size: int = 64,
    frames: int = 32,
    scenes: Sequence[str] = (),
    seed: int = 0,
    workers: int | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Render first-person walks to `root/name`.

    Args:
        num: number of videos; the scenes alternate.
        size: height and width in pixels.
        frames: frames of each video.
        scenes: which scenes, by name; empty takes all.
        seed: random seed.
        workers: processes; None uses every core.
        dry_run: plan only.

    Raises:
        DataError: the package vizdoom is not installed, or an argument is out of range.
    """
    options = WalkOptions(frames=frames, size=size, seed=seed, engine=installed_engine())
    plan = plan_walks(
        root / name, name=name, num=num, scenes=scenes, options=options, workers=workers
    )
    return _carry_out(plan, progress, dry_run=dry_run)


def run_prep_folder(
    root: Path,
    *,
    source: Path,
    progress: Progress,
    name: str | None = None,
    min_frames: int = MIN_FRAMES,
    size: tuple[int, int] | None = None,
    workers: int | None = None,
    shard: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Prepare any folder of videos to `root/name`; sub-folders are classes.

    Args:
        source: the folder.
        name: None uses the folder's own name.
        min_frames: videos with fewer frames are refused.
        size: (h, w) that larger videos are shrunk to cover; None keeps the original size.
        shard: 'i/n': the i-th of n tasks, which `run_prep_commit` joins; None prepares all.
    """
    name = source.resolve().name if name is None else name
    _check_name(name)  # before a long scan
    options = DecodingOptions(min_frames=min_frames, size=size)
    part = _parse_shard(shard)
    plan = plan_folder(root / name, name=name, source=source, options=options, workers=workers)
    plan = replace(plan, shard=part)
    return _carry_out(plan, progress, dry_run=dry_run)


def run_prep_ucf101(
    root: Path,
    *,
    source: str | None = None,
    progress: Progress,
    name: str = "ucf101",
    fold: int = 1,
    min_frames: int = MIN_FRAMES,
    size: tuple[int, int] | None = None,
    workers: int | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Prepare UCF-101 to `root/name`.

    Args:
        source: an extracted folder, a .rar, .zip or .tar, a URL, or None to download it.
        fold: which of the three official split lists, 1 to 3.
    """
    _check_name(name)
    folder = root / name
    if dry_run and (waiting := describe_source(source)):
        return {"dry_run": True, "name": name, "folder": str(folder), **waiting}
    check_source(source)
    options = DecodingOptions(min_frames=min_frames, size=size)
    # Not only in `_carry_out`: downloads and unpacking need the lock too.
    with nullcontext() if dry_run else _alone_in(folder):
        files = obtain(source, folder, progress)
        plan = plan_ucf101(
            folder, name=name, files=files, fold=fold, options=options, workers=workers
        )
        return describe(plan) if dry_run else prepare(plan, progress)


def run_prep_captions(
    root: Path,
    *,
    source: Path,
    progress: Progress,
    text_encoder: str | None = None,
    name: str = "captions",
    min_frames: int = MIN_FRAMES,
    size: tuple[int, int] | None = None,
    workers: int | None = None,
    device: str = "auto",
    shard: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Prepare captioned videos and images to `root/name`, and their text embeddings.

    Args:
        source: .jsonl or .csv with a file and a caption per line.
        text_encoder: name or folder of an encoder for transformers; None stores no embeddings.
        device: where the encoder computes; 'auto' uses CUDA if available.
        shard: as in `run_prep_folder`.
    """
    part = _parse_shard(shard)
    folder = root / name
    options = DecodingOptions(min_frames=min_frames, size=size)
    plan = plan_captions(folder, name=name, source=source, options=options, workers=workers)
    plan = replace(plan, shard=part)
    result = _carry_out(plan, progress, dry_run=dry_run)
    if dry_run or text_encoder is None:
        return result | {"text_encoder": text_encoder}
    # Only here: the other kinds need neither torch nor transformers.
    import torch

    from hpdm_core.data.text_encoder import store_embeddings

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with _alone_in(plan.records):
        prepared = open_manifest(plan.records, classes=())
        text = store_embeddings(
            plan.records,
            [c for e in prepared for c in (e.caption, *e.more_captions) if c is not None],
            encoder_name=text_encoder,
            device=torch.device(device),
            progress=progress,
        )
    return result | {"text": text}


def run_prep_commit(folder: Path) -> dict[str, Any]:
    """Join the shards of a data set.

    Args:
        folder: of the data set, or the data root if it holds one data set with shards.

    Raises:
        DataError: a shard is missing; the message names it.
    """
    folder = find_sharded(folder)
    with _alone_in(folder):
        return commit(folder)


def _parse_shard(text: str | None) -> PrepShard | None:
    return None if text is None else PrepShard.parse(text)


def _carry_out(plan: Plan, progress: Progress, *, dry_run: bool) -> dict[str, Any]:
    _check_name(plan.name)
    if dry_run:
        return describe(plan)
    with _alone_in(plan.records):
        return prepare(plan, progress)


def _check_name(name: str) -> None:
    try:
        plain_name(name)
    except ValueError as error:
        raise DataError(f"--name {error}") from error


def _alone_in(folder: Path) -> AbstractContextManager[None]:
    remedy = "wait for it, stop it, or give another --name"
    return lock_folder(folder, doing="preparing", remedy=remedy)
