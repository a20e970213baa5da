"""Loading: inheritance, overrides, the traps of YAML, and each mistake with its place."""

import os
from pathlib import Path

import pytest
import yaml

from hpdm_core.errors import RecipeError
from hpdm_core.recipe.load import find_recipe, load_recipe, recipe_from_yaml, recipe_to_yaml

RECIPE = """\
name: small
data: {name: shapes}
pyramid:
  patch: [4, 16, 16]
  levels: [[4, 16, 16], [8, 32, 32]]
model:
  token: [1, 4, 4]
  data_width: 32
  latent_width: 32
  num_latents: 8
  levels_per_block: [1, 2]
  conditioning: class
diffusion:
  sigma_in: [1, 2]
  noise_mean: [-1.2, -1.2]
  noise_std: [1.2, 1.2]
  level_weights: [1, 1]
optim:
  lr: 5e-3
  warmup_steps: 10
train:
  steps: 100
  batch_size: 4
  checkpoint_every: 50
sampling:
  steps: [8, 4]
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


def _changed(path: Path, old: str, new: str) -> Path:
    assert RECIPE.count(old) == 1
    path.write_text(RECIPE.replace(old, new))
    return path


def _mistakes(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    message = str(caught.value)
    assert "pydantic" not in message
    assert "Input should be" not in message
    return message


def test_lists_and_whole_numbers_are_taken_where_tuples_and_numbers_are_meant(recipe_file):
    recipe = load_recipe(recipe_file)
    assert recipe.pyramid.levels == ((4, 16, 16), (8, 32, 32))
    assert recipe.diffusion.sigma_in == (1.0, 2.0)
    assert recipe.optim.lr == 5e-3


def test_overrides_replace_values_and_later_ones_win(recipe_file):
    recipe = load_recipe(
        recipe_file,
        ["optim.lr=1e-3", "optim.lr=2e-3", "sampling.steps=[6, 3]", "data.root=/big: disk # 1"],
    )
    assert recipe.optim.lr == 2e-3
    assert recipe.sampling.steps == (6, 3)
    assert recipe.data.root == "/big: disk # 1"


def test_override_of_a_text_field_stays_text(recipe_file):
    recipe = load_recipe(recipe_file, ["data.name=101", "name=no"])
    assert (recipe.data.name, recipe.name) == ("101", "no")


def test_override_can_empty_an_optional_field(recipe_file):
    assert load_recipe(recipe_file, ["model.num_classes=9"]).model.num_classes == 9
    _changed(recipe_file, "conditioning: class", "conditioning: class\n  num_classes: 9")
    assert load_recipe(recipe_file, ["model.num_classes=null"]).model.num_classes is None


def test_extends_hands_on_all_but_name_and_description(tmp_path):
    (tmp_path / "base.yaml").write_text("description: the base\n" + RECIPE)
    child = tmp_path / "child.yaml"
    child.write_text("extends: base.yaml\noptim: {lr: 1e-4}\n")
    recipe = load_recipe(child)
    assert (recipe.name, recipe.description) == ("child", "")
    assert (recipe.optim.lr, recipe.optim.warmup_steps) == (1e-4, 10)


def test_extends_replaces_lists_whole(tmp_path, recipe_file):
    child = tmp_path / "child.yaml"
    child.write_text(
        "extends: small.yaml\nsampling: {steps: [9]}\npyramid: {levels: [[4, 16, 16]]}\n"
    )
    message = _mistakes(child)
    assert "sampling.steps has 1 values" not in message
    assert "diffusion.sigma_in has 2 values, expected 1" in message


def test_extends_in_a_circle_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    assert "circle: a.yaml -> b.yaml -> a.yaml" in _mistakes(tmp_path / "a.yaml")


def test_extends_of_an_absent_file_names_the_line(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("name: a\nextends: nowhere.yaml\n")
    assert f"{path}:2:1: extends: recipe nowhere.yaml does not exist" in _mistakes(path)


def test_extends_takes_one_recipe_only(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("extends: [b.yaml, c.yaml]\n")
    assert "extends takes one recipe" in _mistakes(path)


def test_mistake_in_the_base_is_reported_at_the_base(tmp_path, recipe_file):
    _changed(recipe_file, "lr: 5e-3", "lr: fast")
    child = tmp_path / "child.yaml"
    child.write_text("extends: small.yaml\n")
    assert f"{recipe_file}:19:3: optim.lr; got 'fast' (text); expected a number" in _mistakes(child)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("data_width: 32", "data_widht: 32", ":8:3: unknown key model.data_widht; did you mean "
         "model.data_width?"),
        ("warmup_steps: 10", "warmup_steps: 10\n  batch_size: 4",
         ":21:3: unknown key optim.batch_size; did you mean train.batch_size?"),
        ("name: small", "zzz: 1", ":1:1: unknown key zzz; keys here: name, description, data"),
        ("steps: 100", "steps: 10.5", ":22:3: train.steps; got 10.5; expected a whole number"),
        ("steps: 100", "steps: '100'", "got '100' (text); expected a whole number; remove the "
         "quotes"),
        ("steps: 100", "steps: true", "train.steps; got true; expected a whole number"),
        ("steps: 100", "steps: 0", "train.steps; got 0; expected more than 0"),
        ("steps: 100", "steps:", "train.steps; got nothing; expected a whole number"),
        ("lr: 5e-3", "lr: .inf", "optim.lr; got '.inf' (text); expected a number"),
        ("lr: 5e-3", "lr: 1e999", "optim.lr; got inf; expected a finite number"),
        ("lr: 5e-3", "lr: true", "optim.lr; got true; expected a number"),
        ("name: small", "name: 12", "name; got 12; expected text; put it in quotes"),
        ("{name: shapes}", "{name: shapes, flip: no}",
         "data.flip; got 'no' (text); expected true or false; write false"),
        ("conditioning: class", "conditioning: label",
         "model.conditioning; got 'label' (text); expected 'none', 'class' or 'text'"),
        ("patch: [4, 16, 16]", "patch: [4, 16]",
         ":4:3: pyramid.patch has too few values; got [4, 16]; expected (t, h, w)"),
        ("patch: [4, 16, 16]", "patch: [4, 16, 16, 1]", "expected 3 values"),
        ("patch: [4, 16, 16]", "patch: 16", "pyramid.patch; got 16; expected a list"),
        ("patch: [4, 16, 16]", "patch: [4, x, 16]",
         "pyramid.patch[1]; got 'x' (text); expected a whole number"),
        ("  batch_size: 4\n", "", ":21:1: train.batch_size is missing; expected videos per step"),
        ("data: {name: shapes}", "data: shapes", ":2:1: data; got 'shapes' (text); expected a "
         "section"),
        ("data: {name: shapes}\n", "", "data is missing; expected a section with name"),
        ("[8, 32, 32]", "[8, 40, 32]", "level 1 has height 40, which is not a whole multiple"),
        ("token: [1, 4, 4]", "token: [1, 5, 4]", "pyramid.patch has height 16, which model.token's "
         "5 does not divide"),
        ("steps: [8, 4]", "steps: [8, 4, 2]", ":26:3: sampling.steps has 3 values, expected 2"),
        ("levels_per_block: [1, 2]", "levels_per_block: [1, 2, 1]", "[1, 2, 1] rises and falls"),
        ("  latent_width: 32\n", "", ":6:1: model.latent_width is missing, which block: rin needs"),
        ("data_width: 32", "data_width: 40\n  block: transformer",
         ":6:1: model.head_width 32 does not divide model.data_width 40"),
        ("data_width: 32", "data_width: 32\n  self_conditioning: 0.9\n  block: transformer",
         ":9:3: model.self_conditioning is 0.9, expected 0 with block: transformer"),
        ("name: small", "name: small\nname: other", ":2:1: duplicate key 'name'"),
        ("name: small", "name: [", "not valid YAML"),
        ("name: small", "name: *x", "aliases (*name) are not used"),
        ("name: small", "name: !!python/name:os.system x", "is not used in recipes; remove it"),
    ],
)  # fmt: skip
def test_each_mistake_is_said_with_its_place(recipe_file, old, new, expected):
    message = _mistakes(_changed(recipe_file, old, new))
    assert expected in message
    assert str(recipe_file) in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "optim.lrate=1",
            "override optim.lrate=1: unknown key optim.lrate; did you mean optim.lr?",
        ),
        ("lr=1", "override lr=1: unknown key lr; did you mean optim.lr?"),
        ("optm.lr=1", "override optm.lr=1: unknown key optm; did you mean optim?"),
        ("train.steps=many", "override train.steps=many: train.steps; got 'many' (text)"),
        ("train.steps", "override train.steps: expected section.key=value"),
        ("optim=adamw", "override optim=adamw: optim; got 'adamw' (text); expected a section"),
        ("sampling.steps=[1,", "override sampling.steps=[1,:1:4: not valid YAML"),
        ("sampling.steps=[8,4,2]", "=[8,4,2]: sampling.steps has 3 values, expected 2"),
        ("sampling.churn=[1,2,3]", "sampling.churn has 3 values, expected 2"),
        ("sampling.solver=dpm", "solver[0]; got 'dpm' (text); expected 'heun', 'euler'"),
        ("sampling.sigma_min=90", "sampling.sigma_min 90 must be below sampling.sigma_max 80"),
        ("sampling.s_min=60", "sampling.s_min 60 must be below sampling.s_max 50 (level 0)"),
        ("sampling.guidance_interval=[2,1]", "guidance_interval [2.0, 1.0] is empty"),
        ("optim.lr.peak=1", "optim.lr; got a section with peak; expected a number"),
    ],
)
def test_a_wrong_override_is_named(recipe_file, override, expected):
    assert expected in _mistakes(recipe_file, override)


def test_all_mistakes_come_at_once(recipe_file):
    _changed(recipe_file, "name: small", "name: small\nname: again")
    message = _mistakes(recipe_file, "optim.lrate=1", "train.steps=x", "nonsense", "seed=3")
    assert f"recipe {recipe_file} has 5 mistakes:" in message
    parts = ("duplicate key", "optim.lrate", "train.steps=x", "override nonsense", "train.seed")
    for part in parts:
        assert part in message


def test_multistep_solvers_refuse_stochasticity(recipe_file):
    changes = ("sampling.churn=5", "sampling.solver=[euler,dpmpp_2m]")
    assert (
        "sampling.churn is 5 on level 1, whose solver dpmpp_2m is deterministic; set it to 0 or "
        "take heun or euler" in _mistakes(recipe_file, *changes)
    )


def test_a_single_value_holds_for_all_levels(recipe_file):
    sampling = load_recipe(recipe_file, ["sampling.steps=9", "sampling.sigma_max=[20,5]"]).sampling
    assert sampling.by_level("steps", 2) == (9, 9)
    assert sampling.by_level("sigma_max", 2) == (20.0, 5.0)


def test_several_problems_of_one_check_are_separate_lines(recipe_file):
    message = _mistakes(recipe_file, "diffusion.sigma_in=[1]", "sampling.steps=[8,4,2]")
    assert "has 2 mistakes" in message
    assert "override diffusion.sigma_in=[1]: diffusion.sigma_in has 1 values" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"\xff\xfe\x00", "in UTF-8; save it as UTF-8"), (b"- 1\n", "a recipe is made of sections")],
)
def test_files_that_are_no_recipes(tmp_path, content, expected):
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    assert expected in _mistakes(path)


def test_an_empty_file_lacks_every_section(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert "data is missing" in _mistakes(path)


def test_absent_recipes_are_named_with_the_nearest(tmp_path):
    assert "does not exist" in _mistakes(tmp_path / "absent.yaml")
    assert "got it is a folder, not a file" in _mistakes(tmp_path)
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "got it is a pipe, not a file" in _mistakes(tmp_path / "pipe.yaml")
    assert "did you mean the shipped recipe hpdm_s?" in _mistakes("hpdm-s")
    assert "called by its bare name: hpdm_s" in _mistakes("elsewhere/hpdm_s.yaml")


def test_a_path_as_in_a_checkout_takes_the_shipped_recipe_anywhere(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO"):
        assert load_recipe("recipes/hpdm_s.yaml") == load_recipe("hpdm_s")
    assert "no file recipes/hpdm_s.yaml here; taking the shipped recipe hpdm_s" in caplog.text
    own = tmp_path / "recipes" / "hpdm_s.yaml"
    own.parent.mkdir()
    own.write_text("extends: hpdm_m\n")
    assert load_recipe("recipes/hpdm_s.yaml").model == load_recipe("hpdm_m").model
    assert "see `hpdm train --list`" in _mistakes("qqqqqq")


def test_bare_names_find_shipped_recipes_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("hpdm_s").name == "hpdm_s.yaml"


def test_resolved_recipe_round_trip(recipe_file):
    recipe = load_recipe(
        recipe_file,
        ["optim.lr=1e-7", "data.name=1e-5", "description=no", "data.root=12:30", "data.split=null"],
    )
    text = recipe_to_yaml(recipe)
    assert recipe_from_yaml(text, "checkpoint") == recipe
    # Tools that read YAML 1.1 see the same text.
    assert yaml.safe_load(text)["description"] == "no"
    assert yaml.safe_load(text)["data"]["root"] == "12:30"


def test_resolved_recipe_names_its_source():
    with pytest.raises(RecipeError, match=r"step-1/recipe.yaml:1:1: unknown key extends"):
        recipe_from_yaml("extends: hpdm_s\n", "step-1/recipe.yaml")


def test_presets_change_the_schedule_and_nothing_else(recipe_file):
    changes = ["sampling.steps=[32, 9]", "sampling.churn=[8, 0]", "sampling.solver=heun"]
    sampling = load_recipe(recipe_file, changes).sampling
    assert sampling.with_preset(None) == sampling.with_preset("paper") == sampling
    # Unless the recipe says otherwise, fast is a quarter, but not fewer than four steps.
    fast = sampling.with_preset("fast")
    assert (fast.steps, fast.churn, fast.solver) == ((8, 4), (2, 0), ("heun",))
    assert load_recipe(recipe_file, ["sampling.steps=[3, 1]"]).sampling.with_preset(
        "fast"
    ).steps == (3, 1)

    changes += ["sampling.fast.solver=[dpmpp_2m, euler]", "sampling.fast.churn=0"]
    given = load_recipe(recipe_file, [*changes, "sampling.fast.sigma_max=[80, 9]"]).sampling
    fast = given.with_preset("fast")
    assert (fast.solver, fast.churn) == (("dpmpp_2m", "euler"), (0,))
    assert (fast.sigma_max, fast.steps) == ((80, 9), (32, 9))

    # A recipe whose own schedule is the cheap one gives the paper's.
    cheap = load_recipe(recipe_file, ["sampling.paper.steps=[64, 32]"]).sampling
    assert cheap.with_preset("paper").steps == (64, 32)
    assert cheap.with_preset("fast") == cheap


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["sampling.fast.steps=[4,2,1]"], "sampling.fast.steps has 3 values, expected 2"),
        (["sampling.fast.sigma_max=0.001"], "sampling.fast.sigma_min 0.002 must be below"),
        (
            ["sampling.churn=5", "sampling.fast.solver=dpmpp_2m"],
            "sampling.fast.churn is 5 on level 0, whose solver dpmpp_2m is deterministic",
        ),
        (["sampling.fast.steps=99999"], "sampling.fast.steps is 99,999, expected at most 10,000"),
        (["sampling.fast.overlap=hw"], "did you mean sampling.overlap?"),
    ],
)
def test_presets_are_checked_like_the_schedule(recipe_file, overrides, expected):
    assert expected in _mistakes(recipe_file, *overrides)
