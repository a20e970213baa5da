"""Starting from a base: weights loaded, interpolated, missing, unexpected; level 0 is kept."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hpdm_core.build import build_network
from hpdm_core.device import device_name
from hpdm_core.errors import CheckpointError
from hpdm_core.geometry.boxes import pyramid_boxes
from hpdm_core.geometry.pyramid import sample_offsets
from hpdm_core.pipeline import pretrained
from hpdm_core.pipeline.pretrained import read_header
from hpdm_core.progress import NoProgress
from hpdm_core.recipe.load import load_recipe, recipe_from_yaml
from hpdm_core.recipe.schema import Recipe
from hpdm_core.records import Condition
from hpdm_core.runs.prep import run_prep_shapes
from hpdm_core.runs.train.run import run_train
from hpdm_core.runs.train.warm_start import plan_warm_start, resized_positions, token_grid
from hpdm_core.training.checkpoint import find_weights
from tests.unit.runs.conftest import RECIPE

LEVELS = "  patch: [2, 8, 8]\n  levels: [[2, 8, 8], [4, 16, 16]]"
LOADS = "levels_per_block: [1, 2]"
NOISE = (
    "diffusion: {sigma_in: [1, 2], noise_mean: [-1, -1], noise_std: [1, 1], level_weights: [1, 1]}"
)
STEPS = "sampling: {steps: [2, 2]"
CLASSES = ["circle", "square", "star"]


def with_levels(number: int, *, loads: str, patch: tuple[int, ...] = (2, 8, 8)) -> list:
    """Return the changes of RECIPE that give it another pyramid, doubling with each level."""
    levels = [[size * 2**level for size in patch] for level in range(number)]
    noise = {"sigma_in": [2.0**k for k in range(number)], "noise_mean": [-1] * number}
    noise |= {"noise_std": [1] * number, "level_weights": [1] * number}
    return [
        (LEVELS, f"  patch: {list(patch)}\n  levels: {levels}"),
        (LOADS, f"levels_per_block: {loads}"),
        (NOISE, "diffusion: " + json.dumps(noise).replace('"', "")),
        (STEPS, f"sampling: {{steps: {[2] * number}"),
    ]


BASE = with_levels(1, loads="[1, 1]")


def recipe_with(*changes: tuple[str, str]) -> Recipe:
    text = RECIPE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return recipe_from_yaml(text, "missing")


def started(base: Path, recipe: Recipe, *, classes=CLASSES):
    """Return the new network that starts from a base, and how it did."""
    start = plan_warm_start(base, recipe, classes=classes)
    torch.manual_seed(1)
    network = build_network(recipe)
    start.apply(network)
    return network, start


def base_network(path: Path, *changes: tuple[str, str]):
    network = build_network(recipe_with(*changes))
    network.load_state_dict(load_file(path))
    return network


@torch.no_grad()
def run(network, recipe: Recipe, batch: int = 2) -> list[torch.Tensor]:
    """Return the outputs of all levels; level 0's inputs are the same for any number of levels."""
    pyramid = recipe.pyramid.build()
    inputs, labels = [], []
    for level in range(pyramid.num_levels):
        generator = torch.Generator().manual_seed(level)
        inputs.append(torch.randn(batch, 3, *pyramid.patch, generator=generator))
        labels.append(torch.randn(batch, generator=generator))
    offsets = [sample_offsets(pyramid, np.random.default_rng(k)) for k in range(batch)]
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    condition = Condition(
        labels=torch.arange(batch),
        text=torch.randn(batch, 4, recipe.model.condition_width, generator=generator),
        text_mask=mask,
    )
    boxes = pyramid_boxes(pyramid, torch.as_tensor(np.stack(offsets)))
    return network(tuple(inputs), torch.stack(labels, dim=1), boxes, condition)[0]


SAME = [
    (),
    (("conditioning: class", "conditioning: text"), ("  num_classes: 3\n", "")),
    (("conditioning: class", "conditioning: none"),),
    (("conditioning: class", "conditioning: class\n  positions: factorised"),),
    (("conditioning: class", "conditioning: class\n  context: shallow"),),
    (("conditioning: class", "conditioning: class\n  self_conditioning: 0.9"),),
]


