"""A data set's manifest as an Arrow file, mapped into memory and read row by row.

Opening costs the same for ten videos and for a hundred million: the file's footer is read, and of a
selection (a split, videos long enough) the number of rows in each record batch is counted. Rows
become `VideoEntry`s when they are asked for. Processes share the mapped pages. The file is not
trusted: a row is validated before anything follows its offsets.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hpdm_core.data.entries import ENTRY, NO_CLASS, VideoEntry, check_entry, read_manifest
from hpdm_core.data.metadata import check_typed
from hpdm_core.errors import DataError
from hpdm_core.files import atomic_path

MANIFEST, JSON_MANIFEST = "manifest.arrow", "manifest.jsonl"
# Rows of a record batch: 100M rows are 12,208 batches, and looking a row up reads one of them.
ROWS_PER_BATCH = 1 << 13
# Class names follow from the labels. Captions of one batch may exceed the 2 GiB of `string`.
SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("caption", pa.large_string()),
        pa.field("more_captions", pa.list_(pa.large_string()), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("is_image", pa.bool_(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("source_bytes", pa.int64(), nullable=False),
        pa.field("source_mtime_ns", pa.int64(), nullable=False),
        pa.field("source_sha256", pa.string(), nullable=False),
    ]
)
_OPEN_FILES = 8
_BATCHES_KEPT = 64


class Manifest(Sequence[VideoEntry]):
    """The entries of a manifest in their order, or those of one split that are long enough.

    Holds a number per record batch; picklable, so that workers map the file themselves.

    Args:
        path: the Arrow file.
        classes: the data set's class names.
        split: take entries of this split; 'all' takes every one.
        min_frames: leave out videos of fewer frames (stills are kept).

    Raises:
        DataError: the file is damaged, or a label is not one of the classes.
    """

    def __init__(
        self, path: Path, *, classes: Sequence[str], split: str = "all", min_frames: int = 0
    ) -> None:
        self.path = path
        self._classes = tuple(classes)
        self._split, self._min_frames = split, min_frames
        with _naming(path):
            self._written = os.stat(path).st_mtime_ns
            reader = _mapped(path, self._written)
            if not reader.schema.equals(SCHEMA):
                raise DataError(
                    f"{path} has other columns than this version writes",
                    remedy="prepare the data set again",
                )
            last = reader.num_record_batches - 1
            counts = [self._count(number, last=number == last) for number in range(last + 1)]
        # Entries before each batch, and in all.
        self._before = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._before[-1])

    @overload
    def __getitem__(self, index: int) -> VideoEntry: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[VideoEntry, ...]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        index = range(len(self))[index]
        number = int(np.searchsorted(self._before, index, side="right")) - 1
        before, after = map(int, self._before[number : number + 2])
        row = index - before
        with _naming(self.path):
            if after - before < self._batch(number).num_rows:
                row = int(np.flatnonzero(self._chosen(number))[row])
            return self._entries(number, row, 1)[0]

    def __iter__(self) -> Iterator[VideoEntry]:
        for number in range(len(self._before) - 1):
            with _naming(self.path):
                entries = self._entries(number, 0, ROWS_PER_BATCH)
                chosen = self._chosen(number)
            yield from (entry for entry, taken in zip(entries, chosen, strict=True) if taken)

    def select(self, split: str, *, min_frames: int = 0) -> "Manifest":
        """Return the entries of one split ('all': of every one) that are long enough."""
        return Manifest(self.path, classes=self._classes, split=split, min_frames=min_frames)

    def splits(self) -> list[str]:
        """Return the names of all splits, sorted."""
        found: set[str] = set()
        with _naming(self.path):
            for number in range(len(self._before) - 1):
                found.update(pc.unique(_column(self._batch(number), "split")).to_pylist())
        return sorted(found)

    def _batch(self, number: int) -> pa.RecordBatch:
        return _mapped_batch(self.path, self._written, number)

    def _count(self, number: int, *, last: bool) -> int:
        """Return how many rows of a record batch are chosen; check its size and classes."""
        batch = self._batch(number)
        rows = batch.num_rows
        if not 0 < rows <= ROWS_PER_BATCH or (rows < ROWS_PER_BATCH and not last):
            raise DataError(
                f"{self.path} has record batches of another size than this version writes",
                got=f"{rows:,} rows",
                expected=f"{ROWS_PER_BATCH:,}",
                remedy="prepare the data set again",
            )
        labels = batch.column("label").to_numpy()
        if not NO_CLASS <= labels.min() <= labels.max() < len(self._classes):
            raise DataError(
                f"{self.path} has a class that does not match dataset.yaml",
                got=f"classes from {labels.min()} to {labels.max()}",
                expected=f"one of its {len(self._classes)} classes",
                remedy="prepare the data set again",
            )
        return np.count_nonzero(self._chosen(number))

    def _chosen(self, number: int) -> np.ndarray:
        """Return which rows of a record batch are chosen, bool."""
        batch = self._batch(number)
        chosen = np.ones(batch.num_rows, dtype=bool)
        if self._min_frames > 0:
            chosen = batch.column("num_frames").to_numpy() >= self._min_frames
            chosen |= batch.column("is_image").to_numpy(zero_copy_only=False)
        if self._split != "all":
            named = pc.equal(_column(batch, "split"), self._split)
            chosen &= named.to_numpy(zero_copy_only=False)
        return chosen

    def _entries(self, number: int, start: int, count: int) -> list[VideoEntry]:
        rows = self._batch(number).slice(start, count)
        rows.validate(full=True)
        first = number * ROWS_PER_BATCH + start
        return [self._entry(row, first + i) for i, row in enumerate(rows.to_pylist())]

    def _entry(self, row: dict[str, Any], number: int) -> VideoEntry:
        place, label = f"{self.path}, row {number + 1:,}", row["label"]
        row["more_captions"] = tuple(row["more_captions"])
        row["class_name"] = None if label == NO_CLASS else self._classes[label]
        check_typed(row, ENTRY, place)
        entry = VideoEntry(**row)
        check_entry(entry, self._classes, place)
        return entry


def open_manifest(folder: Path, *, classes: Sequence[str]) -> Sequence[VideoEntry]:
    """Return the entries of a data set's folder; none where there is no manifest.

    Data sets of earlier versions have a JSON line per entry, which are all read at once.

    Raises:
        DataError: it is damaged.
    """
    if os.path.isfile(folder / MANIFEST):
        return Manifest(folder / MANIFEST, classes=classes)
    return tuple(read_manifest(folder / JSON_MANIFEST, classes=classes))


def select(
    entries: Sequence[VideoEntry], split: str, *, min_frames: int = 0
) -> Sequence[VideoEntry]:
    """Return the entries of one split ('all': of every one) that are long enough."""
    if isinstance(entries, Manifest):
        return entries.select(split, min_frames=min_frames)
    return tuple(
        entry
        for entry in entries
        if split in ("all", entry.split) and (entry.is_image or entry.num_frames >= min_frames)
    )


def split_names(entries: Sequence[VideoEntry]) -> list[str]:
    """Return the names of all splits, sorted."""
    if isinstance(entries, Manifest):
        return entries.splits()
    return sorted({entry.split for entry in entries})


def write_manifest(folder: Path, entries: Iterable[VideoEntry]) -> None:
    """Write a data set's manifest, atomically; one of an earlier version is removed."""
    entries = iter(entries)
    with (
        atomic_path(folder / MANIFEST) as partial,
        pa.OSFile(str(partial), "wb") as file,
        pa.ipc.new_file(file, SCHEMA) as writer,
    ):
        while rows := [asdict(entry) for entry in islice(entries, ROWS_PER_BATCH)]:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
    (folder / JSON_MANIFEST).unlink(missing_ok=True)


