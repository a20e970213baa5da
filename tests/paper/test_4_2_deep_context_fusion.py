"""Sec. 4.2: features of all lower levels, resampled at the patch, pooled and fused (Eq. 7, 9)."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from hpdm_core.geometry.boxes import Box
from hpdm_core.geometry.resample import cell_centres, make_resampler
from hpdm_core.model.deep_context import DeepContextFusion, pooled_context
from tests.paper.tiny import (
    BLOCKS,
    LOADS,
    PATCH,
    make_condition,
    make_inputs,
    make_network,
    make_pyramid,
    run_levels,
)

GRID = (3, 4, 5)


def identity_box(batch: int) -> Box:
    return Box(scale=torch.ones(batch, 3), offset=torch.zeros(batch, 3))


def random_boxes(batch: int, *, seed: int = 0) -> Box:
    generator = torch.Generator().manual_seed(seed)
    scale = 0.1 + 0.9 * torch.rand(batch, 3, generator=generator)
    return Box(scale=scale, offset=(1 - scale) * torch.rand(batch, 3, generator=generator))


def run(network, levels, *, batch=3, kind="class", latents=None, inputs=None):
    """Return outputs and latents of all levels for fixed random inputs."""
    given, labels, boxes = make_inputs(make_pyramid(levels), batch)
    return network(
        given if inputs is None else inputs, labels, boxes, make_condition(batch, kind), latents
    )


# Resampling: grid_sample_3D of Eq. 7.


def test_resampling_at_the_identity_box_changes_nothing():
    features = torch.randn(2, *GRID, 6)
    assert torch.equal(make_resampler(identity_box(2), GRID)(features), features)


def test_resampling_a_linear_ramp_gives_the_exact_ramp():
    """Wherever the cells' centres lie inside the ancestor's outermost centres."""
    ancestor = (8, 8, 8)
    box = Box(scale=torch.tensor([[0.5, 0.25, 0.5]]), offset=torch.tensor([[0.25, 0.5, 0.125]]))
    slope = torch.tensor([0.3, -1.7, 2.2], dtype=torch.float64)
    ramp = cell_centres(identity_box(1), ancestor).double() @ slope
    features = rearrange(ramp, "b (t h w) -> b t h w 1", t=8, h=8).float()
    sampled = make_resampler(box, GRID, ancestor)(features)
    expected = cell_centres(box, GRID).double() @ slope
    assert torch.allclose(sampled.flatten(1).double(), expected, atol=1e-6)


@pytest.mark.parametrize("ancestor", [GRID, (1, 7, 2)])
def test_resampling_equals_torch_grid_sample(ancestor):
    batch, width = 6, 3
    box, features = random_boxes(batch), torch.randn(batch, *ancestor, width)
    # torch wants places as (x, y, z) in [-1, 1] of the ancestor.
    places = rearrange(
        cell_centres(box, GRID).flip(-1), "b (t h w) xyz -> b t h w xyz", t=GRID[0], h=GRID[1]
    )
    peer = F.grid_sample(
        features.movedim(-1, 1), places, mode="bilinear", padding_mode="border", align_corners=False
    )
    assert torch.allclose(
        make_resampler(box, GRID, ancestor)(features), peer.movedim(1, -1), atol=1e-5
    )


def test_interpolation_weights_sum_to_one():
    resampler = make_resampler(random_boxes(5), GRID)
    for matrix in (resampler.t, resampler.h, resampler.w):
        assert torch.allclose(matrix.sum(-1), torch.ones(5, 1), atol=1e-6)
        assert (matrix >= 0).all()


def test_coordinates_are_token_centres_of_the_full_video():
    box = Box(scale=torch.tensor([[1.0, 0.5, 0.25]]), offset=torch.tensor([[0.0, 0.5, 0.25]]))
    centres = cell_centres(box, (1, 2, 1))
    assert centres.tolist() == [[[0.0, 0.25, -0.25], [0.0, 0.75, -0.25]]]
    whole = cell_centres(identity_box(1), GRID)
    assert torch.allclose(whole.mean(1), torch.zeros(1, 3), atol=1e-6)


# Pooling and fusion: Eq. 7 and 9.


def test_equation_7_is_the_mean_over_all_lower_levels():
    boxes = [random_boxes(2, seed=k) for k in range(3)]
    features = [torch.randn(2, 60, 4) for _ in boxes]
    resamplers = [make_resampler(box, GRID) for box in boxes]
    expected = torch.zeros(2, 60, 4)
    for tokens, resampler in zip(features, resamplers, strict=True):
        cells = rearrange(tokens, "b (t h w) d -> b t h w d", t=3, h=4, w=5)
        expected += rearrange(resampler(cells), "b t h w d -> b (t h w) d") / 3
    assert torch.allclose(pooled_context(features, resamplers, GRID), expected, atol=1e-6)


@pytest.mark.parametrize("coordinates", [True, False])
def test_equation_9_is_one_linear_layer_on_the_concatenation(coordinates):
    fusion = DeepContextFusion(8, coordinates=3 if coordinates else 0)
    torch.nn.init.normal_(fusion.project.weight)
    torch.nn.init.normal_(fusion.project.bias)
    tokens, context, places = torch.randn(2, 7, 8), torch.randn(2, 7, 8), torch.randn(2, 7, 3)
    parts = [tokens, context, places] if coordinates else [tokens, context]
    fused = fusion(tokens, fusion.context_term(context, places))
    assert fusion.project.in_features == (2 * 8 + 3 if coordinates else 2 * 8)
    assert torch.allclose(fused, fusion.project(torch.cat(parts, dim=-1)), atol=1e-5)


@pytest.mark.parametrize("block", BLOCKS)
def test_context_is_taken_at_the_same_depth_before_its_own_fusion(block):
    """Recompute what enters block 5 of level 2 from the inputs of block 5 of levels 0 and 1."""
    network, levels, batch = make_network(3, block=block), 3, 2
    inputs, labels, boxes = make_inputs(make_pyramid(levels), batch)
    entered, fused = [], []
    network.fusion["5"].register_forward_pre_hook(lambda _, args: entered.append(args))
    network.blocks[4].register_forward_hook(lambda *args: fused.append(args[2][1]))
    network(inputs, labels, boxes, make_condition(batch))
    tokens = fused[0].chunk(3)  # outputs of block 4 are the inputs of block 5, level by level
    resamplers = [make_resampler(boxes[2].relative_to(boxes[k]), network.grid) for k in (0, 1)]
    context = pooled_context(tokens[:2], resamplers, network.grid)
    places = cell_centres(boxes[2], network.grid)
    own, term = entered[1]  # called for level 1, then for level 2
    assert torch.equal(own, tokens[2])
    assert torch.allclose(term, network.fusion["5"].context_term(context, places), atol=1e-6)


def test_fusion_exists_where_a_finer_level_enters_and_nowhere_else():
    assert set(make_network(3).fusion) == {"2", "3", "4", "5"}
    assert set(make_network(4).fusion) == {"2", "3", "4", "5"}
    assert not make_network(1).fusion
    assert not [*make_network(3, context="shallow").fusion.parameters()]


# Flow of information.


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("context", ["deep", "shallow"])
@pytest.mark.parametrize("levels", [2, 3, 4])
def test_information_flows_from_coarse_to_fine_only(levels, context, block):
    network = make_network(levels, block=block, context=context, loads=(levels,) * 3)
    inputs, labels, boxes = make_inputs(make_pyramid(levels), 2)
    inputs = tuple(x.requires_grad_() for x in inputs)
    labels = labels.requires_grad_()
    outputs, _ = network(inputs, labels, boxes, make_condition(2))
    for coarse in range(levels):
        grads = torch.autograd.grad(
            outputs[coarse].square().sum(), (*inputs, labels), retain_graph=True, allow_unused=True
        )
        for level, grad in enumerate(grads[:-1]):
            if level > coarse:
                assert grad is None or not grad.any()
            elif context == "deep" or coarse - level <= 1:  # RGB reaches one level down
                assert grad.any()
        assert not grads[-1][:, coarse + 1 :].any()
        assert grads[-1][:, coarse].any()


@pytest.mark.parametrize("detach", [True, False])
def test_detached_context_lets_no_gradient_of_a_finer_loss_through(detach):
    """Coarse inputs and coarse noise levels reach a fine loss through the context alone."""
    network = make_network(3, detach_context=detach, loads=(3, 3))
    inputs, labels, boxes = make_inputs(make_pyramid(3), 2)
    inputs = tuple(x.requires_grad_() for x in inputs)
    outputs, _ = network(inputs, labels.requires_grad_(), boxes, make_condition(2))
    loss = outputs[2].square().sum()
    coarse, middle, by_label = torch.autograd.grad(loss, (*inputs[:2], labels), allow_unused=True)
    flows = [grad is not None and bool(grad.any()) for grad in (coarse, middle)]
    assert flows == ([False, False] if detach else [True, True])
    assert by_label[:, :2].any().item() is not detach


def test_detaching_changes_no_output():
    plain, detached = make_network(3), make_network(3, detach_context=True)
    for a, b in zip(run(plain, 3)[0], run(detached, 3)[0], strict=True):
        assert torch.equal(a, b)


def test_blocks_that_no_finer_level_enters_learn_nothing_from_fine_losses_when_detached():
    for detach in (True, False):
        network = make_network(3, detach_context=detach)  # levels per block 1/1/2/2/3/3
        run(network, 3)[0][2].square().sum().backward()
        grads = [p.grad for p in network.blocks[0].parameters()]
        assert any(g is not None and g.any() for g in grads) is not detach


# The base model's function is kept.


@pytest.mark.parametrize("block", BLOCKS)
def test_fusion_at_its_initial_value_leaves_the_base_function_untouched(block):
    """Every level of an untouched network gives what a one-level base gives for its patch."""
    network = make_network(3, block=block, loads=(3,) * 4, stir=False)
    base = make_network(1, block=block, loads=(1,) * 4, stir=False)
    base.load_state_dict(
        {name: w for name, w in network.state_dict().items() if not name.startswith("fusion")}
    )
    inputs, labels, boxes = make_inputs(make_pyramid(3), 2)
    outputs, _ = network(inputs, labels, boxes, make_condition(2))
    for level in range(3):
        alone, _ = base(
            inputs[level : level + 1], labels[:, level : level + 1], boxes[:1], make_condition(2)
        )
        assert torch.allclose(outputs[level], alone[0], atol=1e-6)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_base_models_weights_go_into_a_pyramid_and_keep_their_function(block):
    base = make_network(1, block=block, loads=(1,) * 6)
    network = make_network(3, block=block, stir=False)
    report = network.load_state_dict(base.state_dict(), strict=False)
    assert not report.unexpected_keys
    assert {name.split(".")[0] for name in report.missing_keys} == {"fusion"}
    inputs, labels, boxes = make_inputs(make_pyramid(3), 2)
    outputs, _ = network(inputs, labels, boxes, make_condition(2))
    alone, _ = base(inputs[:1], labels[:, :1], boxes[:1], make_condition(2))
    # Matrix products of other batch sizes round differently, more on some processors.
    assert torch.allclose(outputs[0], alone[0], atol=1e-5)


# Switches of Table 3: each flips something.


@pytest.mark.parametrize("block", BLOCKS)
def test_shallow_context_reads_the_level_below_alone(block):
    """Changing the pixels of level 0 leaves level 2 untouched, unless level 1's change too."""
    inputs, labels, boxes = make_inputs(make_pyramid(3), 2)
    changed = (inputs[0] + 1, *inputs[1:])
    for context in ("deep", "shallow"):
        network = make_network(3, block=block, context=context)
        before = network(inputs, labels, boxes, make_condition(2))[0]
        after = network(changed, labels, boxes, make_condition(2))[0]
        assert not torch.equal(before[1], after[1])
        assert torch.equal(before[2], after[2]) is (context == "shallow")