@pytest.mark.parametrize("same", SAME, ids=lambda same: str(same[:1]))
@pytest.mark.parametrize(
    ("blocks", "levels", "loads"),
    [("[1, 1]", 2, "[1, 2]"), ("[1, 1, 1, 1, 1, 1]", 4, "[1, 2, 2, 3, 3, 4]")],
)
def test_level_0_starts_as_exactly_the_base(make_weights, same, blocks, levels, loads):
    base_changes = [*with_levels(1, loads=blocks), *same]
    base = make_weights(*base_changes)
    recipe = recipe_with(*with_levels(levels, loads=loads), *same)
    network, start = started(base, recipe)
    expected = run(base_network(base, *base_changes), recipe_with(*base_changes))[0]
    outputs = run(network, recipe)
    torch.testing.assert_close(outputs[0], expected, rtol=0, atol=1e-6)
    assert expected.std() > 0.1
    assert start.level_0_as_base
    assert len(outputs) == levels
    assert not start.summary()["unexpected"]
    new = start.summary()["missing"]
    assert new
    assert all(name.startswith(("fusion.", "tokenizer.project_context.")) for name in new)


def test_a_trained_pyramid_keeps_all_it_knows_under_more_levels(make_weights):
    base = make_weights()
    network, start = started(base, recipe_with(*with_levels(3, loads="[2, 3]")))
    assert start.summary()["missing"] == ["fusion.0.project.weight", "fusion.0.project.bias"]
    outputs = run(network, recipe_with(*with_levels(3, loads="[2, 3]")))
    expected = run(base_network(base), recipe_with())
    torch.testing.assert_close(outputs[0], expected[0], rtol=0, atol=1e-6)


def test_fewer_levels_leave_fusion_unused(make_weights):
    network, start = started(make_weights(), recipe_with(*BASE))
    assert sorted(start.summary()["unexpected"]) == [
        "fusion.1.project.bias",
        "fusion.1.project.weight",
    ]
    assert start.level_0_as_base
    expected = run(base_network(make_weights()), recipe_with())[0]
    torch.testing.assert_close(run(network, recipe_with(*BASE))[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["learned", "factorised"])
@pytest.mark.parametrize("new_kind", ["learned", "factorised"])
def test_a_larger_patch_gets_interpolated_positions(make_weights, kind, new_kind):
    positions = ("conditioning: class", f"conditioning: class\n  positions: {kind}")
    new_positions = ("conditioning: class", f"conditioning: class\n  positions: {new_kind}")
    base = make_weights(*BASE, positions)
    recipe = recipe_with(*with_levels(2, loads="[2, 2]", patch=(4, 16, 16)), new_positions)
    network, start = started(base, recipe)
    interpolated = start.summary()["interpolated"]
    assert len(interpolated) == (1 if new_kind == "learned" else 3)
    assert not start.level_0_as_base
    assert not start.summary()["unexpected"]
    # Every second token of the finer grid lies a quarter of a coarse step beside a coarse one.
    before = base_network(base, *BASE, positions).tokenizer.positions()
    after = network.tokenizer.positions().reshape(4, 4, 4, 16)
    if (kind, new_kind) != ("learned", "factorised"):  # which is exact for sums only
        corner = before.reshape(2, 2, 2, 16)[0, 0, 0]
        torch.testing.assert_close(after[0, 0, 0], corner, rtol=0, atol=1e-6)
    mean = before.mean(0)
    torch.testing.assert_close(after.flatten(0, 2).mean(0), mean, rtol=0, atol=1e-6)


def table_of(function, grid) -> torch.Tensor:
    """Return a learned table whose entries are a function of the tokens' centres in [0, 1]."""
    centres = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in grid]
    t, h, w = torch.meshgrid(*centres, indexing="ij")
    return torch.stack(function(t, h, w), dim=-1).flatten(0, 2)


