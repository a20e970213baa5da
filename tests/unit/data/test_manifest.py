"""The Arrow manifest: equal to the list it was written from, and safe where it is damaged."""

import os
import pickle
import random
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pytest

from hpdm_core.data import manifest as manifest_module
from hpdm_core.data.dataset import open_dataset, write_header
from hpdm_core.data.entries import VideoEntry, write_json_lines
from hpdm_core.data.manifest import SCHEMA, Manifest, open_manifest, select, write_manifest
from hpdm_core.errors import DataError

CLASSES = ("a", "b")


def some_entries(count: int) -> list[VideoEntry]:
    rng = random.Random(0)
    return [
        VideoEntry(
            path=f"videos/{i}-é.mp4",
            num_frames=rng.randint(1, 40),
            fps=rng.choice([25.0, 29.97]),
            height=rng.randint(16, 99),
            width=64,
            label=(label := rng.choice([-1, 0, 1])),
            class_name=None if label < 0 else CLASSES[label],
            caption=rng.choice([None, "", "a cat\u2028"]),
            more_captions=tuple("xyz"[: rng.randint(0, 3)]),
            split=rng.choice(["train", "test"]),
            is_image=rng.random() < 0.2,
            source=f"{i}",
            source_bytes=rng.randint(0, 2**40),
            source_mtime_ns=-1,
            source_sha256="ab" * 32,
        )
        for i in range(count)
    ]


@pytest.fixture
def entries(monkeypatch) -> list[VideoEntry]:
    monkeypatch.setattr(manifest_module, "ROWS_PER_BATCH", 8)
    return some_entries(43)


def test_it_holds_what_was_written(entries, tmp_path):
    write_manifest(tmp_path, iter(entries))
    found = open_manifest(tmp_path, classes=CLASSES)
    assert len(found) == 43
    assert list(found) == entries
    assert [found[i] for i in range(43)] == entries
    assert found[-1] == entries[-1]
    assert found[3:40:7] == tuple(entries[3:40:7])
    with pytest.raises(IndexError):
        found[43]


@pytest.mark.parametrize("split", ["train", "test", "all", "none"])
@pytest.mark.parametrize("min_frames", [0, 17, 100])
def test_selections_equal_those_of_a_list(entries, tmp_path, split, min_frames):
    write_manifest(tmp_path, entries)
    found = select(open_manifest(tmp_path, classes=CLASSES), split, min_frames=min_frames)
    listed = select(entries, split, min_frames=min_frames)
    brute = [
        e
        for e in entries
        if (split == "all" or e.split == split) and (e.num_frames >= min_frames or e.is_image)
    ]
    assert list(found) == [found[i] for i in range(len(found))] == list(listed) == brute
    assert list(pickle.loads(pickle.dumps(found))) == brute


def test_old_manifests_open_as_before_and_are_replaced(entries, tmp_path):
    write_header(tmp_path, {"kind": "folder", "classes": list(CLASSES)})
    write_json_lines(tmp_path / "manifest.jsonl", [asdict(entry) for entry in entries])
    before = open_dataset(tmp_path.parent, tmp_path.name)
    write_manifest(tmp_path, before.entries)
    after = open_dataset(tmp_path.parent, tmp_path.name)
    assert not (tmp_path / "manifest.jsonl").exists()
    assert isinstance(after.entries, Manifest)
    assert tuple(after.entries) == before.entries
    assert after.captions("test") == before.captions("test")
    assert set(after.captions("all", most=5)) <= set(before.captions("all"))
    for dataset in (before, after):
        with pytest.raises(DataError, match="expected one of test, train, or all"):
            dataset.split("trian")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "../x.mp4"}, r"row 2 leaves the data set's folder"),
        ({"num_frames": 0}, r"row 2: num_frames; got 0"),
        ({"fps": float("nan")}, r"row 2: fps"),
    ],
)
def test_a_wrong_row_is_named_when_it_is_read(entries, tmp_path, changes, message):
    entries[1] = replace(entries[1], **changes)
    write_manifest(tmp_path, entries)
    found = open_manifest(tmp_path, classes=CLASSES)
    assert found[0] == entries[0]
    with pytest.raises(DataError, match=message):
        found[1]


def test_wrong_classes_columns_and_batches_are_refused_when_it_is_opened(entries, tmp_path):
    write_manifest(tmp_path, entries)
    with pytest.raises(DataError, match=r"does not match .* got classes from -1 to 1"):
        open_manifest(tmp_path, classes=("a",))
    path = tmp_path / "manifest.arrow"
    table = pa.ipc.open_file(path).read_all()
    for wrong, message in (
        (table.drop_columns(["fps"]), "other columns"),
        (table.combine_chunks(), "batches of another size .* got 43 rows; expected 8"),
    ):
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, wrong.schema) as writer:
            writer.write_table(wrong)
        os.utime(path, ns=(0, len(message)))
        with pytest.raises(DataError, match=message):
            open_manifest(tmp_path, classes=CLASSES)


FUZZ = """
import random, sys
from pathlib import Path
from hpdm_core.data.manifest import open_manifest
from hpdm_core.errors import DataError
folder = Path(sys.argv[1])
good = (folder / "manifest.arrow").read_bytes()
rng, refused = random.Random(int(sys.argv[2])), 0
for trial in range(150):
    data = bytearray(good)
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    if trial % 3 == 0:
        del data[rng.randrange(len(data)) :]
    other = folder / f"{trial}"
    other.mkdir()
    (other / "manifest.arrow").write_bytes(data)
    try:
        found = open_manifest(other, classes=("a", "b"))
        [found[i] for i in range(len(found))], list(found), found.splits()
        len(found.select("train"))
    except DataError:
        refused += 1
print(refused)
"""


@pytest.mark.parametrize("seed", [0, 1])
def test_damaged_bytes_end_in_an_error_and_never_in_a_crash(tmp_path, seed):
    write_manifest(tmp_path, some_entries(20))
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, tmp_path, str(seed)],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


def test_rows_are_read_with_any_schema_field_of_an_entry():
    fields = set(VideoEntry.__dataclass_fields__) - {"class_name"}
    assert {field.name for field in SCHEMA} == fields
