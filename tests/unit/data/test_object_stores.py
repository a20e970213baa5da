"""`prep --shard` and `prep commit` to and from object stores, in fsspec's own `memory://`."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import torch

from hpdm_core.data.dataset import open_dataset
from hpdm_core.data.entries import read_json_lines
from hpdm_core.data.objects import RemoteFile, RemoteFolder, remote_folder
from hpdm_core.data.remote_jobs import RemoteJournal
from hpdm_core.data.text_store import TextStore
from hpdm_core.data.tiny_text_encoder import make_tiny_encoder
from hpdm_core.errors import DataError
from hpdm_core.progress import NoProgress
from hpdm_core.runs.prep import run_prep_captions, run_prep_commit, run_prep_folder

from .test_shards import ROOT, SILENT, contents, source  # noqa: F401

pytestmark = pytest.mark.usefixtures("in_process")
DEST = "memory://bucket/data"


@pytest.fixture(autouse=True)
def memory():
    """The store, empty before and after a test."""
    system = fsspec.filesystem("memory")
    for clear in (system.store.clear, system.pseudo_dirs.clear):
        clear()
    yield system
    for clear in (system.store.clear, system.pseudo_dirs.clear):
        clear()


def download(system, folder: Path) -> Path:
    """Copy the data set to a disk with fsspec's own call."""
    system.get("/bucket/data/n", str(folder / "n"), recursive=True)
    return folder


def prepare(root: Path | str, source: Path | str, **options):  # noqa: F811
    return run_prep_folder(root, source=source, name="n", progress=SILENT, **options)


@pytest.mark.parametrize("remote_source", [False, True])
def test_a_store_gets_what_one_command_makes_on_a_disk(tmp_path, source, memory, remote_source):  # noqa: F811
    prepare(tmp_path / "one", source)
    if remote_source:
        memory.put(str(source), "/films", recursive=True)
    place = "memory://films" if remote_source else source
    for number in (2, 0, 1):
        result = prepare(DEST, place, shard=f"{number}/3")
        assert result["folder"] == f"{DEST}/n"
        assert not memory.exists("/bucket/data/n/dataset.yaml")
    result = run_prep_commit(DEST)
    assert result["usable"] == "7 of 8 videos usable: 1 not a video"
    assert result["folder"] == f"{DEST}/n"
    one = open_dataset(tmp_path / "one", "n")
    many = open_dataset(download(memory, tmp_path / "many"), "n")
    assert contents(many.folder) == contents(one.folder)
    assert [entry.path for entry in many.entries] == [entry.path for entry in one.entries]
    rejected = [read_json_lines(d.folder / "rejected.jsonl") for d in (one, many)]
    assert [line["source"] for line in rejected[0]] == [line["source"] for line in rejected[1]]
    if not remote_source:
        assert tuple(many.entries) == tuple(one.entries)
    before = memory.cat("/bucket/data/n/manifest.arrow")
    assert prepare(DEST, place, shard="1/3")["skipped_unchanged"] > 0
    assert run_prep_commit(f"{DEST}/n/") == result
    assert memory.cat("/bucket/data/n/manifest.arrow") == before