def test_interpolation_keeps_linear_functions_inside():
    old, new = (4, 6, 3), (8, 9, 6)

    def linear(t, h, w):
        return [1 + 2 * t - h, 3 * w + t]

    (resized,) = resized_positions([table_of(linear, old)], grid=old, new_grid=new, kind="learned")
    inside = (slice(1, -1),) * 3
    wanted = table_of(linear, new).reshape(*new, 2)[inside]
    torch.testing.assert_close(resized.reshape(*new, 2)[inside], wanted)


@pytest.mark.parametrize("new_grid", [(3, 4, 5), (6, 4, 10)])
def test_interpolation_of_sums_is_the_same_in_either_form(new_grid):
    grid = (3, 4, 5)
    tables = [torch.randn(n, 7, dtype=torch.float64) for n in grid]
    (whole,) = resized_positions(tables, grid=grid, new_grid=new_grid, kind="learned")
    t, h, w = resized_positions([whole], grid=new_grid, new_grid=new_grid, kind="factorised")
    again = (t[:, None, None] + h[:, None] + w).flatten(0, 2)
    torch.testing.assert_close(again, whole)
    if new_grid == grid:
        expected = (tables[0][:, None, None] + tables[1][:, None] + tables[2]).flatten(0, 2)
        torch.testing.assert_close(whole, expected, rtol=0, atol=1e-12)


def test_a_patch_of_the_same_tokens_is_taken_as_it_is(make_weights):
    token = ("token: [1, 4, 4]", "token: [2, 8, 8]")
    recipe = recipe_with(*with_levels(2, loads="[1, 2]", patch=(4, 16, 16)), token)
    summary = plan_warm_start(make_weights(*BASE), recipe, classes=CLASSES).summary()
    assert not summary["interpolated"]
    assert "tokenizer.positions.tables.0" in summary["loaded"]
    assert {"tokenizer.project.weight", "detokenizer.project.weight"} < set(summary["missing"])
    assert set(summary["missing"]) >= set(summary["unexpected"])


def test_tokens_of_the_same_number_of_pixels_are_not_the_same(make_weights):
    token = ("token: [1, 4, 4]", "token: [1, 2, 8]")
    start = plan_warm_start(make_weights(*BASE), recipe_with(*BASE, token), classes=CLASSES)
    why = {entry.name: entry.why for entry in start.entries if entry.status == "missing"}
    assert why["tokenizer.project.weight"] == "token 1x4x4 -> 1x2x8"
    assert why["detokenizer.project.bias"] == "token 1x4x4 -> 1x2x8"
    assert not start.level_0_as_base


@pytest.mark.parametrize(("old", "new"), [("class", "text"), ("text", "class"), ("none", "text")])
def test_another_kind_of_condition_brings_its_own_tables(make_weights, old, new):
    def condition(kind):
        changes = [("conditioning: class", f"conditioning: {kind}")]
        return changes if kind == "class" else [*changes, ("  num_classes: 3\n", "")]

    base = make_weights(*BASE, *condition(old))
    recipe = recipe_with(*with_levels(2, loads="[1, 2]"), *condition(new))
    network, start = started(base, recipe)
    summary = start.summary()
    changed = {name for name in summary["missing"] if not name.startswith("fusion.")}
    expected = {"conditioning.project.weight", "conditioning.project.bias"}
    assert changed == (expected | {"conditioning.classes.weight"} if new == "class" else expected)
    assert all(name.startswith("conditioning.") for name in summary["unexpected"])
    assert ("conditioning.classes.weight" in summary["unexpected"]) == (old == "class")
    assert any(f"base: {old}, here: {new}" in row["why"] for row in summary["weights"])
    assert not start.level_0_as_base
    assert all(torch.isfinite(output).all() for output in run(network, recipe))


def test_the_shipped_model_can_be_a_base(make_weights, monkeypatch):
    path = make_weights()
    monkeypatch.setattr(pretrained, "ASSETS", path.parent)
    monkeypatch.setattr(pretrained, "BEST", path.stem)
    start = plan_warm_start(Path("shipped"), recipe_with(), classes=CLASSES)
    assert start.base.path == path
    assert start.level_0_as_base


