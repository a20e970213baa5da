"""`run_train` on a small prepared data set, with the real network and loader."""

import dataclasses
import fcntl
import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hpdm_core.build import activation_bytes_per_video, build_diffusion, build_loader, build_network
from hpdm_core.data.dataset import open_dataset
from hpdm_core.data.video_io import decode_sequential
from hpdm_core.errors import CheckpointError, DataError, DeviceError, HpdmError, RecipeError
from hpdm_core.inference import generate
from hpdm_core.pipeline.pipeline import Pipeline
from hpdm_core.progress import NoProgress
from hpdm_core.recipe.load import recipe_from_yaml, recipe_to_yaml
from hpdm_core.recipe.sampling import ScheduleRecipe
from hpdm_core.recipe.schema import Recipe
from hpdm_core.runs.prep import run_prep_shapes
from hpdm_core.runs.train import preflight
from hpdm_core.runs.train.fit import FILL
from hpdm_core.runs.train.run import run_train
from hpdm_core.training import parallel
from hpdm_core.training.checkpoint import find_weights, list_checkpoints, read_header
from tests.unit.training.test_loop import Recorded

RECIPE = """
name: tiny
data: {name: shapes, workers: 0, memory_cache_gb: 0.1}
pyramid: {patch: [2, 16, 16], levels: [[2, 16, 16], [4, 32, 32]]}
model:
  token: [1, 8, 8]
  data_width: 16
  latent_width: 16
  num_latents: 4
  layers_per_block: 1
  latent_heads: 1
  latent_head_width: 16
  cross_heads: 1
  cross_head_width: 16
  levels_per_block: [1, 2]
  conditioning: class
  condition_width: 16
  dropout: 0.1
diffusion:
  sigma_in: [1.0, 2.0]
  noise_mean: [-1.2, -1.2]
  noise_std: [1.2, 1.2]
  level_weights: [1.0, 1.0]
optim: {name: lamb, lr: 0.005, warmup_steps: 2, schedule: constant}
train: {steps: 6, batch_size: 4, checkpoint_every: 3, log_every: 2, tensorboard: false}
sampling: {steps: [2, 1], overlap: hw}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    run_prep_shapes(root, num=18, size=32, frames=8, workers=1, progress=NoProgress())
    return root


@pytest.fixture
def recipe(root) -> Recipe:
    return changed(recipe_from_yaml(RECIPE, "test"), "data", root=str(root))


def changed(recipe: Recipe, section: str, **fields: object) -> Recipe:
    part = getattr(recipe, section).model_copy(update=fields)
    return recipe.model_copy(update={section: part})


def go(recipe: Recipe, out: Path, *, progress=None, **options: object) -> dict:
    options = {"device": "cpu", "dry_run": False, "progress": progress or NoProgress(), **options}
    return run_train(recipe, out=out, **options)


def tensors(out: Path) -> dict:
    newest = list_checkpoints(out / "checkpoints")[-1]
    return {
        f"{path.name}/{name}": tensor
        for path in newest.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def test_a_run_leaves_everything_that_is_promised(recipe, tmp_path):
    bar = Recorded()
    recipe = changed(recipe, "train", preview_every=3, preview_videos=5)
    summary = go(recipe, tmp_path, progress=bar)
    assert summary["steps"] == 6
    assert summary["parameters"] > 0
    assert summary["last"]["step"] == 6
    assert json.loads(json.dumps(summary)) == summary
    assert (tmp_path / "samples" / "step-00000003.mp4").is_file()
    assert (tmp_path / "samples" / "step-00000006.png").is_file()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    kept = recipe_from_yaml((tmp_path / "recipe.yaml").read_text(), "run")
    assert kept.model.num_classes == 18
    header = read_header(find_weights(tmp_path))
    assert recipe_from_yaml(header["recipe"], "weights") == kept
    assert len(json.loads(header["classes"])) == 18
    drawing = "generating videos 0/3"  # one batch; a solver call of each level
    training = [f"training {recipe.name} {done}/6" for done in (0, 3)]
    assert bar.bars == [training[0], drawing, training[1], drawing]
    assert bar.done == 6 + 2 * 3


@pytest.mark.parametrize("conditioning", ["none", "class"])
def test_previews_are_as_many_as_asked_for(recipe, tmp_path, conditioning):
    recipe = changed(recipe, "model", conditioning=conditioning)
    recipe = changed(recipe, "train", steps=1, preview_every=1, preview_videos=6)
    go(recipe, tmp_path)
    frames = list(decode_sequential(tmp_path / "samples" / "step-00000001.mp4"))
    assert (len(frames), frames[0].shape) == (4, (2 * 128 + 4, 4 * 128 + 3 * 4, 3))


def test_pictures_are_left_at_the_end_without_being_asked_for(recipe, tmp_path):
    summary = go(changed(recipe, "train", steps=2, log_every=1, preview_videos=2), tmp_path)
    for name in ("preview", "loss_plot"):
        with Image.open(summary[name]) as picture:
            assert min(picture.size) > 200


def test_previews_follow_the_fast_schedule(recipe, tmp_path, monkeypatch):
    drawn, sample = [], Pipeline.sample

    def noting(self, *args, settings=None, **rest):
        drawn.append(settings)
        return sample(self, *args, settings=settings, **rest)

    monkeypatch.setattr(Pipeline, "sample", noting)
    fast = {"solver": ("euler",), "steps": (1,)}
    recipe = changed(recipe, "train", steps=1, preview_videos=1)
    go(recipe.with_fields("sampling", {"steps": (3,), "fast": ScheduleRecipe(**fast)}), tmp_path)
    (settings,) = drawn
    assert {(solver.name, solver.steps) for solver in settings.solvers} == {("euler", 1)}


def test_a_preview_that_diverges_does_not_stop_training(recipe, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(generate, "LARGEST_PIXEL", 0.0)
    summary = go(changed(recipe, "train", steps=1), tmp_path)
    assert (summary["steps"], summary["preview"]) == (1, None)
    assert any("no previews: sampling diverged on level 0" in line for line in caplog.messages)


def test_a_preview_that_cannot_be_written_does_not_stop_training(recipe, tmp_path, caplog):
    (tmp_path / "samples").write_text("in the way")
    recipe = changed(recipe, "train", steps=1, preview_every=1)
    assert go(recipe, tmp_path)["steps"] == 1
    assert any("previews could not be written" in line for line in caplog.messages)


def test_a_dry_run_counts_and_touches_nothing(recipe, tmp_path):
    out = tmp_path / "run"
    plan = go(recipe, out, dry_run=True)
    assert not out.exists()
    assert plan["levels"][1]["resolution"] == [4, 32, 32]
    assert plan["tokens_per_level"] == [8, 8]
    assert plan["parameters"]["total"] == go(recipe, out)["parameters"]
    memory = plan["memory_bytes_per_device"]
    assert memory["weights_and_optimizer"] == 20 * plan["parameters"]["total"]
    assert plan["micro_batch"] == 4
    assert plan["memory_verdict"].startswith("fits: 0.0 GB of ")
    bare = go(changed(recipe, "data", name="absent"), out, dry_run=True)
    assert "counted with one class" in bare["notes"]
    assert json.loads(json.dumps(plan)) == plan


def test_six_steps_equal_four_and_two_bit_for_bit(recipe, tmp_path):
    recipe = changed(recipe, "train", level_drop_prob=0.4)
    go(recipe, tmp_path / "whole")
    go(changed(recipe, "train", steps=4), tmp_path / "parts")
    summary = go(recipe, tmp_path / "parts")
    assert summary["resumed_from_step"] == 4
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert torch.equal(parts[name], tensor), name


def test_a_finished_run_that_is_started_again_does_nothing(recipe, tmp_path):
    go(recipe, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    summary = go(recipe, tmp_path)
    assert (summary["steps"], summary["resumed_from_step"]) == (6, 6)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_run_is_not_resumed_with_another_recipe(recipe, tmp_path):
    go(recipe, tmp_path)
    other = changed(changed(recipe, "optim", lr=0.001), "train", seed=7, log_every=1)
    with pytest.raises(RecipeError, match=r"\(optim.lr: 0.005 -> 0.001; train.seed: 0 -> 7\)"):
        go(other, tmp_path)
    with pytest.raises(RecipeError, match=r"has done 6 steps already; got train.steps=5"):
        go(changed(recipe, "train", steps=5), tmp_path)


@pytest.mark.parametrize("name", ["recipe.yaml", "metrics.jsonl"])
def test_a_file_of_the_run_that_is_no_text_is_refused_or_left_out(recipe, tmp_path, name):
    go(recipe, tmp_path)
    with (tmp_path / name).open("ab") as file:
        file.write(b"\xff\xfe\n")
    if name == "recipe.yaml":
        with pytest.raises(RecipeError, match="not text in UTF-8"):
            go(recipe, tmp_path)
    else:
        assert go(recipe, tmp_path)["steps"] == 6


def test_the_noise_of_finished_levels_belongs_to_training(recipe, tmp_path):
    """Training visits it (clean_context), so it cannot change under way; solvers can."""
    go(recipe, tmp_path)
    with pytest.raises(RecipeError, match=r"\(diffusion.context_sigma: 0.05 -> 0.1\)"):
        go(changed(recipe, "diffusion", context_sigma=0.1), tmp_path)
    assert go(changed(recipe, "sampling", solver=("dpmpp_2m",)), tmp_path)["steps"] == 6


def test_what_may_change_on_resuming_exists_in_the_schema(recipe):
    flat = preflight._flat(recipe)
    assert set(flat) >= preflight.RESUMABLE


def test_without_previews_the_losses_are_drawn_all_the_same(recipe, tmp_path):
    summary = go(changed(recipe, "train", preview_every=0), tmp_path)
    assert summary["preview"] is None
    assert Path(summary["loss_plot"]).is_file()
    assert not (tmp_path / "samples").exists()


def test_more_steps_and_other_intervals_are_welcome(recipe, tmp_path):
    go(recipe, tmp_path)
    longer = changed(recipe, "train", steps=8, log_every=1, checkpoint_every=1, micro_batch=2)
    assert go(changed(longer, "data", workers=1), tmp_path)["steps"] == 8


def test_fewer_classes_than_the_data_set_has_are_refused(recipe, tmp_path):
    message = r"num_classes is too small .*got 3; expected at least 18"
    with pytest.raises(RecipeError, match=message):
        go(changed(recipe, "model", num_classes=3), tmp_path)
    assert go(changed(recipe, "model", num_classes=20), tmp_path)["steps"] == 6


def test_data_that_is_absent_or_too_short_is_refused(recipe, tmp_path):
    with pytest.raises(DataError, match="no prepared data set"):
        go(changed(recipe, "data", name="absent"), tmp_path)
    with pytest.raises(DataError, match="0 of 18 videos usable: 18 have fewer than 10 frames"):
        go(changed(recipe, "data", frame_stride=3), tmp_path)
    assert not list(tmp_path.iterdir())


def test_few_videos_are_logged(recipe, tmp_path, caplog):
    caplog.set_level("INFO", "hpdm")
    go(changed(recipe, "train", batch_size=20, steps=1), tmp_path)
    assert any("more than one clip of each video" in line for line in caplog.messages)


def test_a_data_set_without_classes_is_refused(recipe, root):
    dataset = open_dataset(root, "shapes")
    with pytest.raises(DataError, match="has no classes"):
        preflight.with_classes(recipe, dataclasses.replace(dataset, classes=()))


def test_a_disk_without_room_is_refused(recipe, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10, 10, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"too little space .*lower train.keep_checkpoints"):
        go(recipe, tmp_path)


def test_too_little_memory_is_refused(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "available_memory", lambda device: 1000)
    with pytest.raises(DeviceError, match=r"several devices with train.parallel=fsdp"):
        go(recipe, tmp_path)
    assert not (tmp_path / "recipe.yaml").exists()


def test_less_memory_means_smaller_passes_same_weights(recipe, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "hpdm")
    recipe = changed(recipe, "model", dropout=0.0)
    assert go(recipe, tmp_path / "whole")["micro_batch"] == 4
    halves = changed(recipe, "train", micro_batch=2)
    two = go(halves, tmp_path, dry_run=True)["memory_bytes_per_device"]["total"]
    monkeypatch.setattr(parallel, "available_memory", lambda device: int(two / FILL) + 1)
    assert go(recipe, tmp_path, dry_run=True)["micro_batch"] == 2
    assert go(recipe, tmp_path / "parts")["micro_batch"] == 2
    assert any("2 videos per pass and device; fits: 0.0 GB of" in line for line in caplog.messages)
    kept = recipe_from_yaml((tmp_path / "parts" / "recipe.yaml").read_text(), "run")
    assert kept.train.micro_batch is None
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_plan_for_an_absent_device_says_so(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plan = go(recipe, tmp_path, device="cuda", dry_run=True)
    assert "free memory is unknown" in plan["memory_verdict"]
    assert any("not enough CUDA devices" in note for note in plan["notes"])
    assert [row["card"] for row in plan["memory_on_cards"]] == ["24 GB", "40 GB", "80 GB"]


def test_running_out_of_memory_names_the_knobs(recipe, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    monkeypatch.setattr("hpdm_core.runs.train.run.train", full)
    with pytest.raises(DeviceError, match=r"got CUDA out of memory; lower train.micro_batch"):
        go(recipe, tmp_path)


def test_two_commands_do_not_train_into_one_folder(recipe, tmp_path):
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(HpdmError, match="another command is training into"):
            go(recipe, tmp_path)
    assert go(recipe, tmp_path)["steps"] == 6


def test_a_batch_that_does_not_divide_is_refused(recipe):
    with pytest.raises(RecipeError, match=r"got 4 over 3; set train.batch_size=6"):
        preflight.check_processes(recipe, 3)


@pytest.mark.parametrize("block", ["rin", "transformer"])
@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("conditioning", ["class", "none"])
def test_the_memory_estimate_is_close_to_what_autograd_keeps(
    recipe, root, width, conditioning, block
):
    recipe = changed(recipe, "pyramid", patch=(4, 16, 16), levels=((4, 16, 16), (8, 32, 32)))
    model = {
        "block": block,
        "head_width": 16,
        "data_width": width,
        "latent_width": 2 * width,
        "num_latents": 24,
        "layers_per_block": 2,
        "conditioning": conditioning,
        "num_classes": 18,
        "dropout": 0.0,
    }
    recipe = changed(recipe, "model", **model)
    batch_size = recipe.train.batch_size
    dataset = open_dataset(root, "shapes")
    loader = build_loader(recipe, dataset, batch_size=batch_size, workers=0)
    batch = next(loader.batches(0))
    network = build_network(recipe)
    weights = {param.untyped_storage().data_ptr() for param in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        build_diffusion(recipe).loss(network, batch, seed=0, step=0)
    estimate = activation_bytes_per_video(recipe) * batch_size
    assert 0.85 < estimate / sum(kept.values()) < 1.2


@pytest.mark.parametrize("block", ["rin", "transformer"])
def test_flipping_what_saves_memory_saves_memory(recipe, block):
    recipe = changed(recipe, "model", block=block, head_width=16)
    full = activation_bytes_per_video(recipe)
    for field in ({"activation_checkpointing": True}, {"precision": "bf16"}):
        assert activation_bytes_per_video(changed(recipe, "train", **field)) < full


def test_a_transformer_trains_and_resumes(recipe, tmp_path):
    recipe = changed(recipe, "model", block="transformer", head_width=8)
    assert go(recipe, tmp_path / "run")["steps"] == 6
    assert go(recipe, tmp_path / "run")["resumed_from_step"] == 6


def test_activation_checkpointing_changes_memory_only(recipe, tmp_path):
    recipe = changed(recipe, "model", dropout=0.0)
    go(recipe, tmp_path / "plain")
    go(changed(recipe, "train", activation_checkpointing=True), tmp_path / "saving")
    plain, saving = tensors(tmp_path / "plain"), tensors(tmp_path / "saving")
    for name, tensor in plain.items():
        torch.testing.assert_close(saving[name], tensor, rtol=1e-5, atol=1e-6)


def test_the_recipe_round_trip_keeps_a_run_resumable(recipe, tmp_path):
    go(recipe, tmp_path)
    again = recipe_from_yaml(recipe_to_yaml(recipe), "copy")
    assert go(again, tmp_path)["resumed_from_step"] == 6


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler on a CPU")
def test_compiled_training_gives_the_same_weights(recipe, tmp_path):
    """Dropout is off: compiled code draws other random numbers."""
    recipe = changed(recipe, "model", dropout=0.0)
    recipe = changed(recipe, "train", steps=3)
    go(recipe, tmp_path / "plain")
    go(changed(recipe, "train", compile=True), tmp_path / "compiled")
    plain, compiled = tensors(tmp_path / "plain"), tensors(tmp_path / "compiled")
    assert plain.keys() == compiled.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=1e-3, atol=1e-5)
