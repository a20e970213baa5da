"""`prep --shard` and `prep commit` on an S3 stand-in on the loopback address (`hpdm[test-s3]`)."""

import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from hpdm_core.data.dataset import open_dataset
from hpdm_core.errors import DataError
from hpdm_core.runs.prep import run_prep_commit

from .test_object_stores import prepare
from .test_shards import ROOT, contents, source  # noqa: F401

s3fs = pytest.importorskip("s3fs", reason="needs pip install 'hpdm[test-s3]'")
server = pytest.importorskip("moto.server", reason="needs pip install 'hpdm[test-s3]'")
DEST = "s3://bucket/data"


@pytest.fixture
def bucket(monkeypatch):
    """An empty bucket of a server on 127.0.0.1, which credentials in the environment open."""
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"")
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("bucket")
    yield system
    s3fs.S3FileSystem.clear_instance_cache()
    running.stop()


def download(system, folder: Path) -> Path:
    system.invalidate_cache()
    system.get("bucket/data/n", str(folder / "n"), recursive=True)
    return folder


def test_videos_from_and_to_a_bucket(tmp_path, source, in_process, bucket):  # noqa: F811
    prepare(tmp_path / "one", source)
    bucket.put(str(source), "bucket/films", recursive=True)
    prepare(DEST, "s3://bucket/films", shard="1/2")
    with pytest.raises(DataError, match="no complete shard 0/2"):
        run_prep_commit(DEST)
    prepare(DEST, "s3://bucket/films", shard="0/2")
    assert run_prep_commit(DEST)["usable"] == "7 of 8 videos usable: 1 not a video"
    one = open_dataset(tmp_path / "one", "n")
    many = open_dataset(download(bucket, tmp_path / "many"), "n")
    assert contents(many.folder) == contents(one.folder)
    assert [entry.path for entry in many.entries] == [entry.path for entry in one.entries]
    assert prepare(DEST, "s3://bucket/films", shard="0/2")["skipped_unchanged"] == 4


def test_a_bucket_that_is_not_there_is_one_message(source, in_process, bucket):  # noqa: F811
    with pytest.raises(DataError, match=r"s3://absent/data/n cannot be reached or used; got "):
        prepare("s3://absent/data", source, shard="0/1")


@pytest.mark.slow
def test_killed_parts_lose_nothing_in_a_bucket(tmp_path, source, bucket):  # noqa: F811
    prepare(tmp_path / "one", source, workers=1)
    rng = random.Random(0)
    for kill in range(10):
        words = ["--source", str(source), "--name", "n", "--workers", "1"]
        with subprocess.Popen(
            [sys.executable, "-m", "hpdm_cli", "prep", "folder", DEST, *words,
             "--shard", f"{kill % 2}/2"],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
            start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            time.sleep(rng.uniform(0.5, 6.0))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    for shard in ("0/2", "1/2"):
        prepare(DEST, source, shard=shard, workers=1)
    run_prep_commit(DEST)
    one = open_dataset(tmp_path / "one", "n")
    many = open_dataset(download(bucket, tmp_path / "many"), "n")
    assert tuple(many.entries) == tuple(one.entries)
    assert contents(many.folder) == contents(one.folder)
