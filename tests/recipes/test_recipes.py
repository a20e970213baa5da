"""Every shipped recipe is read and its network built on the meta device; Table 8's sizes hold."""

from pathlib import Path

import pytest
import torch

from hpdm_core.build import (
    activation_bytes_per_video,
    build_diffusion,
    build_network,
    describe,
    tile_bytes,
)
from hpdm_core.recipe.load import (
    load_recipe,
    recipe_from_yaml,
    recipe_to_yaml,
    shipped_recipes,
    shipped_tables,
)

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
FILES = shipped_recipes()

# Table 8: parameters in millions; batch counts videos and images.
TABLE_8 = {
    "hpdm_s": {"parameters": 178, "latent": 256, "steps": 40_000, "batch": 768},
    "hpdm_m": {"parameters": 321, "latent": 512, "steps": 40_000, "batch": 768},
    "hpdm_l": {"parameters": 725, "latent": 1024, "steps": 65_000, "batch": 768},
    "hpdm_t2v": {"parameters": 3934, "latent": 3072, "steps": 15_000, "batch": 8192},
    "hpdm_t2v_1k": {"parameters": 3934, "latent": 3072, "steps": 100_000, "batch": 2048},
}
LEVELS = {
    "hpdm_s": ((16, 64, 64), (32, 128, 128), (64, 256, 256)),
    "hpdm_t2v_base": ((8, 36, 64),),
    "hpdm_t2v": ((8, 36, 64), (16, 72, 128), (32, 144, 256), (64, 288, 512)),
    "hpdm_t2v_1k": ((16, 72, 128), (16, 144, 256), (16, 288, 512), (16, 576, 1024)),
}
LOADS = {
    "hpdm_s": (1, 1, 2, 2, 3, 3),
    "hpdm_t2v_base": (1,) * 6,
    "hpdm_t2v": (1, 2, 2, 3, 3, 4),
    "hpdm_t2v_1k": (4,) * 6,
}


def _parameters(name: str | Path) -> int:
    with torch.device("meta"):
        network = build_network(load_recipe(name, ["model.num_classes=101"]))
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(RECIPES)))
def test_every_recipe_builds(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.description
    assert _parameters(path) > 0
    assert build_diffusion(recipe).pyramid.num_levels == len(recipe.pyramid.levels)
    assert recipe_from_yaml(recipe_to_yaml(recipe), "round trip") == recipe


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(RECIPES)))
def test_every_recipe_builds_with_the_other_block(path):
    """`model.block=transformer` over a recipe of RIN blocks, whose own fields may stay."""
    changes = {"block": "transformer", "self_conditioning": 0, "head_width": 8, "num_classes": 101}
    recipe = load_recipe(path, [f"model.{name}={value}" for name, value in changes.items()])
    rows = describe(recipe)
    assert rows["parameters"]["total"] > rows["parameters"]["latents"] == 0
    assert activation_bytes_per_video(recipe) > 0
    assert tile_bytes(recipe) > 0


@pytest.mark.parametrize("name", TABLE_8)
def test_table_8_parameters_within_one_percent(name):
    assert _parameters(name) == pytest.approx(TABLE_8[name]["parameters"] * 1e6, rel=0.01)


@pytest.mark.parametrize("name", TABLE_8)
def test_table_8_hyperparameters(name):
    recipe, row = load_recipe(name), TABLE_8[name]
    text = name.startswith("hpdm_t2v")
    assert recipe.model.latent_width == row["latent"]
    assert recipe.model.data_width == 1024
    assert recipe.model.num_latents == 768
    assert recipe.model.token == ((1, 3, 4) if text else (1, 4, 4))
    assert recipe.model.conditioning == ("text" if text else "class")
    assert recipe.diffusion.condition_dropout == 0.1
    assert (recipe.optim.name, recipe.optim.schedule) == ("lamb", "cosine")
    assert (recipe.optim.lr, recipe.optim.weight_decay) == (0.005, 0.01)
    assert recipe.optim.warmup_steps == (5_000 if text else 10_000)
    assert recipe.train.parallel == ("fsdp" if text else "ddp")
    assert (recipe.train.steps, recipe.train.batch_size) == (row["steps"], row["batch"])
    assert recipe.data.image_fraction == (0.5 if text else 0.0)


@pytest.mark.parametrize("name", LEVELS)
def test_table_8_levels_and_loads(name):
    recipe = load_recipe(name)
    assert recipe.pyramid.levels == LEVELS[name]
    assert recipe.pyramid.patch == LEVELS[name][0]
    assert recipe.model.levels_per_block == LOADS[name]


def test_every_file_is_a_recipe_or_a_table():
    both = {*shipped_recipes(), *shipped_tables()}
    assert both == {*RECIPES.rglob("*.yaml")}
    assert not {*shipped_recipes()} & {*shipped_tables()}


def test_input_scale_doubles_with_each_level():
    for name in (*TABLE_8, "hpdm_t2v_base"):
        recipe = load_recipe(name)
        frames, height, width = recipe.pyramid.patch
        base = (height * width) ** 0.5 / 64 * frames**0.5  # design: (side / 64) * sqrt(frames)
        expected = [base * 2**level for level in range(len(recipe.pyramid.levels))]
        assert recipe.diffusion.sigma_in == pytest.approx(expected, rel=0.001)


def test_sampling_is_stochastic_for_classes_and_not_for_text():
    assert load_recipe("hpdm_s").sampling.churn == (40, 0, 0)
    assert load_recipe("hpdm_s").sampling.solver == ("heun", "euler", "euler")
    assert load_recipe("hpdm_s").sampling.steps == (128, 64, 32)
    for name in ("hpdm_t2v_base", "hpdm_t2v", "hpdm_t2v_1k"):
        assert load_recipe(name).sampling.churn == (0,)
    assert load_recipe("hpdm_t2v").sampling.steps == (128, 64, 32, 16)
