"""Scripts of `examples/cluster`, in their dry form and run task by task."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hpdm_core.data.dataset import open_dataset
from hpdm_core.data.video_io import write_mp4

from .data.conftest import smooth_video

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "examples/cluster"


def run(script: str, *words: str, **variables: str) -> str:
    done = subprocess.run(
        ["bash", SCRIPTS / script, *words], cwd=ROOT, env={**os.environ, **variables},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_the_dry_form_of_a_preparation(tmp_path):
    array = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}
    for source, kind in (("list with spaces.jsonl", "captions"), (str(tmp_path), "folder")):
        lines = run("prepare.slurm", "./data", source, "clips", DRY_RUN="1", **array).splitlines()
        assert shlex.split(lines[0]) == [
            *("hpdm", "prep", kind, "./data", "--source", source, "--name", "clips"),
            *("--shard", "3/8", "--workers", "1"),
        ]
        assert shlex.split(lines[1]) == ["hpdm", "prep", "commit", "./data/clips"]


def test_the_dry_form_of_a_training():
    said = run(
        "train.slurm", "hpdm_t2v", "train.replicas=8",
        DRY_RUN="1", MASTER_HOST="node0", SLURM_JOB_NUM_NODES="8",
    )  # fmt: skip
    *start, recipe, replicas = shlex.split(said)
    assert start[:4] == ["srun", "torchrun", "--nnodes=8", "--nproc-per-node=8"]
    assert "--rdzv-endpoint=node0:29500" in start
    assert start[-3:] == ["-m", "hpdm_cli", "train"]
    assert (recipe, replicas) == ("hpdm_t2v", "train.replicas=8")


@pytest.mark.slow
def test_tasks_of_an_array_make_a_data_set(tmp_path):
    for index in range(3):
        write_mp4(tmp_path / f"s/{index}.mp4", smooth_video(index, height=32, width=32), 12)
    command = tmp_path / "bin/hpdm"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m hpdm_cli "$@"\n')
    command.chmod(0o755)
    path = {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    for task in ("1", "0"):
        array = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": "2"}
        said = run("prepare.slurm", str(tmp_path / "d"), str(tmp_path / "s"), "c", **array, **path)
        assert ("not the last part" in said) == (task == "1")
    assert len(open_dataset(tmp_path / "d", "c").entries) == 3
