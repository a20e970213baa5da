"""The whole network: every option changes something; weights start as written."""

import pytest
import torch

from hpdm_core.model.hpdm import HPDM
from hpdm_core.records import Condition
from tests.paper.tiny import make_condition, make_inputs, make_network, make_pyramid


def run(network: HPDM, condition: Condition, *, latents=None):
    inputs, labels, boxes = make_inputs(make_pyramid(3), len(condition.labels))
    return network(inputs, labels, boxes, condition, latents)[0]


def weights(network: HPDM) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in network.named_parameters()}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("context", "shallow"),
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


def test_dropout_is_on_in_training_alone():
    condition = make_condition(2)
    network, plain = make_network(3, dropout=0.5), make_network(3)
    for a, b in zip(run(network, condition), run(plain, condition), strict=True):
        assert torch.equal(a, b)
    network.train()
    assert not torch.equal(run(network, condition)[0], run(network, condition)[0])
    plain.train()
    assert torch.equal(run(plain, condition)[0], run(plain, condition)[0])


def test_the_class_reaches_every_level():
    network = make_network(3)
    first, second = (Condition(labels=torch.tensor([label])) for label in (0, 3))
    for a, b in zip(run(network, first), run(network, second), strict=True):
        assert not torch.allclose(a, b, atol=1e-4)


def test_padding_of_a_text_changes_nothing():
    network = make_network(3, conditioning="text")
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


def test_weights_start_as_written():
    network = make_network(3, stir=False, self_conditioning=True)
    for name, weight in network.named_parameters():
        fan = sum(weight.shape)
        if name.endswith("bias"):
            assert not weight.any()
        elif "fusion" in name:
            assert torch.equal(weight[:, :16], torch.eye(16))
            assert not weight[:, 16:].any()
        elif name == "self_conditioning.norm.weight":
            assert not weight.any()
        elif weight.ndim == 1:
            assert (weight == 1).all()
        elif name == "latents" or "positions" in name or "classes" in name:
            assert weight.abs().max() <= 2  # truncated
            assert weight.std().item() == pytest.approx(0.02, rel=0.35)
        else:  # Xavier-uniform
            bound = (6 / fan) ** 0.5
            assert weight.abs().max() <= bound
            assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.25)
