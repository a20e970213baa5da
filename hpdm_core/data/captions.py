"""Captioned videos and images from a list: JSON lines or CSV."""

import csv
import hashlib
import os
import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hpdm_core.data.faults import Problem
from hpdm_core.data.folders import VIDEO_SUFFIXES, name_problem
from hpdm_core.data.metadata import parse_object, read_lines
from hpdm_core.data.objects import RemoteFile, is_url, join_url
from hpdm_core.data.plan import DecodingOptions, Plan, SourceVideo
from hpdm_core.errors import DataError
from hpdm_core.files import irregular
from hpdm_core.names import as_unicode, has_unprintable, is_unicode

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
# Accepted column names.
FILE_COLUMNS = ("file", "path", "file_name", "filename", "video", "image")
CAPTION_COLUMNS = ("caption", "text", "prompt", "captions")
MOST_SHOWN = 80
_EXAMPLE = '{"file": "a.mp4", "caption": "..."}'
_BEYOND = "beyond the columns"


def plan_captions(
    folder: Path, *, name: str, source: Path | str, options: DecodingOptions, workers: int | None
) -> Plan:
    """Plan a data set from a list of files and captions.

    A line has a file (relative to the list, or a URL), a caption (or a list of captions, or
    further lines for the same file) and optionally a split.

    Args:
        source: the list, here or (a URL) in an object store.

    Raises:
        DataError: no such list, a line that cannot be read, or columns that are missing.
    """
    base = source[: source.rfind("/") + 1] if isinstance(source, str) else source.parent
    listed: dict[str, _Listed] = {}
    with _local(source) as list_file:
        is_csv = list_file.suffix.lower() == ".csv"
        lines = _read_csv(list_file) if is_csv else _read_json_lines(list_file)
        for number, line in lines:
            file, texts = _file_and_captions(line, f"{source}:{number}")
            found = _find(base, file, _split(line, f"{source}:{number}"))
            listed.setdefault(found.name, found).captions.extend(texts)
    if not listed:
        raise DataError(f"{source} lists no video")
    videos = [_video(found) for found in listed.values()]
    return Plan(
        folder=folder,
        name=name,
        kind="captions",
        classes=(),
        source=source if isinstance(source, str) else as_unicode(str(source.resolve())),
        videos=videos,
        make=options,
        settings=options.settings,
        workers=workers,
    )


@contextmanager
def _local(source: Path | str) -> Iterator[Path]:
    """Yield the list as a local file."""
    with TemporaryDirectory(prefix="hpdm-") as scratch:
        file = source if isinstance(source, Path) else Path(scratch) / source.rpartition("/")[2]
        if isinstance(source, str):
            RemoteFile(source).fetch(file)
        if not os.path.isfile(file):
            raise DataError(
                f"--source {source}: no such file",
                expected="a .jsonl or .csv with a file and a caption per line",
            )
        yield file


def _read_json_lines(source: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text in read_lines(source):
        yield number, parse_object(text, f"{source}:{number}", expected=_EXAMPLE)


def _read_csv(source: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number of its first line, cells by column) of every row; cells may hold new lines."""
    number = 1
    with source.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True, restkey=_BEYOND)
        try:
            for line in reader:
                number += 1
                if any(cell.strip() for cell in line.pop(_BEYOND, [])):
                    raise DataError(
                        f"{source}:{number} has more cells than the first line has columns",
                        remedy="put captions with commas in quotes",
                    )
                yield number, {column.strip(): cell for column, cell in line.items()}
                number = reader.line_num
        except csv.Error as error:
            raise DataError(f"{source}:{reader.line_num} is not CSV: {error}") from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{source}:{number + 1} or soon after it is not text in UTF-8",
                remedy="save it as UTF-8",
            ) from error


def _file_and_captions(line: dict[str, Any], place: str) -> tuple[str, list[str]]:
    file = _first(line, FILE_COLUMNS)
    caption = _first(line, CAPTION_COLUMNS)
    if not isinstance(file, str):
        raise DataError(
            f"{place} names no file",
            got=as_unicode(f"the fields {', '.join(line) or 'of an empty line'}")[:MOST_SHOWN],
            expected=f"one of {', '.join(FILE_COLUMNS)}",
        )
    texts = [] if caption is None else caption if isinstance(caption, list) else [caption]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(
            f"{place} has a caption that is not text",
            got=ascii(caption)[:MOST_SHOWN],
            expected="a text, or a list of texts",
        )
    return file, [text.strip() for text in texts if text.strip()]


def _split(line: dict[str, Any], place: str) -> str:
    split = line.get("split") or "train"
    if not isinstance(split, str) or has_unprintable(split):
        raise DataError(
            f"{place} has a split that is no word", got=ascii(split)[:MOST_SHOWN], expected="train"
        )
    return split


def _first(line: dict[str, Any], columns: Sequence[str]) -> Any:
    return next((line[c] for c in columns if line.get(c) not in (None, "", [])), None)


@dataclass(frozen=True, kw_only=True)
class _Listed:
    """A file of the list, and its captions."""

    name: str
    file: Path | RemoteFile | None
    split: str
    captions: list[str] = field(default_factory=list)
    problem: tuple[Problem, str] | None = None


def _find(base: Path | str, listed: str, split: str) -> _Listed:
    """Resolve a file; different spellings of a path get one name, inside a folder."""
    if isinstance(base, str) or is_url(listed):
        return _find_object(str(base), listed, split)
    listed = os.path.normpath(listed)
    if problem := name_problem(listed):
        return _Listed(name=listed, file=None, split=split, problem=problem)
    file = base / listed
    if fault := irregular(file):
        detail = fault if os.path.lexists(file) else "the list names it, but there is no such file"
        return _Listed(name=listed, file=file, split=split, problem=("unreadable", detail))
    path = file.resolve()
    try:
        name = path.relative_to(base.resolve()).as_posix()
    except ValueError:
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
        name = f"elsewhere/{digest}-{path.name}"
    return _Listed(name=name, file=file, split=split, problem=name_problem(name))


def _find_object(base: str, listed: str, split: str) -> _Listed:
    """Resolve a URL, or a path relative to `base`, the list's folder; asks the store for nothing.

    A list in an object store gives `base` with the slash at its end.
    """
    protocol, _, path = join_url(base, listed).partition("://")
    url = f"{protocol}://{posixpath.normpath(path)}"
    name = url.removeprefix(base)
    if name == url:
        digest = hashlib.sha256(os.fsencode(url)).hexdigest()[:8]
        name = f"elsewhere/{digest}-{url.rpartition('/')[2]}"
    return _Listed(name=name, file=RemoteFile(url), split=split, problem=name_problem(name))


def _video(found: _Listed) -> SourceVideo:
    suffix = "" if found.file is None else found.file.suffix.lower()
    captions, problem = found.captions, found.problem
    if problem is None and not captions:
        problem = ("mislabelled", "it has no caption")
    elif problem is None and not all(map(is_unicode, captions)):
        problem = ("mislabelled", "its caption holds a lone surrogate")
    elif problem is None and suffix not in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
        problem = ("not a video", f"{suffix or 'no suffix'} is neither a video nor an image")
    return SourceVideo(
        file=found.file,
        name=found.name,
        caption=captions[0] if captions else None,
        more_captions=tuple(captions[1:]),
        split=found.split,
        is_image=suffix in IMAGE_SUFFIXES,
        problem=problem,
    )
