"""`hpdm_core.Pipeline`: what a call generates, what it refuses, and how models travel."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

import hpdm_core as hpdm
from hpdm_core.build import build_denoiser, build_sampling
from hpdm_core.errors import CheckpointError, DeviceError, HpdmError
from hpdm_core.geometry.tiles import parse_overlap
from hpdm_core.inference.generate import ExecutionOptions, generate
from hpdm_core.pipeline import pretrained
from hpdm_core.pipeline.conditions import Request
from hpdm_core.progress import NoProgress, TqdmProgress
from hpdm_core.records import Condition
from hpdm_core.runs.sample.options import SampleOptions
from hpdm_core.runs.sample.run import run_sample

ROOT = Path(__file__).resolve().parents[3]


def rewrite(path, *, tensors=None, **changes):
    """Write a weights file again with other tensors or another header; None removes a key."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata = {k: v for k, v in (metadata | changes).items() if v is not None}
    save_file(kept | (tensors or {}), path, metadata=metadata)
    return path


def test_a_call_is_generate_with_the_recipes_settings(pipe):
    videos = pipe(classes=["square", "circle"], seeds=[3, 7], progress=NoProgress())
    levels = generate(
        build_denoiser(pipe.recipe, pipe.network),
        pipe.recipe.pyramid.build(),
        build_sampling(pipe.recipe),
        seeds=(3, 7),
        condition=Condition(labels=torch.tensor([1, 0])),
        work=ExecutionOptions(
            device=torch.device("cpu"), tile_batch=10_000, make_cache=lambda: None
        ),
    )
    expected = np.floor((levels[-1].numpy() * 127.5 + 128).clip(0, 255)).astype(np.uint8)
    close = pipe(
        classes=["square", "circle"], seeds=[3, 7], progress=NoProgress(),
        resources=hpdm.Resources(cache="off", tile_batch=10_000),
    )  # fmt: skip
    assert np.array_equal(close.frames, np.moveaxis(expected, 1, -1))
    # With the cache, values at the border of two grey levels may fall to either.
    assert np.abs(videos.frames.astype(int) - close.frames).max() <= 1
    assert videos.frames.shape == (2, 4, 16, 16, 3)
    assert videos.fps == pipe.recipe.sampling.fps
    assert videos.captions == ("seed 3: square", "seed 7: circle")


def test_the_command_line_writes_the_same_videos(pipe, tmp_path):
    asked = {"overlap": "fhw", "steps": (2, 1), "guidance": 2.0}
    run_sample(
        SampleOptions(
            checkpoint=str(pipe.path), num=3, seed=5, formats=("png",), out=tmp_path / "cli",
            device="cpu", **asked,
        )
    )  # fmt: skip
    videos = pipe(seeds=[5, 6, 7], progress=NoProgress(), **asked)
    for path in videos.save(tmp_path / "call", format="png"):
        assert path.read_bytes() == (tmp_path / "cli" / path.name).read_bytes()


def test_a_preset_is_the_recipes_schedule_of_that_name(pipe):
    fast = {"steps": (2, 1), "sigma_max": (5.0,)}
    sampling = pipe.recipe.sampling
    schedule = type(sampling.fast)(**fast)
    with_fast = pipe.recipe.with_fields("sampling", {"fast": schedule})
    changed = replace(pipe, recipe=pipe.recipe.with_fields("sampling", fast))
    asked = {"seeds": [3], "progress": NoProgress()}
    chosen = replace(pipe, recipe=with_fast)(preset="fast", **asked)
    assert np.array_equal(chosen.frames, changed(**asked).frames)
    assert not np.array_equal(chosen.frames, pipe(**asked).frames)
    assert np.array_equal(pipe(preset="paper", **asked).frames, pipe(**asked).frames)
    with pytest.raises(HpdmError, match="no such preset; got slow; expected paper or fast"):
        pipe(preset="slow", **asked)


