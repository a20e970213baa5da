"""Sec. 4.5, "cached inference": what does not change over a level's steps is computed once.

Information flows from coarse to fine alone, so that this is exact: the same videos, to rounding.
"""

from itertools import product

import pytest
import torch

from hpdm_core.geometry.tiles import make_ancestry
from hpdm_core.inference.generate import evaluations
from hpdm_core.model.adaptive_computation import block_passes
from hpdm_core.recipe.load import load_recipe
from tests.paper.tiny import (
    LOADS,
    OVERLAPS,
    draw,
    make_condition,
    make_network,
    make_pyramid,
    make_settings,
    make_work,
)

STEPS = {2: (2, 3), 3: (2, 2, 2), 4: (1, 1, 1, 2)}
UNCACHED = None


def largest_difference(network, pyramid, settings, *, condition=None, budgets=(1 << 40, 0)):
    """Return how far the videos of a whole run differ with and without the cache."""
    seeds = (0,) if condition is None else range(len(condition.labels))
    device_budget, host_budget = budgets
    videos = [
        draw(network, pyramid, settings, seeds=seeds, condition=condition, work=work)
        for work in (
            make_work(tile_batch=512, device_budget=device_budget, host_budget=host_budget),
            make_work(tile_batch=512, device_budget=UNCACHED),
        )
    ]
    for video in videos[0]:
        assert torch.isfinite(video).all()
    return max((a - b).abs().max().item() for a, b in zip(*videos, strict=True))


@pytest.mark.parametrize(
    ("levels", "time_grows", "overlap"),
    [
        *product((2, 3), (True, False), OVERLAPS),
        *product((4,), (False,), OVERLAPS),
        *product((4,), (True,), ("", "fhw")),  # 512 and 3,375 tiles
    ],
)
def test_the_cache_changes_no_video(levels, time_grows, overlap):
    """Every overlap, 2 to 4 levels, also where time does not grow: 1e-5 over a whole run."""
    pyramid = make_pyramid(levels, time_grows=time_grows)
    settings = make_settings(STEPS[levels], overlap=overlap, sigma_max=5.0)
    assert largest_difference(make_network(levels), pyramid, settings) <= 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"self_conditioning": True},
        {"context": "shallow"},
        {"loads": (3, 3, 3)},
        {"self_conditioning": True, "positions": "factorised", "coordinates": False},
        {"block": "transformer"},
        {"block": "transformer", "context": "shallow"},
    ],
    ids=str,
)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_nor_with_any_other_network_or_guidance(options, guidance):
    network = make_network(3, **options)
    settings = make_settings(
        (2, 2, 2),
        overlap="hw",
        guidance=guidance,
        sigma_max=5.0,
        churn=3.0,
        self_conditioning="self_conditioning" in options,
    )
    difference = largest_difference(network, make_pyramid(3), settings, condition=make_condition(2))
    assert difference <= 1e-5


@pytest.mark.parametrize("self_conditioning", [False, True])
@pytest.mark.parametrize(
    "budgets", [(0, 0), (0, 1 << 40), (3_000, 0), (30_000, 20_000), (0, 90_000)]
)
def test_nor_when_it_fits_only_in_part(budgets, self_conditioning):
    """What does not fit on the device goes to the computer's memory, or is computed again."""
    network = make_network(3, self_conditioning=self_conditioning)
    settings = make_settings(
        (1, 2, 2), overlap="hw", sigma_max=5.0, self_conditioning=self_conditioning
    )
    assert largest_difference(network, make_pyramid(3), settings, budgets=budgets) <= 1e-5


def test_latents_of_the_step_before_are_kept_for_each_tile():
    """Latent self-conditioning changes the video: otherwise the tests above would show nothing."""
    network, pyramid = make_network(2, self_conditioning=True), make_pyramid(2)
    videos = [
        draw(network, pyramid, make_settings((3, 3), self_conditioning=on)) for on in (True, False)
    ]
    assert not torch.allclose(videos[0][0], videos[1][0], atol=1e-4)
    assert not torch.allclose(videos[0][1], videos[1][1], atol=1e-4)


# How much the cache saves.


def count_block_passes(network, pyramid, settings, *, cached: bool) -> int:
    rows = []
    handles = [
        block.register_forward_hook(lambda _, args, __: rows.append(len(args[1])))
        for block in network.blocks
    ]
    draw(network, pyramid, settings, work=make_work(device_budget=1 << 40 if cached else UNCACHED))
    for handle in handles:
        handle.remove()
    return sum(rows)


@pytest.mark.parametrize("overlap", ["", "hw", "fhw"])
@pytest.mark.parametrize(("levels", "block"), [(2, "rin"), (3, "rin"), (3, "transformer")])
def test_ancestors_run_once_per_level_instead_of_once_per_tile_and_step(levels, overlap, block):
    """Tiles' own passes remain; of the rest, one pass of each ancestor."""
    network, pyramid, loads = make_network(levels, block=block), make_pyramid(levels), LOADS[levels]
    settings = make_settings(STEPS[levels], overlap=overlap, sigma_max=5.0)
    own = again = once = 0
    for level in range(levels):
        ancestry = make_ancestry(pyramid, level, overlap)
        tiles = len(ancestry.offsets[level]) * evaluations(settings, level)
        own += tiles * block_passes(loads, level)
        again += tiles * sum(block_passes(loads, k) for k in range(level))
        once += sum(len(ancestry.offsets[k]) * block_passes(loads, k) for k in range(level))
    assert count_block_passes(network, pyramid, settings, cached=True) == own + once
    assert count_block_passes(network, pyramid, settings, cached=False) == own + again


def test_ucfs_block_passes_leave_a_factor_of_4_9():
    """128 / 64 / 32 steps with full overlap; the second-order solver asks twice a step."""
    recipe = load_recipe("hpdm_s")
    pyramid, loads = recipe.pyramid.build(), recipe.model.levels_per_block
    cached = uncached = context = 0
    for level, calls in enumerate((2 * 128, 64, 32)):
        ancestry = make_ancestry(pyramid, level, "fhw")
        tiles = len(ancestry.offsets[level])
        own, below = block_passes(loads, level), sum(block_passes(loads, k) for k in range(level))
        cached += calls * tiles * own
        uncached += calls * tiles * (own + below)
        context += sum(len(ancestry.offsets[k]) * block_passes(loads, k) for k in range(level))
    assert (uncached, cached) == (150_528, 30_400)
    assert uncached / (cached + context) == pytest.approx(4.95, abs=0.1)