def test_missing_parts_are_named_and_a_killed_one_goes_on(source, memory):  # noqa: F811
    prepare(DEST, source, shard="1/2")
    with pytest.raises(DataError, match=r"1 of 2 shards of memory://bucket/data/n .* shard 0/2"):
        run_prep_commit(f"{DEST}/n")

    class Kill(NoProgress):
        def advance(self, amount: int = 1, **fields: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_prep_folder(DEST, source=source, name="n", progress=Kill(), shard="0/2")
    assert prepare(DEST, source, shard="0/2")["skipped_unchanged"] == 1
    assert not [name for name in memory.find("/bucket") if "journal" in name]
    assert run_prep_commit(DEST)["videos"] == 7


def test_a_changed_source_is_made_again_and_an_equal_one_kept(source, memory):  # noqa: F811
    memory.put(str(source), "/films", recursive=True)
    prepare(DEST, "memory://films", shard="0/1")
    made = memory.modified("/bucket/data/n/videos/a/1.mp4")
    for name in ("a/1.mp4", "a/2.mp4"):  # written anew; only a/2 with other frames
        new = source / ("b/2.mp4" if name == "a/2.mp4" else name)
        memory.put_file(str(new), f"/films/{name}")
    memory.rm_file("/bucket/data/n/videos/b/1.mp4")
    assert prepare(DEST, "memory://films", shard="0/1")["skipped_unchanged"] == 6
    assert memory.modified("/bucket/data/n/videos/a/1.mp4") == made
    a, b = (memory.cat(f"/bucket/data/n/videos/{name}.mp4") for name in ("a/2", "b/2"))
    assert a == b
    assert memory.exists("/bucket/data/n/videos/b/1.mp4")
    memory.pipe("/films/a/1.mp4", b"no video")
    prepare(DEST, "memory://films", shard="0/1")
    assert not memory.exists("/bucket/data/n/videos/a/1.mp4")


@pytest.mark.parametrize("folder", ["memory://", "memory://films/"])
def test_a_list_names_files_beside_it(folder, source, memory, tmp_path):  # noqa: F811
    memory.put(str(source / "a" / "0.mp4"), folder.removeprefix("memory://") + "0.mp4")
    line = {"file": "./0.mp4", "caption": "a wave"}
    memory.pipe(f"{folder}list.jsonl", json.dumps(line).encode())
    run_prep_captions(tmp_path, source=f"{folder}list.jsonl", progress=SILENT, name="n")
    assert [entry.source for entry in open_dataset(tmp_path, "n").entries] == ["0.mp4"]


def test_captions_and_their_embeddings(tmp_path, source, memory):  # noqa: F811
    memory.put(str(source), "/films", recursive=True)
    captions = {"a/0.mp4": "a wave", "a/1.mp4": "night", "memory://films/b/0.mp4": "the sea"}
    lines = [{"file": file, "caption": caption} for file, caption in captions.items()]
    lines.append({"file": "a/absent.mp4", "caption": "nothing"})
    memory.pipe("/films/list.jsonl", "".join(json.dumps(x) + "\n" for x in lines).encode())
    make_tiny_encoder(tmp_path / "encoder", list(captions.values()), width=16)
    for number in range(2):
        run_prep_captions(
            DEST, source="memory://films/list.jsonl", progress=SILENT, device="cpu", name="n",
            text_encoder=str(tmp_path / "encoder"), shard=f"{number}/2",
        )  # fmt: skip
    result = run_prep_commit(DEST)
    assert result["usable"] == "3 of 4 videos usable: 1 unreadable"
    assert result["captions"] == 4  # and the empty one
    dataset = open_dataset(download(memory, tmp_path), "n")
    assert [entry.source for entry in dataset.entries] == ["a/0.mp4", "a/1.mp4", "b/0.mp4"]
    whole = TextStore(dataset.folder)
    for number in range(2):
        part = TextStore(dataset.folder / f"shards/0000{number}-of-00002")
        for caption in ["", *list(captions.values())[2 * number : 2 * number + 2]]:
            torch.testing.assert_close(whole.get(caption), part.get(caption), rtol=0.02, atol=0.02)


def test_a_header_is_the_last_object_written(source, memory, monkeypatch):  # noqa: F811
    order = []
    put = RemoteFolder.put
    monkeypatch.setattr(
        RemoteFolder, "put", lambda self, local, name: (order.append(name), put(self, local, name))
    )
    prepare(DEST, source, shard="0/1")
    assert order[-1] == "shards/00000-of-00001/dataset.yaml"
    order.clear()
    run_prep_commit(DEST)
    assert order == ["rejected.jsonl", "manifest.arrow", "dataset.yaml"]


def test_the_journal_is_uploaded_every_half_minute(tmp_path, memory):
    now = [0.0]
    journal = RemoteJournal(remote_folder(DEST), "j", clock=lambda: now[0])
    (tmp_path / "j").write_text("1")
    for now[0], there in ((29.0, False), (31.0, True)):
        journal.save(tmp_path / "j")
        assert memory.exists("/bucket/data/j") == there
    (tmp_path / "j").write_text("2")
    journal.save(tmp_path / "j")
    assert memory.cat("/bucket/data/j") == b"1"
    journal.save(tmp_path / "j", now=True)
    assert memory.cat("/bucket/data/j") == b"2"


def test_a_folder_travels_to_workers_without_its_connection():
    folder = remote_folder(f"{DEST}//")
    assert pickle.loads(pickle.dumps(folder)) == folder == RemoteFolder(DEST)


def test_mistakes_are_named(tmp_path, source, memory):  # noqa: F811
    with pytest.raises(DataError, match="is prepared in parts; add --shard 0/1"):
        prepare(DEST, source)
    with pytest.raises(DataError, match="fsspec knows no such store; expected s3://"):
        prepare("nostore://x", source, shard="0/1")
    with pytest.raises(DataError, match="names no folder; expected s3://BUCKET"):
        remote_folder("memory:///")
    with pytest.raises(DataError, match="no video in memory://empty"):
        prepare(tmp_path, "memory://empty")
    with pytest.raises(DataError, match=r"--source memory://empty/x.csv: no such file"):
        run_prep_captions(tmp_path, source="memory://empty/x.csv", progress=SILENT)
    with pytest.raises(DataError, match="no data set with shards in memory://empty"):
        run_prep_commit("memory://empty")
    for name in ("a", "b"):
        memory.pipe(f"/two/{name}/shards/00000-of-00001/dataset.yaml", b"")
    with pytest.raises(DataError, match=r"several data sets .* got a, b; .*give one of their fold"):
        run_prep_commit("memory://two")
    with pytest.raises(DataError, match="mount the bucket, or copy"):
        open_dataset(DEST, "n")


def test_a_missing_package_is_named_with_its_installation(source, monkeypatch):  # noqa: F811
    def absent(url: str):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", absent)
    with pytest.raises(DataError, match=r"Install s3fs to access S3; pip install 'hpdm\[cluster\]"):
        prepare("s3://b/data", source, shard="0/1")


def test_what_a_store_raises_becomes_one_message(monkeypatch):
    class NoCredentials(Exception):
        """As botocore's: of no common base."""

    def fail(url: str):
        raise NoCredentials("Unable to locate credentials")

    monkeypatch.setattr("fsspec.core.url_to_fs", fail)
    with pytest.raises(DataError, match="s3://b/x cannot be reached or used; got NoCredentials: U"):
        RemoteFile("s3://b/x").stat()


def test_a_dry_run_writes_nothing(source, memory):  # noqa: F811
    plan = prepare(DEST, source, shard="0/2", dry_run=True)
    assert plan["folder"] == f"{DEST}/n"
    assert plan["files"] == 4
    assert memory.find("/") == []


def test_local_preparation_does_not_import_fsspec():
    code = "import sys, hpdm_core.runs.prep; sys.exit('fsspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