def test_steps_overlap_and_guidance_reach_the_solver(pipe, monkeypatch):
    seen = []

    def record(denoiser, pyramid, settings, **rest):
        seen.append(settings)
        return generate(denoiser, pyramid, settings, **rest)

    monkeypatch.setattr("hpdm_core.pipeline.pipeline.generate", record)
    pipe(seeds=0, steps=(1, 3), overlap="fhw", guidance=2.5, progress=NoProgress())
    assert [solver.steps for solver in seen[0].solvers] == [1, 3]
    assert seen[0].overlap == parse_overlap("fhw")
    assert seen[0].guidance.scale == 2.5


def test_seeds_and_classes_fill_each_other_in(pipe):
    def asked(**arguments):
        videos = pipe(**arguments, steps=(1, 1), progress=NoProgress())
        return [(request.seed, request.class_name) for request in videos.requests]

    assert asked() == [(0, "circle"), (1, "square"), (2, "star")]
    assert asked(classes="star") == [(0, "star")]
    assert asked(classes=["STAR", 0]) == [(0, "star"), (1, "circle")]
    assert asked(classes=1, seeds=[5, 6]) == [(5, "square"), (6, "square")]
    assert asked(seeds=range(4))[3] == (3, "circle")
    assert asked(seeds=np.array([9])) == [(9, "circle")]


def test_a_video_depends_on_its_own_seed_alone(pipe):
    both = pipe(seeds=[1, 2], classes=0, progress=NoProgress()).frames
    one = pipe(seeds=[2], classes=0, progress=NoProgress()).frames
    assert np.abs(both[1].astype(int) - one[0]).max() <= 1
    assert not np.array_equal(both[0], both[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": ["squre"]}, "does not know the class; got 'squre'.*did you mean square"),
        ({"classes": 3}, "does not know the class; got 3; expected an index below 3"),
        ({"classes": [-1]}, "does not know the class; got -1"),
        ({"classes": [0], "prompts": ["a fox"]}, "takes classes or prompts; got both"),
        (
            {"prompts": "a fox"},
            "a prompt is given; got a model conditioned on class; .*takes classes; .*--list",
        ),
        ({"classes": [0, 1], "seeds": [1, 2, 3]}, "got 3 seeds for 2 of them; expected one for"),
        ({"seeds": []}, "got 0 seeds"),
        ({"steps": (1,)}, "steps gives solver steps per level; got 1 of them; expected 2"),
        ({"overlap": "x"}, "unknown overlap"),
        ({"guidance": float("nan")}, "guidance is out of range"),
    ],
)
def test_mistakes_are_said_in_plain_words(pipe, arguments, message):
    with pytest.raises(HpdmError, match=message):
        pipe(**arguments)


def test_a_text_model_takes_prompts(make_weights, monkeypatch):
    path = make_weights(("conditioning: class", "conditioning: text"), name="text")
    pipe = hpdm.Pipeline.from_pretrained(path, device="cpu")
    with pytest.raises(HpdmError, match="conditioned on text; got no prompt; expected"):
        pipe()

    class Encoder:
        width, name = 8, "a test's"

        def __init__(self, name, device):
            assert name == "given"

        def encode(self, prompts):
            made = torch.Generator()
            return [torch.randn(len(p), 8, generator=made.manual_seed(len(p))) for p in prompts]

    monkeypatch.setattr("hpdm_core.pipeline.conditions.TextEncoder", Encoder)
    videos = pipe(prompts=["a fox", "fog"], text_encoder="given", progress=NoProgress())
    assert videos.captions == ("seed 0: a fox", "seed 1: fog")
    other = pipe(prompts="a fox", seeds=[0, 1], text_encoder="given", progress=NoProgress())
    assert np.abs(videos.frames[0].astype(int) - other.frames[0]).max() <= 1
    assert not np.array_equal(videos.frames[1], other.frames[1])


