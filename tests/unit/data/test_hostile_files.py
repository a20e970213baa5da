"""Videos, names, lists and manifests that once stopped `hpdm prep`: each has its reason now."""

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import yaml
from PIL import Image

from hpdm_core.data.dataset import open_dataset
from hpdm_core.data.entries import read_json_lines
from hpdm_core.data.journal import JOURNAL
from hpdm_core.data.metadata import LONGEST_LINE, read_lines
from hpdm_core.data.plan import SourceVideo, targets
from hpdm_core.data.text_store import read_text_index
from hpdm_core.data.video_io import MOST_PIXELS, SequentialVideo, UnusableVideo, write_mp4
from hpdm_core.errors import DataError, HpdmError
from hpdm_core.locks import lock_folder
from hpdm_core.progress import NoProgress
from hpdm_core.runs.prep import run_prep_captions, run_prep_folder, run_prep_shapes

from .conftest import smooth_video

SILENT = NoProgress()


def prep(root: Path, source: Path, **options):
    return run_prep_folder(root, source=source, name="m", progress=SILENT, **options)


def captions(root: Path, source: Path, **options):
    return run_prep_captions(root, source=source, progress=SILENT, **options)


def rejected(folder: Path) -> dict[str, str]:
    return {line["source"]: line["detail"] for line in read_json_lines(folder / "rejected.jsonl")}


@pytest.fixture
def source(tmp_path, in_process) -> Path:
    """A folder with one good video."""
    write_mp4(tmp_path / "source/ok.mp4", smooth_video(0), 12)
    return tmp_path / "source"


def encoded(path: Path, codec: str, size: tuple[int, int], pix_fmt: str) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12)
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        frame = av.VideoFrame(size[1], size[0], pix_fmt)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for _ in range(16):
            container.mux(stream.encode(frame))
            if size[0] * size[1] > MOST_PIXELS:
                break
        container.mux(stream.encode(None))


def test_bad_videos_are_rejected_each_with_its_reason(tmp_path, source):
    good = (source / "ok.mp4").read_bytes()
    (source / "codec.mp4").write_bytes(good.replace(b"avc1", b"zzz9"))
    encoded(source / "wide.mkv", "ffv1", (2, 20_000), "yuv420p")
    encoded(source / "huge.mkv", "rawvideo", (8200, 8200), "gray")
    (source / "list.mp4").write_text("#EXTM3U\n#EXTINF:10,\nok.mp4\n#EXT-X-ENDLIST\n")
    (source / "files.mp4").write_text("ffconcat version 1.0\nfile ok.mp4\n")
    os.mkfifo(source / "pipe.mp4")
    (source / "device.mp4").symlink_to("/dev/zero")
    (source / "gone.mp4").symlink_to("nowhere")
    (source / "link.mp4").symlink_to("ok.mp4")
    result = prep(tmp_path, source)
    assert {e.path for e in open_dataset(tmp_path, "m").entries} == {
        "videos/ok.mp4",
        "videos/link.mp4",
    }
    details = rejected(tmp_path / "m")
    for name, words in {
        "codec.mp4": "no decoder here knows its codec",
        "wide.mkv": "cannot be written as H.264",
        "huge.mkv": "frames of 8200x8200 pixels are too large",
        "list.mp4": "the file holds text",
        "files.mp4": "the file holds text",
        "pipe.mp4": "it is a pipe, not a file",
        "device.mp4": "it is a device, not a file",
        "gone.mp4": "cannot be read: No such file",
    }.items():
        assert words in details.pop(name)
    assert details == {}
    assert result["rejected"] == {"unreadable": 6, "not a video": 2}
    assert prep(tmp_path, source)["skipped_unchanged"] == 10


def test_a_pipe_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "x.mp4")
    with pytest.raises(UnusableVideo, match="it is a pipe"):
        SequentialVideo(tmp_path / "x.mp4")


def test_a_name_like_a_protocol_is_a_file(tmp_path, monkeypatch):
    write_mp4(tmp_path / "v.mp4", smooth_video(0), 12)
    (tmp_path / "v.mp4").rename(tmp_path / "pipe:0.mp4")
    monkeypatch.chdir(tmp_path)
    with SequentialVideo(Path("pipe:0.mp4")) as video:
        assert sum(1 for _ in video.frames()) == 24


def test_a_full_disk_is_no_fault_of_the_video(tmp_path, source, monkeypatch):
    from hpdm_core.data import transcode as module

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_mp4", full)
    with pytest.raises(OSError, match="No space left"):
        prep(tmp_path, source)


