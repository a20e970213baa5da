"""Captioned videos and images from a list: JSON lines or CSV."""

import csv
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpdm_core.data.folders import VIDEO_SUFFIXES
from hpdm_core.data.plan import DecodingOptions, Plan, SourceVideo
from hpdm_core.errors import DataError

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
# What such lists call their columns.
FILE_COLUMNS = ("file", "path", "file_name", "filename", "video", "image")
CAPTION_COLUMNS = ("caption", "text", "prompt", "captions")


def plan_captions(
    folder: Path, *, name: str, source: Path, options: DecodingOptions, workers: int | None
) -> Plan:
    """Plan a data set from a list of files and captions.

    A line has a file (relative to the list), a caption (or a list of captions, or further lines
    for the same file) and maybe a split.

    Raises:
        DataError: no such list, a line that cannot be read, or columns that are missing.
    """
    if not source.is_file():
        raise DataError(
            f"--source {source}: no such file",
            expected="a .jsonl or .csv with a file and a caption per line",
        )
    lines = _read_csv(source) if source.suffix.lower() == ".csv" else _read_json_lines(source)
    captions: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    for number, line in lines:
        file, texts = _file_and_captions(line, f"{source}:{number}")
        file = os.path.normpath(file)
        captions.setdefault(file, []).extend(texts)
        splits.setdefault(file, str(line.get("split") or "train"))
    if not captions:
        raise DataError(f"{source} lists no video")
    videos = [_video(source.parent, file, texts, splits[file]) for file, texts in captions.items()]
    return Plan(
        folder=folder,
        name=name,
        kind="captions",
        classes=(),
        source=str(source.resolve()),
        videos=videos,
        make=options,
        settings=options.settings,
        workers=workers,
    )


def _read_json_lines(source: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text in enumerate(_text(source).splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{source}:{number} is not JSON: {error.msg}",
                got=text[:80],
                expected='{"file": "a.mp4", "caption": "..."}',
            ) from error
        if not isinstance(line, dict):
            raise DataError(f"{source}:{number} is not a JSON object", got=text[:80])
        yield number, line


def _read_csv(source: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(_text(source).splitlines(), strict=True)
    try:
        for line in reader:
            yield reader.line_num, {k.strip(): v for k, v in line.items() if k}
    except csv.Error as error:
        raise DataError(f"{source}:{reader.line_num} is not CSV: {error}") from error


def _text(source: Path) -> str:
    try:
        return source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is not text in UTF-8", remedy="save it as UTF-8") from error


def _file_and_captions(line: dict[str, Any], place: str) -> tuple[str, list[str]]:
    file = next((line[c] for c in FILE_COLUMNS if line.get(c)), None)
    caption = next((line[c] for c in CAPTION_COLUMNS if line.get(c)), "")
    if not isinstance(file, str):
        raise DataError(
            f"{place} names no file",
            got=f"the fields {', '.join(map(str, line)) or 'of an empty line'}",
            expected=f"one of {', '.join(FILE_COLUMNS)}",
        )
    texts = [caption] if isinstance(caption, str) else list(caption)
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{place} has a caption that is not text", got=repr(caption)[:80])
    return file, [text.strip() for text in texts if text.strip()]


def _video(base: Path, listed: str, captions: list[str], split: str) -> SourceVideo:
    file = base / listed
    suffix = file.suffix.lower()
    problem = None
    if not file.is_file():
        problem = ("unreadable", "the list names it, but there is no such file")
    elif not captions:
        problem = ("mislabelled", "it has no caption")
    elif suffix not in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
        problem = ("not a video", f"{suffix or 'no suffix'} is neither a video nor an image")
    return SourceVideo(
        file=file,
        name=_name(base, listed),
        caption=captions[0] if captions else None,
        more_captions=tuple(captions[1:]),
        split=split,
        is_image=suffix in IMAGE_SUFFIXES,
        problem=problem,
    )


def _name(base: Path, listed: str) -> str:
    """Return a name that stays inside a folder, also for files that lie elsewhere."""
    path = (base / listed).resolve()
    try:
        return path.relative_to(base.resolve()).as_posix()
    except ValueError:
        digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
        return f"elsewhere/{digest}-{path.name}"