def test_a_base_that_is_not_finite_is_refused_with_its_name(make_weights):
    path = make_weights()
    tensors = load_file(path) | {"latents": torch.full((4, 16), torch.nan)}
    with safe_open(path, framework="pt") as file:
        save_file(tensors, path, metadata=file.metadata())
    start = plan_warm_start(path, recipe_with(), classes=CLASSES)
    with pytest.raises(CheckpointError, match=r"model\.safetensors holds .*NaN or infinity in lat"):
        start.apply(build_network(recipe_with()))


def test_classes_of_the_same_names_are_taken(make_weights):
    recipe, base = recipe_with(), make_weights()
    assert plan_warm_start(base, recipe, classes=CLASSES).level_0_as_base
    assert plan_warm_start(base, recipe, classes=None).level_0_as_base
    other = plan_warm_start(base, recipe, classes=["circle", "square", "ring"])
    assert other.summary()["missing"] == ["conditioning.classes.weight"]
    assert "other classes" in "\n".join(other.lines())


WIDE = (("data_width: 16", "data_width: 32"), ("latent_width: 16", "latent_width: 8"))


def test_a_base_of_other_widths_is_refused_with_both(make_weights):
    message = (
        r"of another kind or width than this recipe's; "
        r"got model\.data_width=32, model\.latent_width=8; "
        r"expected model\.data_width=16, model\.latent_width=16"
    )
    with pytest.raises(CheckpointError, match=message):
        plan_warm_start(make_weights(), recipe_with(*WIDE), classes=CLASSES)


def test_a_base_with_the_other_kind_of_block_is_refused(make_weights):
    message = r"another kind .*; got model\.block=transformer; expected model\.block=rin; give"
    other = recipe_with(("data_width: 16", "data_width: 32\n  block: transformer"))
    with pytest.raises(CheckpointError, match=message):
        plan_warm_start(make_weights(), other, classes=CLASSES)


def test_the_papers_recipes_fit_their_base(tmp_path):
    base = load_recipe("hpdm_t2v_base")
    for name, grid in (("hpdm_t2v", (8, 12, 16)), ("hpdm_t2v_1k", (16, 24, 32))):
        recipe = load_recipe(name)
        assert token_grid(recipe) == grid
        assert token_grid(base) == (8, 12, 16)
        with torch.device("meta"):
            old, new = build_network(base).state_dict(), build_network(recipe).state_dict()
        other = {key for key in old if old[key].shape != new[key].shape}
        assert other == (set() if name == "hpdm_t2v" else {"tokenizer.positions.tables.0"})
        assert all(key.startswith("fusion.") for key in new.keys() - old.keys())


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    run_prep_shapes(root, num=9, size=32, frames=8, workers=1, progress=NoProgress())
    return root


TRAIN = ("train: {", "train: {tensorboard: false, ")


def train_recipe(root: Path, *changes: tuple[str, str]) -> Recipe:
    data = ("data: {name: shapes}", f"data: {{name: shapes, root: {root}, workers: 0}}")
    return recipe_with(data, TRAIN, ("  num_classes: 3\n", ""), *changes)


def go(recipe: Recipe, out: Path, **options) -> dict:
    options = {"device": "cpu", "dry_run": False, "progress": NoProgress(), **options}
    return run_train(recipe, out=out, **options)


@pytest.fixture
def base_run(root, tmp_path) -> Path:
    go(train_recipe(root, *BASE), tmp_path / "base")
    return tmp_path / "base"


