"""Sec. 4.3, Listing 1: each block runs on the lowest levels alone, stacked along the batch."""

from collections.abc import Sequence

import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hpdm_core.geometry.resample import cell_centres, make_resampler
from hpdm_core.model.adaptive_computation import (
    block_passes,
    blocks_of,
    stack_levels,
    unstack_levels,
)
from hpdm_core.model.deep_context import pooled_context
from hpdm_core.model.hpdm import HPDM
from tests.paper.tiny import (
    BLOCKS,
    make_condition,
    make_inputs,
    make_network,
    make_pyramid,
    run_levels,
)

UCF = (1, 1, 2, 2, 3, 3)


def listing_1(network: HPDM, inputs: Sequence[Tensor], labels: Tensor, boxes, condition) -> Tensor:
    """The paper's pseudo-code with Eq. 7 and 9 written out, one level of one block at a time.

    `x[:, :nlvl] = blk(x[:, :nlvl])`: levels that a block leaves out keep their activations.
    """
    levels = len(inputs)
    embed = network.tokenizer.embed
    x = torch.stack([network.tokenizer(embed(p)) for p in inputs], dim=1)  # (b, l, n, d)
    start = torch.empty(0, 0) if network.latents is None else network.latents
    z = start.expand(len(x), levels, -1, -1).clone()  # (b, l, m, d)
    tokens = [network.conditioning(labels[:, k], condition) for k in range(levels)]
    for index, blk in enumerate(network.blocks):
        nlvl = network.levels_per_block[index]
        before = x.clone()
        for level in range(nlvl):
            fused = before[:, level]
            if level > 0:
                ctx = 0
                for k in range(level):
                    resample = make_resampler(boxes[level].relative_to(boxes[k]), network.grid)
                    ctx = ctx + pooled_context([before[:, k]], [resample], network.grid)
                places = cell_centres(boxes[level], network.grid)
                parts = [before[:, level], ctx / level, places]
                fused = network.fusion[str(index)].project(torch.cat(parts, dim=-1))
            z[:, level], x[:, level] = blk(z[:, level].clone(), fused, *tokens[level])
    return torch.stack([network.detokenizer(x[:, level]) for level in range(levels)], dim=1)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(
    ("levels", "loads"),
    [
        (3, UCF),
        (4, (1, 1, 2, 2, 3, 4)),
        (4, (4,) * 6),
        (4, (1, 2, 2, 3, 3, 4)),
        (1, (1,) * 3),
        (3, UCF[::-1]),  # `hpdm ablate claims`: later blocks are skipped
        (4, (4, 3, 2, 2, 1, 1)),
    ],
)
def test_stacked_levels_equal_listing_1(levels, loads, block):
    network = make_network(levels, block=block, loads=loads)
    inputs, labels, boxes = make_inputs(make_pyramid(levels), 2)
    condition = make_condition(2)
    outputs, _ = network(inputs, labels, boxes, condition)
    expected = listing_1(network, inputs, labels, boxes, condition)
    assert torch.allclose(torch.stack(outputs, dim=1), expected, atol=1e-4)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_runs_once_on_all_its_levels_stacked(block):
    network, batch = make_network(3, block=block, loads=UCF), 2
    rows = []
    for each in network.blocks:
        each.register_forward_hook(lambda _, args, __: rows.append(len(args[1])))
    inputs, labels, boxes = make_inputs(make_pyramid(3), batch)
    network(inputs, labels, boxes, make_condition(batch))
    assert rows == [batch * load for load in UCF]


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_skipped_blocks_get_no_gradient_from_the_level(level, kind):
    """With context detached, a level's loss reaches the blocks it enters and no other."""
    network = make_network(3, block=kind, loads=UCF, detach_context=True)
    inputs, labels, boxes = make_inputs(make_pyramid(3), 2)
    outputs, _ = network(inputs, labels, boxes, make_condition(2))
    outputs[level].square().sum().backward()
    for load, block in zip(UCF, network.blocks, strict=True):
        grads = [weight.grad for weight in block.parameters()]
        # Levels run stacked, so that a skipped one adds zeros or nothing.
        assert all(grad is not None and grad.any() for grad in grads) is (load > level)
        if load <= level:
            assert all(grad is None or not grad.any() for grad in grads)


