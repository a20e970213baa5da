"""Preparation of a data set that lies in an object store, part by part.

A part works in a temporary folder. Each finished video is uploaded and removed there, the journal
is uploaded every half minute, and the part's records at its end, dataset.yaml last: a part whose
dataset.yaml is in the store is complete. `commit_remote` joins the records in the same way, so the
data set appears, or changes its classes, with one PUT.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hpdm_core.data.commit import commit, complete_shards, text_files
from hpdm_core.data.dataset import HEADER, REJECTED
from hpdm_core.data.manifest import MANIFEST
from hpdm_core.data.objects import RemoteFolder, remote_folder
from hpdm_core.data.plan import SHARDS, PrepShard
from hpdm_core.data.text_store import FOLDER as TEXT
from hpdm_core.data.text_store import INDEX, KEYS
from hpdm_core.errors import DataError


@contextmanager
def remote_part(url: str, shard: PrepShard | None) -> Iterator[tuple[Path, RemoteFolder]]:
    """Yield a local folder with a part's records, and the store; upload the records afterwards.

    Raises:
        DataError: there is no `shard`, or the store cannot be reached.
    """
    if shard is None:
        raise DataError(
            f"{url}: a data set in an object store is prepared in parts",
            remedy="add --shard 0/1, or i/n for every i, and then run `hpdm prep commit`",
        )
    store, records = remote_folder(url), shard.folder
    with TemporaryDirectory(prefix="hpdm-") as scratch:
        folder = Path(scratch) / store.url.rpartition("/")[2]
        (folder / records).mkdir(parents=True)
        store.get([name for name, _ in store.files(records)], folder)
        yield folder, store
        _upload(store, folder, records)


def _upload(store: RemoteFolder, folder: Path, records: str) -> None:
    """Replace a part's records, its header last, by those of the local folder."""
    here = {
        path.relative_to(folder).as_posix()
        for path in (folder / records).rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    header = f"{records}/{HEADER}"
    for name in sorted(here - {header}):
        store.put(folder / name, name)
    for name, _ in list(store.files(records)):
        if name not in here:
            store.remove(name)
    store.put(folder / header, header)


def commit_remote(url: str) -> dict[str, Any]:
    """Join the parts of a data set in an object store; as `commit`.

    Raises:
        DataError: as `commit`, or the store cannot be reached.
    """
    store = _find_sharded(remote_folder(url))
    with TemporaryDirectory(prefix="hpdm-") as scratch:
        folder = Path(scratch) / "set"
        folder.mkdir()
        names = [name for name, _ in store.files(SHARDS)]
        text = [n for n in names if f"/{TEXT}/" in n and n.endswith(".safetensors")]
        wanted = (HEADER, MANIFEST, REJECTED, INDEX)
        get = [name for name in names if name.rpartition("/")[2] in wanted]
        before = store.exists(HEADER)
        store.get([*get, HEADER] if before else get, folder)
        old = (folder / HEADER).read_bytes() if before else None
        _get_headers(store, text, folder)
        result = commit(folder, place=store.url)
        if old not in (None, (folder / HEADER).read_bytes()):
            store.remove(HEADER)  # classes change: unreadable until the new header is there
        if result["captions"] is not None:
            _put_text(store, folder)
        for name in (REJECTED, MANIFEST, HEADER):
            store.put(folder / name, name)
    return result


def _find_sharded(folder: RemoteFolder) -> RemoteFolder:
    folders = folder.folders()
    if SHARDS in folders:
        return folder
    below = [RemoteFolder(f"{folder.url}/{name}") for name in folders]
    found = [each for each in below if SHARDS in each.folders()]
    if len(found) == 1:
        return found[0]
    raise DataError(
        f"{'several data sets' if found else 'no data set'} with shards in {folder.url}",
        got=", ".join(each.url.rpartition("/")[2] for each in found) or None,
        expected="a data set's folder, DEST/NAME",
        remedy="give one of their folders"
        if found
        else "run `hpdm prep folder|captions DEST --shard i/n` for every i first",
    )


def _get_headers(store: RemoteFolder, names: list[str], folder: Path) -> None:
    """Download only the headers of shards of embeddings: they say where each caption lies."""
    if not names:
        return
    starts = [0] * len(names)
    sizes = [
        8 + int.from_bytes(data, "little") for data in store.ranges(names, starts, [8] * len(names))
    ]
    for name, data in zip(names, store.ranges(names, starts, sizes), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _put_text(store: RemoteFolder, folder: Path) -> None:
    """Copy the shards of embeddings within the store, numbered as `commit` numbered them."""
    old = [name for name, _ in store.files(TEXT)]
    store.remove(f"{TEXT}/{INDEX}")
    files = text_files([folder / each.folder for each in complete_shards(folder, store.url)])
    targets = [f"{TEXT}/text-{number:05d}.safetensors" for number in range(len(files))]
    for file, target in zip(files, targets, strict=True):
        store.copy(file.relative_to(folder).as_posix(), target)
    for name in old:
        if name.endswith(".safetensors") and name not in targets:
            store.remove(name)
    store.put(folder / TEXT / KEYS, f"{TEXT}/{KEYS}")
    store.put(folder / TEXT / INDEX, f"{TEXT}/{INDEX}")