def test_folders_named_like_videos_do_no_harm(tmp_path, source):
    for name in ("c.avi", "c.mp4/v.mp4", "C.mov", "d.mp4/e.mp4/v.mp4", "d.avi"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((source / "ok.mp4").read_bytes())
    for skipped in (0, 6):
        result = prep(tmp_path, source)
        assert (result["videos"], result["skipped_unchanged"]) == (6, skipped)
    assert open_dataset(tmp_path, "m").classes == ("c.mp4", "d.mp4/e.mp4")


def test_long_and_odd_names_do_no_harm(tmp_path, source):
    good = (source / "ok.mp4").read_bytes()
    names = ["a" * 246 + ".mp4", "a" * 246 + ".avi", "é" * 125 + ".mp4", "new\nline.mp4"]
    for name in names:
        (source / name).write_bytes(good)
    Path(os.fsdecode(os.fsencode(source) + b"/byte\xff.mp4")).write_bytes(good)
    folder = Path(os.fsdecode(os.fsencode(source) + b"/class\xff"))
    folder.mkdir()
    (folder / "v.mp4").write_bytes(good)
    for skipped in (0, 5):
        result = prep(tmp_path, source)
        assert (result["videos"], result["skipped_unchanged"]) == (5, skipped)
    dataset = open_dataset(tmp_path, "m")
    assert {e.source for e in dataset.entries} == {*names, "ok.mp4"}
    assert all(dataset.file(entry).is_file() for entry in dataset.entries)
    details = rejected(tmp_path / "m")
    assert set(details) == {"byte\\udcff.mp4", "class\\udcff/v.mp4"}
    assert set(details.values()) == {"its name is not text in UTF-8; rename it"}
    assert dataset.classes == ()


def test_targets_are_files_that_a_disk_takes_and_never_a_folder_of_others():
    names = ["x" * 251 + ".gif", "x" * 251 + ".mp4", "c.avi", "c.mp4/v.mp4", "C.MP4/w.mp4", "c.mov"]
    made = targets([SourceVideo(file=None, name=name) for name in names])
    assert len(set(made.values())) == len(names)
    folders = {str(p).lower() for t in made.values() for p in Path(t).parents}
    assert not folders & {target.lower() for target in made.values()}
    assert all(len(Path(target).name) < 220 for target in made.values())


@pytest.mark.parametrize("name", ["../x", "", "a/b", "x\0"])
def test_the_name_of_a_data_set_is_one_folder(tmp_path, source, name):
    for make in (
        lambda: run_prep_shapes(tmp_path / "d", name=name, num=1, progress=SILENT),
        lambda: run_prep_folder(tmp_path / "d", name=name, source=source, progress=SILENT),
    ):
        with pytest.raises(DataError, match=r"--name .*expected one plain name"):
            make()
    assert not (tmp_path / "d").exists()
    with pytest.raises(DataError, match=r"--name"):
        run_prep_folder(tmp_path / "d", source=Path("/"), progress=SILENT, dry_run=True)


def test_two_preparations_of_one_folder_do_not_meet(tmp_path, source):
    with lock_folder(tmp_path / "m", doing="preparing", remedy="wait"):
        with pytest.raises(HpdmError, match=r"another command is preparing .*/m; wait.*--name"):
            prep(tmp_path, source)
        prep(tmp_path, source, dry_run=True)
    assert prep(tmp_path, source)["videos"] == 1
    command = "from hpdm_cli.app import main; main()"
    with lock_folder(tmp_path / "m", doing="preparing", remedy="wait"):
        done = subprocess.run(
            [sys.executable, "-c", command, "prep", "folder", str(tmp_path), "--source",
             str(source), "--name", "m"],
            capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3],
        )  # fmt: skip
    assert done.returncode == 2
    assert "another command is preparing" in done.stderr
    assert "Traceback" not in done.stderr


# --- lists of captions


