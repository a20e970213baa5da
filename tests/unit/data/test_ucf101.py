"""UCF-101 by every way: folder, archive, broken download; hostile archives are refused."""

import hashlib
import io
import os
import stat
import tarfile
import threading
import urllib.error
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hpdm_core.data import download as download_module
from hpdm_core.data.archives import RAR_MAGIC, extract
from hpdm_core.data.dataset import open_dataset
from hpdm_core.data.download import Remote, download
from hpdm_core.data.entries import read_json_lines
from hpdm_core.data.ucf101 import read_split_lists
from hpdm_core.data.ucf101_source import obtain
from hpdm_core.data.video_io import write_mp4
from hpdm_core.errors import DataError
from hpdm_core.progress import NoProgress
from hpdm_core.runs.prep import run_prep_ucf101

from .conftest import smooth_video

SILENT = NoProgress()


@pytest.fixture(scope="session")
def ucf_files(tmp_path_factory) -> dict[str, bytes]:
    """A small UCF-101: the spelling of one class differs between its files and the lists."""
    folder = tmp_path_factory.mktemp("ucf")
    names = [
        "Archery/v_Archery_g01_c01",
        "Archery/v_Archery_g08_c01",
        "HandstandPushups/v_HandStandPushups_g01_c01",
        "HandstandPushups/v_HandStandPushups_g09_c02",
        "Archery/v_Bowling_g09_c01",
        "Archery/holiday",
    ]
    files = {}
    for index, name in enumerate(names):
        write_mp4(folder / "v.mp4", smooth_video(index), 25)
        files[f"UCF-101/{name}.avi"] = (folder / "v.mp4").read_bytes()
    return files


LISTS = {
    "lists/classInd.txt": b"1 Archery\r\n2 Bowling\r\n3 HandstandPushups\r\n",
    "lists/trainlist01.txt": b"Archery/v_Archery_g08_c01.avi 1\r\n"
    b"HandstandPushups/v_HandStandPushups_g09_c02.avi 3\r\n",
    "lists/testlist01.txt": b"Archery/v_Archery_g01_c01.avi\r\n"
    b"HandStandPushups/v_HandstandPushups_g01_c01.avi\r\n",
    "lists/trainlist02.txt": b"Archery/v_Archery_g01_c01.avi 1\r\n",
    "lists/testlist02.txt": b"Archery/v_Archery_g08_c01.avi\r\n",
}


