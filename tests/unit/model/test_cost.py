"""Arithmetic counted from shapes equals what torch counts while it runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hpdm_core.geometry.boxes import pyramid_boxes
from hpdm_core.model.cost import level_flops
from hpdm_core.model.hpdm import HPDM
from tests.paper.tiny import make_condition, make_network, make_pyramid

TEXT_TOKENS = 4


def count_with_torch(network: HPDM, levels: int, *, kind: str, backward: bool = False) -> int:
    """Run on the meta device, where torch counts fused attention too."""
    network, pyramid = network.to("meta"), make_pyramid(3)
    condition = make_condition(1, kind).to(torch.device("meta"))
    with torch.device("meta"):
        inputs = tuple(torch.empty(1, 3, *pyramid.patch) for _ in range(levels))
        boxes = pyramid_boxes(pyramid, torch.zeros(1, 3, 3))[:levels]
        with FlopCounterMode(display=False) as counter:
            outputs, _ = network(inputs, torch.empty(1, levels), boxes, condition)
            if backward:
                sum(output.sum() for output in outputs).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loads": (3, 3)},
        {"context": "shallow"},
        {"context": "shallow", "coordinates": False},
        {"coordinates": False},
        {"self_conditioning": True},
        {"conditioning": "text"},
        {"conditioning": "none"},
        {"positions": "factorised"},
        {"block": "transformer"},
        {"block": "transformer", "loads": (3, 3), "context": "shallow"},
        {"block": "transformer", "conditioning": "text"},
        {"block": "transformer", "conditioning": "none"},
        {"block": "shared_rin"},
        {"context": "concatenated"},
        {"context": "sinusoidal"},
        {"loads": (3, 3, 2, 1)},
    ],
    ids=str,
)
def test_forward_passes_are_counted_to_the_last_multiply(options):
    network = make_network(3, **options)
    counted = [level_flops(network, k, text_tokens=TEXT_TOKENS) for k in range(3)]
    kind = options.get("conditioning", "class")
    assert sum(counted) == count_with_torch(network, 3, kind=kind)
    if not options:
        assert sum(counted[:2]) == count_with_torch(network, 2, kind=kind)


def test_the_backward_pass_takes_about_twice_the_forward_pass():
    network = make_network(3)
    forward = sum(level_flops(network, k, text_tokens=TEXT_TOKENS) for k in range(3))
    both = count_with_torch(network, 3, kind="class", backward=True)
    assert both == pytest.approx(3 * forward, rel=0.05)
