"""`hpdm ablate claims`: what its rows change, share and measure."""

import itertools

import pytest
import torch

from hpdm_core.build import describe
from hpdm_core.errors import DivergedError
from hpdm_core.progress import NoProgress
from hpdm_core.recipe.load import load_recipe
from hpdm_core.reports.ablations import SCALES, choose_rows, load_table
from hpdm_core.runs.ablate import profiling, run, trial
from hpdm_core.runs.ablate import trials as trial_keys
from hpdm_core.runs.ablate.profiling import measure_relative_speed
from hpdm_core.runs.ablate.run import run_ablate
from hpdm_core.runs.ablate.trials import make_trials

CPU = torch.device("cpu")
TABLE = load_table("claims")


def trials_of(scale: str) -> dict:
    settings = TABLE.scales[scale]
    trials = make_trials(TABLE, settings, choose_rows(TABLE, settings, []), seed=0)
    return {each.row.key: each for each in trials if each.seed == 0}


def changed(one, other) -> set[str]:
    """Return the fields that differ, as section.field."""
    return {
        f"{section}.{name}"
        for section in ("data", "pyramid", "model", "diffusion", "optim", "train", "sampling")
        for name, value in getattr(one, section)
        if value != getattr(getattr(other, section), name)
    }


@pytest.mark.parametrize("scale", SCALES)
def test_each_row_changes_what_it_is_called_and_nothing_else(scale):
    trials = trials_of(scale)
    own = {key: changed(t.recipe, trials["default"].recipe) for key, t in trials.items()}
    small = scale != "paper"
    assert own == {
        "default": set(),
        "fractional": {"pyramid.offsets"},
        "skip_later": {"model.levels_per_block"},
        "doubled": {"diffusion.noise_mean"} if small else set(),
        "equal": {"diffusion.sigma_in"} | ({"diffusion.noise_mean"} if small else set()),
        "concatenated": {"model.context"},
        "averaged": {"model.context"},
        "detach": {"model.detach_context"},
        "shallow": {"model.context"},
        "sinusoidal": {"model.context"},
        "shared": {"model.block"},
        "cuts": {"train.level_drop_prob"},
        "second_order": set(),
        "churn": set(),
        "bf16": {"train.precision"},
    }
    assert changed(trials["doubled"].recipe, trials["equal"].recipe) == {"diffusion.sigma_in"}
    loads = trials["default"].recipe.model.levels_per_block
    assert trials["skip_later"].recipe.model.levels_per_block == loads[::-1]


@pytest.mark.parametrize("scale", SCALES)
def test_input_scaling_doubles_in_one_row_and_is_level_0s_in_the_other(scale):
    trials = trials_of(scale)
    doubled = trials["doubled"].recipe.diffusion.sigma_in
    assert doubled == tuple(doubled[0] * 2**level for level in range(3))
    assert trials["equal"].recipe.diffusion.sigma_in == (doubled[0],) * 3


def test_rows_of_another_version_of_sampling_are_made_again(monkeypatch):
    before = trials_of("tiny")
    monkeypatch.setattr(trial_keys, "SAMPLING_VERSION", trial_keys.SAMPLING_VERSION + 1)
    after = trials_of("tiny")
    assert not {each.key for each in before.values()} & {each.key for each in after.values()}


@pytest.mark.parametrize("scale", SCALES)
def test_rows_of_sampling_share_the_default_models_training(scale):
    trials = trials_of(scale)
    default = trials["default"].recipe
    assert {trials[key].folder for key in ("second_order", "churn")} == {trials["default"].folder}
    assert len({each.key for each in trials.values()}) == len(trials)
    order, churn = (
        default.with_fields("sampling", trials[key].row.sampling).sampling
        for key in ("second_order", "churn")
    )
    assert set(order.solver) == {"heun"}
    assert (order.churn, order.steps) == (default.sampling.churn, default.sampling.steps)
    # As much noise a step on each level as on level 0.
    rates = [c / n for c, n in zip(churn.churn, churn.steps, strict=True)]
    assert rates[1:] == [rates[0]] * 2 or scale == "smoke"
    assert churn.churn[0] == default.sampling.churn[0]


def test_every_finding_says_what_the_paper_says():
    assert all(finding.paper for finding in TABLE.findings)
    assert {finding.text: finding.size for finding in TABLE.findings if finding.size} == {
        "Gradients through context improve the last level": 5,
        "Shallow fusion trains faster": 10,
    }
    told = {key for finding in TABLE.findings for key in (finding.row, *finding.against)}
    assert told == {row.key for row in TABLE.rows}


def test_rows_for_a_gpu_are_left_out_on_a_cpu_unless_they_are_named(tmp_path, caplog):
    def planned(rows: list[str]) -> list[str]:
        plan = run_ablate(
            "claims", scale="smoke", rows=rows, out=tmp_path, device="cpu", seed=0, dry_run=True,
            progress=NoProgress(),
        )  # fmt: skip
        return [row["row"] for row in plan["rows"]]

    caplog.set_level("INFO", logger="hpdm")
    assert "bf16" not in planned([])
    assert "left out on a CPU: bf16 (name rows with --rows" in caplog.text
    assert planned(["bf16"]) == ["bf16"]


def made_up_seconds(monkeypatch, *, load) -> None:
    """Let a pass of k levels take k seconds, times the load of the n-th pass."""
    calls = itertools.count()
    monkeypatch.setattr(
        profiling.Stepper, "_timed", lambda _, rows: load(next(calls)) * len(rows.patches)
    )


