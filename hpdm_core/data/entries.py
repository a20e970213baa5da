"""What a data set's manifest and its list of refused files hold: types, checks, JSON lines."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from hpdm_core.data.metadata import parse_object, parse_typed, read_lines, read_typed
from hpdm_core.errors import DataError
from hpdm_core.files import write_text

# The same as records.NO_CLASS (tested), which imports torch: workers that only transcode start ten
# times as fast without it.
NO_CLASS = -1
Count = Annotated[int, Field(gt=0, lt=2**31)]
Stamp = Annotated[int, Field(gt=-(2**63), lt=2**63)]


@dataclass(frozen=True, kw_only=True)
class VideoEntry:
    """A line of the manifest.

    Args:
        path: canonical MP4, relative to the data set's folder, with forward slashes.
        num_frames: frames in it, counted by decoding.
        fps: frames per second.
        height, width: pixels.
        label: index into the data set's classes, `NO_CLASS` for none.
        class_name: name of the class, or None.
        caption: a text, or None.
        more_captions: further captions; training draws one of all.
        split: 'train', 'test', ...
        is_image: whether it is a still (one frame).
        source: original file, relative to the source folder.
        source_bytes, source_mtime_ns, source_sha256: to detect changes of the source.
    """

    path: str
    num_frames: Count
    fps: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
    height: Count
    width: Count
    label: Annotated[int, Field(ge=NO_CLASS, lt=2**31)] = NO_CLASS
    class_name: str | None = None
    caption: str | None = None
    more_captions: tuple[str, ...] = ()
    split: str = "train"
    is_image: bool = False
    source: str
    source_bytes: Stamp = 0
    source_mtime_ns: Stamp = 0
    source_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A line of rejected.jsonl.

    Args:
        source: name of the file, as in `VideoEntry`.
        problem: kind of fault, for counting.
        detail: description of the fault.
        source_bytes, source_mtime_ns, source_sha256: as in `VideoEntry`.
    """

    source: str
    problem: str
    detail: str
    source_bytes: Stamp
    source_mtime_ns: Stamp
    source_sha256: str


ENTRY = TypeAdapter(VideoEntry)
_REJECTION = TypeAdapter(Rejection)


def read_manifest(path: Path, *, classes: Sequence[str]) -> list[VideoEntry]:
    """Read manifest.jsonl, checking every line against its types and the data set's classes.

    Raises:
        DataError: a line is damaged, leads out of the folder, or has a class that is not in the
            list; no file at all is no line.
    """
    if not os.path.isfile(path):
        return []
    entries = []
    for place, entry in read_typed(path, ENTRY):
        check_entry(entry, classes, place)
        entries.append(entry)
    return entries


def check_entry(entry: VideoEntry, classes: Sequence[str], place: str) -> None:
    """Raise DataError if an entry leads out of the folder, or its class is not in the list."""
    inside = PurePosixPath(entry.path)
    if inside.is_absolute() or ".." in inside.parts or "\0" in entry.path:
        raise DataError(f"{place} leaves the data set's folder", got=ascii(entry.path))
    if not _class_fits(entry, classes):
        raise DataError(
            f"{place} has a class that does not match dataset.yaml",
            got=f"class {entry.label}, {entry.class_name!a}",
            expected=f"one of its {len(classes)} classes",
            remedy="prepare the data set again",
        )


def _class_fits(entry: VideoEntry, classes: Sequence[str]) -> bool:
    if entry.label == NO_CLASS:
        return entry.class_name is None
    return entry.label < len(classes) and entry.class_name == classes[entry.label]


def read_rejected(path: Path) -> list[Rejection]:
    """Read rejected.jsonl, checking every line; no file is no line."""
    return [line for _, line in read_typed(path, _REJECTION)] if os.path.isfile(path) else []


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON objects, one per line; an absent file has none."""
    if not os.path.isfile(path):
        return []
    return [parse_object(text, f"{path}:{number}") for number, text in read_lines(path)]


def write_json_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write a JSON object per line, atomically."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def entry_or_rejection(text: str, place: str) -> VideoEntry | Rejection:
    """Return the object that a line holds, written by `dataclasses.asdict` or as a rejection.

    Raises:
        DataError: it is damaged.
    """
    rejected = "problem" in parse_object(text, place)
    return parse_typed(text, _REJECTION if rejected else ENTRY, place)