def test_new_lines_in_cells_and_odd_line_ends_in_json_stay(tmp_path, source):
    texts = ["two\nlines", "a\u2028b", "c\u0085d", "e\rf", "g\x0bh"]
    good = (source / "ok.mp4").read_bytes()
    for index in range(len(texts)):
        (source / f"{index}.mp4").write_bytes(good)
    lines = [
        json.dumps({"file": f"{i}.mp4", "caption": text}, ensure_ascii=False)
        for i, text in enumerate(texts)
    ]
    (source / "l.jsonl").write_text("\r\n".join(lines), encoding="utf-8", newline="")
    captions(tmp_path / "json", source / "l.jsonl")
    assert open_dataset(tmp_path / "json", "captions").captions("all") == texts
    rows = "".join(f'{i}.mp4,"{text}"\r\n' for i, text in enumerate(texts))
    (source / "l.csv").write_text("file,caption\r\n" + rows, encoding="utf-8", newline="")
    captions(tmp_path / "csv", source / "l.csv")
    assert open_dataset(tmp_path / "csv", "captions").captions("all") == texts


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.jsonl", '\n{"file": "a", "caption": {"en": "x"}}', r"l\.jsonl:2 has a caption that is"),
        ("l.jsonl", '{"file": "a", "caption": 5}', r"l\.jsonl:1 has a caption .*; got 5; expected"),
        ("l.jsonl", '{"file": "a", "caption": true}', r"a caption that is not text; got True"),
        ("l.jsonl", '{"file": "a", "caption": ["x", null]}', r"a caption that is not text"),
        ("l.jsonl", '{"file": 7, "caption": "x"}', r"l\.jsonl:1 names no file"),
        ("l.jsonl", '{"file": "a", "caption": "x", "split": [1]}', r":1 has a split that is no"),
        ("l.jsonl", '{"file": "a", "n": ' + "9" * 5000 + "}", r"l\.jsonl:1 is not JSON"),
        ("l.jsonl", "[" * 100_000, r"l\.jsonl:1 is not JSON"),
        ("l.jsonl", '{"file": "a", "caption": NaN}', r"is not JSON: NaN is no number"),
        ("l.csv", "file,caption\na,x\nb,one, two\n", r"l\.csv:3 has more cells.*in quotes"),
        ("l.csv", 'file,caption\na,"x\ny"\nb,"open\n', r"l\.csv:\d is not CSV"),
        ("l.csv", "file,caption\na," + "x" * 200_000, r"l\.csv:\d is not CSV: field larger"),
        ("l.csv", 'file,caption\na,"x\ny"\n,z\n', r"l\.csv:4 names no file"),
    ],
)
def test_lines_that_cannot_be_meant_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        captions(tmp_path / "data", tmp_path / name)
    assert not (tmp_path / "data").exists()


def test_lists_that_are_not_text_are_named_with_their_line(tmp_path):
    for name, start in (("l.jsonl", b'{"file": "a"}\n'), ("l.csv", b"file,caption\n")):
        (tmp_path / name).write_bytes(start + b"\xff\xfe\n")
        with pytest.raises(DataError, match=rf"{name}:\d.* not text in UTF-8; save it as UTF-8"):
            captions(tmp_path / "data", tmp_path / name)


