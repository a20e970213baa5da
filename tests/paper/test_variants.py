"""What the paper tried and left (Sec. 4.2, app. D): each option of `hpdm ablate claims` flipped."""

import math

import numpy as np
import pytest
import torch

from hpdm_core.errors import RecipeError
from hpdm_core.geometry.resample import cell_centres, make_resampler
from hpdm_core.model.deep_context import pooled_context
from hpdm_core.recipe.load import load_recipe
from tests.paper.tiny import make_condition, make_inputs, make_network, make_pyramid, run_levels


def waves(places: torch.Tensor) -> torch.Tensor:
    """Return sines, then cosines, of each axis at half a wave, one, two, ... over the video."""
    x = places.double().numpy()
    angles = np.stack([x * math.pi / 2 * 2**k for k in range(6)], axis=-1)
    flat = angles.reshape(*x.shape[:2], -1)
    return torch.from_numpy(np.concatenate([np.sin(flat), np.cos(flat)], axis=-1)).float()


# What the one linear layer before a block reads: own tokens, two lower levels', coordinates.
READS = {
    "deep": lambda own, low, mid, places: [own, (low + mid) / 2, places],
    "concatenated": lambda own, low, mid, places: [own, low, mid, places],
    "averaged": lambda own, low, mid, places: [(own + (low + mid) / 2) / 2, places],
    "sinusoidal": lambda own, low, mid, places: [own, (low + mid) / 2, waves(places)],
}


@pytest.mark.parametrize("context", READS)
def test_what_enters_a_block_is_one_linear_layer_on_what_it_reads(context):
    network, batch = make_network(3, context=context), 2
    inputs, labels, boxes = make_inputs(make_pyramid(3), batch)
    fusion, entered, fused = network.fusion["5"], [], []
    fusion.register_forward_hook(lambda _, args, out: entered.append((args[0], out)))
    network.blocks[4].register_forward_hook(lambda *args: fused.append(args[2][1]))
    network(inputs, labels, boxes, make_condition(batch))
    tokens = fused[0].chunk(3)
    low, mid = (
        pooled_context(
            [tokens[k]], [make_resampler(boxes[2].relative_to(boxes[k]), network.grid)],
            network.grid,
        )
        for k in (0, 1)
    )  # fmt: skip
    own, result = entered[1]  # of level 1, then of level 2
    parts = READS[context](own, low, mid, cell_centres(boxes[2], network.grid))
    assert torch.allclose(result, fusion.project(torch.cat(parts, dim=-1)), atol=1e-5)


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"context": "concatenated"},
        {"context": "averaged"},
        {"context": "averaged", "coordinates": False},
        {"context": "sinusoidal"},
        {"block": "shared_rin", "self_conditioning": True},
        {"loads": (3, 2, 1), "self_conditioning": True},
    ],
    ids=str,
)
def test_sampling_level_by_level_equals_training_all_at_once(levels, options):
    if "loads" in options:
        options = {**options, "loads": tuple(min(load, levels) for load in options["loads"])}
    network = make_network(levels, **options)
    given = (*make_inputs(make_pyramid(levels), 3), make_condition(3))
    if network.self_conditioning is not None:
        given += (tuple(torch.randn(3, 6, 16) for _ in range(levels)),)
    outputs, states = network(*given)
    for level, result in enumerate(run_levels(network, *given)):
        # Stirred weights multiply rounding.
        assert torch.allclose(result.output, outputs[level], rtol=1e-3, atol=1e-3)
        assert torch.allclose(result.latents, states[level], rtol=1e-3, atol=1e-3)


def test_level_1_of_concatenated_context_has_zeros_for_the_level_that_it_lacks():
    network = make_network(3, context="concatenated")
    inputs, labels, boxes = make_inputs(make_pyramid(3), 2)

    def outputs() -> tuple:
        return network(inputs, labels, boxes, make_condition(2))[0]

    before = outputs()
    with torch.no_grad():
        for fusion in network.fusion.values():
            fusion.project.weight[:, 32:48] += 1  # own 16, level 0's 16, level 1's 16, places
    after = outputs()
    assert torch.equal(before[1], after[1])
    assert not torch.allclose(before[2], after[2])


def test_a_shared_block_is_a_network_of_equal_blocks():
    """Same outputs; its gradient is the sum of theirs; its weights are stored once."""
    shared, plain = make_network(3, block="shared_rin"), make_network(3)
    own = shared.state_dict()
    assert {name.split(".")[1] for name in own if name.startswith("blocks.")} == {"0"}
    repeated = {
        name.replace("blocks.0.", f"blocks.{index}."): weight
        for name, weight in own.items()
        for index in range(6)
    }
    plain.load_state_dict(repeated)
    inputs, labels, boxes = make_inputs(make_pyramid(3), 2)
    for network in (shared, plain):
        outputs, _ = network(inputs, labels, boxes, make_condition(2))
        network.kept = outputs
        sum(output.square().sum() for output in outputs).backward()
    for a, b in zip(shared.kept, plain.kept, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    for name, weight in shared.blocks[3].named_parameters():
        grads = [dict(block.named_parameters())[name].grad for block in plain.blocks]
        assert torch.allclose(weight.grad, sum(grads), rtol=1e-4, atol=1e-4)


def test_a_shared_block_starts_as_any_block_does():
    with torch.device("meta"):
        network = make_network(3, block="shared_rin", stir=False)
    shapes = {name: weight.shape for name, weight in network.named_parameters()}
    values = dict(network.initial_weights())
    assert {name: value.shape for name, value in values.items()} == shapes


def test_falling_loads_skip_later_blocks():
    """Level 2 runs on the first blocks only: the last ones do not change it, and cost nothing."""
    network = make_network(3, loads=(3, 3, 2, 2, 1, 1))
    inputs, labels, boxes = make_inputs(make_pyramid(3), 2)

    def outputs() -> tuple:
        return network(inputs, labels, boxes, make_condition(2))[0]

    before = outputs()
    with torch.no_grad():
        for weight in network.blocks[4].parameters():
            weight += 1
    after = outputs()
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [False, True, True]
    assert set(network.fusion) == {"0", "1", "2", "3"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.levels_per_block=[1,3,2,1]", r"\[1, 3, 2, 1\] rises and falls"),
        ("model.levels_per_block=[2,2,1,1]", "goes up to 2, expected 3"),
    ],
)
def test_loads_that_cannot_be_are_refused(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("ablation_smoke", [override])


def test_sinusoidal_coordinates_without_coordinates_are_refused():
    overrides = ["model.context=sinusoidal", "model.coordinates=false"]
    with pytest.raises(RecipeError, match="context: sinusoidal is about coordinates"):
        load_recipe("ablation_smoke", overrides)
