"""LAMB against Algorithm 2 of You et al., written out in float64 tensor by tensor."""

import pytest
import torch
from torch import nn

from hpdm_core.training.lamb import Lamb, parameter_groups
from tests.paper.tiny import make_network
from tests.unit.training.standins import TinyNetwork


def reference(x, grads, *, lr, betas, eps, decay, adapt):
    """Algorithm 2 of You et al. (2020), line by line; phi is the identity."""
    x, m, v = x.double().clone(), torch.zeros_like(x).double(), torch.zeros_like(x).double()
    for t, g in enumerate(grads, start=1):
        if g is None:
            continue
        g = g.double()
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        r = (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps)
        u = r + decay * x
        ratio = x.norm() / u.norm() if adapt and x.norm() > 0 and u.norm() > 0 else 1.0
        x = x - lr * ratio * u
    return x


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize(("decay", "adapt"), [(0.01, True), (0.0, False), (0.1, False)])
def test_equals_algorithm_2_in_float64(scale, decay, adapt):
    torch.manual_seed(1)
    starts = [torch.randn(7, 5) * scale, torch.randn(3, 4, 2) * scale, torch.randn(11) * scale]
    grads = [[torch.randn_like(x) * 10.0**-i for x in starts] for i in range(20)]
    params = [nn.Parameter(x.clone()) for x in starts]
    groups = [{"params": params, "weight_decay": decay, "adapt": adapt}]
    optimizer = Lamb(groups, 5e-3, betas=(0.9, 0.99))
    for step in grads:
        for param, grad in zip(params, step, strict=True):
            param.grad = grad.clone()
        optimizer.step()
    for index, (start, param) in enumerate(zip(starts, params, strict=True)):
        expected = reference(
            start,
            [step[index] for step in grads],
            lr=5e-3,
            betas=(0.9, 0.99),
            eps=1e-6,
            decay=decay,
            adapt=adapt,
        )
        moved = (expected - start.double()).norm()
        rounding = 20 * torch.finfo(torch.float32).eps * expected.norm()
        assert (param.detach().double() - expected).norm() < 1e-5 * moved + rounding


def test_trust_ratio_makes_the_step_a_share_of_the_weight():
    weight = nn.Parameter(torch.randn(20, 20) * 7)
    optimizer = Lamb([weight], 0.01, weight_decay=0.0)
    before = weight.detach().clone()
    weight.grad = torch.randn(20, 20) * 1e-4
    optimizer.step()
    torch.testing.assert_close((weight - before).norm(), 0.01 * before.norm())


def test_a_tensor_of_zeros_can_leave_zero_and_a_missing_gradient_moves_nothing():
    zeros, idle = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.ones(4, 4))
    optimizer = Lamb([zeros, idle], 0.1)
    zeros.grad = torch.ones(4, 4)
    optimizer.step()
    torch.testing.assert_close(zeros.detach(), torch.full((4, 4), -0.1), rtol=1e-4, atol=0)
    assert torch.equal(idle.detach(), torch.ones(4, 4))


def test_updates_are_counted_per_parameter():
    """A tensor that first gets a gradient late starts its bias correction then."""
    torch.manual_seed(0)
    late, early = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3, 3))
    start, grad = late.detach().clone(), torch.randn(3, 3)
    optimizer = Lamb([late, early], 0.1)
    for step in range(3):
        early.grad = torch.randn(3, 3)
        late.grad = grad if step == 2 else None
        optimizer.step()
    expected = reference(start, [grad], lr=0.1, betas=(0.9, 0.99), eps=1e-6, decay=0.01, adapt=True)
    torch.testing.assert_close(late.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_groups_leave_biases_and_norms_out_alone():
    network = TinyNetwork()
    names = {id(param): name for name, param in network.named_parameters()}
    matrices, rest = parameter_groups(network, weight_decay=0.3)
    assert {names[id(p)] for p in matrices["params"]} == {
        "table",
        "read.weight",
        "fine.weight",
        "write.weight",
        "blocks.0.linear.weight",
        "blocks.1.linear.weight",
    }
    assert len(matrices["params"]) + len(rest["params"]) == len(names)
    assert (matrices["weight_decay"], matrices["adapt"]) == (0.3, True)
    assert (rest["weight_decay"], rest["adapt"]) == (0.0, False)


def test_one_step_moves_every_matrix_and_embedding_by_lr_of_its_norm():
    """The whole network: the trust ratio makes the step lr ||x||, decay included."""
    network, lr = make_network(3), 5e-3
    before = {name: param.detach().clone() for name, param in network.named_parameters()}
    torch.manual_seed(1)
    for param in network.parameters():
        param.grad = torch.randn_like(param).sign() * (1 + torch.rand_like(param))
    Lamb(parameter_groups(network, weight_decay=0.01), lr).step()
    for name, param in network.named_parameters():
        moved = (param.detach() - before[name]).norm()
        if param.ndim <= 1:  # the first step of Adam: lr for each entry
            moved, expected = moved / param.numel() ** 0.5, torch.tensor(lr)
        else:
            expected = lr * before[name].norm()
        torch.testing.assert_close(moved, expected, rtol=1e-4, atol=0, msg=name)
    embeddings = {"latents", "tokenizer.positions.tables.0", "conditioning.classes.weight"}
    assert embeddings <= before.keys()
