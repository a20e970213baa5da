"""Sec. 4.4: tiles that cover a level, their average, and the ancestors that give them context."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from hpdm_core.diffusion.denoiser import LevelDenoiser
from hpdm_core.errors import RecipeError
from hpdm_core.geometry.boxes import level_box, pyramid_boxes
from hpdm_core.geometry.pyramid import Pyramid
from hpdm_core.geometry.tiles import (
    make_ancestry,
    parent_offsets,
    parse_overlap,
    tile_borders,
    tile_counts,
    tile_offsets,
    tile_slices,
)
from hpdm_core.inference.tiled_inference import TiledLevel
from hpdm_core.recipe.load import load_recipe
from hpdm_core.records import Condition
from tests.paper.tiny import (
    OVERLAPS,
    PointwiseNetwork,
    draw,
    make_condition,
    make_network,
    make_preconditioning,
    make_pyramid,
    make_settings,
)

PYRAMIDS = {
    "all axes grow": make_pyramid(3),
    "time stays": make_pyramid(3, time_grows=False),
    "time grows first": Pyramid(patch=(2, 4, 4), levels=((2, 4, 4), (4, 4, 8), (4, 8, 16))),
    "by three": Pyramid(patch=(2, 4, 2), levels=((2, 4, 2), (6, 12, 6))),
}
LEVELS = [(name, level) for name, p in PYRAMIDS.items() for level in range(p.num_levels)]


# Tiles.


def test_tile_counts_of_ucf():
    ucf = load_recipe("hpdm_s").pyramid.build()
    assert [len(tile_offsets(ucf, k, "fhw")) for k in range(3)] == [1, 27, 343]
    assert [len(tile_offsets(ucf, k, "")) for k in range(3)] == [1, 8, 64]
    assert [len(tile_offsets(ucf, k, "hw")) for k in range(3)] == [1, 18, 196]


def test_tile_counts_of_text_to_video():
    """Appendix: (2 R / r - 1) per axis, 15^3 = 3,375 for one step of the last level."""
    t2v, t2v_1k = (load_recipe(name).pyramid.build() for name in ("hpdm_t2v", "hpdm_t2v_1k"))
    assert [len(tile_offsets(t2v, k, "fhw")) for k in range(4)] == [1, 27, 343, 3375]
    assert [len(tile_offsets(t2v_1k, k, "fhw")) for k in range(4)] == [1, 9, 49, 225]


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_borders_are_where_the_tiles_that_cover_a_pixel_change(name, level, overlap):
    pyramid = PYRAMIDS[name]
    offsets = tile_offsets(pyramid, level, overlap).tolist()
    borders = tile_borders(pyramid, level, overlap)
    for axis, size in enumerate(pyramid.levels[level]):
        covering = [
            {o[axis] for o in offsets if o[axis] <= pixel < o[axis] + pyramid.patch[axis]}
            for pixel in range(size)
        ]
        changes = [p for p in range(1, size) if covering[p] != covering[p - 1]]
        assert list(borders[axis]) == changes


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_tiles_cover_every_pixel_at_whole_places(name, level, overlap):
    pyramid = PYRAMIDS[name]
    tiles = tile_offsets(pyramid, level, overlap)
    covered = np.zeros(pyramid.levels[level], dtype=int)
    for t, h, w in tiles.tolist():
        region = covered[t:, h:, w:][tuple(slice(size) for size in pyramid.patch)]
        assert region.shape == pyramid.patch
        region += 1
    assert tiles.dtype == torch.int64
    assert covered.min() >= 1
    assert np.array_equal(covered, tile_counts(pyramid, level, overlap).numpy())
    expected = 1
    for axis, size, patch in zip("fhw", pyramid.levels[level], pyramid.patch, strict=True):
        expected *= 2 * size // patch - 1 if axis in overlap else size // patch
    assert len(tiles) == expected
    if not overlap:
        assert covered.max() == 1


@pytest.mark.parametrize("text", ["fhw", "wfh", "hf", "w", "none", "wh"])
def test_overlaps_are_read_in_any_order(text):
    letters = "" if text == "none" else text
    assert set(parse_overlap(text)) == set(letters)
    assert parse_overlap(text) in OVERLAPS


@pytest.mark.parametrize("text", ["", "ff", "x", "fhwx", "None", "f h"])
def test_unknown_overlaps_are_refused(text):
    with pytest.raises(RecipeError, match="expected none, f, h, w, fh, fw, hw or fhw"):
        parse_overlap(text)


# Averaging.


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("time_grows", [True, False])
def test_average_of_overlapping_tiles_equals_the_whole_for_a_pointwise_denoiser(
    overlap, time_grows
):
    pyramid = make_pyramid(3, time_grows=time_grows)

    def ideal(noisy: Tensor, sigma: float, level: int) -> Tensor:
        return torch.tanh(noisy / (1 + sigma)) + 0.1 * level

    network = PointwiseNetwork(ideal, make_preconditioning(3))
    for level in range(3):
        x = torch.randn(2, 3, *pyramid.levels[level])
        tiled = TiledLevel(
            denoiser=LevelDenoiser(network=network, preconditioning=network.preconditioning),
            pyramid=pyramid,
            level=level,
            overlap=overlap,
            condition=make_condition(2),
            lower=tuple(torch.randn(2, 3, *size) for size in pyramid.levels[:level]),
            context_sigma=0.002,
            tile_batch=5,
            cache=None,
            self_conditioning=False,
        )
        assert torch.allclose(tiled(x, 0.7), ideal(x, 0.7, level), atol=2e-5)


def test_average_weighs_all_tiles_of_a_pixel_alike():
    """Against a plain mean over the tiles' own answers, which differ."""
    pyramid, network, level = make_pyramid(2), make_network(2), 1
    denoiser = LevelDenoiser(network=network, preconditioning=make_preconditioning(2))
    x, lower = torch.randn(1, 3, *pyramid.levels[1]), torch.randn(1, 3, *pyramid.levels[0])
    tiled = TiledLevel(
        denoiser=denoiser, pyramid=pyramid, level=level, overlap="fhw",
        condition=make_condition(1), lower=(lower,), context_sigma=0.1, tile_batch=64,
        cache=None, self_conditioning=False,
    )  # fmt: skip
    whole = level_box(pyramid, 0, torch.zeros(1, 3, dtype=torch.int64))
    coarse = denoiser.denoise(
        lower, 0.1, level=0, condition=make_condition(1), context=(), latents=None
    )
    answers = [[] for _ in range(x[0, 0].numel())]
    places = torch.arange(x[0, 0].numel()).reshape(pyramid.levels[1])
    for offset in tile_offsets(pyramid, 1, "fhw"):
        slices = tile_slices(pyramid, offset.tolist())
        context = denoiser.context([coarse.features], (whole, level_box(pyramid, 1, offset[None])))
        patch = x[(slice(None), slice(None), *slices)]
        output = denoiser.denoise(
            patch, 0.7, level=1, condition=make_condition(1), context=context, latents=None
        ).output
        for place, value in zip(places[slices].flatten(), output[0].flatten(1).T, strict=True):
            answers[place].append(value)
    expected = torch.stack([torch.stack(values).mean(0) for values in answers], dim=1)
    assert torch.allclose(tiled(x, 0.7)[0].flatten(1), expected, atol=1e-5)


