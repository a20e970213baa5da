"""Canvases larger than trained: windows, their frame of reference, and what does not change."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from hpdm_core.diffusion.denoiser import LevelDenoiser
from hpdm_core.errors import HpdmError
from hpdm_core.geometry.boxes import level_box
from hpdm_core.geometry.canvas import on_canvas
from hpdm_core.geometry.pyramid import Pyramid
from hpdm_core.geometry.tiles import make_ancestry, tile_counts, tile_offsets
from hpdm_core.inference.tiled_inference import TiledLevel
from tests.paper.tiny import (
    OVERLAPS,
    PointwiseNetwork,
    draw,
    make_condition,
    make_network,
    make_preconditioning,
    make_pyramid,
    make_settings,
    make_work,
)

SIZE = (12, 16, 40)  # of three levels to 8x16x16: longer, as high, two and a half times as wide


def test_sizes_of_levels_and_numbers_of_windows():
    ucf = Pyramid(patch=(16, 64, 64), levels=((16, 64, 64), (32, 128, 128), (64, 256, 256)))
    wide = on_canvas(ucf, (64, 256, 1024))
    assert wide.sizes == ((16, 64, 256), (32, 128, 512), (64, 256, 1024))
    assert [len(tile_offsets(wide, k, "fhw")) for k in range(3)] == [7, 3 * 3 * 15, 7 * 7 * 31]
    assert [len(tile_offsets(wide, k, "")) for k in range(3)] == [7, 2 * 2 * 8, 4 * 4 * 16]
    assert wide.levels == ucf.levels
    assert on_canvas(ucf, (64, 256, 256)) == on_canvas(ucf, None) == ucf


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_windows_cover_the_canvas_and_hold_nested_patches_as_in_training(overlap):
    canvas, plain = on_canvas(make_pyramid(3), SIZE), make_pyramid(3)
    for level in range(3):
        assert tile_counts(canvas, level, overlap).min() >= 1
        ancestry = make_ancestry(canvas, level, overlap)
        within = [ancestry.offsets[k] - 2**k * ancestry.windows[k] for k in range(level + 1)]
        assert within[0].abs().max() == 0
        for k in range(1, level + 1):
            parent = within[k - 1][ancestry.parents[k]]
            assert (within[k] >= 2 * parent).all()
            assert (within[k] <= 2 * parent + torch.tensor(plain.patch)).all()


def test_a_tile_sees_its_window_as_a_whole_video():
    """One evaluation of level 1, against every tile run alone in its window."""
    plain = make_pyramid(2)
    canvas, network = on_canvas(plain, (4, 8, 20)), make_network(2)
    denoiser = LevelDenoiser(network=network, preconditioning=make_preconditioning(2))
    generator = torch.Generator().manual_seed(0)
    lower, x = (torch.randn(1, 3, *size, generator=generator) for size in canvas.sizes)
    condition, sigma = make_condition(1), 0.7
    whole = TiledLevel(
        denoiser=denoiser, pyramid=canvas, level=1, overlap="fhw", condition=condition,
        lower=(lower,), context_sigma=0.1, tile_batch=5, cache=make_work().make_cache(),
        self_conditioning=False,
    )  # fmt: skip
    total, counts = torch.zeros_like(x), torch.zeros(canvas.sizes[1])
    with torch.inference_mode():
        estimate = whole(x, sigma)
        for t, h, w in product(range(3), range(0, 5, 2), range(0, 17, 2)):
            # The window whose middle is nearest to the tile's, the lower of two.
            windows = [v for v in range(0, 7, 2) if 2 * v <= w and w + 4 <= 2 * (v + 4)]
            v = min(windows, key=lambda v: abs(2 * w + 4 - 2 * (2 * v + 4)))
            below = denoiser.denoise(
                lower[..., v : v + 4], 0.1, level=0, condition=condition, context=(), latents=None
            )
            boxes = (
                level_box(plain, 0, torch.tensor([[0, 0, 0]])),
                level_box(plain, 1, torch.tensor([[t, h, w - 2 * v]])),
            )
            place = (..., slice(t, t + 2), slice(h, h + 4), slice(w, w + 4))
            total[place] += denoiser.denoise(
                x[place], sigma, level=1, condition=condition,
                context=denoiser.context([below.features], boxes), latents=None,
            ).output  # fmt: skip
            counts[place[0:]] += 1
    assert torch.allclose(estimate, total / counts, atol=1e-5)


def test_a_canvas_of_a_pointwise_denoiser_is_sampled_as_one_video():
    """Each pixel's own flow: windows and tiles leave no trace."""
    network = PointwiseNetwork(lambda y, sigma, level: y / (1 + sigma**2), make_preconditioning(3))
    settings = replace(make_settings((4, 3, 3)), size=SIZE)
    levels = draw(network, make_pyramid(3), settings)
    assert [tuple(v.shape[2:]) for v in levels] == [(3, 4, 10), (6, 8, 20), SIZE]
    trained = draw(network, make_pyramid(3), make_settings((4, 3, 3)))
    assert torch.isclose(levels[-1].std(), trained[-1].std(), rtol=0.1)


def test_work_does_not_change_a_canvas():
    settings = replace(make_settings((2, 2), overlap="hw", guidance=2.0), size=(4, 12, 8))
    network, pyramid = make_network(2), make_pyramid(2)
    one = draw(network, pyramid, settings, work=make_work(tile_batch=1, device_budget=None))[-1]
    many = draw(network, pyramid, settings)[-1]
    assert torch.allclose(one, many, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "nearest", "along"),
    [
        ((8, 16, 17), "8,16,16", "along width"),
        ((8, 12, 16), "8,16,16", "along height"),
        ((13, 30, 16), "12,32,16", "along frames and height"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_with_the_nearest(size, nearest, along):
    with pytest.raises(HpdmError, match=f"{along}; .*the nearest that does is {nearest}"):
        on_canvas(make_pyramid(3), size)
