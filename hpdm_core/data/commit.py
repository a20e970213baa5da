"""Join the shards of a data set that independent tasks prepared (`hpdm prep ... --shard i/n`).

The data set appears when its header is written, last. Shards' records stay below `shards/`, so
that a shard can be prepared again and the data set be committed again.
"""

import os
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpdm_core.data.dataset import HEADER, REJECTED, read_header, write_header
from hpdm_core.data.entries import read_rejected
from hpdm_core.data.manifest import MANIFEST, Manifest, join_manifests
from hpdm_core.data.plan import SHARDS, PrepShard
from hpdm_core.data.prepare import usable_line
from hpdm_core.data.text_store import FOLDER as TEXT
from hpdm_core.data.text_store import INDEX, read_text_index, write_keys, write_text_index
from hpdm_core.errors import DataError, HpdmError
from hpdm_core.files import atomic_path

_NAME = re.compile(r"(\d{5})-of-(\d{5})")
MOST_NAMED = 20


def commit(folder: Path, *, place: str | None = None) -> dict[str, Any]:
    """Join a data set's shards, in order.

    Args:
        folder: the data set.
        place: its name in messages; None shows the folder.

    Returns:
        Counts, which the command line prints.

    Raises:
        DataError: a shard is missing or damaged, shards belong to different preparations, or none
            has a usable video.
    """
    place = place or str(folder)
    shards = complete_shards(folder, place)
    headers = [read_header(folder / shard.folder) for shard in shards]
    _check_same_plan(shards, headers)
    header = {k: v for k, v in headers[0].items() if k not in ("format", "plan")}
    if read_header(folder) not in (None, {"format": headers[0]["format"], **header}):
        (folder / HEADER).unlink()  # classes change: unreadable until the new header is there
    parts = [folder / shard.folder for shard in shards]
    problems = _join_rejected(folder, parts)
    if not join_manifests(folder, [part / MANIFEST for part in parts]):
        (folder / MANIFEST).unlink()
        raise DataError(
            f"no shard of {place} holds a usable video",
            remedy=f"{place}/{REJECTED} lists each file with its reason",
        )
    captions = _join_text(folder, parts)
    manifest = Manifest(folder / MANIFEST, classes=header["classes"])
    write_header(folder, header)
    return {
        "name": header["name"],
        "folder": place,
        "shards": len(shards),
        "videos": len(manifest),
        "usable": usable_line(len(manifest) + problems.total(), problems),
        "rejected": dict(problems),
        "classes": len(header["classes"]),
        "splits": {split: len(manifest.select(split)) for split in manifest.splits()},
        "captions": captions,
    }


def find_sharded(folder: Path) -> Path:
    """Return the data set with shards at `folder`, or the only one below it.

    Raises:
        DataError: there is none, or several.
    """
    if (folder / SHARDS).is_dir():
        return folder
    found = sorted(path.parent for path in folder.glob(f"*/{SHARDS}") if path.is_dir())
    if len(found) == 1:
        return found[0]
    raise DataError(
        f"no shards in {folder}" if not found else f"several data sets with shards in {folder}",
        got=", ".join(path.name for path in found) or None,
        expected="a data set's folder, DATA/NAME",
        remedy="run `hpdm prep folder|captions DATA --shard i/n` for every i first"
        if not found
        else "give one of their folders",
    )


def text_files(parts: list[Path]) -> list[Path]:
    """Return the files of embeddings of all shards in the order in which they are joined."""
    return [file for part in parts for file in sorted((part / TEXT).glob("text-*.safetensors"))]


def complete_shards(folder: Path, place: str) -> list[PrepShard]:
    """Return a data set's shards in order, all of them finished.

    Args:
        folder: the data set.
        place: its name in messages.

    Raises:
        DataError: some are missing or unfinished, or they divide the work into different numbers.
    """
    names = [path.name for path in (folder / SHARDS).iterdir()]
    found = [tuple(map(int, match.groups())) for n in names if (match := _NAME.fullmatch(n))]
    counts = sorted({count for _, count in found})
    if len(counts) != 1:
        raise DataError(
            f"{place}/{SHARDS} holds shards of different divisions",
            got=", ".join(f"of {count}" for count in counts) or "none",
            remedy="delete those that are not wanted",
        )
    shards = [PrepShard(number=number, count=counts[0]) for number in range(counts[0])]
    missing = [s for s in shards if not os.path.isfile(folder / s.folder / HEADER)]
    if missing:
        more = len(missing) - MOST_NAMED
        named = ", ".join(map(str, missing[:MOST_NAMED])) + (f" and {more} more" * (more > 0))
        raise DataError(
            f"{len(missing)} of {len(shards)} shards of {place} are missing or not finished",
            got=f"no complete shard {named}",
            remedy="run these again with --shard, then commit",
        )
    return shards


def _check_same_plan(shards: list[PrepShard], headers: list[dict[str, Any]]) -> None:
    plans = [header.get("plan") for header in headers]
    usual, _ = Counter(plans).most_common(1)[0]
    other = [shard for shard, plan in zip(shards, plans, strict=True) if plan != usual]
    if other:
        raise DataError(
            "shards were prepared from different sources or with different options",
            got=f"shard {', '.join(map(str, other[:MOST_NAMED]))} unlike the others",
            remedy="run them all with the same --source and options",
        )


def _join_rejected(folder: Path, parts: list[Path]) -> Counter[str]:
    problems: Counter[str] = Counter()
    with atomic_path(folder / REJECTED) as partial, partial.open("wb") as out:
        for part in parts:
            problems.update(line.problem for line in read_rejected(part / REJECTED))
            if (part / REJECTED).is_file():
                with (part / REJECTED).open("rb") as file:
                    shutil.copyfileobj(file, out)
    return problems


def _join_text(folder: Path, parts: list[Path]) -> int | None:
    """Join the shards' text embeddings; return the number of captions, None without any."""
    indexes = [read_text_index(part) for part in parts]
    if not any(indexes):
        return None
    encoders = {index.fingerprint if index else None for index in indexes}
    if len(encoders) > 1:
        raise HpdmError(
            "shards' captions were encoded by different text encoders, or some not at all",
            remedy="run all shards with the same --text-encoder",
        )
    text = folder / TEXT
    text.mkdir(exist_ok=True)
    (text / INDEX).unlink(missing_ok=True)
    for old in text.glob("text-*.safetensors"):
        old.unlink()
    for number, file in enumerate(text_files(parts)):
        target = text / f"text-{number:05d}.safetensors"
        try:
            os.link(file, target)
        except OSError:  # a file system without links
            shutil.copyfile(file, target)
    stored = write_keys(folder)
    longest = max(index.longest for index in indexes)
    write_text_index(folder, replace(indexes[0], longest=longest))
    return stored
