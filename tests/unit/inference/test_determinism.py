"""A video depends on its seed, condition and settings, not on how the work is cut."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from hpdm_core.diffusion.guidance import Guidance
from hpdm_core.inference.generate import ExecutionOptions, SamplingSettings
from hpdm_core.inference.given import Given, lower_levels, lower_masks
from hpdm_core.inference.shard import TileShard
from hpdm_core.model.hpdm import HPDM
from tests.paper.tiny import (
    PointwiseNetwork,
    draw,
    make_condition,
    make_network,
    make_preconditioning,
    make_pyramid,
    make_settings,
    make_work,
)

SEEDS = tuple(range(10, 18))
SETTINGS = make_settings((3, 2, 2), overlap="w", sigma_min=0.3, sigma_max=5.0, churn=4.0)
TOLERANCE = 1e-5


def settings_of(case: str) -> SamplingSettings:
    return {
        "plain": SETTINGS,
        "guided": replace(SETTINGS, guidance=Guidance(scale=2.0)),
        "self-conditioned": replace(SETTINGS, self_conditioning=True),
    }[case]


def network_of(case: str) -> HPDM:
    return make_network(3, self_conditioning=case == "self-conditioned")


CASES = ("plain", "guided", "self-conditioned")
GIVEN = ("masked", "upscaled")


@pytest.mark.parametrize("case", CASES)
def test_one_video_at_a_time_equals_eight_at_once(case):
    network, pyramid, condition = network_of(case), make_pyramid(3), make_condition(8)
    together = draw(network, pyramid, settings_of(case), seeds=SEEDS, condition=condition)
    for row in (0, 5):
        alone = draw(
            network, pyramid, settings_of(case), seeds=SEEDS[row : row + 1],
            condition=condition.select(slice(row, row + 1)),
        )  # fmt: skip
        for a, b in zip(alone, together, strict=True):
            assert torch.allclose(a[0], b[row], atol=TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_one_tile_at_a_time_equals_64_at_once(case):
    network, pyramid = network_of(case), make_pyramid(3)
    videos = [
        draw(network, pyramid, settings_of(case), seeds=(3,), work=make_work(tile_batch=size))
        for size in (1, 7, 64)
    ]
    for video in videos[1:]:
        for a, b in zip(video, videos[0], strict=True):
            assert torch.allclose(a, b, atol=TOLERANCE)


def test_noise_is_the_same_bit_for_bit():
    """A pointwise network that answers 0 leaves scaled noise: nothing else can differ."""
    pyramid = make_pyramid(3)
    network = PointwiseNetwork(lambda noisy, *_: noisy, make_preconditioning(3))
    settings = make_settings((1, 1, 1), overlap="")
    together = draw(network, pyramid, settings, seeds=SEEDS)
    for row in (0, 7):
        for size in (1, 64):
            alone = draw(
                network, pyramid, settings, seeds=SEEDS[row : row + 1],
                work=make_work(tile_batch=size),
            )  # fmt: skip
            for a, b in zip(alone, together, strict=True):
                assert torch.equal(a[0], b[row])
    again = draw(network, pyramid, settings, seeds=SEEDS)
    assert all(torch.equal(a, b) for a, b in zip(again, together, strict=True))
    assert not torch.equal(together[2][0], together[2][1])


def test_levels_and_seeds_have_noise_of_their_own():
    pyramid = make_pyramid(2)
    network = PointwiseNetwork(lambda noisy, *_: noisy, make_preconditioning(2))
    first, second = (
        draw(network, pyramid, make_settings((1, 1), overlap=""), seeds=(seed,)) for seed in (0, 1)
    )
    corner = first[1][:, :, :2, :4, :4]
    assert not torch.allclose(corner, first[0])
    assert not torch.allclose(first[0], second[0])


def draw_given(case: str, work: ExecutionOptions) -> tuple[torch.Tensor, ...]:
    """Generate videos from a given one: its left half kept, or its lower levels finished."""
    pyramid = make_pyramid(3)
    generator = torch.Generator().manual_seed(9)
    video = torch.rand(1, 3, *pyramid.sizes[-1], generator=generator) * 2 - 1
    levels = lower_levels(pyramid, video, 2)
    right = torch.zeros(1, 1, *pyramid.sizes[-1], dtype=torch.bool)
    right[..., pyramid.sizes[-1][2] // 2 :] = True
    solvers = SETTINGS.solvers
    if case == "masked":
        given = Given(videos=levels, generated=lower_masks(pyramid, right))
        solvers = tuple(replace(solver, repeats=2) for solver in solvers)
    else:
        given = Given(videos=levels[:2], pyramid=pyramid)
        finished = (replace(solver, skip=solver.steps) for solver in solvers[:2])
        solvers = (*finished, solvers[2])
    settings = replace(SETTINGS, solvers=solvers)
    return draw(network_of(case), pyramid, settings, seeds=(4,), work=work, given=given)


def _draw_share(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size
    )
    work = replace(
        make_work(tile_batch=5),
        shard=TileShard(rank=rank, world_size=world_size, sum_over_processes=dist.all_reduce),
    )
    for case in CASES:
        # One video: the first level has a single tile, so that one process has none.
        videos = draw(network_of(case), make_pyramid(3), settings_of(case), seeds=(4,), work=work)
        np.savez(f"{folder}/{rank} {case}.npz", *(video.numpy() for video in videos))
    for case in GIVEN:
        videos = draw_given(case, work)
        np.savez(f"{folder}/{rank} {case}.npz", *(video.numpy() for video in videos))
    dist.destroy_process_group()


def test_two_processes_that_share_the_tiles_equal_one(tmp_path):
    """`--shard tiles`: both end with the whole video."""
    mp.spawn(_draw_share, args=(2, str(tmp_path)), nprocs=2, join=True)
    alone = {
        case: draw(network_of(case), make_pyramid(3), settings_of(case), seeds=(4,))
        for case in CASES
    }
    alone |= {case: draw_given(case, make_work()) for case in GIVEN}
    for case, videos in alone.items():
        for rank in range(2):
            shared = np.load(tmp_path / f"{rank} {case}.npz")
            for name, video in zip(shared.files, videos, strict=True):
                assert torch.allclose(torch.from_numpy(shared[name]), video, atol=TOLERANCE)
    # The given video counts: with it, and with a half of it, other videos are made.
    finest = [alone[case][-1] for case in ("plain", *GIVEN)]
    assert all(not torch.allclose(a, b, atol=0.1) for a, b in combinations(finest, 2))
