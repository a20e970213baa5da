"""How known pixels guide level 0: gradients by tiles, and a Gaussian whose answer is known."""

from dataclasses import replace

import pytest
import torch

from hpdm_core.diffusion.denoiser import LevelDenoiser
from hpdm_core.geometry.canvas import on_canvas
from hpdm_core.inference.generate import further_passes, solver_calls
from hpdm_core.inference.given import GUIDED_PASSES, Given
from hpdm_core.inference.tiled_inference import TiledLevel
from tests.paper.tiny import (
    PATCH,
    PointwiseNetwork,
    draw,
    make_condition,
    make_network,
    make_preconditioning,
    make_pyramid,
    make_settings,
    make_work,
)

DEVIATION = 0.5


def make_level(size, tile_batch, *, self_conditioning=False):
    """The estimate of level 0 of a canvas, two videos."""
    network = make_network(2, self_conditioning=self_conditioning)
    return TiledLevel(
        denoiser=LevelDenoiser(network=network, preconditioning=make_preconditioning(2)),
        pyramid=on_canvas(make_pyramid(2), size),
        level=0,
        overlap="",
        condition=make_condition(2),
        lower=(),
        context_sigma=0.002,
        tile_batch=tile_batch,
        cache=None,
        self_conditioning=self_conditioning,
    )


@pytest.mark.parametrize("size", [None, (4, 8, 16)])
def test_gradients_by_tiles_equal_those_of_the_whole_level(size):
    """Windows overlap on the canvas, so that pixels have a part in two estimates."""
    level = make_level(size, 2)
    shape = (2, 3, *level.pyramid.sizes[0])
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator) for _ in range(2))
    x.requires_grad_()
    (whole,) = torch.autograd.grad(level(x, 0.7), x, weight)
    with torch.no_grad():
        level(x, 0.7)
        by_tiles = level.pulled_back(x.detach().double(), 0.7, weight.double())
    assert by_tiles.dtype == torch.float64
    assert torch.allclose(by_tiles.float(), whole, atol=1e-5, rtol=1e-4)
    assert whole.abs().max() > 1e-3


def test_gradients_start_from_kept_latents():
    level = make_level(None, 1, self_conditioning=True)
    x = torch.randn(2, 3, *PATCH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        level(x, 0.7)
        first = level.pulled_back(x, 0.7, torch.ones_like(x))
        level._latents = torch.zeros_like(level._latents)
        assert not torch.allclose(first, level.pulled_back(x, 0.7, torch.ones_like(x)))


def ideal(noisy, sigma, level):
    """The mean of videos that are one number everywhere, of standard deviation DEVIATION."""
    count = noisy[0].numel()
    total = noisy.sum((1, 2, 3, 4), keepdim=True)
    shrunk = DEVIATION**2 * total / (sigma**2 + count * DEVIATION**2)
    return shrunk.expand_as(noisy)


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m"])
def test_what_follows_from_known_pixels_is_found(solver):
    """A video is one number everywhere, and half of it is known: so is the rest."""
    pyramid = make_pyramid(1)
    network = PointwiseNetwork(ideal, make_preconditioning(1))
    generated = torch.zeros(1, 1, *PATCH, dtype=torch.bool)
    generated[..., PATCH[2] // 2 :] = True
    given = Given(videos=(torch.full((1, 3, *PATCH), 0.4),), generated=(generated,))
    settings = make_settings((16,), overlap="", sigma_max=10.0, solver=solver)
    made = draw(network, pyramid, settings, seeds=range(6), given=given)[0]
    known = made[..., : PATCH[2] // 2]
    assert torch.equal(known, torch.full_like(known, 0.4))
    assert (made - 0.4).abs().max() < 0.02


def test_one_step_ends_with_the_known_pixels():
    pyramid, network = make_pyramid(2), make_network(2)
    generator = torch.Generator().manual_seed(2)
    videos = tuple(torch.randn(1, 3, *size, generator=generator) for size in pyramid.sizes)
    generated = tuple(torch.rand(1, 1, *size, generator=generator) > 0.5 for size in pyramid.sizes)
    given = Given(videos=videos, generated=generated)
    settings = make_settings((1, 1), overlap="")
    for made, video, mask in zip(
        draw(network, pyramid, settings, given=given), videos, generated, strict=True
    ):
        assert torch.allclose(made[~mask.expand_as(made)], video[~mask.expand_as(made)])
        assert not torch.allclose(made, video)


def test_guidance_is_counted(monkeypatch):
    """The plan's further passes are those of the pull-backs that sampling makes."""
    pyramid, network = make_pyramid(1), make_network(1)
    generated = torch.arange(PATCH[2]).expand(1, 1, *PATCH) > 0
    given = Given(videos=(torch.zeros(1, 3, *PATCH),), generated=(generated,))
    settings = make_settings((5,), overlap="", sigma_min=0.002, sigma_max=5.0, solver="heun")
    pulled_back, sigmas = TiledLevel.pulled_back, []

    def counted(self, x, sigma, weight):
        sigmas.append(sigma)
        return pulled_back(self, x, sigma, weight)

    monkeypatch.setattr(TiledLevel, "pulled_back", counted)
    draw(network, pyramid, settings, given=given)
    assert 0 < len(sigmas) < solver_calls(settings, 0)
    assert further_passes(settings) == GUIDED_PASSES * len(sigmas)


def test_samples_are_guided_on_their_own():
    """Of eight videos, the first is the one that is made alone, whatever the batch of tiles."""
    pyramid, network = make_pyramid(2), make_network(2)
    generated = torch.zeros(1, 1, *PATCH, dtype=torch.bool)
    generated[..., 1:] = True
    videos = (torch.zeros(1, 3, *PATCH), torch.zeros(1, 3, *pyramid.sizes[1]))
    given = Given(videos=videos, generated=(generated, torch.ones(1, 1, *pyramid.sizes[1]) > 0))
    settings = make_settings((4, 1), overlap="", sigma_min=0.3, sigma_max=5.0)
    many = draw(
        network, pyramid, settings, seeds=range(8), given=given, condition=make_condition(8)
    )
    alone = draw(
        network, pyramid, settings, seeds=(0,), given=given, work=make_work(tile_batch=1),
        condition=make_condition(8).select(slice(0, 1)),
    )  # fmt: skip
    assert torch.allclose(many[0][:1], alone[0], atol=1e-5)
    free = replace(given, generated=(torch.ones_like(generated), given.generated[1]))
    assert not free.guides(0)
    assert given.guides(0)
    assert not given.guides(1)