def test_names_that_no_file_has_spoil_their_own_line_only(tmp_path, source):
    lines = [
        {"file": "ok.mp4", "caption": "fine"},
        {"file": "a\0b.mp4", "caption": "x"},
        {"file": "a\ud800.mp4", "caption": "x"},
        {"file": "a" * 300 + ".mp4", "caption": "x"},
        {"file": "b/" * 3000, "caption": "x"},
        {"file": ".", "caption": "x"},
    ]
    (source / "l.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for skipped in (0, 1):
        result = captions(tmp_path, source / "l.jsonl")
        assert (result["videos"], result["skipped_unchanged"]) == (1, skipped)
    details = sorted(detail for detail in rejected(tmp_path / "captions").values())
    assert len(details) == 5
    assert sum("not text in UTF-8" in detail for detail in details) == 2
    assert any("longer than the 255 bytes" in detail for detail in details)
    assert any("it is a folder" in detail for detail in details)


def test_half_a_character_in_a_caption_spoils_its_video_only(tmp_path, source):
    (source / "b.mp4").write_bytes((source / "ok.mp4").read_bytes())
    lines = [{"file": "ok.mp4", "caption": "fine"}, {"file": "b.mp4", "caption": "a\ud800"}]
    (source / "l.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for _ in range(2):
        captions(tmp_path, source / "l.jsonl")
    assert rejected(tmp_path / "captions") == {"b.mp4": "its caption holds a lone surrogate"}


def test_two_names_of_one_file_are_one_video(tmp_path, source):
    (source / "link.mp4").symlink_to("ok.mp4")
    lines = [{"file": "ok.mp4", "caption": "a"}, {"file": "link.mp4", "caption": "b"}]
    (source / "l.jsonl").write_text("\n".join(map(json.dumps, lines)))
    captions(tmp_path, source / "l.jsonl")
    (entry,) = open_dataset(tmp_path, "captions").entries
    assert (entry.caption, entry.more_captions) == ("a", ("b",))


def test_pictures_too_large_to_hold_are_rejected(tmp_path, source):
    Image.fromarray(np.zeros((8200, 8200), np.uint8)).save(source / "huge.png")
    lines = [{"file": "ok.mp4", "caption": "a"}, {"file": "huge.png", "caption": "b"}]
    (source / "l.jsonl").write_text("\n".join(map(json.dumps, lines)))
    captions(tmp_path, source / "l.jsonl")
    assert "8200x8200 pixels are too large" in rejected(tmp_path / "captions")["huge.png"]


# --- data sets on disk


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": "24"}, r"manifest\.jsonl:2: num_frames; got '24'; expected .*integer"),
        ({"num_frames": 0}, r":2: num_frames; got 0; expected greater than 0"),
        ({"num_frames": 10**30}, r":2: num_frames; got 10{20}"),
        ({"fps": 1e300}, r":2: fps; got 1e\+300; expected less than or equal to 1000000"),
        ({"fps": float("nan")}, r":2: fps; got nan; expected a finite number|:2 is not JSON"),
        ({"fps": -1}, r":2: fps; got -1"),
        ({"height": [48]}, r":2: height; got \[48\]"),
        ({"path": None}, r":2: path; got None; expected string"),
        ({"path": "/etc/passwd"}, r":2 leaves the data set's folder"),
        ({"path": "a\0.mp4"}, r":2 leaves the data set's folder"),
        ({"more_captions": "x"}, r":2: more_captions; got 'x'"),
        ({"more_captions": [1]}, r":2: more_captions\.0; got 1"),
        ({"is_image": "no"}, r":2: is_image; got 'no'"),
        ({"label": 2}, r":2 has a class that does not match dataset\.yaml; got class 2, 'a'"),
        ({"label": 1}, r":2 has a class that does not match .* expected one of its 2 classes"),
        ({"label": -1}, r":2 has a class that does not match"),
        ({"class_name": None}, r":2 has a class that does not match"),
        ({"label": -2}, r":2: label; got -2"),
    ],
)
def test_a_manifest_with_wrong_types_or_classes_is_named(tmp_path, json_dataset, changes, message):
    manifest = json_dataset.folder / "manifest.jsonl"
    lines = read_json_lines(manifest)
    lines[1] |= changes
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / "data", "waves")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"- a\n", r"dataset\.yaml was not written by this version"),
        (b"\xff\xfe", r"dataset\.yaml is not YAML"),
        (b"a: !!timestamp x", r"dataset\.yaml is not YAML"),
        (b"a: !!bool x", r"dataset\.yaml is not YAML"),
        (b"[" * 5000, r"dataset\.yaml is not YAML"),
        (b"format: 1\nkind: folder\nsource: x\nsettings: {}\n", r"lacks a field; got no classes"),
        (b"format: 1\nkind: [1]\nsource: x\nsettings: {}\nclasses: []\n", r"dataset\.yaml: kind"),
        (b"format: 1\nkind: folder\nsource: x\nsettings: {}\nclasses: [1]\n", r"classes\.0; got 1"),
        (b"format: 1\nkind: folder\nsource: x\nsettings: 3\nclasses: []\n", r"settings; got 3"),
    ],
)
def test_a_header_that_is_none_is_named(tmp_path, dataset, text, message):
    (dataset.folder / "dataset.yaml").write_bytes(text)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / "data", "waves")


def test_other_files_that_are_not_text_are_named(tmp_path, json_dataset):
    (json_dataset.folder / "manifest.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(DataError, match=r"manifest\.jsonl:1 is not text in UTF-8"):
        open_dataset(tmp_path / "data", "waves")
    (json_dataset.folder / "text").mkdir()
    for text in (b"\xff", b"[1]", b'{"encoder": 3}', b'{"width": "x"}'):
        (json_dataset.folder / "text/text.json").write_bytes(text)
        with pytest.raises(DataError, match=r"text\.json"):
            read_text_index(json_dataset.folder)


def test_a_damaged_journal_costs_time_only(tmp_path, source):
    for text in ("[1]\n", '{"kind": 3}\n', "\xff", "[" * 5000):
        (tmp_path / "m").mkdir(exist_ok=True)
        (tmp_path / "m" / JOURNAL).write_text(text, encoding="latin-1")
        assert prep(tmp_path, source)["videos"] == 1


def test_lines_are_bounded(tmp_path):
    with (tmp_path / "long").open("wb") as file:
        file.write(b"a\n")
        file.seek(2 * LONGEST_LINE)
        file.write(b"x")
    with pytest.raises(DataError, match=r"long:2 is too long"):
        list(read_lines(tmp_path / "long"))


def test_the_header_stays_readable_by_plain_yaml(dataset):
    assert yaml.safe_load((dataset.folder / "dataset.yaml").read_text())["format"] == 1
