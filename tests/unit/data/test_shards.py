"""`prep --shard i/n` and `prep commit`: together they make what one command makes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hpdm_core.data.dataset import open_dataset
from hpdm_core.data.entries import read_json_lines
from hpdm_core.data.plan import PrepShard
from hpdm_core.data.text_store import TextStore
from hpdm_core.data.tiny_text_encoder import make_tiny_encoder
from hpdm_core.data.video_io import write_mp4
from hpdm_core.errors import DataError, HpdmError
from hpdm_core.progress import NoProgress
from hpdm_core.runs.prep import run_prep_captions, run_prep_commit, run_prep_folder

from .conftest import smooth_video

SILENT = NoProgress()
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Seven videos in two classes, two of whose names clash, and a file that is none."""
    folder = tmp_path_factory.mktemp("source")
    names = ["a/0.mp4", "a/0.mov", "a/1.mp4", "a/2.mp4", "b/0.mp4", "b/1.mp4", "b/2.mp4"]
    for index, name in enumerate(names):
        write_mp4(folder / name, smooth_video(index, frames=16, height=32, width=32), 12)
    (folder / "b/bad.mp4").write_bytes(b"no video")
    return folder


def prepare(root: Path, source: Path, **options):
    return run_prep_folder(root, source=source, name="n", progress=SILENT, **options)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in (folder / "videos").rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("count", [1, 3, 11])
def test_shards_in_any_order_make_what_one_command_makes(tmp_path, source, in_process, count):
    prepare(tmp_path / "one", source)
    for number in random.Random(0).sample(range(count), count):
        assert prepare(tmp_path / "many", source, shard=f"{number}/{count}")["shard"]
        with pytest.raises(DataError, match="no prepared data set"):
            open_dataset(tmp_path / "many", "n")
    result = run_prep_commit(tmp_path / "many")
    one, many = (open_dataset(tmp_path / place, "n") for place in ("one", "many"))
    assert tuple(many.entries) == tuple(one.entries)
    assert many.header == one.header
    assert contents(many.folder) == contents(one.folder)
    rejected = [read_json_lines(d.folder / "rejected.jsonl") for d in (one, many)]
    assert rejected[0] == rejected[1] != []
    assert result["videos"] == 7
    assert result["usable"] == "7 of 8 videos usable: 1 not a video"
    again = run_prep_commit(many.folder)
    assert again == result


def test_missing_shards_are_named_and_can_be_run_again(tmp_path, source, in_process):
    prepare(tmp_path, source, shard="1/4")
    with pytest.raises(DataError, match=r"3 of 4 shards .*got no complete shard 0/4, 2/4, 3/4"):
        run_prep_commit(tmp_path)

    class Kill(NoProgress):
        def advance(self, amount: int = 1, **fields: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_prep_folder(tmp_path, source=source, name="n", progress=Kill(), shard="0/4")
    for number in (2, 3):
        prepare(tmp_path, source, shard=f"{number}/4")
    with pytest.raises(DataError, match=r"1 of 4 shards .*got no complete shard 0/4"):
        run_prep_commit(tmp_path)
    assert prepare(tmp_path, source, shard="0/4")["skipped_unchanged"] == 1
    assert run_prep_commit(tmp_path)["videos"] == 7
    assert prepare(tmp_path, source, shard="0/4")["skipped_unchanged"] == 2


def test_shards_that_do_not_belong_together_are_refused(tmp_path, source, in_process):
    prepare(tmp_path, source, shard="0/2")
    prepare(tmp_path, source, shard="1/2", size=(16, 16))
    with pytest.raises(DataError, match="different sources or with different options"):
        run_prep_commit(tmp_path)
    prepare(tmp_path, source, shard="0/3")
    with pytest.raises(DataError, match="different divisions; got of 2, of 3"):
        run_prep_commit(tmp_path)


def test_a_data_set_without_shards_is_no_destination(tmp_path, source, in_process):
    prepare(tmp_path, source)
    with pytest.raises(DataError, match="no shards in"):
        run_prep_commit(tmp_path)


@pytest.mark.parametrize("text", ["", "1", "3/3", "-1/3", "0/0", "1/3/5", "1.0/3"])
def test_a_shard_is_i_of_n(text):
    with pytest.raises(DataError, match=r"got .* expected i/n with i from 0 to n - 1|expected i/n"):
        PrepShard.parse(text)


def test_captions_of_shards_are_joined(tmp_path, source, in_process):
    captions = ["a wave", "night", "the sea", "a wave"]
    names = ["a/0.mp4", "a/1.mp4", "b/0.mp4", "b/1.mp4"]
    lines = [{"file": n, "caption": c} for n, c in zip(names, captions, strict=True)]
    listed = source / "list.jsonl"
    listed.write_text("".join(json.dumps(line) + "\n" for line in lines))
    make_tiny_encoder(tmp_path / "encoder", captions, width=16)

    def run(root: Path, **options) -> None:
        run_prep_captions(
            tmp_path / root, source=listed, progress=SILENT, device="cpu",
            text_encoder=str(tmp_path / "encoder"), **options,
        )  # fmt: skip

    run("one")
    for number in range(3):
        run("many", shard=f"{number}/3")
    assert run_prep_commit(tmp_path / "many")["captions"] == 4  # and the empty one, each once
    one, many = (TextStore(tmp_path / place / "captions") for place in ("one", "many"))
    assert one.index == many.index
    for caption in ["", *captions]:
        torch.testing.assert_close(many.get(caption), one.get(caption), rtol=0.02, atol=0.02)
    shutil.rmtree(tmp_path / "many/captions/shards/00001-of-00003/text")
    with pytest.raises(HpdmError, match="same --text-encoder"):
        run_prep_commit(tmp_path / "many")


@pytest.mark.slow
def test_twenty_killed_shards_lose_nothing(tmp_path, source):
    prepare(tmp_path / "one", source, workers=1)
    shutil.rmtree(tmp_path / "many", ignore_errors=True)
    rng, kills = random.Random(0), 0
    begin = [sys.executable, "-m", "hpdm_cli", "prep", "folder", str(tmp_path / "many")]
    while kills < 20:
        shard = f"{kills % 2}/2"
        with subprocess.Popen(
            [*begin, "--source", str(source), "--name", "n", "--shard", shard, "--workers", "1"],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            time.sleep(rng.uniform(0.5, 3.0))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        kills += 1
    for shard in ("0/2", "1/2"):
        prepare(tmp_path / "many", source, shard=shard, workers=1)
    run_prep_commit(tmp_path / "many")
    one, many = (open_dataset(tmp_path / place, "n") for place in ("one", "many"))
    assert tuple(many.entries) == tuple(one.entries)
    assert contents(many.folder) == contents(one.folder)
