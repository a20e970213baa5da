"""The whole way by the command line's words, at the smallest size: shapes, training, plans."""

import json
import os
import shlex
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

PREP = ("prep", "shapes", "./data", "--num", "18", "--size", "32", "--frames", "8")


@pytest.fixture(scope="session")
def succeed(run_hpdm):
    """Run `hpdm ... --json`, which must succeed, and return its object."""

    def run(*args: str) -> dict:
        done = run_hpdm(*args, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="module")
def folder(succeed, tmp_path_factory) -> Path:
    """A folder with a recipe, a prepared data set, and a run in runs/base."""
    folder = tmp_path_factory.mktemp("way")
    (folder / "tiny.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert succeed(*PREP)["videos"] == 18
        succeed("train", "tiny.yaml", "--out", "runs/base", "train.steps=2")
    return folder


@pytest.fixture
def place(folder, monkeypatch) -> Path:
    """The same folder, as the current one."""
    monkeypatch.chdir(folder)
    return folder


def test_train_then_again_then_longer(place, succeed):
    first = succeed("train", "tiny.yaml", "--seed", "3")
    assert first["run"] == "runs/tiny"
    assert (place / "runs/tiny/recipe.yaml").read_text().count("seed: 3") == 1
    longer = succeed("train", "tiny.yaml", "train.steps=8", "--seed", "3")
    assert longer["resumed_from_step"] == 6
    assert longer["steps"] == 8
    lines = (place / "runs/tiny/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))


def test_prep_again_skips_what_is_there(place, succeed):
    again = succeed("prep", "shapes", "./data", "--num", "18", "--size", "32", "--frames", "8")
    assert again["skipped_unchanged"] == 18


def test_sigterm_saves_and_exits_with_130(place):
    args = ("train", "tiny.yaml", "train.steps=100000", "train.checkpoint_every=100000")
    process = subprocess.Popen(
        [sys.executable, "-m", "hpdm_cli", *args, "--out", "runs/stopped", "--json"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = place / "runs/stopped/metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text().count("\n") > 2):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "saved in" in json.loads(out)["error"]
    assert len(list((place / "runs/stopped/checkpoints").glob("step-*"))) == 1


def test_finetune_from_a_run_counts_what_was_taken(place, succeed):
    made = succeed(
        "finetune", "tiny.yaml", "--from", "runs/base", "--out", "runs/fine", "train.steps=2"
    )
    assert made["run"] == "runs/fine"
    assert made["initialised"]["loaded"]
    assert made["initialised"]["missing"] == []


def _next(done) -> list[str]:
    """Return the words of the command that a command ends with."""
    assert done.returncode == 0, done.stderr
    label, command = done.stdout.splitlines()[-1].split(maxsplit=1)
    program, *words = shlex.split(command)
    assert (label, program) == ("next", "hpdm")
    return words


@pytest.mark.parametrize(
    "args",
    [
        ("train", "tiny.yaml", "--out", "runs/base", "train.steps=2"),
        ("sample", "--checkpoint", "runs/base", "--num", "2", "--out", "drawn"),
        ("prep", "folder", "data", "--source", "data/shapes/videos", "--name", "again",
         "--min-frames", "8"),
    ],
)  # fmt: skip
def test_the_next_command_can_be_run(place, run_hpdm, args):
    words = _next(run_hpdm(*args))
    if args[0] == "prep":
        assert words == ["train", "small", "data.name=again"]
    assert run_hpdm(*words, "--dry-run").returncode == 0


def test_samples_without_their_data_are_not_scored_next(place, run_hpdm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_hpdm("sample", "--checkpoint", str(place / "runs/base"), "--num", "1")
    assert _next(done) == ["train", "--list"]


@pytest.mark.parametrize(
    "args",
    [
        ("train", "tiny.yaml", "--seed", "3", "--device", "cpu", "optim.lr=1e-2"),
        ("finetune", "tiny.yaml", "--from", "runs/base", "--out", "runs/the next one"),
        ("sample", "--checkpoint", "runs/base", "--num", "3", "--seed", "5"),
        ("prep", "shapes", "elsewhere", "--num", "4"),
        ("prep", "folder", "elsewhere", "--source", "data/shapes/videos", "--workers", "1"),
        ("prep", "ucf101", "elsewhere"),
        ("eval-fvd", "--samples", "data/shapes/videos", "--real", "data/shapes", "--force",
         "--protocol", "fvdfull_16f", "--detector", "bundled"),
        ("ablate", "table4", "--scale", "smoke", "--rows", "none,hw"),
    ],
)  # fmt: skip
def test_a_plan_ends_with_the_same_command(place, run_hpdm, args):
    assert tuple(_next(run_hpdm(*args, "--dry-run"))) == args


def test_a_simulated_cluster_is_no_part_of_the_next_command(place, run_hpdm):
    done = run_hpdm("train", "tiny.yaml", "--dry-run", "--devices", "8", "train.batch_size=8")
    assert _next(done) == ["train", "tiny.yaml", "train.batch_size=8"]
    done = run_hpdm("sample", "--recipe", "tiny.yaml", "model.num_classes=18", "--dry-run")
    assert _next(done) == ["train", "tiny.yaml", "model.num_classes=18"]


def test_absent_data_is_refused_with_the_way_to_make_it(place, run_hpdm):
    done = run_hpdm("train", "tiny.yaml", "data.name=none", "--out", "runs/none")
    assert done.returncode == 2
    assert "hpdm prep" in done.stderr
    assert not (place / "runs/none").exists()


def test_torchrun_trains_and_rank_0_alone_prints(place):
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
         "-m", "hpdm_cli", "train", "tiny.yaml", "--out", "runs/two", "--device", "cpu", "--json"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["steps"] == 6


def test_plan_of_a_training_counts_on_the_meta_device(place, succeed):
    plan = succeed("train", "hpdm_t2v", "--dry-run")
    assert plan["parameters"]["total"] == pytest.approx(3934e6, rel=0.01)
    assert plan["flops_per_video"] > 0
    assert len(plan["tokens_per_level"]) == len(plan["levels"]) == 4
    assert plan["levels"][3]["resolution"] == [64, 288, 512]
    assert plan["levels"][3]["patch"] == [8, 36, 64]
    assert not (place / "runs/hpdm_t2v").exists()


def test_sample_from_a_run_then_score_it(place, succeed):
    args = ("--checkpoint", "runs/base", "--num", "4", "--overlap", "fhw", "--out", "videos")
    made = succeed("sample", *args, "--steps", "2,1", "--class", "circle-falling", "--seed", "5")
    assert made["videos"] == 4
    assert len(list((place / "videos").rglob("*.mp4"))) == 4
    lines = [json.loads(line) for line in (place / "videos/samples.jsonl").open()]
    assert [line["seed"] for line in lines] == [5, 6, 7, 8]

    scores = succeed(
        "eval-fvd", "--samples", "videos", "--real", "data/shapes", "--detector", "bundled",
        "--protocol", "fvd512_8f", "--num-fakes", "4", "--force", "--out", "scores",
    )  # fmt: skip
    assert scores


def test_plan_of_a_sampling_counts_tiles_and_block_passes(place, succeed):
    plan = succeed("sample", "--recipe", "hpdm_s", "--overlap", "fhw", "--dry-run")
    assert [level["tiles"] for level in plan["levels"]] == [1, 27, 343]
    assert [level["steps"] for level in plan["levels"]] == [128, 64, 32]
    cached = sum(level["block_passes_cached"] for level in plan["levels"])
    uncached = sum(level["block_passes_uncached"] for level in plan["levels"])
    assert uncached / cached > 4
    changed = succeed("sample", "--recipe", "hpdm_s", "--dry-run", "sampling.overlap=none")
    assert [level["tiles"] for level in changed["levels"]] == [1, 8, 64]


def test_a_class_that_does_not_exist_is_refused(place, run_hpdm):
    done = run_hpdm("sample", "--checkpoint", "runs/base", "--class", "dragon", "--out", "none")
    assert done.returncode == 2
    assert "dragon" in done.stderr
    assert not (place / "none").exists()
