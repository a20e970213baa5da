"""A checkpoint is opened, sampled level by level, and scored: the real sampling path, tiny."""

import json
from dataclasses import replace

import pytest
import torch

from hpdm_core.build import build_network
from hpdm_core.errors import CheckpointError, MetricError
from hpdm_core.recipe.load import load_recipe, recipe_to_yaml
from hpdm_core.runs.evaluate.run import open_model, run_eval_fvd
from hpdm_core.training.checkpoint import write_tensors
from tests.unit.runs.evaluate.evalkit import write_dataset

CLASSES = ("circle-rising", "square-falling")
TINY = (
    "pyramid.patch=[4,16,16]",
    "pyramid.levels=[[4,16,16],[8,32,32]]",
    "model.levels_per_block=[1,2]",
    "sampling.sigma_max=10",
    "model.token=[2,4,4]",
    "model.block=rin",
    "model.latent_width=64",
    "model.num_latents=4",
    "model.layers_per_block=1",
    "model.num_classes=2",
    "diffusion.sigma_in=[0.5,1]",
    "diffusion.noise_mean=[0,0]",
    "diffusion.noise_std=[1,1]",
    "diffusion.level_weights=[1,1]",
    "sampling.solver=[heun,euler]",
    "sampling.steps=[2,1]",
    "sampling.churn=[10,0]",
    "sampling.overlap=none",
    "sampling.fast.solver=[heun,euler]",
    "sampling.fast.steps=[1,1]",
    "sampling.fast.sigma_min=[0.002,0.002]",
    "sampling.fast.churn=[0,0]",
    "data.frame_stride=1",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    recipe = load_recipe("shapes", [*TINY, f"data.root={folder}"])
    torch.manual_seed(0)
    path = folder / "ema.safetensors"
    about = {
        "recipe": recipe_to_yaml(recipe),
        "classes": json.dumps(CLASSES),
        "step": "1",
        "kind": "ema",
        "hpdm_version": "0",
    }
    write_tensors(path, build_network(recipe).state_dict(), about)
    return path


def test_levels_and_seeds(checkpoint):
    model = open_model(str(checkpoint), torch.device("cpu"))
    assert model.classes == CLASSES
    assert model.data_folder.endswith("shapes")
    assert len(model.sha256) == 64

    def make(seeds, labels, level):
        return model.sample(seeds, model.condition_of(labels), level=level)

    both = make((3, 4), (0, 1), 1)
    assert both.shape == (2, 3, 8, 32, 32)
    coarse = make((3,), (0,), 0)
    assert coarse.shape == (1, 3, 4, 16, 16)
    # A video depends on its own seed and class, and not on its company.
    torch.testing.assert_close(make((4,), (1,), 1)[0], both[1], rtol=1e-4, atol=1e-4)
    assert (make((4,), (0,), 1)[0] - both[1]).abs().max() > 0


def test_a_checkpoint_is_scored_against_its_own_training_data(checkpoint, tmp_path):
    write_dataset(checkpoint.parent / "shapes", 20)
    result = run_eval_fvd(
        checkpoint=checkpoint,
        protocol="fvd12_8f",
        metrics=["fvd", "is"],
        detector="bundled",
        device="cpu",
        batch=4,
        force=True,
        out=tmp_path,
        cache=tmp_path,
    )
    assert result["reals"]["source"].endswith("shapes")
    assert result["scores"][0]["value"] > 0
    assert [s["steps"] for s in result["fakes"]["settings"]["solvers"]] == [2, 1]
    assert json.loads((tmp_path / result["file"]).read_text())["fakes"]["seeds"] == [0, 11]


def test_refusals(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        open_model(str(tmp_path / "absent"), torch.device("cpu"))
    recipe = load_recipe("shapes", [*TINY, "model.conditioning=text"])
    path = tmp_path / "text.safetensors"
    about = {"recipe": recipe_to_yaml(recipe), "classes": "[]", "step": "1", "kind": "ema"}
    write_tensors(path, build_network(recipe).state_dict(), about)
    with pytest.raises(MetricError, match=r"what a text says.*--samples"):
        open_model(str(path), torch.device("cpu"))


def test_a_coarser_level_as_if_it_were_the_finest(checkpoint):
    model = open_model(str(checkpoint), torch.device("cpu"))
    coarse = replace(model, num_levels=1)
    assert coarse.pyramid.levels == ((4, 16, 16),)
    assert (model.frame_stride, coarse.frame_stride) == (1, 2)
    both = (m.sample((3,), m.condition_of((1,)), level=0) for m in (model, coarse))
    assert torch.equal(*both)
    assert coarse.sample((3,), model.condition_of((1,))).shape == (1, 3, 4, 16, 16)
