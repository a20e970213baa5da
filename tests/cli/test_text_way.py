"""Text to video by the command line's words: captions, base, more levels, prompts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hpdm_core.build import build_loader
from hpdm_core.data.dataset import open_dataset
from hpdm_core.data.text_encoder import TextEncoder
from hpdm_core.data.tiny_text_encoder import make_tiny_encoder
from hpdm_core.data.video_io import decode_sequential, write_mp4
from hpdm_core.recipe.load import load_recipe
from hpdm_core.runs.train.preview import preview_conditions

CAPTIONS = ["a red wave rolls in", "a blue wave rolls out", "night over the sea", "a still beach"]
BASE = """\
description: one level, videos and images together
data: {name: captions, workers: 0, image_fraction: 0.4, frame_stride: 2, short_clips: hold}
pyramid:
  patch: [2, 12, 16]
  levels: [[2, 12, 16]]
model:
  token: [1, 3, 4]
  data_width: 16
  latent_width: 16
  num_latents: 4
  layers_per_block: 1
  latent_heads: 1
  latent_head_width: 16
  cross_heads: 1
  cross_head_width: 16
  levels_per_block: [1, 1]
  conditioning: text
  condition_width: 32
diffusion: {sigma_in: [1], noise_mean: [-1], noise_std: [1], level_weights: [1]}
optim: {name: adamw, lr: 3e-3, warmup_steps: 2}
train: {steps: 6, batch_size: 4, checkpoint_every: 6, log_every: 3, tensorboard: false}
sampling: {steps: [2], sigma_max: 10, churn: 0}
"""
FINE = """\
extends: base.yaml
description: two levels
data: {frame_stride: 1}
pyramid:
  levels: [[2, 12, 16], [4, 24, 32]]
model: {levels_per_block: [1, 2]}
diffusion:
  {sigma_in: [1, 2], noise_mean: [-1, -1], noise_std: [1, 1], level_weights: [1, 1]}
