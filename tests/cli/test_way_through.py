"""The whole way by the command line's words, at the smallest size: shapes, training, plans."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """\
description: the smallest recipe of all
data: {name: shapes, workers: 0}
pyramid:
  patch: [4, 16, 16]
  levels: [[4, 16, 16], [8, 32, 32]]
model:
  token: [1, 4, 4]
  data_width: 16
  latent_width: 16
  num_latents: 8
  layers_per_block: 1
  latent_heads: 2
  latent_head_width: 8
  cross_heads: 2
  cross_head_width: 8
  levels_per_block: [1, 2]
  conditioning: class
diffusion: {sigma_in: [1, 2], noise_mean: [-1, -1], noise_std: [1, 1], level_weights: [1, 1]}
optim: {name: adamw, lr: 1e-3, warmup_steps: 2}
train: {steps: 6, batch_size: 4, checkpoint_every: 3, log_every: 1, tensorboard: false}
sampling: {steps: [2, 2]}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a prepared data set and a recipe."""
    folder = tmp_path_factory.mktemp("way")
    (folder / "tiny.yaml").write_text(RECIPE)
    made = _hpdm(folder, "prep", "shapes", "./data", "--num", "18", "--size", "32", "--frames", "8")
    assert made["videos"] == 18
    _hpdm(folder, "train", "tiny.yaml", "--out", "runs/base", "train.steps=2")
    return folder


def _process(folder: Path, *args: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "hpdm_cli", *args, "--json"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _hpdm(folder: Path, *args: str) -> dict:
    process = _process(folder, *args)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(out)


def test_train_then_again_then_longer(place):
    first = _hpdm(place, "train", "tiny.yaml", "--seed", "3")
    assert first["run"] == "runs/tiny"
    assert (place / "runs/tiny/recipe.yaml").read_text().count("seed: 3") == 1
    longer = _hpdm(place, "train", "tiny.yaml", "train.steps=8", "--seed", "3")
    assert longer["resumed_from_step"] == 6
    assert longer["steps"] == 8
    lines = (place / "runs/tiny/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))


def test_prep_again_skips_what_is_there(place):
    again = _hpdm(place, "prep", "shapes", "./data", "--num", "18", "--size", "32", "--frames", "8")
    assert again["skipped_unchanged"] == 18


def test_sigterm_saves_and_exits_with_130(place):
    args = ("train", "tiny.yaml", "train.steps=100000", "train.checkpoint_every=100000")
    process = _process(place, *args, "--out", "runs/stopped")
    metrics = place / "runs/stopped/metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text().count("\n") > 2):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "saved in" in json.loads(out)["error"]
    assert len(list((place / "runs/stopped/checkpoints").glob("step-*"))) == 1


def test_finetune_from_a_run_counts_what_was_taken(place):
    made = _hpdm(
        place, "finetune", "tiny.yaml", "--from", "runs/base", "--out", "runs/fine", "train.steps=2"
    )
    assert made["run"] == "runs/fine"
    assert made["initialised"]["taken"]
    assert made["initialised"]["new"] == []


def test_absent_data_is_refused_with_the_way_to_make_it(place):
    process = _process(place, "train", "tiny.yaml", "data.name=none", "--out", "runs/none")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "hpdm prep" in errors
    assert not (place / "runs/none").exists()


def test_torchrun_trains_and_rank_0_alone_prints(place):
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
         "-m", "hpdm_cli", "train", "tiny.yaml", "--out", "runs/two", "--device", "cpu", "--json"],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["steps"] == 6


@pytest.mark.parametrize(("recipe", "millions"), [("hpdm_s", 178), ("hpdm_t2v", 3934)])
def test_plan_of_a_training_counts_on_the_meta_device(place, recipe, millions):
    plan = _hpdm(place, "train", recipe, "--dry-run")
    assert plan["parameters"]["total"] == pytest.approx(millions * 1e6, rel=0.01)
    assert plan["flops_per_video"] > 0
    assert len(plan["tokens_per_level"]) == len(plan["levels"])
    assert all(set(level) >= {"resolution", "patch"} for level in plan["levels"])
    assert not (place / "runs" / recipe).exists()
