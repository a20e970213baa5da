"""`hpdm prep`: prepare a data set of shapes, walks, a folder, UCF-101 or captions."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpdm_core.data.captions import plan_captions
from hpdm_core.data.commit import commit, find_sharded
from hpdm_core.data.folders import plan_folder
from hpdm_core.data.manifest import open_manifest
from hpdm_core.data.objects import RemoteFolder, is_url, join_url, remote_folder
from hpdm_core.data.plan import MIN_FRAMES, DecodingOptions, Plan, PrepShard
from hpdm_core.data.prepare import describe, prepare
from hpdm_core.data.remote_prep import commit_remote, remote_part
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
    root: Path | str,
    *,
    source: Path | str,
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
        root: folder of data sets, or a URL in an object store (s3://bucket/data; needs `shard`).
        source: the folder, or a URL.
        name: None uses the folder's own name.
        min_frames: videos with fewer frames are refused.
        size: (h, w) that larger videos are shrunk to cover; None keeps the original size.
        shard: 'i/n': the i-th of n tasks, which `run_prep_commit` joins; None prepares all.
    """
    source = _place(source)
    if name is None:
        own = source.rstrip("/") if isinstance(source, str) else str(source.resolve())
        name = own.rpartition("/")[2]
    _check_name(name)  # before a long scan
    options = DecodingOptions(min_frames=min_frames, size=size)
    part = _parse_shard(shard)
    with _destination(root, name, part, dry_run=dry_run) as (folder, store):
        plan = plan_folder(folder, name=name, source=source, options=options, workers=workers)
        plan = replace(plan, shard=part, store=store)
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
    root: Path | str,
    *,
    source: Path | str,
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
        root: as in `run_prep_folder`.
        source: .jsonl or .csv with a file and a caption per line, or its URL.
        text_encoder: name or folder of an encoder for transformers; None stores no embeddings.
        device: where the encoder computes; 'auto' uses CUDA if available.
        shard: as in `run_prep_folder`.
    """
    part, source = _parse_shard(shard), _place(source)
    _check_name(name)
    options = DecodingOptions(min_frames=min_frames, size=size)
    with _destination(root, name, part, dry_run=dry_run) as (folder, store):
        plan = plan_captions(folder, name=name, source=source, options=options, workers=workers)
        plan = replace(plan, shard=part, store=store)
        result = _carry_out(plan, progress, dry_run=dry_run)
        if dry_run or text_encoder is None:
            return result | {"text_encoder": text_encoder}
        text = _encode(plan, text_encoder, device, progress)
    return result | {"text": text}


def _encode(plan: Plan, text_encoder: str, device: str, progress: Progress) -> dict[str, Any]:
    # Only here: the other kinds need neither torch nor transformers.
    import torch

    from hpdm_core.data.text_encoder import store_embeddings

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with _alone_in(plan.records):
        prepared = open_manifest(plan.records, classes=())
        return store_embeddings(
            plan.records,
            [c for e in prepared for c in (e.caption, *e.more_captions) if c is not None],
            encoder_name=text_encoder,
            device=torch.device(device),
            progress=progress,
        )


def run_prep_commit(folder: Path | str) -> dict[str, Any]:
    """Join the shards of a data set.

    Args:
        folder: of the data set, or the data root if it holds one data set with shards; or a URL.

    Raises:
        DataError: a shard is missing; the message names it.
    """
    place = _place(folder)
    if isinstance(place, str):
        return commit_remote(place)
    folder = find_sharded(place)
    with _alone_in(folder):
        return commit(folder)


def _place(place: Path | str) -> Path | str:
    """Return a URL as text, and anything else as a path."""
    return place if is_url(place) else Path(place)


@contextmanager
def _destination(
    root: Path | str, name: str, shard: PrepShard | None, *, dry_run: bool
) -> Iterator[tuple[Path, RemoteFolder | None]]:
    """Yield the data set's folder, or one that stands for it and the store."""
    if not is_url(root):
        yield Path(root) / name, None
    elif dry_run:
        yield Path(name), remote_folder(join_url(root, name))
    else:
        with remote_part(join_url(root, name), shard) as both:
            yield both


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