# Ancestors.


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize(("name", "level"), [pair for pair in LEVELS if pair[1] > 0])
def test_parent_is_the_nearest_of_the_tiles_that_hold_the_patch(name, level, overlap):
    """By trying every tile of the fully overlapping grid of the level below."""
    pyramid = PYRAMIDS[name]
    candidates = tile_offsets(pyramid, level - 1, "fhw").numpy()
    growth, patch = np.asarray(pyramid.growth(level)), np.asarray(pyramid.patch)
    tiles = tile_offsets(pyramid, level, overlap)
    for start, parent in zip(
        tiles.numpy(), parent_offsets(pyramid, level, tiles).numpy(), strict=True
    ):
        best, nearest = None, np.inf
        for place in candidates:
            low, high = growth * place, growth * (place + patch)
            if (low <= start).all() and (start + patch <= high).all():
                # A frame that was subsampled has the time of the first of its span.
                above = (low + high) / 2 - np.array([(growth[0] - 1) / 2, 0, 0])
                distance = np.abs(above - (start + patch / 2)).sum()
                if distance < nearest:  # of two as near, the one that comes first
                    best, nearest = place, distance
        assert best is not None
        assert (parent == best).all()


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("name", PYRAMIDS)
def test_chains_of_ancestors_are_nested_as_in_training(name, overlap):
    pyramid = PYRAMIDS[name]
    ancestry = make_ancestry(pyramid, pyramid.num_levels - 1, overlap)
    patch = torch.tensor(pyramid.patch)
    assert torch.equal(ancestry.offsets[-1], tile_offsets(pyramid, ancestry.level, overlap))
    assert ancestry.offsets[0].tolist() == [[0, 0, 0]]
    for level in range(1, pyramid.num_levels):
        growth = torch.tensor(pyramid.growth(level))
        start = ancestry.offsets[level]
        parent = ancestry.offsets[level - 1][ancestry.parents[level]]
        assert (growth * parent <= start).all()
        assert (start + patch <= growth * (parent + patch)).all()