def test_shallow_context_is_the_resampled_patch_of_the_level_below():
    """One linear layer on the concatenation of a token's own RGB, the context's RGB, places."""
    network = make_network(2, context="shallow")
    inputs, labels, boxes = make_inputs(make_pyramid(2), 2)
    seen = []
    network.tokenizer.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network(inputs, labels, boxes, make_condition(2))
    relative = boxes[1].relative_to(boxes[0])
    pixels = make_resampler(relative, PATCH)(inputs[0].movedim(1, -1)).movedim(-1, 1)
    tokenizer = network.tokenizer
    concatenated = torch.cat(
        [
            tokenizer.patchify(inputs[1]),
            tokenizer.patchify(pixels),
            cell_centres(boxes[1], network.grid),
        ],
        dim=-1,
    )
    weight = torch.cat([tokenizer.project.weight, tokenizer.project_context.weight], dim=1)
    expected = F.linear(concatenated, weight, tokenizer.project.bias)
    # Both levels pass in one call.
    assert torch.allclose(seen[0].chunk(2)[1], expected, atol=1e-5)


@pytest.mark.parametrize("context", ["deep", "shallow"])
def test_coordinates_tell_places_apart_and_can_be_left_out(context):
    """Move all patches by the same share of the video: only absolute places change."""
    inputs, labels, _ = make_inputs(make_pyramid(3), 1)
    nested = Box(scale=torch.full((1, 3), 0.25), offset=torch.full((1, 3), 0.25))
    moved = Box(scale=nested.scale, offset=nested.offset + 0.25)
    parents = [Box(scale=b.scale * 2, offset=b.offset - 0.125) for b in (nested, moved)]
    for coordinates in (True, False):
        network = make_network(3, context=context, coordinates=coordinates)
        outputs = []
        for parent, box in zip(parents, (nested, moved), strict=True):
            boxes = (parent, parent, box)
            outputs.append(network(inputs, labels, boxes, make_condition(1))[0][2])
        assert torch.allclose(*outputs, atol=1e-6) is not coordinates