def test_weights_and_ema_of_the_new_run_are_the_bases_ema(root, base_run, tmp_path, caplog):
    caplog.set_level("INFO", "hpdm")
    still = ("lr: 1e-3", "lr: 1e-30")
    summary = go(train_recipe(root, still), tmp_path / "fine", init_from=base_run)
    base = load_file(find_weights(base_run))
    folder = find_weights(tmp_path / "fine").parent
    for kind in ("model", "ema"):
        fine = load_file(folder / f"{kind}.safetensors")
        assert fine.keys() - base.keys() == set(summary["initialised"]["missing"])
        for name, tensor in base.items():
            torch.testing.assert_close(fine[name], tensor, rtol=0, atol=1e-9)
    about = read_header(folder / "ema.safetensors").metadata
    assert (about["base"], about["machine"]) == ("tiny", device_name(torch.device("cpu")))
    assert 0 <= int(about["seconds"]) < 600
    table = "\n".join(caplog.messages)
    assert "interpolated" in table
    assert "level 0 starts as exactly the base model" in table
    kept = json.loads((tmp_path / "fine" / "initialised.json").read_text())
    assert kept == summary["initialised"]
    assert kept["base_step"] == 6
    rows = {row["part"]: row for row in kept["weights"]}
    assert rows["fusion"]["missing"] == 16 * (2 * 16 + 3) + 16
    assert rows["blocks"]["loaded"] == sum(t.numel() for n, t in base.items() if "blocks" in n)


def test_a_fine_tuned_run_goes_on_without_its_base(root, base_run, tmp_path, caplog):
    caplog.set_level("INFO", "hpdm")
    constant = ("lr: 1e-3", "lr: 1e-3, schedule: constant")
    whole = train_recipe(root, constant)
    half = train_recipe(root, constant, ("steps: 6", "steps: 3"))
    go(whole, tmp_path / "whole", init_from=base_run)
    go(half, tmp_path / "parts", init_from=base_run)
    base_run.rename(tmp_path / "gone")
    summary = go(whole, tmp_path / "parts", init_from=base_run)
    assert summary["resumed_from_step"] == 3
    assert "initialised" not in summary
    assert any("is not read again" in line for line in caplog.messages)
    for kind in ("model", "ema", "optimizer"):
        one, other = (
            load_file(find_weights(tmp_path / run).parent / f"{kind}.safetensors")
            for run in ("whole", "parts")
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_from_scratch_is_not_taken_over(root, base_run, tmp_path):
    go(train_recipe(root), tmp_path / "own")
    kept = find_weights(tmp_path / "own").read_bytes()
    with pytest.raises(CheckpointError, match=r"was trained from scratch.*another --out"):
        go(train_recipe(root, ("steps: 6", "steps: 9")), tmp_path / "own", init_from=base_run)
    assert find_weights(tmp_path / "own").read_bytes() == kept
    (tmp_path / "own" / "initialised.json").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"initialised.json is damaged"):
        go(train_recipe(root), tmp_path / "own", init_from=base_run)


def test_a_base_that_is_absent_or_misfits_leaves_nothing(root, base_run, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        go(train_recipe(root), tmp_path / "fine", init_from=tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="of another kind or width"):
        go(train_recipe(root, *WIDE), tmp_path / "fine", init_from=base_run)
    assert not (tmp_path / "fine").exists()


def test_a_dry_run_shows_the_table_and_writes_nothing(root, base_run, tmp_path):
    plan = go(train_recipe(root), tmp_path / "fine", init_from=base_run, dry_run=True)
    assert plan["initialised"]["level_0_as_base"]
    assert json.loads(json.dumps(plan)) == plan
    assert not (tmp_path / "fine").exists()


@pytest.mark.parametrize(
    ("base", "fine"),
    [
        ("hpdm_t2v_base", "hpdm_t2v"),
        ("t2v_base_tiny", "t2v_tiny"),
        ("hpdm_t2v_base", "hpdm_t2v_1k"),
        ("t2v_base_tiny", "t2v_1k_tiny"),
    ],
)
def test_a_base_sees_the_frame_rate_of_the_level_it_becomes(base, fine):
    base, fine = load_recipe(base), load_recipe(fine)
    growth = fine.pyramid.levels[-1][0] // fine.pyramid.levels[0][0]
    more_frames = fine.pyramid.patch[0] // base.pyramid.patch[0]
    assert base.data.frame_stride == fine.data.frame_stride * growth * more_frames
    assert base.model.condition_width == fine.model.condition_width
    assert base.sampling.churn == fine.sampling.churn == (0,)