def test_the_bar_counts_solver_calls(pipe, capsys):
    pipe(seeds=[0, 1], classes=0, resources=hpdm.Resources(batch=1))
    # A call for each of two Euler steps on each of two levels; two batches.
    assert "8/8" in capsys.readouterr().err


def test_tqdm_progress_is_quiet_where_nothing_is_open(capsys):
    progress = TqdmProgress()
    progress.advance(1)
    progress.stop()
    assert capsys.readouterr().err == ""


def test_device(make_weights):
    pipe = hpdm.Pipeline.from_pretrained(make_weights(), device=torch.device("cpu"))
    assert repr(pipe) == "Pipeline(tiny: 4x16x16, 3 classes, step 6, on cpu)"
    assert pipe.device == next(pipe.network.parameters()).device == torch.device("cpu")
    with pytest.raises(DeviceError, match="unknown device; got gpu"):
        hpdm.Pipeline.from_pretrained(make_weights(), device="gpu")


def test_saved_and_read_again_it_makes_the_same_videos(pipe, tmp_path):
    folder = pipe.save_pretrained(tmp_path / "export", scores={"FVD of a test": 12.5})
    assert {path.name for path in folder.iterdir()} == {
        "ema.safetensors", "recipe.yaml", "README.md",
    }  # fmt: skip
    again = hpdm.Pipeline.from_pretrained(folder, device="cpu")
    assert (again.recipe, again.classes, again.step) == (pipe.recipe, pipe.classes, 6)
    assert hpdm.load_recipe(folder / "recipe.yaml") == pipe.recipe
    one, other = (p(seeds=[4], classes=2, progress=NoProgress()).frames for p in (pipe, again))
    assert np.array_equal(one, other)
    with pytest.raises(HpdmError, match="cannot write the model to"):
        pipe.save_pretrained(folder / "README.md" / "below")


def test_the_model_card_says_what_is_known(make_weights, tmp_path):
    path = rewrite(make_weights(), seconds="4740", machine="a test's machine", base="smaller")
    pipe = hpdm.Pipeline.from_pretrained(path, device="cpu")
    folder = pipe.save_pretrained(tmp_path / "export", scores={"FVD": 12.5})
    card = (folder / "README.md").read_text()
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "hpdm"
    number = sum(p.numel() for p in pipe.network.parameters())
    for text in (
        f"{number:,}", "6 steps of 4 videos, 79 minutes on a test's machine", "3 classes",
        "2x8x8 to 4x16x16", "`shapes`: synthetic videos", "started from the weights of smaller",
        "| FVD | 12.5 |", "circle, square, star", 'classes=["circle"]', "written by | hpdm 0 |",
    ):  # fmt: skip
        assert text in body
    unknown = rewrite(path, seconds=None, machine=None, base=None, hpdm_version=None)
    pipe = hpdm.Pipeline.from_pretrained(unknown, device="cpu")
    card = (pipe.save_pretrained(tmp_path / "export") / "README.md").read_text()
    assert "for an unknown time on an unknown machine" in card
    assert "None were given" in card
    assert "weights of" not in card


