"""The whole network: every option changes something; weights start as written."""

import inspect

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hpdm_core.model.hpdm import HPDM
from hpdm_core.model.rin import RINBlock
from hpdm_core.model.transformer import TransformerBlock
from hpdm_core.recipe.schema import ModelRecipe
from hpdm_core.records import Condition
from tests.paper.tiny import BLOCKS, make_condition, make_inputs, make_network, make_pyramid


def run(network: HPDM, condition: Condition, *, latents=None):
    inputs, labels, boxes = make_inputs(make_pyramid(3), len(condition.labels))
    return network(inputs, labels, boxes, condition, latents)[0]


def weights(network: HPDM) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in network.named_parameters()}


def names(kind: type) -> set[str]:
    return set(inspect.signature(kind).parameters)


def test_constructors_take_the_fields_of_a_recipe_by_name():
    fields = set(ModelRecipe.model_fields)
    assert names(HPDM) == fields | {"patch"}
    assert names(RINBlock) | names(TransformerBlock) < fields


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("block", "transformer"),
        ("block", "shared_rin"),
        ("context", "shallow"),
        ("context", "concatenated"),
        ("context", "averaged"),
        ("context", "sinusoidal"),
        ("coordinates", False),
        ("positions", "factorised"),
        ("conditioning", "none"),
        ("conditioning", "text"),
        ("self_conditioning", True),
        ("loads", (3,) * 6),
    ],
)
def test_every_option_of_the_architecture_changes_its_weights(option, value):
    changed = make_network(3, **{option: value})
    assert weights(changed) != weights(make_network(3))


@pytest.mark.parametrize("block", BLOCKS)
def test_dropout_is_on_in_training_alone(block):
    condition = make_condition(2)
    network, plain = (make_network(3, block=block, dropout=share) for share in (0.5, 0.0))
    for a, b in zip(run(network, condition), run(plain, condition), strict=True):
        assert torch.equal(a, b)
    network.train()
    assert not torch.equal(run(network, condition)[0], run(network, condition)[0])
    plain.train()
    assert torch.equal(run(plain, condition)[0], run(plain, condition)[0])


@pytest.mark.parametrize("block", BLOCKS)
def test_the_class_reaches_every_level(block):
    network = make_network(3, block=block)
    first, second = (Condition(labels=torch.tensor([label])) for label in (0, 3))
    for a, b in zip(run(network, first), run(network, second), strict=True):
        assert not torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("block", BLOCKS)