def write_all(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def zipped(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return packed.getvalue()


def prep(root: Path, source, **options):
    return run_prep_ucf101(root, source=str(source), progress=SILENT, **options)


def by_name(root: Path) -> dict[str, tuple]:
    entries = open_dataset(root, "ucf101").entries
    return {Path(e.path).stem: (e.class_name, e.label, e.split) for e in entries}


def test_official_lists_give_classes_and_splits(tmp_path, ucf_files, in_process):
    source = write_all(tmp_path / "source", ucf_files | LISTS)
    result = prep(tmp_path, source)
    assert open_dataset(tmp_path, "ucf101").classes == ("Archery", "Bowling", "HandstandPushups")
    assert by_name(tmp_path) == {
        "v_Archery_g01_c01": ("Archery", 0, "test"),
        "v_Archery_g08_c01": ("Archery", 0, "train"),
        "v_HandStandPushups_g01_c01": ("HandstandPushups", 2, "test"),
        "v_HandStandPushups_g09_c02": ("HandstandPushups", 2, "train"),
    }
    assert result["rejected"] == {"mislabelled": 2}
    reasons = [line["detail"] for line in read_json_lines(tmp_path / "ucf101/rejected.jsonl")]
    assert "not of the form" in reasons[0]
    assert reasons[1] == "named Bowling, but in the folder of Archery"
    assert result["notes"] == ["splits from the official list 1"]


def test_another_fold_changes_splits_and_decodes_nothing(tmp_path, ucf_files, in_process):
    source = write_all(tmp_path / "source", ucf_files | LISTS)
    prep(tmp_path, source)
    again = prep(tmp_path, source, fold=2)
    assert again["skipped_unchanged"] == 4
    assert by_name(tmp_path)["v_Archery_g01_c01"][2] == "train"
    assert by_name(tmp_path)["v_HandStandPushups_g01_c01"][2] == "unlisted"
    assert any("2 videos stand in neither list" in note for note in again["notes"])
    with pytest.raises(DataError, match="--fold 4"):
        prep(tmp_path, source, fold=4)


def test_a_flat_folder_works_too(tmp_path, ucf_files, in_process):
    flat = {Path(name).name: data for name, data in ucf_files.items()}
    result = prep(tmp_path, write_all(tmp_path / "source", flat))
    assert set(by_name(tmp_path).values()) == {
        ("Archery", 0, "train"),
        ("Bowling", 1, "train"),
        ("HandStandPushups", 2, "train"),
    }
    assert "every video is in the train split" in result["notes"][0]


def test_without_lists_the_whole_set_is_split_by_group(tmp_path, monkeypatch):
    from hpdm_core.data.plan import DecodingOptions
    from hpdm_core.data.ucf101 import plan_ucf101
    from hpdm_core.data.ucf101_source import Ucf101Files

    names = [f"v_Class{c:03d}_g{g:02d}_c01.avi" for c in range(101) for g in (1, 7, 8, 25)]
    write_all(tmp_path / "source", dict.fromkeys(names, b""))
    files = Ucf101Files(videos=tmp_path / "source", lists=None, words="here")
    for fold, test_groups in ((1, {"g01", "g07"}), (2, {"g08"})):
        plan = plan_ucf101(
            tmp_path, name="u", files=files, fold=fold, options=DecodingOptions(), workers=1
        )
        tested = {video.name.split("_")[2] for video in plan.videos if video.split == "test"}
        assert tested == test_groups
        assert f"as in the official list {fold}" in plan.notes[0]


def test_lists_are_read_whatever_their_line_ends(tmp_path):
    lists = read_split_lists(write_all(tmp_path, LISTS), 1)
    assert lists.classes == {
        "archery": "Archery",
        "bowling": "Bowling",
        "handstandpushups": "HandstandPushups",
    }
    assert lists.splits["v_handstandpushups_g09_c02"] == "train"
    assert len(lists.splits) == 4


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_is_unpacked_once(tmp_path, ucf_files, kind, in_process):
    archive = tmp_path / f"ucf.{kind}"
    if kind == "zip":
        archive.write_bytes(zipped(ucf_files | LISTS))
    else:
        with tarfile.open(archive, "w:gz") as opened:
            for name, data in (ucf_files | LISTS).items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                opened.addfile(info, io.BytesIO(data))
    dry = prep(tmp_path, archive, dry_run=True)
    assert dry["files"] == len(ucf_files) + len(LISTS)
    assert not (tmp_path / "ucf101").exists()
    assert prep(tmp_path, archive)["videos"] == 4
    assert prep(tmp_path, archive)["skipped_unchanged"] == 4


# --- hostile and broken archives


def hostile_zip(name: str, *, link: bool = False) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("UCF-101/fine.avi", b"fine")
        info = zipfile.ZipInfo(name)
        if link:
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, b"/etc")
    return packed.getvalue()


def hostile_tar(name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc"
        archive.addfile(info)
    return packed.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (hostile_zip("../escaped.avi"), "leads out of the folder"),
        (hostile_zip("a/../../escaped.avi"), "leads out of the folder"),
        (hostile_zip("..\\escaped.avi"), "leads out of the folder"),
        (hostile_zip("/escaped.avi"), "is absolute"),
        (hostile_zip("C:\\escaped.avi"), "is absolute"),
        (hostile_zip("link", link=True), "a link or a device"),
        (hostile_tar("../escaped.avi"), "leads out of the folder"),
        (hostile_tar("/escaped.avi"), "is absolute"),
        (hostile_tar("link", tarfile.SYMTYPE), "a link or a device"),
        (hostile_tar("link", tarfile.LNKTYPE), "a link or a device"),
        (hostile_tar("pipe", tarfile.FIFOTYPE), "a link or a device"),
    ],
)
def test_a_hostile_archive_is_refused_whole(tmp_path, data, reason):
    (tmp_path / "in").mkdir()
    archive = tmp_path / "in/bad.archive"
    archive.write_bytes(data)
    with pytest.raises(DataError, match=f"refused: .*{reason}"):
        extract(archive, tmp_path / "in/out", SILENT)
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "bad.archive"]


@pytest.mark.parametrize("cut", [0, 0.5, 0.99])
def test_a_broken_archive_is_named_and_leaves_nothing(tmp_path, ucf_files, cut):
    data = zipped(ucf_files)
    archive = tmp_path / "broken.zip"
    archive.write_bytes(data[: int(cut * len(data))])
    with pytest.raises(DataError, match=r"broken\.zip is (damaged|not an archive)"):
        extract(archive, tmp_path / "out", SILENT)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF
    archive.write_bytes(flipped)
    with pytest.raises(DataError, match=r"broken\.zip is damaged"):
        extract(archive, tmp_path / "out", SILENT)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.zip"]


