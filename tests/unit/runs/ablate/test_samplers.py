"""`hpdm ablate samplers`: figures of a schedule against closed forms and counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hpdm_core.data.shapes import SHAPE_CLASSES, render
from hpdm_core.data.video_io import write_mp4
from hpdm_core.errors import CheckpointError, MetricError, RecipeError
from hpdm_core.metrics.frechet import FeatureStats, frechet_distance
from hpdm_core.pipeline.pipeline import Pipeline
from hpdm_core.pipeline.plan import plan_sampling
from hpdm_core.progress import NoProgress
from hpdm_core.reports.ablations import SAMPLER_FIGURES, choose_rows, load_table
from hpdm_core.runs.ablate import samplers
from hpdm_core.runs.ablate.run import run_ablate
from hpdm_core.runs.ablate.samplers import SamplerMeter

SCALE = (
    load_table("samplers")
    .scales["smoke"]
    .model_copy(
        update={"sampled": 3, "converged": (40, 30), "converged_videos": 2, "sigma_max": (10.0,)}
    )
)


@pytest.fixture
def meter() -> SamplerMeter:
    return SamplerMeter(scale=SCALE, device="cpu", progress=NoProgress())


@pytest.fixture
def real(tmp_path):
    folder = tmp_path / "real"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        video = rng.integers(0, 255, (4, 16, 16, 3), dtype=np.uint8)
        write_mp4(folder / f"{index}.mp4", video, 8.0, threads=1)
    return folder


@pytest.fixture
def scheduled(make_weights):
    """Return the model with a deterministic schedule of its recipe changed."""
    pipeline = Pipeline.from_pretrained(make_weights(), device="cpu")

    def change(**sampling) -> Pipeline:
        changes = {"churn": (0.0,)} | sampling
        return replace(pipeline, recipe=pipeline.recipe.with_fields("sampling", changes))

    return change


def test_figures_are_those_of_the_videos_drawn(meter, real, scheduled):
    pipeline = scheduled(steps=(3, 2))
    figures = meter.measure(pipeline, real=real, seed=5)
    plan = plan_sampling(
        pipeline.recipe, pipeline.settings, where="", cached=True, videos=1, tiles=1
    )
    assert figures["passes"]["value"] == plan["block_passes_cached"]
    videos = pipeline(classes=[0, 1, 2], seeds=[5, 6, 7], progress=NoProgress())
    features = meter._detector(torch.from_numpy(videos.frames), batch=3)
    reals = meter._real(pipeline, real)
    expected = frechet_distance(FeatureStats.of(features), FeatureStats.of(reals))
    assert figures["fvd"]["value"] == pytest.approx(expected, rel=1e-3)
    assert figures["seconds"]["value"] > 0
    measured = ("kernel", "flicker", "hh", "high_frequency")
    assert all(isinstance(figures[name]["value"], float) for name in measured)
    assert set(figures) == set(SAMPLER_FIGURES)
    assert figures["named_right"]["value"] is None  # the detector does not know these classes


def test_videos_are_named_among_the_models_classes(meter, real, scheduled):
    """Rendered shapes in place of generated ones: the detector names nearly all of them."""
    pipeline = replace(scheduled(steps=(1, 1)), classes=tuple(SHAPE_CLASSES[:6]))
    drawn = [render(1 << 40, label, frames=16, size=64).frames for label in range(6)]
    pixels = torch.from_numpy(np.stack(drawn))
    assert samplers._named_right(pipeline, pixels) >= 5 / 6
    assert samplers._named_right(pipeline, pixels.flip(0)) <= 1 / 6


def test_more_steps_come_closer_to_the_converged_solution(meter, real, scheduled):
    error = {
        steps: meter.measure(scheduled(steps=steps, solver=("heun",)), real=real, seed=0)[
            "distance"
        ]["value"]
        for steps in ((2, 2), (24, 24))
    }
    assert 0 < error[24, 24] < error[2, 2] / 3
    assert len(meter._converged) == 1  # rows share it
    exact = scheduled(steps=(40, 30), solver=("dpmpp_3m",))
    assert meter.measure(exact, real=real, seed=0)["distance"]["value"] < 1e-5


def test_rows_that_add_noise_have_no_converged_solution(meter, real, scheduled):
    figures = meter.measure(scheduled(steps=(2, 2), churn=(2.0, 0.0)), real=real, seed=0)
    assert figures["distance"]["value"] is None
    assert figures["distance"]["text"] == "stochastic"
    assert not meter._converged


def test_converged_steps_must_fit_the_model(real, scheduled):
    scale = SCALE.model_copy(update={"converged": (4, 4, 4)})
    meter = SamplerMeter(scale=scale, device="cpu", progress=NoProgress())
    message = "converged gives solver steps by level; got 3; expected 2 of them"
    with pytest.raises(MetricError, match=message):
        meter.measure(scheduled(steps=(1, 1)), real=real, seed=0)


def test_a_scale_gives_rows_its_checkpoint_and_multiplies_their_steps():
    table = load_table("samplers")
    row = {
        name: next(r for r in choose_rows(table, scale, []) if r.key == "quarter")
        for name, scale in table.scales.items()
    }
    assert row["tiny"].sampling["steps"] == (8, 4, 2)
    assert row["paper"].sampling["steps"] == (32, 16, 8)
    checkpoints = {name: r.checkpoint for name, r in row.items()}
    assert checkpoints == {"paper": "runs/hpdm_s", "tiny": "shapes", "smoke": None}


@pytest.mark.parametrize(
    ("table", "checkpoint", "error", "message"),
    [
        ("table4", "shapes", RecipeError, "table4 trains its rows; got --checkpoint shapes"),
        ("samplers", "no/such/run", CheckpointError, "no/such/run"),
    ],
)
def test_a_checkpoint_is_for_schedules_and_exists(tmp_path, table, checkpoint, error, message):
    with pytest.raises(error, match=message):
        run_ablate(
            table, scale="smoke", rows=[], out=tmp_path, device="cpu", seed=0, dry_run=True,
            progress=NoProgress(), checkpoint=checkpoint,
        )  # fmt: skip


def test_the_converged_solution_starts_from_one_noise_level_or_one_per_level(meter):
    scale = meter.scale
    for sigma_max in ((10.0,), (40.0, 10.0)):
        assert scale.model_validate(dict(scale) | {"sigma_max": sigma_max}).sigma_max == sigma_max
    with pytest.raises(ValueError, match="sigma_max has 3 values, expected 1 or one per level"):
        scale.model_validate(dict(scale) | {"sigma_max": (1.0, 2.0, 3.0)})