def test_padding_of_a_text_changes_nothing(block):
    network = make_network(3, block=block, conditioning="text")
    condition = make_condition(3, "text")
    inputs, labels, boxes = make_inputs(make_pyramid(3), 3)
    padded = Condition(
        text=torch.where(condition.text_mask[..., None], condition.text, 7.0),
        text_mask=condition.text_mask,
    )
    before, after = (network(inputs, labels, boxes, c)[0] for c in (condition, padded))
    for a, b in zip(before, after, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    longer = Condition(text=condition.text + 1, text_mask=condition.text_mask)
    other = network(inputs, labels, boxes, longer)[0]
    assert torch.allclose(other[0][0], before[0][0], atol=1e-6)  # row 0 has no text at all
    assert not torch.allclose(other[0][2], before[0][2], atol=1e-4)


def test_latents_of_an_earlier_pass_are_read_with_self_conditioning_alone():
    condition, latents = make_condition(2), tuple(torch.randn(2, 6, 16) for _ in range(3))
    plain, reading = make_network(3), make_network(3, self_conditioning=True)
    for network, changes in ((plain, False), (reading, True)):
        without, with_it = run(network, condition), run(network, condition, latents=latents)
        for a, b in zip(without, with_it, strict=True):
            assert torch.allclose(a, b, atol=1e-4) is not changes


def test_no_earlier_pass_is_an_earlier_pass_of_zeros():
    """What masking in training relies on."""
    network, condition = make_network(3, self_conditioning=True), make_condition(2)
    zeros = tuple(torch.zeros(2, 6, 16) for _ in range(3))
    for a, b in zip(run(network, condition), run(network, condition, latents=zeros), strict=True):
        assert torch.equal(a, b)


def test_self_conditioning_starts_without_effect():
    network = make_network(3, self_conditioning=True, stir=False)
    latents = tuple(torch.randn(2, 6, 16) for _ in range(3))
    condition = make_condition(2)
    for a, b in zip(run(network, condition), run(network, condition, latents=latents), strict=True):
        assert torch.equal(a, b)


def test_only_latents_are_computed_where_only_they_are_wanted():
    """The first pass of latent self-conditioning: no last write, no outputs."""
    network = make_network(3, self_conditioning=True)
    inputs, c_noise, boxes = make_inputs(make_pyramid(3), 2)
    condition = make_condition(2)
    flops, states = [], []
    for latents_only in (False, True):
        with FlopCounterMode(display=False) as counter:
            outputs, latents = network(inputs, c_noise, boxes, condition, latents_only=latents_only)
        assert len(outputs) == (0 if latents_only else 3)
        flops.append(counter.get_flop_counts())
        states.append(latents)
    for whole, alone in zip(*states, strict=True):
        assert torch.equal(whole, alone)
    for name in ("blocks.5.write", "blocks.5.write_mlp", "detokenizer"):
        assert f"HPDM.{name}" in flops[0]
        assert f"HPDM.{name}" not in flops[1]
    assert flops[0]["HPDM.blocks.4"] == flops[1]["HPDM.blocks.4"]


def test_a_transformer_has_no_latents():
    network = make_network(3, block="transformer")
    inputs, c_noise, boxes = make_inputs(make_pyramid(3), 2)
    _, latents = network(inputs, c_noise, boxes, make_condition(2))
    assert [tuple(x.shape) for x in latents] == [(2, 0, 0)] * 3
    assert "latents" not in network.state_dict()
    assert network(inputs, c_noise, boxes, make_condition(2), latents_only=True)[0] == ()


def test_an_untrained_transformer_block_is_the_identity():
    for conditioning in ("class", "text"):
        network = make_network(1, block="transformer", conditioning=conditioning, stir=False)
        block = network.blocks[0]
        tokens = torch.randn(2, 8, 16)
        _, after = block(torch.empty(2, 0, 0), tokens, torch.randn(2, 3, 16), None)
        assert torch.equal(after, tokens)


def test_every_weight_of_a_transformer_learns():
    for conditioning in ("class", "text", "none"):
        network = make_network(3, block="transformer", conditioning=conditioning)
        inputs, c_noise, boxes = make_inputs(make_pyramid(3), 2)
        outputs, _ = network(inputs, c_noise, boxes, make_condition(2, conditioning))
        sum(x.square().mean() for x in outputs).backward()
        assert all(weight.grad is not None and weight.grad.any() for weight in network.parameters())


@pytest.mark.parametrize("block", BLOCKS)
def test_weights_start_as_written(block):
    network = make_network(3, block=block, stir=False, self_conditioning=block == "rin")
    for name, weight in network.named_parameters():
        fan = sum(weight.shape)
        if name.endswith("bias"):
            assert not weight.any()
        elif "fusion" in name:
            assert torch.equal(weight[:, :16], torch.eye(16))
            assert not weight[:, 16:].any()
        elif name == "self_conditioning.norm.weight" or "modulation" in name:
            assert not weight.any()
        elif weight.ndim == 1:
            assert (weight == 1).all()
        elif name == "latents" or "classes" in name:
            assert weight.abs().max() <= 2  # truncated
            assert weight.std().item() == pytest.approx(0.02 if name == "latents" else 1, rel=0.35)
        elif "positions" in name:
            assert weight.square().mean().item() == pytest.approx(1, rel=0.2)
        else:  # Xavier-uniform
            bound = (6 / fan) ** 0.5
            assert weight.abs().max() <= bound
            assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.25)
