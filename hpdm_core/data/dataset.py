"""A prepared data set on disk: `dataset.yaml`, `manifest.jsonl` and the canonical videos.

The manifest holds decoded frame counts, so that opening a data set decodes nothing.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter

from hpdm_core.data.metadata import (
    check_typed,
    parse_object,
    parse_typed,
    read_lines,
    read_typed,
)
from hpdm_core.errors import DataError, did_you_mean
from hpdm_core.files import write_text

FORMAT = 1
HEADER, MANIFEST, REJECTED = "dataset.yaml", "manifest.jsonl", "rejected.jsonl"
# The same as records.NO_CLASS (tested), which imports torch: workers that only transcode start ten
# times as fast without it.
NO_CLASS = -1
Kind = Literal["shapes", "vizdoom", "folder", "ucf101", "captions"]
Count = Annotated[int, Field(gt=0, lt=2**31)]
Stamp = Annotated[int, Field(gt=-(2**63), lt=2**63)]
# More is refused: dataset.yaml of 100,000 classes takes some 3 MB.
LONGEST_HEADER = 1 << 24


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
class _Header:
    """What dataset.yaml must hold, besides its format."""

    kind: Kind
    classes: list[str]
    source: str = ""
    settings: dict[str, Any] | None = None


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


_ENTRY = TypeAdapter(VideoEntry)
_HEADER = TypeAdapter(_Header)
_REJECTION = TypeAdapter(Rejection)


@dataclass(frozen=True, kw_only=True)
class VideoDataset:
    """A prepared data set.

    Args:
        folder: where it is.
        name: its name below the data root.
        kind: the `hpdm prep` command that made it.
        classes: class names by index; empty without classes.
        entries: the usable videos, in a fixed order.
        header: all of dataset.yaml.
    """

    folder: Path
    name: str
    kind: Kind
    classes: tuple[str, ...]
    entries: tuple[VideoEntry, ...]
    header: dict[str, Any]

    def split(self, name: str) -> tuple[VideoEntry, ...]:
        """Return the entries of one split, or of all with 'all'.

        Raises:
            DataError: the data set has no such split.
        """
        chosen = tuple(e for e in self.entries if name in ("all", e.split))
        if not chosen:
            known = sorted({e.split for e in self.entries})
            raise DataError(
                f"data set {self.name!r} has no videos in split {name!r}",
                expected=f"one of {', '.join(known)}, or all",
                remedy=did_you_mean(name, known) or "change data.split",
            )
        return chosen

    def captions(self, split: str) -> list[str]:
        """Return every caption of a split."""
        entries = self.split(split)
        return [c for e in entries for c in (e.caption, *e.more_captions) if c is not None]

    def file(self, entry: VideoEntry) -> Path:
        """Return the path of a video."""
        return self.folder / entry.path


def open_dataset(root: Path | str, name: str) -> VideoDataset:
    """Read the data set `name` below `root`.

    Raises:
        DataError: it is absent or incomplete, or its manifest is damaged.
    """
    folder = Path(root) / name
    header = read_header(folder)
    if header is None:
        near = did_you_mean(name, [path.parent.name for path in Path(root).glob(f"*/{HEADER}")])
        raise DataError(
            f"no prepared data set in {folder}",
            expected=f"{HEADER} and {MANIFEST} in it",
            remedy=near
            or f"run `hpdm prep` with {root} first (`hpdm prep --help` lists the kinds), "
            "to the end, or change data.root and data.name",
        )
    entries = tuple(read_manifest(folder / MANIFEST, classes=header["classes"]))
    if not entries:
        raise DataError(f"data set {folder} holds no usable video", remedy=f"see {REJECTED} in it")
    return VideoDataset(
        folder=folder,
        name=name,
        kind=header["kind"],
        classes=tuple(header["classes"]),
        entries=entries,
        header=header,
    )


def read_header(folder: Path) -> dict[str, Any] | None:
    """Return dataset.yaml of `folder`, or None where there is none.

    Raises:
        DataError: another version wrote it.
    """
    path = folder / HEADER
    if not os.path.isfile(path):
        return None
    header = _load_header(path)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise DataError(
            f"{path} was not written by this version",
            expected=f"format: {FORMAT}",
            remedy="prepare the data set again",
        )
    check_typed(header, _HEADER, str(path))
    return header


def _load_header(path: Path) -> object:
    with path.open("rb") as file:
        data = file.read(LONGEST_HEADER + 1)
    if len(data) > LONGEST_HEADER:
        raise DataError(f"{path} is too long", expected=f"at most {LONGEST_HEADER:,} bytes")
    try:
        return yaml.safe_load(data.decode("utf-8"))
    except Exception as error:  # PyYAML lets out whatever its constructors stumble over
        raise DataError(f"{path} is not YAML", remedy="prepare the data set again") from error


def write_header(folder: Path, header: dict[str, Any]) -> None:
    """Write dataset.yaml, atomically."""
    text = yaml.safe_dump({"format": FORMAT} | header, sort_keys=False, allow_unicode=True)
    write_text(folder / HEADER, text)


def read_manifest(path: Path, *, classes: Sequence[str]) -> list[VideoEntry]:
    """Read manifest.jsonl, checking every line against its types and the data set's classes.

    Raises:
        DataError: a line is damaged, leads out of the folder, or has a class that is not in the
            list; no file at all is no line.
    """
    if not os.path.isfile(path):
        return []
    entries = []
    for place, entry in read_typed(path, _ENTRY):
        inside = PurePosixPath(entry.path)
        if inside.is_absolute() or ".." in inside.parts or "\0" in entry.path:
            raise DataError(f"{place} leaves the data set's folder", got=ascii(entry.path))
        if not _class_fits(entry, classes):
            raise DataError(
                f"{place} has a class that does not match {HEADER}",
                got=f"class {entry.label}, {entry.class_name!a}",
                expected=f"one of its {len(classes)} classes",
                remedy="prepare the data set again",
            )
        entries.append(entry)
    return entries


def _class_fits(entry: VideoEntry, classes: Sequence[str]) -> bool:
    if entry.label == NO_CLASS:
        return entry.class_name is None
    return entry.label < len(classes) and entry.class_name == classes[entry.label]


def read_rejected(path: Path) -> list[Rejection]:
    """Read rejected.jsonl, checking every line; no file is no line."""
    return [line for _, line in read_typed(path, _REJECTION)] if os.path.isfile(path) else []


def write_manifest(path: Path, entries: list[VideoEntry]) -> None:
    """Write a line per video, atomically."""
    write_json_lines(path, [asdict(entry) for entry in entries])


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
    return parse_typed(text, _REJECTION if rejected else _ENTRY, place)
