"""500 damaged archives: unpacked inside their folder, or refused by a DataError."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from hpdm_core.data.archives import extract, is_archive
from hpdm_core.errors import DataError
from hpdm_core.progress import NoProgress

from .fuzzing import Memory, cases, enough, mutated, within_time

pytestmark = pytest.mark.slow

FILES = {"a.avi": b"x" * 3000, "b/c.avi": bytes(range(256)) * 20, "b/d.txt": b"words " * 50}
TOKENS = [b"../", b"/", b"\0", b"PK\x01\x02", b"PK\x03\x04", b"ustar", b"7" * 11, b"\xff" * 8]


def archives() -> list[bytes]:
    packed = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as opened:
            for name, data in FILES.items():
                opened.writestr(name, data)
        packed.append(file.getvalue())
    for mode in ("w", "w:gz", "w:bz2", "w:xz"):
        for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode=mode, format=kind) as opened:
                for name, data in (FILES | {"long/" + "n" * 120: "é".encode()}).items():
                    info = tarfile.TarInfo(name)
                    info.size, info.uname = len(data), "é"
                    opened.addfile(info, io.BytesIO(data))
            packed.append(file.getvalue())
    return packed


def test_every_archive_is_unpacked_or_refused(tmp_path: Path):
    sources, memory, unpacked = archives(), Memory(warm_up=100), 0
    archive = tmp_path / "in/x.archive"
    archive.parent.mkdir()
    for seed in cases(500):
        with within_time(seed) as rng:
            archive.write_bytes(mutated(rng, rng.choice(sources), TOKENS))
            is_archive(archive)
            try:
                extract(archive, tmp_path / "in/out", NoProgress())
                unpacked += 1
            except DataError as error:
                message = str(error)
                assert "x.archive" in message
                assert {path.name for path in archive.parent.iterdir()} <= {"out", "x.archive"}
            assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]
            assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
        memory.note()
    enough(unpacked, 20, of="archives unpacked")
