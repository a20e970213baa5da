"""Every row of every table builds at smoke scale, and its weights move in one training step."""

import pytest
import torch

from hpdm_core.build import build_diffusion, build_network, build_optimizer, describe
from hpdm_core.recipe.load import recipe_to_yaml, shipped_tables
from hpdm_core.recipe.schema import Recipe
from hpdm_core.reports.ablations import Table, choose_rows, load_table
from hpdm_core.runs.ablate.profiling import random_batch, with_some_classes
from hpdm_core.runs.ablate.trials import Trial, make_trials

NAMES = [path.stem for path in shipped_tables()]


def trials_of(table: Table) -> list[Trial]:
    settings = table.scales["smoke"]
    trials = make_trials(table, settings, choose_rows(table, settings, []), seed=0)
    return [trial for trial in trials if trial.seed == 0]


def different(trial: Trial) -> list[Recipe]:
    """Return the recipes that a row is trained, timed or counted by, each once."""
    # Where nothing is trained, the recipe without a column's own variant stands for nothing.
    own = [] if trial.folder is None else [trial.recipe]
    recipes = {recipe_to_yaml(each): each for each in (*own, *trial.recipes.values())}
    return [with_some_classes(recipe) for recipe in recipes.values()]


def takes_a_step(recipe: Recipe, where: str) -> None:
    """Check that a step on random patches has a finite loss and moves weights."""
    torch.manual_seed(0)
    network = build_network(recipe)
    before = {key: weight.clone() for key, weight in network.named_parameters()}
    optimizer = build_optimizer(network, recipe)
    rows = random_batch(recipe, 2)
    loss = build_diffusion(recipe).loss(network, rows, seed=0, step=1).total
    assert torch.isfinite(loss), where
    loss.backward()
    optimizer.step()
    moved = [key for key, weight in network.named_parameters() if not weight.equal(before[key])]
    assert moved, where
    assert all(torch.isfinite(weight).all() for weight in network.parameters()), where


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_row_builds_and_takes_a_step(name):
    table = load_table(name)
    counted = all(column.measure.kind in ("count", "recipe") for column in table.columns)
    for trial in trials_of(table):
        for recipe in different(trial):
            where = f"{name}, {trial.row.key}"
            if counted:  # the published sizes: on the meta device
                assert describe(recipe)["parameters"]["total"] > 0, where
            else:
                takes_a_step(recipe, where)