train: {preview_every: 6, preview_videos: 2}
sampling: {steps: [2, 2]}
"""


@pytest.fixture(scope="module")
def succeed(run_hpdm):
    """Run `hpdm ... --json`, which must succeed, and return its object."""

    def run(*args: str) -> dict:
        done = run_hpdm(*args, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="module")
def folder(succeed, tmp_path_factory) -> Path:
    """Captioned videos and an image, their encoder, a base run and a run fine-tuned from it."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    lines = []
    for index, caption in enumerate(CAPTIONS):
        ramp = np.linspace(0, 200, 8).astype(np.uint8)[:, None, None, None]
        video = rng.integers(0, 50, size=(1, 1, 1, 3)).astype(np.uint8) + ramp
        frames = np.broadcast_to(video, (8, 48, 64, 3)).copy()
        name = f"{index}.mp4" if index < 3 else "3.png"
        if index < 3:
            write_mp4(folder / name, frames, 8)
        else:
            Image.fromarray(frames[-1]).save(folder / name)
        lines.append(json.dumps({"file": name, "caption": caption}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    make_tiny_encoder(folder / "encoder", CAPTIONS, width=32, layers=1, vocabulary=300)
    (folder / "base.yaml").write_text(BASE)
    (folder / "fine.yaml").write_text(FINE)
    (folder / "prompts.txt").write_text("night over the sea\n\na blue wave rolls in\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepared = succeed(
            "prep", "captions", "./data", "--source", "captions.jsonl", "--text-encoder", "encoder",
            "--min-frames", "1",
        )  # fmt: skip
        assert (prepared["videos"], prepared["text"]["encoded"]) == (4, 5)
        succeed("train", "base.yaml")
        made = succeed("finetune", "fine.yaml", "--from", "runs/base")
        assert made["initialised"]["level_0_as_base"]
        assert {name.split(".")[0] for name in made["initialised"]["missing"]} == {"fusion"}
    return folder


@pytest.fixture
def place(folder, monkeypatch) -> Path:
    """The same folder, as the current one."""
    monkeypatch.chdir(folder)
    return folder


def sampled(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def video(out: Path, line: dict) -> np.ndarray:
    return np.stack(list(decode_sequential(out / line["file"])))


def test_prompts_from_words_and_a_file_become_videos(place, succeed):
    words = ("--prompt", "a red wave", "--prompt-file", "prompts.txt")
    made = succeed("sample", "--checkpoint", "runs/fine", *words, "--overlap", "fhw", "--out", "o")
    assert made["videos"] == 3
    lines = sampled(place / "o")
    assert [line["prompt"] for line in lines] == [
        "a red wave", "night over the sea", "a blue wave rolls in",
    ]  # fmt: skip
    assert all(video(place / "o", line).shape == (4, 24, 32, 3) for line in lines)
    assert Path(made["contact_sheet"]).is_file()
    assert (place / "runs/fine/samples/step-00000006.mp4").is_file()


def test_prompt_and_guidance_each_change_the_video(place, succeed):
    videos = {}
    for name, words in {
        "a": ("--prompt", "a red wave rolls in"),
        "b": ("--prompt", "night over the sea"),
        "c": ("--prompt", "a red wave rolls in", "--guidance", "4"),
    }.items():
        succeed("sample", "--checkpoint", "runs/fine", *words, "--out", name)
        videos[name] = video(place / name, sampled(place / name)[0])
    assert not np.array_equal(videos["a"], videos["b"])
    assert not np.array_equal(videos["a"], videos["c"])


def test_the_encoder_is_found_by_path_where_the_data_is_gone(place, succeed, run_hpdm, tmp_path):
    checkpoint, encoder = str(place / "runs/fine"), str(place / "encoder")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        words = ("sample", "--checkpoint", checkpoint, "--prompt", "a wave")
        done = run_hpdm(*words)
        assert done.returncode == 2
        assert "--text-encoder" in done.stderr
        assert succeed(*words, "--text-encoder", encoder, "--out", "o")["made"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "conditioned on text; got no prompt"),
        (("--class", "wave"), "conditioned on text"),
        (("--prompt", "a wave", "--text-encoder", "./nowhere"), "cannot be loaded"),
        (("--prompt", "a wave", "--text-encoder", "some-one/no-such-encoder"), "cannot be loaded"),
        (("--prompt", "a wave", "--text-encoder", "wide"), "got tokens of width 48; expected 32"),
        (("--prompt-file", "nothing.txt"), "no prompt file"),
    ],
)
def test_mistakes_are_said_in_plain_words(place, run_hpdm, monkeypatch, words, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    make_tiny_encoder(place / "wide", CAPTIONS, width=48, layers=1, vocabulary=300)
    done = run_hpdm("sample", "--checkpoint", "runs/fine", *words, "--out", "never")
    assert done.returncode == 2
    assert message in done.stderr
    assert not (place / "never").exists()


def test_videos_and_images_train_together_with_their_texts(place):
    recipe = load_recipe("base.yaml")
    dataset = open_dataset("data", "captions")
    loader = build_loader(recipe, dataset, batch_size=8, workers=0)
    batches = loader.batches(0)
    still = {True: 0, False: 0}
    for _ in range(20):
        batch = next(batches)
        assert batch.condition.text_mask.any(dim=1).all()
        patch = batch.patches[0]
        for row, key in zip(patch, batch.keys, strict=True):
            repeated = bool((row == row[:, :1]).all())
            assert repeated or "3" not in key  # the image file is always still
            still[repeated] += "3" not in key
    loader.close()
    share = still[True] / sum(still.values())
    assert 0.25 < share < 0.55  # image_fraction is 0.4


def test_previews_show_captions_from_all_over_the_data(place):
    recipe, dataset = load_recipe("base.yaml"), open_dataset("data", "captions")
    condition, titles = preview_conditions(recipe, dataset)
    known = dataset.captions("train")
    assert len(titles) == recipe.train.preview_videos > len(known)
    assert {title.split(": ", 1)[1] for title in titles} == set(known)
    assert condition.text_mask.any(dim=1).all()
    assert not torch.equal(condition.text[0], condition.text[-1])


def test_a_tiny_encoder_is_the_same_each_time_and_tells_texts_apart(tmp_path):
    encoders = []
    for name in ("one", "two"):
        torch.rand(3)  # what was drawn before does not matter
        make_tiny_encoder(tmp_path / name, CAPTIONS, width=32, layers=1)
        encoders.append(TextEncoder(str(tmp_path / name), device=torch.device("cpu")))
    texts = [*CAPTIONS, "words that are in no caption, ünïcode too", ""]
    for one, other in zip(*(encoder.encode(texts) for encoder in encoders), strict=True):
        assert torch.equal(one, other)
    means = [tokens.float().mean(0) for tokens in encoders[0].encode(texts)]
    distances = torch.pdist(torch.stack(means))
    assert distances.min() > 0.1
