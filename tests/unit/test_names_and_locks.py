"""Names that become paths, and the lock that keeps two writers out of one folder."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from hpdm_core.errors import HpdmError
from hpdm_core.locks import LOCK, lock_folder
from hpdm_core.names import LONGEST_NAME, is_unicode, plain_name, short_name


@pytest.mark.parametrize("name", ["a", "clips_64", "a b", "..a", "年度 動画", "é" * 100, "-x"])
def test_plain_names_are_taken_as_they_are(name, tmp_path):
    assert plain_name(name) == name
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "names no folder"),
        ("  ", "names no folder"),
        (".", "names no folder"),
        ("..", "names no folder"),
        ("../../x", "holds a slash"),
        ("/abs", "holds a slash"),
        ("a\\b", "holds a slash"),
        ("a\0b", "cannot be printed"),
        ("a\nb", "cannot be printed"),
        ("a\u2028b", "cannot be printed"),
        ("a\ud800b", "cannot be printed"),
        ("a" * 201, "longer than 200 bytes"),
        ("é" * 101, "longer than 200 bytes"),
    ],
)
def test_other_names_are_refused_in_printable_words(name, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        plain_name(name)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    assert "expected one plain name" in str(caught.value)


def test_short_names_are_bounded_and_differ_where_the_long_ones_do():
    assert short_name("a.mp4") == "a.mp4"
    long = [short_name("é" * 120 + end) for end in ("a", "b")]
    assert len(set(long)) == 2
    assert all(len(name.encode()) <= LONGEST_NAME for name in long)
    assert is_unicode(long[0])
    assert not is_unicode("a\udfff")


HOLD = """
import sys
from pathlib import Path
from hpdm_core.locks import lock_folder
with lock_folder(Path(sys.argv[1]), doing="testing in", remedy="wait"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_has_one_writer_and_a_killed_one_leaves_no_lock(tmp_path):
    folder = tmp_path / "made/on/the/way"
    command = [sys.executable, "-c", HOLD, str(folder)]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(HpdmError, match=r"another command is preparing .*the/way; wait a bit"),
            lock_folder(folder, doing="preparing", remedy="wait a bit"),
        ):
            raise AssertionError("two writers")
        holder.kill()
    with lock_folder(folder, doing="preparing", remedy="wait a bit"):
        assert [path.name for path in folder.iterdir()] == [LOCK]


def test_a_file_system_without_locks_stops_nobody(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_folder(tmp_path, doing="preparing", remedy="wait"):
        pass