@pytest.mark.parametrize("name", ["table2", "claims"])
def test_a_dry_run_says_gpu_hours_by_counted_operations(name, tmp_path):
    table = load_table(name)
    row = "hpdm_s" if name == "table2" else "default"
    plan = run_ablate(
        name, scale="paper", rows=[row], out=tmp_path, device="cpu", seed=0, dry_run=True,
        progress=NoProgress(),
    )  # fmt: skip
    assert plan["needs"] == ["hpdm prep ucf101 ./data"]
    recipe = load_recipe("hpdm_s" if name == "table2" else "ablation_paper")
    training = (
        recipe.train.steps * recipe.train.batch_size * describe(recipe)["flops_per_video_training"]
    )
    hours = training / (0.4 * 495e12) / 3600  # 40% of an H100's dense TF32 rate
    found = plan["plan"]["gpu_hours"]
    # Sampling comes on top: 10,000 or 512 videos.
    assert hours < found < 1.5 * hours
    assert "assumed" in plan["plan"]["gpu_hours_by"]
    assert plan["plan"]["too_long_here"]
    assert plan["plan"]["training_steps"] == recipe.train.steps
    assert table.scales["tiny"].needs == ()


def test_a_step_with_level_dropout_takes_its_mean_over_numbers_of_levels(monkeypatch):
    cuts = load_recipe("ablation_smoke", ["train.level_drop_prob=0.5"])
    plain = load_recipe("ablation_smoke")
    made_up_seconds(monkeypatch, load=lambda call: 1.0)
    figure = measure_relative_speed(cuts, plain, CPU, batches=(1, 2), rounds=1)
    assert figure["value"] == pytest.approx(3 / (0.5 * 3 + 0.25 * 1 + 0.25 * 2))
    assert figure["batch"] == 2


def test_other_load_leaves_the_ratio_alone(monkeypatch):
    plain = load_recipe("ablation_smoke")
    # Ten times the load in every second round, and once in the middle of a round.
    made_up_seconds(monkeypatch, load=lambda call: 10.0 if (call // 2) % 2 or call == 4 else 1.0)
    figure = measure_relative_speed(plain, plain, CPU, batches=(1,), rounds=5)
    assert figure["value"] == 1.0


def test_steps_of_both_alternate_and_change_turns(monkeypatch):
    order = []

    def timed(self, rows) -> float:
        order.append(self._recipe.model.context)
        return 1.0

    monkeypatch.setattr(profiling.Stepper, "_timed", timed)
    shallow = load_recipe("ablation_smoke", ["model.context=shallow"])
    measure_relative_speed(shallow, load_recipe("ablation_smoke"), CPU, batches=(1,), rounds=2)
    assert order == ["deep", "shallow", "shallow", "deep", "deep", "shallow"]


def test_a_training_that_diverges_is_a_result(tmp_path, monkeypatch):
    def diverge(*args, **options) -> dict:
        raise DivergedError("10 steps in a row gave a loss or gradient that is not finite")

    monkeypatch.setattr(run, "prepare", lambda *args, **options: None)
    monkeypatch.setattr(trial, "run_train", diverge)
    monkeypatch.setattr(
        trial, "measure_relative_speed", lambda *args, **options: {"value": 1.0, "name": "x"}
    )
    result = run_ablate(
        "claims", scale="smoke", rows=["sinusoidal"], out=tmp_path, device="cpu", seed=0,
        dry_run=False, progress=NoProgress(),
    )  # fmt: skip
    cells = {cell["column"]: cell for cell in result["cells"] if cell["row"] == "sinusoidal"}
    assert cells["fvd"]["ours"] == "diverged"
    assert cells["speed"]["ours"] == 1.0
    assert "| diverged |" in (tmp_path / "claims-smoke" / "table.md").read_text()


@pytest.mark.parametrize(
    ("of", "value", "about"),
    [
        ("kvd", 0.25, "4 videos of 4x8x8"),
        ("hh", 0.01, "4 videos of 4x8x8 (real videos 0.00123)"),
        ("seams", None, "4 videos of 4x8x8 (real videos 1.1)"),
    ],
)
def test_a_column_takes_its_figure_from_the_score_that_has_it(of, value, about):
    counts = {"num_fakes": 4, "num_reals": 9}
    result = {
        "protocol": "fvd4_level0",
        "clip": {"frames": 4, "size": [8, 8]},
        "scores": [
            {"metric": "fvd", "name": "Fréchet distance", "value": 3.0, **counts},
            {"metric": "kvd", "name": "kernel distance", "value": 0.25, **counts},
            {"metric": "quality", "name": "hh", "value": 0.01, "real_value": 0.001234, **counts},
            {"metric": "quality", "name": "seams", "value": None, "real_value": 1.1, **counts},
        ],
    }
    column = TABLE.columns[0]
    measure = column.measure.model_copy(update={"of": of})
    figure = trial._figure_of(result, column.model_copy(update={"measure": measure}))
    assert (figure["value"], figure["of"]) == (value, about)
    assert figure.get("text") == ("undefined" if value is None else None)


@pytest.mark.slow
def test_all_rows_run_at_smoke_scale(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = run_ablate(
        "claims", scale="smoke", rows=[], out=tmp_path, device="cpu", seed=0, dry_run=False,
        progress=NoProgress(),
    )  # fmt: skip
    run_rows = {cell["row"] for cell in result["cells"] if cell["ours"] is not None}
    assert run_rows == {row.key for row in TABLE.rows} - {"bf16"}