def join_manifests(folder: Path, parts: Sequence[Path]) -> int:
    """Write the rows of several manifests as one, in order, atomically; return their number.

    Raises:
        DataError: a part is damaged.
    """
    total = 0
    with (
        atomic_path(folder / MANIFEST) as partial,
        pa.OSFile(str(partial), "wb") as file,
        pa.ipc.new_file(file, SCHEMA) as writer,
    ):
        waiting = SCHEMA.empty_table()
        for part in parts:
            with _naming(part):
                reader = pa.ipc.open_file(pa.memory_map(str(part)))
                for number in range(reader.num_record_batches):
                    batch = reader.get_batch(number)
                    batch.validate(full=True)
                    waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch])])
                    while len(waiting) >= ROWS_PER_BATCH:
                        _write_rows(writer, waiting.slice(0, ROWS_PER_BATCH))
                        waiting = waiting.slice(ROWS_PER_BATCH)
                    total += batch.num_rows
        if len(waiting):
            _write_rows(writer, waiting)
    return total


def _write_rows(writer: pa.ipc.RecordBatchFileWriter, rows: pa.Table) -> None:
    writer.write_batch(rows.combine_chunks().to_batches()[0])


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is damaged", got=str(error)[:200], remedy="prepare the data set again"
        ) from error


@lru_cache(maxsize=_OPEN_FILES)
def _mapped(path: Path, written: int) -> pa.ipc.RecordBatchFileReader:
    if os.stat(path).st_mtime_ns != written:
        raise DataError(f"{path} was written anew while it was in use", remedy="start again")
    return pa.ipc.open_file(pa.memory_map(str(path)))


@lru_cache(maxsize=_BATCHES_KEPT)
def _mapped_batch(path: Path, written: int, number: int) -> pa.RecordBatch:
    batch = _mapped(path, written).get_batch(number)
    batch.validate()  # the sizes of buffers; offsets are checked where they are followed
    return batch


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Return a column of texts, its offsets checked."""
    column = batch.column(name)
    column.validate(full=True)
    return column