@pytest.mark.parametrize("block", BLOCKS)
def test_with_context_gradients_reach_early_blocks_through_coarser_levels(block):
    network = make_network(3, block=block, loads=UCF)
    inputs, labels, boxes = make_inputs(make_pyramid(3), 2)
    network(inputs, labels, boxes, make_condition(2))[0][2].square().sum().backward()
    # Blocks 0 and 1 run on level 0 alone, whose features level 2 reads.
    assert all(weight.grad.any() for weight in network.blocks[0].parameters())


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("loads", [UCF, (1, 2, 3), (3, 3, 3), (1, 1, 1, 3)])
def test_skipped_blocks_cost_no_flops(loads, block):
    """Adding a level adds the arithmetic of the blocks that it enters, to the last multiply."""
    network = make_network(3, block=block, loads=loads)
    inputs, labels, boxes = make_inputs(make_pyramid(3), 1)
    names = [f"HPDM.blocks.{index}" for index in range(len(loads))]
    costs = []
    for levels in (1, 2, 3):
        with FlopCounterMode(display=False) as counter:
            network(inputs[:levels], labels[:, :levels], boxes[:levels], make_condition(1))
        by_module = counter.get_flop_counts()
        costs.append([sum(by_module[name].values()) for name in names])
    pass_of_one = costs[0][0]
    assert pass_of_one > 0
    for levels, row in zip((1, 2, 3), costs, strict=True):
        assert row == [pass_of_one * min(load, levels) for load in loads]


@pytest.mark.parametrize("kind", BLOCKS)
def test_tiled_inference_skips_the_same_blocks(kind):
    network = make_network(3, block=kind, loads=UCF)
    inputs, labels, boxes = make_inputs(make_pyramid(3), 1)
    ran = []
    for index, block in enumerate(network.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    expected = [[0, 1, 2, 3, 4, 5], [2, 3, 4, 5], [4, 5]]
    results = run_levels(network, inputs, labels, boxes, make_condition(1))
    for blocks, _ in zip(expected, results, strict=True):
        assert ran == blocks
        ran.clear()


@pytest.mark.parametrize(
    ("loads", "passes"),
    [
        (UCF, [6, 4, 2]),  # HPDM-S, -M, -L (Table 8)
        ((1, 2, 2, 3, 3, 4), [6, 5, 3, 1]),  # HPDM-T2V
        ((4,) * 6, [6, 6, 6, 6]),  # HPDM-T2V-1K
        ((1, 1, 2, 2, 3, 4), [6, 4, 2, 1]),  # Sec. 4.6
        ((3, 3, 2, 2, 1, 1), [6, 4, 2]),  # later blocks skipped in place of earlier ones
    ],
)
def test_block_passes_of_the_papers_loads(loads, passes):
    assert [block_passes(loads, level) for level in range(len(passes))] == passes
    rising = loads == tuple(sorted(loads))
    for level, count in enumerate(passes):
        expected = range(6 - count, 6) if rising else range(count)
        assert blocks_of(loads, level) == tuple(expected)


def test_full_load_of_four_levels_is_almost_twice_as_dear():
    """Sec. 4.6: [4, 4, 4, 4, 4, 4] against [1, 1, 2, 2, 3, 4]."""
    assert sum((4,) * 6) / sum((1, 1, 2, 2, 3, 4)) == pytest.approx(2, abs=0.2)


def test_stacking_is_undone():
    per_level = [torch.randn(2, 5, 3) for _ in range(3)]
    stacked = stack_levels(per_level)
    assert torch.equal(stacked, rearrange(torch.stack(per_level), "l b n d -> (l b) n d"))
    for a, b in zip(unstack_levels(stacked, 3), per_level, strict=True):
        assert torch.equal(a, b)


def test_fewer_levels_per_block_change_the_result():
    inputs, labels, boxes = make_inputs(make_pyramid(3), 2)
    some, full = make_network(3, loads=(1, 3)), make_network(3, loads=(3, 3))
    some.load_state_dict(full.state_dict(), strict=False)
    a, b = (net(inputs, labels, boxes, make_condition(2))[0] for net in (some, full))
    assert torch.allclose(a[0], b[0], atol=1e-6)
    assert not torch.allclose(a[2], b[2], atol=1e-3)


@pytest.mark.parametrize("block", BLOCKS)
def test_recomputing_blocks_in_the_backward_pass_changes_no_gradient(block):
    """Activation checkpointing (train.activation_checkpointing)."""
    inputs, labels, boxes = make_inputs(make_pyramid(3), 2)
    grads = []
    for enabled in (False, True):
        network = make_network(3, block=block, loads=UCF).train()
        network.set_activation_checkpointing(enabled)
        outputs, _ = network(inputs, labels, boxes, make_condition(2))
        sum(output.square().mean() for output in outputs).backward()
        grads.append([weight.grad for weight in network.parameters()])
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
