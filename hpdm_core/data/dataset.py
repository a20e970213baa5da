"""A prepared data set on disk: `dataset.yaml`, `manifest.arrow` and the canonical videos.

The manifest holds decoded frame counts, so that opening a data set decodes nothing.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter

from hpdm_core.data.entries import VideoEntry
from hpdm_core.data.manifest import MANIFEST, open_manifest, select, split_names
from hpdm_core.data.metadata import check_typed
from hpdm_core.errors import DataError, did_you_mean
from hpdm_core.files import write_text

FORMAT = 1
HEADER, REJECTED = "dataset.yaml", "rejected.jsonl"
Kind = Literal["shapes", "vizdoom", "folder", "ucf101", "captions"]
# More is refused: dataset.yaml of 100,000 classes takes some 3 MB.
LONGEST_HEADER = 1 << 24


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What dataset.yaml must hold, besides its format."""

    kind: Kind
    classes: list[str]
    source: str = ""
    settings: dict[str, Any] | None = None


_HEADER = TypeAdapter(_Header)


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
    entries: Sequence[VideoEntry]
    header: dict[str, Any]

    def split(self, name: str, *, min_frames: int = 0) -> Sequence[VideoEntry]:
        """Return the entries of one split, or of all with 'all'.

        Args:
            min_frames: leave out videos of fewer frames (stills are kept).

        Raises:
            DataError: the data set has no such split.
        """
        chosen = select(self.entries, name, min_frames=min_frames)
        known = [] if chosen else split_names(self.entries)
        if not chosen and name not in known:
            raise DataError(
                f"data set {self.name!r} has no videos in split {name!r}",
                expected=f"one of {', '.join(known)}, or all",
                remedy=did_you_mean(name, known) or "change data.split",
            )
        return chosen

    def captions(self, split: str, *, most: int | None = None) -> list[str]:
        """Return the captions of a split.

        Args:
            most: of that many videos at most, from all over the split; default: of all.
        """
        entries = self.split(split)
        if most is not None and len(entries) > most:
            entries = [entries[i * len(entries) // most] for i in range(most)]
        return [c for e in entries for c in (e.caption, *e.more_captions) if c is not None]

    def file(self, entry: VideoEntry) -> Path:
        """Return the path of a video."""
        return self.folder / entry.path


def open_dataset(root: Path | str, name: str) -> VideoDataset:
    """Read the data set `name` below `root`.

    Raises:
        DataError: it is absent or incomplete, or its manifest is damaged.
    """
    # One slash: a Path makes one of `s3://`'s two. Two letters or more: `c:/` is a drive.
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(root)):
        raise DataError(
            f"data.root={root}: training reads videos from a file system",
            remedy="mount the bucket, or copy the data set to a disk (docs/cluster.md)",
        )
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
    entries = open_manifest(folder, classes=header["classes"])
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
