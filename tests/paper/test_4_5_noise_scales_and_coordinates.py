"""Sec. 4.5: exponentially smaller input scaling, noise per level, whole-pixel coordinates.

Whole-pixel patches in training are tested with Sec. 4.1, whole-pixel tiles with Sec. 4.4.
"""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from scipy.stats import norm

from hpdm_core.build import build_diffusion
from hpdm_core.recipe.load import load_recipe
from tests.paper.test_3_1_diffusion import PLAIN
from tests.paper.tiny import make_batch


@pytest.mark.parametrize("name", ["hpdm_s", "hpdm_m", "hpdm_l", "hpdm_t2v", "hpdm_t2v_1k"])
def test_the_video_is_scaled_down_by_two_with_each_level(name):
    scales = load_recipe(name).diffusion.sigma_in
    for coarse, fine in pairwise(scales):
        assert fine == pytest.approx(2 * coarse)


def test_ucfs_scales_are_the_patchs_side_over_64_times_the_root_of_its_frames():
    recipe = load_recipe("hpdm_s")
    frames, side, _ = recipe.pyramid.patch
    assert recipe.diffusion.sigma_in[0] == (side / 64) * frames**0.5 == 4


@pytest.mark.parametrize("name", ["hpdm_s", "hpdm_t2v"])
def test_input_scaling_shifts_the_noise_law(name):
    """Dividing the video by b before noise of sigma is added is noise of b sigma on the video."""
    recipe = load_recipe(name)
    laws = build_diffusion(recipe).noise_mean
    expected = [-1.2 + math.log(scale) for scale in recipe.diffusion.sigma_in]
    assert laws == pytest.approx(expected)


def test_noise_levels_follow_each_levels_own_law():
    diffusion = replace(PLAIN, noise_mean=(-0.2, -1.0, -1.6), noise_std=(1.2, 0.7, 0.3))
    ln_sigma = diffusion.draw(make_batch(PLAIN.pyramid, 2000), seed=0, step=0).sigma.log()
    assert ln_sigma.mean(0).tolist() == pytest.approx([-0.2, -1.0, -1.6], abs=0.1)
    assert ln_sigma.std(0).tolist() == pytest.approx([1.2, 0.7, 0.3], rel=0.08)
    # The law is log-normal: its quantiles, too.
    normal = torch.tensor(norm.ppf([0.1, 0.5, 0.9])).float()
    for level, (mean, std) in enumerate([(-0.2, 1.2), (-1.0, 0.7), (-1.6, 0.3)]):
        quantiles = torch.quantile(ln_sigma[:, level], torch.tensor([0.1, 0.5, 0.9]))
        assert torch.allclose(quantiles, mean + std * normal, atol=0.15)


def test_noise_is_standard_normal():
    draws = PLAIN.draw(make_batch(PLAIN.pyramid, 200), seed=1, step=0)
    for noise in draws.noise:
        assert noise.mean().item() == pytest.approx(0, abs=0.02)
        assert noise.std().item() == pytest.approx(1, abs=0.02)
        assert (noise**4).mean().item() == pytest.approx(3, abs=0.15)


@pytest.mark.parametrize(("base", "share"), [(4.0, 0.03), (1.0, 0.23)])
def test_share_of_level_2_that_is_trained_under_little_noise(base, share):
    """What the input scale does: how often the noise on level 2's video is below 0.5."""
    sigma_in = base * 4
    assert norm.cdf((torch.log(torch.tensor(0.5 / sigma_in)) + 1.2) / 1.2) == pytest.approx(
        share, abs=0.005
    )
    means = tuple(-1.2 + math.log(scale) for scale in (base, 2 * base, sigma_in))
    draws = replace(PLAIN, noise_mean=means).draw(make_batch(PLAIN.pyramid, 3000), seed=2, step=0)
    drawn = (draws.sigma[:, 2] < 0.5).float().mean().item()
    assert drawn == pytest.approx(share, abs=0.03)
