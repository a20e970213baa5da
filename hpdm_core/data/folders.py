"""Any folder of videos: sub-folders are classes, or splits if named like splits."""

import os
from collections.abc import Iterator
from pathlib import Path

from hpdm_core.data.faults import Problem
from hpdm_core.data.objects import RemoteFile, remote_folder
from hpdm_core.data.plan import DecodingOptions, Plan, SourceVideo
from hpdm_core.errors import DataError
from hpdm_core.names import as_unicode, is_unicode

VIDEO_SUFFIXES = frozenset(
    {
        ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
        ".mts", ".ogv", ".ts", ".webm", ".wmv", ".y4m",
    }
)  # fmt: skip
LONGEST_COMPONENT = 255
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def plan_folder(
    folder: Path, *, name: str, source: Path | str, options: DecodingOptions, workers: int | None
) -> Plan:
    """Plan a data set from every video below `source`, a folder or a URL in an object store.

    Raises:
        DataError: `source` is no folder, or holds no video.
    """
    found: list[tuple[str, Path | RemoteFile]]
    if isinstance(source, str):
        found = list(find_objects(source))
    else:
        check_folder(source)
        found = list(find_videos(source))
    if not found:
        raise DataError(
            f"no video in {source}",
            expected=f"files ending in {', '.join(sorted(VIDEO_SUFFIXES))}",
            remedy="give the folder that holds the videos (sub-folders become classes)",
        )
    tops = {name.split("/")[0].lower() for name, _ in found if "/" in name}
    at_top = any("/" not in name for name, _ in found)
    as_splits = {SPLITS.get(top) for top in tops}
    has_splits = "train" in as_splits and None not in as_splits and not at_top
    videos = [_video(name, file, has_splits=has_splits) for name, file in found]
    classes = tuple(sorted({v.class_name for v in videos if v.class_name is not None}))
    notes = []
    unlabelled = sum(v.class_name is None for v in videos)
    if classes and unlabelled:
        notes.append(f"videos beside the class folders have no class: {unlabelled}")
    if has_splits:
        notes.append(f"the folders {', '.join(sorted(tops))} were taken for splits")
    return Plan(
        folder=folder,
        name=name,
        kind="folder",
        classes=classes,
        source=source if isinstance(source, str) else as_unicode(str(source.resolve())),
        videos=videos,
        make=options,
        settings=options.settings,
        workers=workers,
        notes=tuple(notes),
    )


def check_folder(source: Path) -> None:
    """Raise DataError unless `source` is a folder."""
    if not source.is_dir():
        raise DataError(
            f"--source {source} is not a folder",
            got="a file" if source.exists() else "nothing there",
            remedy="give the folder that holds the videos",
        )


def find_videos(source: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name relative to `source`, file) of every video file, sorted, links followed."""
    seen: set[Path] = set()
    for place, folders, files in os.walk(source, followlinks=True):
        real = Path(place).resolve()
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in sorted(files):
            path = Path(place) / file
            if path.suffix.lower() in VIDEO_SUFFIXES and not file.startswith("."):
                yield path.relative_to(source).as_posix(), path


def find_objects(source: str) -> Iterator[tuple[str, RemoteFile]]:
    """Yield (name relative to `source`, object) of every video in an object store, sorted.

    Raises:
        DataError: the store cannot be reached.
    """
    for name, file in remote_folder(source).files():
        hidden = any(part.startswith(".") for part in name.split("/"))
        if file.suffix.lower() in VIDEO_SUFFIXES and not hidden:
            yield name, file


def _video(name: str, file: Path | RemoteFile, *, has_splits: bool) -> SourceVideo:
    parts = name.split("/")[:-1]
    split = SPLITS[parts[0].lower()] if has_splits else "train"
    class_parts = parts[1:] if has_splits else parts
    if problem := name_problem(name):
        return SourceVideo(file=file, name=name, split=split, problem=problem)
    return SourceVideo(file=file, name=name, class_name="/".join(class_parts) or None, split=split)


def name_problem(name: str) -> tuple[Problem, str] | None:
    """Return why a file's name cannot be used in a manifest or on a disk; None if it can."""
    if "\0" in name or not is_unicode(name):
        return "unreadable", "its name is not text in UTF-8; rename it"
    if any(len(part.encode()) > LONGEST_COMPONENT for part in name.split("/")):
        return "unreadable", f"its name is longer than the {LONGEST_COMPONENT} bytes of any file's"
    return None
