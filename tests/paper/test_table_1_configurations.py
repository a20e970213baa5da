"""Table 1: full resolution against patches, with and without adaptive computation, on meta."""

import math

import pytest

from hpdm_core.build import describe
from hpdm_core.recipe.load import load_recipe

PATCH_32 = ((32, 128, 128), (64, 256, 256))
PATCH_16 = ((16, 64, 64), (32, 128, 128), (64, 256, 256))
FULL = ((64, 256, 256),)
LARGER = (64, 512, 512)
# name: levels, load with adaptive computation, tokens of a patch.
CONFIGURATIONS = {
    "full 64x256^2": (FULL, None, 262_144),
    "full 64x512^2": ((LARGER,), None, 1_048_576),
    "32x128^2 of 64x256^2": (PATCH_32, (1, 1, 1, 2, 2, 2), 32_768),
    "32x128^2 of 64x512^2": ((*PATCH_32, LARGER), (1, 1, 2, 2, 3, 3), 32_768),
    "16x64^2 of 64x256^2": (PATCH_16, (1, 1, 2, 2, 3, 3), 4_096),
    "16x64^2 of 64x512^2": ((*PATCH_16, LARGER), (1, 1, 2, 2, 3, 4), 4_096),
}


def describe_row(levels, load) -> dict:
    """Describe HPDM-S with other levels, by overrides alone."""
    count = len(levels)
    per_level = {
        "diffusion.sigma_in": [2.0**level for level in range(count)],
        "diffusion.noise_mean": [-1.2] * count,
        "diffusion.noise_std": [1.2] * count,
        "diffusion.level_weights": [1.0] * count,
        "sampling.steps": 1,
        "sampling.solver": "euler",
        "sampling.churn": 0,
        "pyramid.patch": list(levels[0]),
        "pyramid.levels": [list(level) for level in levels],
        "model.levels_per_block": list(load),
    }
    return describe(load_recipe("hpdm_s", [f"{name}={value}" for name, value in per_level.items()]))


@pytest.mark.parametrize(
    ("name", "adaptive"),
    [(name, False) for name in CONFIGURATIONS]
    + [(name, True) for name, (_, load, _) in CONFIGURATIONS.items() if load is not None],
)
def test_every_row_builds_with_its_levels_and_tokens(name, adaptive):
    levels, load, tokens = CONFIGURATIONS[name]
    row = describe_row(levels, load if adaptive else (len(levels),) * 6)
    assert [tuple(level["resolution"]) for level in row["levels"]] == list(levels)
    assert {tuple(level["patch"]) for level in row["levels"]} == {levels[0]}
    assert row["tokens_per_level"] == [tokens] * len(levels)
    passes = [sum(b > level for b in load) if adaptive else 6 for level in range(len(levels))]
    assert [level["blocks"] for level in row["levels"]] == passes
    assert row["flops_per_video"] == sum(level["flops_forward"] for level in row["levels"])


def test_arithmetic_falls_in_the_order_of_the_papers_speeds():
    """Full resolution, then smaller patches, then adaptive computation with each."""
    order = [
        describe_row(FULL, (1,) * 6),
        describe_row(PATCH_32, (2,) * 6),
        describe_row(PATCH_32, (1, 1, 1, 2, 2, 2)),
        describe_row(PATCH_16, (3,) * 6),
        describe_row(PATCH_16, (1, 1, 2, 2, 3, 3)),
    ]
    flops = [row["flops_per_video"] for row in order]
    assert flops == sorted(flops, reverse=True)
    for whole, adaptive in ((1, 2), (3, 4)):
        saved = flops[adaptive] / flops[whole]
        load = order[adaptive]["levels"]
        assert saved == pytest.approx(
            sum(level["blocks"] for level in load) / (6 * len(load)), rel=0.05
        )


def test_a_patch_keeps_a_small_share_of_the_video():
    """Sec. 5.2: four levels of 8x36x64 keep 4 (1/8)^3, about 0.7%, of the pixels."""
    pyramid = load_recipe("hpdm_t2v").pyramid.build()
    share = pyramid.num_levels * math.prod(pyramid.patch) / math.prod(pyramid.resolution)
    assert share == pytest.approx(4 / 512)
    assert share < 0.008


def test_dry_run_figures_of_the_largest_recipe_are_whole():
    row = describe(load_recipe("hpdm_t2v_1k"))
    assert row["parameters"]["total"] == pytest.approx(3.934e9, rel=0.01)
    parts = {name: count for name, count in row["parameters"].items() if name != "total"}
    assert sum(parts.values()) == row["parameters"]["total"]
    # Forward, twice that backward, and the extra pass of latent self-conditioning.
    assert row["flops_per_video_training"] == 4 * row["flops_per_video"]
