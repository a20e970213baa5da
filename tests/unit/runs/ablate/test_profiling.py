"""Timed steps: memory that follows the sizes, batches that count, and recipes that do not fit."""

import pytest
import torch

from hpdm_core.build import activation_bytes_per_video
from hpdm_core.recipe.load import load_recipe
from hpdm_core.runs.ablate import profiling
from hpdm_core.runs.ablate.profiling import measure_memory, measure_speed, measured_rate

CPU = torch.device("cpu")
ADAPTIVE = "model.levels_per_block=[1,1,2,3]"
ALL_BLOCKS = "model.levels_per_block=[3,3,3,3]"


def test_memory_follows_what_is_kept_for_the_backward_pass():
    kept = {}
    for loads in (ADAPTIVE, ALL_BLOCKS):
        recipe = load_recipe("ablation_smoke", [loads])
        kept[loads] = measure_memory(recipe, CPU)["value"]
        # Everything the estimate knows of is there; weights come on top.
        assert kept[loads] > activation_bytes_per_video(recipe)
    assert kept[ALL_BLOCKS] > kept[ADAPTIVE]


def test_the_fastest_batch_counts():
    figure = measure_speed(load_recipe("ablation_smoke"), CPU, batches=(1, 2), rounds=1)
    assert figure["value"] > 0
    assert figure["batch"] in (1, 2)
    assert figure["name"] == "videos/s"


@pytest.mark.parametrize("measure", ["memory", "speed"])
def test_what_does_not_fit_is_a_figure_in_words(measure, monkeypatch):
    monkeypatch.setattr(profiling, "available_memory", lambda device: 1000)
    recipe = load_recipe("hpdm_s")
    figure = (
        measure_memory(recipe, CPU)
        if measure == "memory"
        else measure_speed(recipe, CPU, batches=(1,), rounds=1)
    )
    assert figure["value"] is None
    assert figure["text"].startswith("does not fit (about ")


def test_a_plan_tries_a_step_where_it_is_short_and_counts_where_it_is_not(monkeypatch):
    rate, how = measured_rate(load_recipe("ablation_smoke"), CPU)
    assert rate > 0
    assert "a training step with batch 2" in how
    monkeypatch.setattr(profiling, "MAX_PLAN_SECONDS", 0.0)
    rate, how = measured_rate(load_recipe("hpdm_l"), CPU)
    assert rate > 0
    assert "matrix product" in how
