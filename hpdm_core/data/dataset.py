"""A prepared data set on disk: `dataset.yaml`, `manifest.jsonl` and the canonical videos.

The manifest holds decoded frame counts, so that opening a data set decodes nothing.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml

from hpdm_core.data.atomic import write_text
from hpdm_core.errors import DataError

FORMAT = 1
HEADER, MANIFEST, REJECTED = "dataset.yaml", "manifest.jsonl", "rejected.jsonl"
# The same as records.NO_CLASS (tested), which cannot be had without importing torch: workers that
# only transcode start in a tenth of the time without it.
NO_CLASS = -1
Kind = Literal["shapes", "vizdoom", "folder", "ucf101", "captions"]


@dataclass(frozen=True, kw_only=True)
class VideoEntry:
    """A line of the manifest.

    Args:
        path: canonical MP4, relative to the data set's folder, with forward slashes.
        num_frames: frames in it, counted by decoding.
        fps: frames per second.
        height, width: pixels.
        label: index into the data set's classes, `NO_CLASS` for none.
        class_name: the class in words, or None.
        caption: a text, or None.
        more_captions: other texts that say the same; training takes one of all at random.
        split: 'train', 'test', ...
        is_image: whether it is a still (one frame).
        source: where it came from, relative to the source folder.
        source_bytes, source_mtime_ns, source_sha256: to tell whether the source has changed.
    """

    path: str
    num_frames: int
    fps: float
    height: int
    width: int
    label: int = NO_CLASS
    class_name: str | None = None
    caption: str | None = None
    more_captions: tuple[str, ...] = ()
    split: str = "train"
    is_image: bool = False
    source: str
    source_bytes: int = 0
    source_mtime_ns: int = 0
    source_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class VideoDataset:
    """A prepared data set.

    Args:
        folder: where it lies.
        name: its name below the data root.
        kind: which `hpdm prep` made it.
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
                remedy="change data.split",
            )
        return chosen

    def captions(self, split: str) -> list[str]:
        """Return every caption of a split."""
        entries = self.split(split)
        return [c for e in entries for c in (e.caption, *e.more_captions) if c is not None]

    def file(self, entry: VideoEntry) -> Path:
        """Return where a video lies."""
        return self.folder / entry.path


def open_dataset(root: Path | str, name: str) -> VideoDataset:
    """Read the data set `name` below `root`.

    Raises:
        DataError: it is absent, was not prepared to the end, or its manifest is damaged.
    """
    folder = Path(root) / name
    header = read_header(folder)
    if header is None:
        raise DataError(
            f"no prepared data set in {folder}",
            expected=f"{HEADER} and {MANIFEST} in it",
            remedy=f"run `hpdm prep` with {root} first (`hpdm prep --help` lists the kinds), "
            "to the end, or change data.root and data.name",
        )
    entries = tuple(read_manifest(folder / MANIFEST))
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
        DataError: it is not one that this version writes.
    """
    path = folder / HEADER
    if not path.is_file():
        return None
    try:
        header = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not YAML", remedy="prepare the data set again") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise DataError(
            f"{path} was not written by this version",
            expected=f"format: {FORMAT}",
            remedy="prepare the data set again",
        )
    return header


def write_header(folder: Path, header: dict[str, Any]) -> None:
    """Write what is common to all videos of a data set, atomically."""
    text = yaml.safe_dump({"format": FORMAT} | header, sort_keys=False, allow_unicode=True)
    write_text(folder / HEADER, text)


def read_manifest(path: Path) -> list[VideoEntry]:
    """Read manifest.jsonl, checking every line."""
    lines = read_json_lines(path)
    return [_parse_entry(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def write_manifest(path: Path, entries: list[VideoEntry]) -> None:
    """Write a line per video, atomically."""
    write_json_lines(path, [asdict(entry) for entry in entries])


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON objects, one per line; an absent file has none."""
    if not path.is_file():
        return []
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}:{number} is not JSON", got=text[:60], remedy="prepare the data set again"
            ) from error
    return lines


def write_json_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write a JSON object per line, atomically."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def entry_from_json(line: dict[str, Any]) -> VideoEntry:
    """Return the entry that `dataclasses.asdict` turned into `line`."""
    return VideoEntry(**line | {"more_captions": tuple(line.get("more_captions", ()))})


def _parse_entry(line: dict[str, Any], place: str) -> VideoEntry:
    known = {field.name for field in fields(VideoEntry)}
    try:
        entry = entry_from_json({key: value for key, value in line.items() if key in known})
    except TypeError as error:
        raise DataError(f"{place} lacks a field", remedy="prepare the data set again") from error
    path = PurePosixPath(entry.path)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{place} leaves the data set's folder", got=entry.path)
    return entry
