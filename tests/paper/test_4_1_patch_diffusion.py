"""Sec. 4.1: patches of all levels are nested, at whole pixels, uniform over what is allowed.

Eq. 8 (boxes relative to an ancestor) is held against pixels that are really cut out.
"""

from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from hpdm_core.geometry.boxes import Box, level_box, pyramid_boxes
from hpdm_core.geometry.pyramid import Pyramid, pyramid_problems, sample_offsets
from tests.paper.tiny import make_offsets

UCF = Pyramid(patch=(16, 64, 64), levels=((16, 64, 64), (32, 128, 128), (64, 256, 256)))
T2V_1K = Pyramid(patch=(4, 6, 8), levels=((4, 6, 8), (4, 12, 16), (4, 24, 32), (4, 48, 64)))
UNEVEN = Pyramid(patch=(2, 6, 4), levels=((2, 6, 4), (2, 18, 8), (8, 36, 8)))
PYRAMIDS = {"ucf": UCF, "time stays": T2V_1K, "uneven growth": UNEVEN}


@pytest.mark.parametrize("pyramid", PYRAMIDS.values(), ids=PYRAMIDS)
def test_patches_are_nested_at_whole_pixels(pyramid):
    offsets = make_offsets(pyramid, 500)
    assert offsets.dtype == torch.int64
    assert (offsets[:, 0] == 0).all()
    patch = torch.tensor(pyramid.patch)
    for level in range(1, pyramid.num_levels):
        growth = torch.tensor(pyramid.growth(level))
        start, parent = offsets[:, level], offsets[:, level - 1]
        assert (start >= growth * parent).all()
        assert (start + patch <= growth * (parent + patch)).all()
        assert (start + patch <= torch.tensor(pyramid.levels[level])).all()


def test_patches_do_not_move_along_an_axis_that_does_not_grow():
    offsets = make_offsets(T2V_1K, 100)
    assert (offsets[:, :, 0] == 0).all()
    assert offsets[:, 1:, 1:].float().std(0).min() > 0


def test_offsets_are_uniform_over_all_nested_choices():
    pyramid = Pyramid(patch=(1, 2, 2), levels=((1, 2, 2), (1, 4, 2), (1, 8, 2)))
    allowed = [
        (a, b) for a, b in product(range(3), range(7)) if 2 * a <= b and b + 2 <= 2 * (a + 2)
    ]
    draws = make_offsets(pyramid, 9000)[:, 1:, 1]
    counts = Counter(map(tuple, draws.tolist()))
    assert set(counts) == set(allowed)
    assert chisquare([counts[pair] for pair in allowed]).pvalue > 1e-4


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_axis_is_uniform_and_reaches_both_ends(axis):
    draws = make_offsets(UCF, 6000, seed=axis)[:, 1, axis]
    room = UCF.patch[axis] + 1
    counts = torch.bincount(draws, minlength=room)
    assert len(counts) == room
    assert chisquare(counts.numpy()).pvalue > 1e-4


def test_a_draw_is_a_function_of_its_generator():
    first, second = (sample_offsets(UCF, np.random.default_rng(7)) for _ in range(2))
    assert (first == second).all()
    assert (first != sample_offsets(UCF, np.random.default_rng(8))).any()


@pytest.mark.parametrize("pyramid", PYRAMIDS.values(), ids=PYRAMIDS)
def test_scale_is_patch_over_resolution_per_axis(pyramid):
    for level, resolution in enumerate(pyramid.levels):
        expected = np.asarray(pyramid.patch) / np.asarray(resolution)
        assert np.allclose(pyramid.scale(level), expected)
        box = level_box(pyramid, level, torch.zeros(2, 3, dtype=torch.int64))
        assert torch.allclose(box.scale, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("pyramid", PYRAMIDS.values(), ids=PYRAMIDS)
def test_equation_8_against_pixels_that_are_cut_out(pyramid):
    """Cut the ancestor out of the full video pixel by pixel, and the patch out of that."""
    finest = np.asarray(pyramid.resolution)
    offsets = make_offsets(pyramid, 20)
    boxes = pyramid_boxes(pyramid, offsets)
    for fine, coarse in product(range(pyramid.num_levels), repeat=2):
        if coarse > fine:
            continue
        relative = boxes[fine].relative_to(boxes[coarse])
        for row in range(len(offsets)):
            for axis in range(3):
                # Which pixels of the full video does each of the two patches span?
                spans = []
                for level in (coarse, fine):
                    step = pyramid.stride(level)[axis]
                    start = offsets[row, level, axis].item() * step
                    spans.append(np.arange(finest[axis])[start:][: pyramid.patch[axis] * step])
                inside = np.flatnonzero(np.isin(spans[0], spans[1])) / len(spans[0])
                size = len(spans[1]) / len(spans[0])
                assert relative.scale[row, axis].item() == pytest.approx(size, abs=1e-6)
                # Along time a coarse frame lies at its first finest frame, not amid its span.
                late = (pyramid.stride(coarse)[axis] - pyramid.stride(fine)[axis]) / 2
                expected = inside[0] + (late / len(spans[0]) if axis == 0 else 0.0)
                assert relative.offset[row, axis].item() == pytest.approx(expected, abs=1e-6)


def test_a_box_relative_to_itself_is_the_identity():
    box = Box(scale=torch.tensor([[0.25, 0.5, 0.5]]), offset=torch.tensor([[0.5, 0.25, 0.0]]))
    own = box.relative_to(box)
    assert own.scale.tolist() == [[1, 1, 1]]
    assert own.offset.tolist() == [[0, 0, 0]]


def test_relative_boxes_chain():
    boxes = pyramid_boxes(T2V_1K, make_offsets(T2V_1K, 10))
    direct = boxes[3].relative_to(boxes[1])
    by_steps = boxes[3].relative_to(boxes[2])
    via = boxes[2].relative_to(boxes[1])
    assert torch.allclose(direct.scale, via.scale * by_steps.scale)
    assert torch.allclose(direct.offset, via.offset + via.scale * by_steps.offset, atol=1e-6)


@pytest.mark.parametrize(
    ("patch", "levels", "message"),
    [
        ((1, 2, 2), (), "levels is empty"),
        ((1, 2, 2), ((1, 4, 4),), "level 0 is [1, 4, 4] but the patch is [1, 2, 2]"),
        ((1, 4, 4), ((1, 4, 4), (1, 6, 8)), "height 6, which is not a whole multiple"),
        ((1, 4, 4), ((1, 4, 4), (2, 8, 8)), "odd frames"),
        ((1, 4, 4), ((1, 4, 4), (1, 4, 4)), "level 1 equals level 0"),
    ],
)
def test_unsound_pyramids_are_refused(patch, levels, message):
    assert any(message in problem for problem in pyramid_problems(patch, levels))
    with pytest.raises(ValueError, match="level"):
        Pyramid(patch=patch, levels=levels)
