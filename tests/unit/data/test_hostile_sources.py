"""UCF-101 from hostile or broken places: archives, addresses, servers, lists."""

import errno
import io
import os
import socket
import tarfile
import urllib.error

import pytest

from hpdm_core.data import download as download_module
from hpdm_core.data.archives import extract
from hpdm_core.data.download import Remote, download
from hpdm_core.data.entries import read_json_lines
from hpdm_core.data.ucf101 import read_split_lists
from hpdm_core.data.ucf101_source import obtain
from hpdm_core.errors import DataError

from .test_ucf101 import DATA, LISTS, SILENT, fetch, prep, serving, ucf_files, write_all, zipped

__all__ = ["ucf_files"]  # a fixture


PAGE = b"<html>the file has moved</html>"


def test_a_download_that_is_no_archive_is_removed_and_fetched_again(
    tmp_path, ucf_files, in_process
):
    data = zipped(ucf_files | LISTS)
    with serving(PAGE) as server:
        with pytest.raises(DataError, match=r"is no archive \(a web page\?\); it was removed"):
            prep(tmp_path, server.url)
        assert not list((tmp_path / "ucf101/source").iterdir())
        server.data = data[: len(data) // 2] + b"\0" * 40 + data[len(data) // 2 + 40 :]
        with pytest.raises(DataError, match=r"is damaged.*; it was removed; run the same command"):
            prep(tmp_path, server.url)
        server.data = data
        assert prep(tmp_path, server.url)["videos"] == 4


def test_a_users_own_broken_archive_is_kept(tmp_path, ucf_files):
    own = tmp_path / "own.zip"
    own.write_bytes(zipped(ucf_files)[:-1000])
    with pytest.raises(DataError, match=r"own\.zip is (not an archive|damaged)"):
        prep(tmp_path, own)
    assert own.is_file()


def test_a_copy_that_sends_a_web_page_gives_way_to_the_next(tmp_path, ucf_files):
    with serving(PAGE) as bad, serving(zipped(ucf_files)) as good:
        copies = [Remote(url=bad.url), Remote(url=good.url)]
        files = obtain(None, tmp_path, SILENT, copies=copies, splits=None)
    assert len(list(files.videos.rglob("*.avi"))) == len(ucf_files)


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///x.zip",
        "http://[::1/x.zip",
        "http://host:port/x.zip",
        "http://host:99999/x.zip",
        "http://a b/x.zip",
        "http://host/\u00fc.zip",
        "http://host/\udcff.zip",
        "http://host/a\nb.zip",
        "ftp://host/x.zip",
        "://",
    ],
)
def test_odd_addresses_are_refused_at_once(tmp_path, url):
    with pytest.raises(DataError, match="expected an http or https address with a host"):
        prep(tmp_path, url)


def test_a_host_that_nobody_knows_is_not_asked_again(tmp_path, monkeypatch):
    calls = []

    def refuse(*_, **__):
        calls.append(1)
        raise urllib.error.URLError(socket.gaierror(socket.EAI_NONAME, "Name not known"))

    monkeypatch.setattr(download_module.urllib.request, "urlopen", refuse)
    with pytest.raises(DataError, match=r"cannot be fetched: .*Name not known; check the address"):
        download(Remote(url="http://nowhere.invalid/b.zip"), tmp_path / "b.zip", SILENT)
    assert len(calls) == 1


def refusing_at(numbers: set[int], monkeypatch) -> list[int]:
    """Refuse these connections as a host without a server does; return the list of all tries."""
    calls, connect = [], download_module.urllib.request.urlopen

    def urlopen(*args, **options):
        calls.append(len(calls))
        if calls[-1] in numbers:
            raise urllib.error.URLError(ConnectionRefusedError(errno.ECONNREFUSED, "refused"))
        return connect(*args, **options)

    monkeypatch.setattr(download_module.urllib.request, "urlopen", urlopen)
    return calls