# forward == run_level after run_level, with `context` in between.


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"context": "shallow"},
        {"context": "shallow", "coordinates": False},
        {"detach_context": True},
        {"coordinates": False, "positions": "factorised"},
        {"self_conditioning": True},
        {"conditioning": "text"},
        {"conditioning": "none"},
        {"block": "transformer"},
        {"block": "transformer", "context": "shallow"},
        {"block": "transformer", "conditioning": "text"},
        {"block": "transformer", "conditioning": "none"},
    ],
    ids=str,
)
def test_level_by_level_equals_all_at_once(levels, options):
    kind, batch = options.get("conditioning", "class"), 3
    network = make_network(levels, **options)
    given = (*make_inputs(make_pyramid(levels), batch), make_condition(batch, kind))
    if network.self_conditioning is not None:
        given += (tuple(torch.randn(batch, 6, 16) for _ in range(levels)),)
    outputs, states = network(*given)
    for level, result in enumerate(run_levels(network, *given)):
        assert torch.allclose(result.output, outputs[level], atol=1e-5)
        assert torch.allclose(result.latents, states[level], atol=1e-5)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("context", ["deep", "shallow"])
def test_a_network_is_run_on_the_coarsest_levels_alone_with_the_same_result(block, context):
    """Pyramid cuts: what finer levels do never reaches coarser ones."""
    network = make_network(4, block=block, context=context, loads=LOADS[4])
    inputs, labels, boxes = make_inputs(make_pyramid(4), 2)
    outputs, _ = network(inputs, labels, boxes, make_condition(2))
    for levels in (1, 2, 3):
        some, _ = network(inputs[:levels], labels[:, :levels], boxes[:levels], make_condition(2))
        for a, b in zip(some, outputs, strict=False):
            assert torch.allclose(a, b, atol=1e-5)