def fake_tool(folder: Path, name: str, script: str) -> None:
    """A program on the path, for machines without one for .rar."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_rar_asks_one_program_and_falls_back_to_the_next(tmp_path, monkeypatch):
    archive = tmp_path / "videos.rar"
    archive.write_bytes(RAR_MAGIC + b"\x01\x00")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(DataError, match=r"expected one of unrar, unar, bsdtar.*apt install unar"):
        extract(archive, tmp_path / "out", SILENT)
    fake_tool(tmp_path / "bin", "unar", 'echo "cannot open it" >&2; exit 1')
    with pytest.raises(DataError, match=r"cannot be unpacked \(unar: cannot open it\)"):
        extract(archive, tmp_path / "out", SILENT)
    fake_tool(tmp_path / "bin", "bsdtar", 'echo video > "$5/v_A_g01_c01.avi"')
    assert [f.name for f in extract(archive, tmp_path / "out", SILENT).iterdir()] == [
        "v_A_g01_c01.avi"
    ]
    monkeypatch.setenv("PATH", str(tmp_path / "bin") + os.pathsep + os.defpath)
    fake_tool(tmp_path / "bin", "unar", 'ln -s /etc "$4/link"')
    with pytest.raises(DataError, match="'link', which is refused"):
        extract(archive, tmp_path / "evil", SILENT)
    assert not (tmp_path / "evil").exists()


# --- downloads, from a server on the loopback address


class Server:
    """Serves one file; breaks connections off as told."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.breaks_after: list[int] = []
        self.refusals: list[int] = []
        self.resumes = True
        self.length: str | None = None  # instead of the true one
        self.ranges: list[str | None] = []
        self.url = ""