def test_a_model_of_another_version_is_refused_in_one_message(make_weights):
    path = make_weights()
    with safe_open(path, framework="pt") as file:
        text = file.metadata()["recipe"]
    rewrite(path, recipe=text + "sampling2: {context_sigma: 1}\n", hpdm_version="0.0.7")
    with pytest.raises(CheckpointError) as error:
        hpdm.Pipeline.from_pretrained(path, device="cpu")
    message = str(error.value)
    assert message.startswith(f"{path} cannot be used by this version of hpdm")
    assert "got a model of hpdm 0.0.7 (its recipe:" in message
    assert "unknown section sampling2)" in message or "unknown key sampling2)" in message
    assert message.endswith("retrain the model, or use the version that wrote it")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": '{"a": 1}'}, "header of .* is damaged; got classes"),
        ({"classes": "[1]"}, "header of .* is damaged"),
        ({"classes": "["}, "header of .* is damaged"),
        ({"classes": "[" * 99999}, "header of .* is damaged"),
        ({"classes": '["a", "b", "a\\nb"]'}, "header of .* is damaged; .* that can be printed"),
        ({"classes": "[]"}, "header of .* is damaged; got classes '0 names'; .* of 3 classes"),
        ({"classes": '["a", "b", "c", "d"]'}, "header of .* is damaged; got classes '4 names'"),
        ({"step": "many"}, "header of .* is damaged; got step 'many'; expected a number"),
        ({"step": "-1"}, "header of .* is damaged; got step"),
        ({"step": "1" * 5000}, "header of .* is damaged; got step"),
        ({"seconds": "nan"}, "header of .* is damaged; got seconds"),
        ({"recipe": "!!python/object:os.system {}"}, "cannot be used by this version"),
        ({"recipe": None}, "does not say which model it belongs to; got no recipe"),
    ],
)
def test_headers_of_strangers_are_checked(make_weights, changes, message):
    with pytest.raises(CheckpointError, match=message):
        hpdm.Pipeline.from_pretrained(rewrite(make_weights(), **changes), device="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(make_weights, value):
    path = rewrite(make_weights(), tensors={"latents": torch.full((4, 16), value)})
    with pytest.raises(CheckpointError, match=r"model\.safetensors holds weights .*in latents"):
        hpdm.Pipeline.from_pretrained(path, device="cpu")


@pytest.mark.parametrize("fps", ["1e300", "1e-300", "0.01"])
def test_a_frame_rate_that_no_file_can_have_is_refused(make_weights, fps):
    path = make_weights()
    with safe_open(path, framework="pt") as file:
        text = file.metadata()["recipe"].replace("fps: 25.0", f"fps: {fps}")
    with pytest.raises(CheckpointError, match=r"cannot be used .*sampling.fps is .* from 0.1 to"):
        hpdm.Pipeline.from_pretrained(rewrite(path, recipe=text), device="cpu")


def test_weights_of_another_type_are_refused(make_weights):
    path = rewrite(make_weights(), tensors={"latents": torch.zeros(4, 16, dtype=torch.int64)})
    with pytest.raises(CheckpointError, match=r"latents of torch.int64; expected .* float32"):
        hpdm.Pipeline.from_pretrained(path, device="cpu")


def test_files_of_prompts_that_look_alike_have_names_of_their_own():
    prompts = ["a fox", "a  fox", "a, fox", "a fox " + "x" * 60, "a fox " + "x" * 60 + "y", "é"]
    stems = [Request(index=0, seed=0, prompt=prompt).stem for prompt in prompts]
    assert stems[0] == "00000_a-fox_seed0"
    assert len(set(stems)) == len(prompts)
    assert all(len(stem) < 80 and stem.isascii() for stem in stems)


def test_references(make_weights, tmp_path, monkeypatch):
    path = make_weights()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "ASSETS", tmp_path)
    monkeypatch.setattr(pretrained, "BEST", path.stem)
    assert pretrained.find_model("shipped") == path
    assert pretrained.find_model(path.stem) == path
    assert pretrained.find_model(None) == path
    assert pretrained.find_model(str(path)) == path
    monkeypatch.setattr(pretrained, "ASSETS", tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"no shipped model.*hpdm prep shapes"):
        pretrained.find_model("shipped")
    with pytest.raises(CheckpointError, match="no checkpoint at nowhere"):
        pretrained.find_model("nowhere")


def test_public_names_are_there_and_cost_no_torch():
    code = (
        "import sys, hpdm_core; assert set(hpdm_core.__all__) <= set(dir(hpdm_core)); "
        "hpdm_core.load_recipe; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    for name in hpdm.__all__:
        assert getattr(hpdm, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Pipe'"):
        hpdm.Pipe  # noqa: B018