def test_tiles_share_their_ancestors():
    """343 tiles of UCF's last level are nested in no more than 27 of its middle level."""
    ucf = load_recipe("hpdm_s").pyramid.build()
    ancestry = make_ancestry(ucf, 2, "fhw")
    assert [len(offsets) for offsets in ancestry.offsets] == [1, 27, 343]


@pytest.mark.parametrize("context", ["deep", "shallow"])
@pytest.mark.parametrize("time_grows", [True, False])
def test_a_tile_gets_the_context_that_training_would_give_it(context, time_grows):
    """Every tile's answer is that of the whole network on its nested patches, as in training."""
    pyramid, level, sigma = make_pyramid(3, time_grows=time_grows), 2, 0.7
    network, clean = make_network(3, context=context), 0.05
    preconditioning = make_preconditioning(3)
    x = torch.randn(1, 3, *pyramid.levels[level])
    lower = tuple(torch.randn(1, 3, *size) for size in pyramid.levels[:level])
    tiled = TiledLevel(
        denoiser=LevelDenoiser(network=network, preconditioning=preconditioning),
        pyramid=pyramid, level=level, overlap="", condition=make_condition(1), lower=lower,
        context_sigma=clean, tile_batch=7, cache=None, self_conditioning=False,
    )(x, sigma)  # fmt: skip
    ancestry = make_ancestry(pyramid, level, "")
    noise = torch.tensor([clean, clean, sigma])
    for tile in range(len(ancestry.offsets[level])):
        chain = [tile]
        for k in range(level, 0, -1):
            chain.insert(0, ancestry.parents[k][chain[0]].item())
        offsets = torch.stack([ancestry.offsets[k][chain[k]] for k in range(level + 1)])
        patches, c_noise = [], []
        for k, (video, offset) in enumerate(zip((*lower, x), offsets.tolist(), strict=True)):
            patch = video[(slice(None), slice(None), *tile_slices(pyramid, offset))]
            scales = preconditioning[k](noise[k : k + 1])
            patches.append(scales.c_in * patch)
            c_noise.append(scales.c_noise)
        boxes = pyramid_boxes(pyramid, offsets[None])
        outputs, _ = network(tuple(patches), torch.stack(c_noise, 1), boxes, make_condition(1))
        place = (slice(None), slice(None), *tile_slices(pyramid, offsets[-1].tolist()))
        denoised = scales.denoised(x[place], outputs[-1])
        assert torch.allclose(tiled[place], denoised, atol=1e-5)


# Whole videos.


def test_levels_are_generated_one_after_the_other_at_their_resolutions():
    pyramid, order = make_pyramid(3), []

    def ideal(noisy: Tensor, sigma: float, level: int) -> Tensor:
        order.append((level, sigma))
        return noisy / (1 + sigma**2)

    network = PointwiseNetwork(ideal, make_preconditioning(3))
    videos = draw(network, pyramid, make_settings((4, 3, 2)), seeds=(0, 1))
    assert [video.shape for video in videos] == [(2, 3, *size) for size in pyramid.levels]
    # Finished levels are run once more, nearly clean, as context of the next one.
    own = [call for call in order if call[1] > 0.0021]
    assert [level for level, _ in own] == sorted(level for level, _ in own)
    assert {level for level, _ in own} == {0, 1, 2}


def test_a_video_may_stop_at_a_coarser_level():
    network, pyramid = make_network(3), make_pyramid(3)
    whole = draw(network, pyramid, make_settings((2, 2, 1)))
    some = draw(network, pyramid, make_settings((2, 2)))
    assert len(some) == 2
    for a, b in zip(some, whole, strict=False):
        assert torch.equal(a, b)