@contextmanager
def serving(data: bytes) -> Iterator[Server]:
    state = Server(data)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            if state.refusals:
                self.send_error(state.refusals.pop(0))
                return
            start = int(asked[6:-1]) if asked and state.resumes else 0
            if start >= len(state.data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(state.data)}")
                self.end_headers()
                return
            body = state.data[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", state.length or str(len(body)))
            if start:
                end = len(state.data) - 1
                self.send_header("Content-Range", f"bytes {start}-{end}/{len(state.data)}")
            self.end_headers()
            cut = state.breaks_after.pop(0) if state.breaks_after else len(body)
            self.wfile.write(body[:cut])

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/files/UCF101.zip"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


DATA = bytes(range(256)) * 400
SHA = hashlib.sha256(DATA).hexdigest()


def fetch(server: Server, folder: Path, sha256: str | None = SHA, size: int | None = None) -> bytes:
    remote = Remote(url=server.url, sha256=sha256, size=size)
    return download(remote, folder / "file.zip", SILENT, pause=0.0).read_bytes()


def test_a_download_goes_on_where_the_connection_broke_off(tmp_path):
    with serving(DATA) as server:
        server.breaks_after = [30_000, 5_000]
        assert fetch(server, tmp_path) == DATA
        assert server.ranges == [None, "bytes=30000-", "bytes=35000-"]
        assert fetch(server, tmp_path) == DATA
        assert len(server.ranges) == 3  # what is there is not fetched again


def test_a_server_that_cannot_resume_sends_all_again(tmp_path):
    with serving(DATA) as server:
        server.breaks_after, server.resumes = [30_000], False
        assert fetch(server, tmp_path) == DATA


def test_passing_faults_are_tried_again_and_lasting_ones_end_it(tmp_path):
    with serving(DATA) as server:
        server.refusals = [503, 500, 429]
        assert fetch(server, tmp_path / "a") == DATA
        server.refusals = [404]
        with pytest.raises(DataError, match="HTTP 404"):
            fetch(server, tmp_path / "b")
        server.refusals = [503] * 20
        with pytest.raises(DataError, match=r"failed 6 times in a row.*--source"):
            fetch(server, tmp_path / "c")


def test_many_breaks_are_fine_while_there_is_progress(tmp_path):
    with serving(DATA) as server:
        server.breaks_after = [9_000] * 10
        assert fetch(server, tmp_path) == DATA


def test_what_was_fetched_survives_giving_up_and_is_gone_on_with(tmp_path):
    with serving(DATA) as server:
        server.breaks_after = [40_000]
        server.refusals = []
        original = server.data
        server.breaks_after += [0] * 5
        with pytest.raises(DataError, match="failed"):
            fetch(server, tmp_path)
        assert (tmp_path / "file.zip.part").stat().st_size == 40_000
        assert fetch(server, tmp_path) == original


def test_a_wrong_hash_removes_the_file(tmp_path):
    with serving(DATA) as server:
        with pytest.raises(DataError, match=r"arrived damaged.*got SHA-256 .*expected 0000"):
            fetch(server, tmp_path, sha256="0" * 64)
        assert list(tmp_path.iterdir()) == []


def test_a_whole_or_foreign_part_is_recognised(tmp_path):
    with serving(DATA) as server:
        (tmp_path / "file.zip.part").write_bytes(DATA)
        assert fetch(server, tmp_path) == DATA
        (tmp_path / "b").mkdir()
        (tmp_path / "b/file.zip.part").write_bytes(DATA + b"more than there is")
        assert fetch(server, tmp_path / "b") == DATA


def test_a_bad_certificate_is_never_ignored(tmp_path, monkeypatch):
    import ssl

    fault = ssl.SSLCertVerificationError(1, "unable to get local issuer certificate")
    fault.verify_message = "unable to get local issuer certificate"

    def refuse(*_, **__):
        raise urllib.error.URLError(fault)

    monkeypatch.setattr(download_module.urllib.request, "urlopen", refuse)
    with pytest.raises(DataError, match=r"certificate of https://a.* never switched off.*--source"):
        download(Remote(url="https://a/b.zip"), tmp_path / "b.zip", SILENT)


def test_only_web_addresses_are_fetched(tmp_path):
    with pytest.raises(DataError, match="expected an http or https address"):
        download(Remote(url="file:///etc/passwd"), tmp_path / "x", SILENT)


def test_too_little_room_is_said_before_the_download(tmp_path):
    remote = Remote(url="http://127.0.0.1:9/x", size=10**18)
    with pytest.raises(DataError, match="not enough space"):
        download(remote, tmp_path / "x", SILENT)


def test_the_whole_way_from_a_breaking_server_to_a_data_set(tmp_path, ucf_files, in_process):
    data = zipped(ucf_files | LISTS)
    with serving(data) as server:
        server.breaks_after = [len(data) // 2]
        assert prep(tmp_path, server.url)["videos"] == 4
        assert prep(tmp_path, server.url)["skipped_unchanged"] == 4
        assert len(server.ranges) == 2


def test_copies_are_tried_in_turn_and_lists_may_be_missing(tmp_path, ucf_files):
    data = zipped(ucf_files)
    with serving(data) as server:
        server.refusals = [404, 404]
        good = Remote(url=server.url, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        gone = Remote(url=server.url.replace("UCF101", "gone"))
        lists = Remote(url=server.url.replace("UCF101", "lists"))
        with pytest.raises(DataError, match=r"no copy of UCF-101 could be fetched.*404.*\| .*404"):
            obtain(None, tmp_path / "a", SILENT, copies=[gone, gone], splits=lists)
        server.refusals = [404]
        files = obtain(None, tmp_path / "b", SILENT, copies=[gone, good], splits=None)
        assert len(list(files.videos.rglob("*.avi"))) == len(ucf_files)
        server.refusals = []

        class Refuse(NoProgress):
            def stop(self) -> None:
                server.refusals = [404]  # after the videos, the lists cannot be had

        files = obtain(None, tmp_path / "c", Refuse(), copies=[good], splits=lists)
        assert "official split lists could not be fetched" in files.notes[0]


def test_a_source_that_is_not_there_is_one_message(tmp_path):
    with pytest.raises(DataError, match=r"nothing there.*leave --source out to download"):
        prep(tmp_path, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no UCF-101 video in .*hpdm prep folder"):
        prep(tmp_path, tmp_path / "empty")


def test_the_real_clips(tmp_path, shared_data, in_process):
    result = prep(tmp_path, shared_data / "UCF-101")
    assert result["videos"] == 3
    assert result["frames"] == {"min": 79, "median": 240, "max": 251}
    assert set(by_name(tmp_path)) == {
        "v_CricketShot_g04_c01",
        "v_SoccerJuggling_g23_c01",
        "v_SoccerJuggling_g24_c01",
    }