def test_a_server_that_is_not_there_is_asked_once(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/b.zip"
    calls = refusing_at(set(), monkeypatch)
    with pytest.raises(DataError, match=r"cannot be fetched: .*refused; check the address"):
        download(Remote(url=url), tmp_path / "b.zip", SILENT, pause=0.0)
    assert len(calls) == 1


def test_a_server_that_starts_again_is_waited_for(tmp_path, monkeypatch):
    calls = refusing_at({1, 2}, monkeypatch)
    with serving(DATA) as server:
        server.breaks_after = [30_000]
        assert fetch(server, tmp_path) == DATA
    assert len(calls) == 4


@pytest.mark.parametrize("length", ["abc", "-5", "\u00b2", "1e3"])
def test_a_length_that_is_no_number_is_ignored(tmp_path, length):
    with serving(DATA) as server:
        server.length = length
        assert fetch(server, tmp_path) == DATA


def test_a_full_disk_is_not_tried_six_times(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download_module, "_receive", full)
    with serving(DATA) as server:
        with pytest.raises(OSError, match="No space left"):
            fetch(server, tmp_path)
        assert len(server.ranges) == 1


@pytest.mark.parametrize("path", ["..", "", "a" * 300 + ".zip", "a%2Fb.zip"])
def test_the_end_of_an_address_is_a_plain_file_name(tmp_path, ucf_files, path):
    with serving(zipped(ucf_files)) as server:
        url = server.url.replace("files/UCF101.zip", path)
        files = obtain(url, tmp_path, SILENT)
    assert files.videos.parent == tmp_path / "source"
    assert files.videos.is_dir()


def test_a_class_that_the_official_list_lacks_is_mislabelled(tmp_path, ucf_files, in_process):
    lists = LISTS | {"lists/classInd.txt": b"1 HandstandPushups\r\n"}
    result = prep(tmp_path, write_all(tmp_path / "source", ucf_files | lists))
    assert (result["videos"], result["rejected"]) == (2, {"mislabelled": 4})
    details = [line["detail"] for line in read_json_lines(tmp_path / "ucf101/rejected.jsonl")]
    assert "its class Archery is not in classInd.txt" in details


def test_lists_that_are_not_text_are_named_with_their_line(tmp_path, ucf_files):
    lists = LISTS | {"lists/trainlist01.txt": b"a.avi 1\n\xff\xfe\n"}
    source = write_all(tmp_path / "source", ucf_files | lists)
    with pytest.raises(DataError, match=r"trainlist01\.txt:2 is not text in UTF-8"):
        prep(tmp_path, source)
    (source / "lists/trainlist01.txt").unlink()
    os.mkfifo(source / "lists/trainlist01.txt")  # is not read at all
    assert read_split_lists(source, 1).classes["archery"] == "Archery"


@pytest.mark.parametrize("name", ["a" * 300, "b/" + "a" * 300])
def test_names_that_no_file_system_takes_are_damage(tmp_path, name):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo(name))
    (tmp_path / "in.tar").write_bytes(packed.getvalue())
    with pytest.raises(DataError, match=r"in\.tar is damaged: .*File name too long"):
        extract(tmp_path / "in.tar", tmp_path / "out", SILENT)
    assert [path.name for path in tmp_path.iterdir()] == ["in.tar"]


def test_members_with_holes_are_refused(tmp_path):
    info = tarfile.TarInfo("hole.avi")
    info.type = tarfile.GNUTYPE_SPARSE
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(info)
    (tmp_path / "in.tar").write_bytes(packed.getvalue())
    with pytest.raises(DataError, match="it has holes, which may fill the disk"):
        extract(tmp_path / "in.tar", tmp_path / "out", SILENT)


def test_a_source_that_is_no_regular_file_is_refused_and_makes_no_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe.zip")
    for source in (tmp_path / "pipe.zip", "x" * 300):
        with pytest.raises(DataError, match=r"not a file|nothing there"):
            prep(tmp_path / "data", source)
    assert not (tmp_path / "data").exists()