@pytest.mark.parametrize("overlap", ["f", "h", "w"])
def test_overlap_changes_the_video_from_level_1_on(overlap):
    network, pyramid = make_network(2), make_pyramid(2)
    plain = draw(network, pyramid, make_settings((2, 2), overlap=""))
    overlapping = draw(network, pyramid, make_settings((2, 2), overlap=overlap))
    assert torch.equal(plain[0], overlapping[0])
    assert not torch.allclose(plain[1], overlapping[1], atol=1e-3)


def test_condition_and_seed_change_the_video():
    network, pyramid, settings = make_network(2), make_pyramid(2), make_settings((2, 2))
    first, second = make_condition(1, seed=0), make_condition(1, seed=3)
    assert first.labels.item() != second.labels.item()
    video = draw(network, pyramid, settings, condition=first)[1]
    assert not torch.allclose(video, draw(network, pyramid, settings, condition=second)[1])
    assert not torch.allclose(video, draw(network, pyramid, settings, seeds=(1,))[1])


def test_context_noise_and_level_0s_stochasticity_are_options():
    network, pyramid, settings = make_network(2), make_pyramid(2), make_settings((3, 2))
    plain = draw(network, pyramid, settings)
    noisier = draw(network, pyramid, replace(settings, context_sigma=0.5))
    churned = draw(network, pyramid, make_settings((3, 2), churn=10.0))
    assert torch.equal(plain[0], noisier[0])
    assert not torch.allclose(plain[1], noisier[1], atol=1e-4)
    assert not torch.allclose(plain[0], churned[0], atol=1e-4)


def test_guidance_extrapolates_from_none_to_the_condition():
    """In one step: D_none + g (D_condition - D_none); 1 is off, 0 drops the condition."""
    network, pyramid = make_network(1), make_pyramid(1)
    condition = make_condition(3, seed=1)

    def video(guidance: float, given: Condition) -> Tensor:
        settings = make_settings((1,), guidance=guidance)
        return draw(network, pyramid, settings, seeds=(0, 1, 2), condition=given)[0]

    none = condition.drop(torch.ones(3, dtype=torch.bool))
    with_it, without = video(1.0, condition), video(1.0, none)
    assert not torch.allclose(with_it, without, atol=1e-3)
    for guidance in (0.0, 0.5, 3.0):
        expected = without + guidance * (with_it - without)
        assert torch.allclose(video(guidance, condition), expected, atol=1e-4)


def test_guidance_outside_its_interval_is_off_and_costs_nothing():
    """Kynkäänniemi et al. 2024: the unconditional rows run inside the interval alone."""
    network, pyramid = make_network(2), make_pyramid(2)
    condition, passes = make_condition(1, seed=1), []
    handle = network.tokenizer.register_forward_hook(
        lambda _, args, __: passes.append(len(args[0]))
    )

    def run(guidance: float, interval: tuple[float, float] | None) -> tuple[Tensor, ...]:
        passes.clear()
        settings = make_settings((3, 3), guidance=guidance, guidance_interval=interval)
        return draw(network, pyramid, settings, condition=condition)

    plain, count = run(1.0, None), sum(passes)
    outside, count_outside = run(4.0, (1000.0, 2000.0)), sum(passes)
    assert all(torch.equal(a, b) for a, b in zip(plain, outside, strict=True))
    assert count_outside == count
    whole, count_whole = run(4.0, None), sum(passes)
    assert count_whole == 2 * count
    part, count_part = run(4.0, (0.0, 1.0)), sum(passes)
    assert count < count_part < count_whole
    for other in (plain, whole):
        assert not torch.allclose(part[1], other[1], atol=1e-3)
    handle.remove()


def test_clipped_estimates_stay_in_range():
    """A denoiser that answers 3 everywhere ends at 1 where its estimates are clipped (RIN)."""
    network = PointwiseNetwork(
        lambda noisy, sigma, level: torch.full_like(noisy, 3.0), make_preconditioning(1)
    )
    for clip, end in ((False, 3.0), (True, 1.0)):
        settings = make_settings((4,), clip_denoised=clip)
        video = draw(network, make_pyramid(1), settings)[0]
        assert torch.allclose(video, torch.full_like(video, end), atol=1e-3)
