"""Weight files: told apart by checksum, fetched only where one is known, named where absent."""

import hashlib
import shutil
import subprocess

import pytest

from hpdm_core.errors import MetricError
from hpdm_core.metrics import weights
from hpdm_core.metrics.weights import WeightFile, git_blob_of, obtain, verify

CONTENT = b"some weights\n" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FILE = WeightFile(name="net.pt", about="a net", urls=("https://a.example/net.pt",), sha256=SHA256)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(CONTENT)
    return path


def test_the_right_file_passes_and_gives_its_hash(path):
    assert verify(path, FILE) == SHA256
    assert verify(path, WeightFile(name="net.npz", about="arrays, no checksum known")) == SHA256


def test_another_file_is_refused(path):
    path.write_bytes(CONTENT + b"!")
    with pytest.raises(MetricError, match=f"not net.pt; got SHA-256 .* expected {SHA256}"):
        verify(path, FILE)


def test_git_blob_is_what_git_says(path):
    if shutil.which("git") is None:
        pytest.skip("needs git")
    said = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True)
    assert git_blob_of(path) == said.stdout.strip()
    assert verify(path, WeightFile(name="n", about="", git_blob=said.stdout.strip())) == SHA256
    with pytest.raises(MetricError, match="got git blob"):
        verify(path, WeightFile(name="n", about="", git_blob="0" * 40))


def test_code_without_a_published_checksum_needs_the_users_word(path):
    code = WeightFile(name="c3d.pt", about="code", is_code=True)
    with pytest.raises(MetricError, match=r"holds code.*net.pt.sha256"):
        verify(path, code)
    note = path.with_name("net.pt.sha256")
    note.write_text(f"{SHA256}  net.pt\n")
    assert verify(path, code) == SHA256
    note.write_text("0" * 64)
    with pytest.raises(MetricError, match=r"is not c3d.pt"):
        verify(path, code)


def test_a_file_in_the_folder_is_taken_without_fetching(path, tmp_path):
    def fetch(*_):
        raise AssertionError("fetched")

    assert obtain(FILE, tmp_path, fetch=fetch) == path


def test_an_absent_file_is_fetched_where_its_checksum_is_known(tmp_path):
    calls = []

    def fetch(urls, path, sha256):
        calls.append((tuple(urls), sha256))
        path.write_bytes(CONTENT)

    folder = tmp_path / "cache" / "detectors"
    assert obtain(FILE, folder, fetch=fetch) == folder / "net.pt"
    assert calls == [(FILE.urls, SHA256)]
    unknown = WeightFile(name="x.npz", about="", pages=("https://b.example/x.npz",))
    with pytest.raises(MetricError, match="no checksum of it is published"):
        obtain(unknown, folder, fetch=fetch)
    assert len(calls) == 1


def test_without_network_the_message_says_all(tmp_path):
    def no_network(urls, path, sha256):
        raise OSError("network is unreachable")

    for fetch, problem in ((None, "no such file"), (no_network, "network is unreachable")):
        with pytest.raises(MetricError) as caught:
            obtain(weights.I3D_TORCHSCRIPT, tmp_path, fetch=fetch)
        message = str(caught.value)
        for part in (
            problem,
            str(tmp_path / "i3d_torchscript.pt"),
            weights.I3D_TORCHSCRIPT.urls[0],
            "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
        ):
            assert part in message


def test_every_torchscript_file_counts_as_code():
    assert weights.I3D_TORCHSCRIPT.is_code
    assert weights.C3D_TORCHSCRIPT.is_code
    assert not weights.I3D_STATE_DICT.is_code
