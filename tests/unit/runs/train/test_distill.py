"""`hpdm finetune --distill`: few evaluations, resumable, and only from a teacher that fits."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hpdm_core.build import build_sampling
from hpdm_core.diffusion.samplers import karras_sigmas
from hpdm_core.errors import CheckpointError, RecipeError
from hpdm_core.pipeline.pipeline import Pipeline
from hpdm_core.progress import NoProgress
from hpdm_core.recipe.load import load_recipe
from hpdm_core.recipe.sampling import student_overrides
from hpdm_core.recipe.schema import Recipe
from hpdm_core.runs.prep import run_prep_shapes
from hpdm_core.runs.train.run import run_train
from hpdm_core.training.checkpoint import find_weights
from tests.unit.runs.conftest import RECIPE


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A data set, and a teacher's run."""
    place = tmp_path_factory.mktemp("distill")
    run_prep_shapes(place / "data", num=18, size=16, frames=4, workers=1, progress=NoProgress())
    text = RECIPE.replace("data: {name: shapes}", f"data: {{name: shapes, root: {place}/data}}")
    text = text.replace("  num_classes: 3\n", "")
    text = text.replace(
        "train: {steps: 6", "train: {tensorboard: false, preview_every: 0, steps: 6"
    )
    (place / "tiny.yaml").write_text(text.replace("steps: [2, 2]", "steps: [6, 4]"))
    go(load_recipe(place / "tiny.yaml"), place / "teacher")
    return place


def student(place: Path, *overrides: str, evaluations=(2, 1)) -> Recipe:
    sampling = load_recipe(place / "tiny.yaml", overrides).sampling
    changes = student_overrides(sampling, evaluations)
    return load_recipe(place / "tiny.yaml", [*overrides, *changes])


def go(recipe: Recipe, out: Path, **options) -> dict:
    options = {"device": "cpu", "dry_run": False, "progress": NoProgress(), **options}
    return run_train(recipe, out=out, **options)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(find_weights(run))


def test_a_student_samples_by_its_own_schedule(place, tmp_path):
    go(student(place), tmp_path / "run", init_from=place / "teacher")
    pipe = Pipeline.from_pretrained(tmp_path / "run", device="cpu")
    assert [(s.name, s.steps, s.churn) for s in pipe.settings.solvers] == [
        ("euler", 2, 0.0), ("euler", 1, 0.0),
    ]  # fmt: skip
    assert pipe(seeds=[0], progress=NoProgress()).frames.shape == (1, 4, 16, 16, 3)
    before, after = weights(place / "teacher"), weights(tmp_path / "run")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_stopped_distillation_ends_with_the_weights_of_an_uninterrupted_one(place, tmp_path):
    teacher = place / "teacher"
    constant = "optim.schedule=constant"
    go(student(place, constant), tmp_path / "whole", init_from=teacher)
    go(student(place, constant, "train.steps=3"), tmp_path / "parts", init_from=teacher)
    resumed = go(student(place, constant), tmp_path / "parts", init_from=teacher)
    assert resumed["resumed_from_step"] == 3
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_run_keeps_its_teacher(place, tmp_path):
    recipe = student(place)
    go(recipe, tmp_path / "run", init_from=place / "teacher")
    go(load_recipe(place / "tiny.yaml", ["train.seed=5"]), tmp_path / "other")
    with pytest.raises(CheckpointError, match="has another teacher"):
        go(recipe, tmp_path / "run", init_from=tmp_path / "other")
    (tmp_path / "run" / "teacher.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"teacher.json is damaged"):
        go(recipe, tmp_path / "run", init_from=place / "teacher")


def test_other_counts_are_another_run(place, tmp_path):
    go(student(place), tmp_path / "run", init_from=place / "teacher")
    with pytest.raises(RecipeError, match=r"train.distill: \[2, 1\] -> \[3, 1\]"):
        go(student(place, evaluations=(3, 1)), tmp_path / "run", init_from=place / "teacher")


def test_the_plan_has_both_costs(place, tmp_path):
    plan = go(student(place), tmp_path / "run", init_from=place / "teacher", dry_run=True)
    # Two blocks on level 0's tile, one on each of the 18 tiles of level 1.
    assert plan["distillation"] == {"teacher": 6 * 2 + 4 * 18, "student": 2 * 2 + 1 * 18}
    assert not (tmp_path / "run").exists()


def test_a_student_has_one_schedule_whatever_the_preset(place):
    recipe = load_recipe("shapes", student_overrides(load_recipe("shapes", []).sampling, (8, 2, 2)))
    paper, fast = (build_sampling(recipe, preset=preset) for preset in ("paper", "fast"))
    assert [solver.steps for solver in fast.solvers] == [8, 2, 2]
    assert fast == paper


def test_a_students_noise_levels_leave_out_the_smallest(place):
    recipe = student(place, evaluations=(4, 1))
    (own, one), full = build_sampling(recipe).solvers, karras_sigmas(
        5, sigma_min=0.002, sigma_max=10, rho=7
    )  # fmt: skip
    assert own.sigmas == pytest.approx((*full[:4], 0.0), rel=1e-3)
    assert one.sigmas == (10.0, 0.0)


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_teacher_of_another_network_is_refused(place, tmp_path, dry_run):
    recipe = student(place, "model.data_width=32", "diffusion.context_sigma=0.1")
    message = r"model.data_width: 16 -> 32; diffusion.context_sigma: 0.05 -> 0.1"
    with pytest.raises(RecipeError, match=message):
        go(recipe, tmp_path / "run", init_from=place / "teacher", dry_run=dry_run)
    assert not (tmp_path / "run").exists()


def test_a_student_without_a_teacher_is_refused(place, tmp_path):
    with pytest.raises(RecipeError, match=r"a student needs a teacher.*hpdm finetune RECIPE"):
        go(student(place), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["train.distill=[2]"], "train.distill has 1 values, expected 2"),
        (["train.distill=[2, 1]"], r"train.distill \[2, 1\] needs a student's schedule"),
    ],
)
def test_the_schedule_must_be_the_students(place, changes, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(place / "tiny.yaml", changes)
    assert json.dumps(student(place).train.distill) == "[2, 1]"
