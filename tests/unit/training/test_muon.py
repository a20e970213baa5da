"""Muon against torch's own Muon and AdamW, and against a singular value decomposition."""

import copy

import pytest
import torch
from torch import nn

from hpdm_core.build import build_optimizer
from hpdm_core.recipe.load import load_recipe
from hpdm_core.recipe.schema import Recipe
from hpdm_core.training import muon
from hpdm_core.training.lamb import Lamb
from hpdm_core.training.muon import Muon, muon_groups, orthogonalise
from tests.paper.tiny import make_network

SHAPES = [(12, 4), (4, 12), (6, 6)]


def make_recipe(name: str, *, precision: str = "fp32") -> Recipe:
    optim = {"name": name, "lr": 0.02, "betas": [0.8, 0.95], "weight_decay": 0.1}
    fields = [f"optim.{key}={value}" for key, value in optim.items()]
    return load_recipe("small", [*fields, f"train.precision={precision}"])


def steps_of(optimizers: list, network: nn.Module, *, grads: list[list], lrs: list[float]) -> None:
    """Take steps with given gradients and learning rates."""
    for step, lr in zip(grads, lrs, strict=True):
        for param, grad in zip(network.parameters(), step, strict=True):
            param.grad = None if grad is None else grad.clone()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()


def make_gradients(network: nn.Module, *, count: int) -> list[list]:
    """Return gradients of several steps; one block's first weights have none in the second."""
    torch.manual_seed(3)
    grads = [[torch.randn_like(p) for p in network.parameters()] for _ in range(count)]
    idle = {id(p) for p in network.blocks[-1].parameters()}
    for index, param in enumerate(network.parameters()):
        if id(param) in idle:
            grads[1][index] = None
    return grads


@pytest.mark.parametrize("stacked", [1, 1 << 25])
def test_ten_steps_equal_torch_s_muon_on_matrices_and_adamw_on_the_rest(stacked, monkeypatch):
    """AdamW to rounding; Muon to torch's bfloat16, a few parts in a hundred of each step."""
    monkeypatch.setattr(muon, "MAX_STACKED_ELEMENTS", stacked)
    network = make_network(3)
    start, peer = copy.deepcopy(network), copy.deepcopy(network)
    hidden = [p for p in peer.blocks.parameters() if p.ndim == 2]
    others = [p for p in peer.parameters() if not any(p is q for q in hidden)]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=(0.8, 0.95),
    )
    theirs = torch.optim.Muon(hidden, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    grads, lrs = make_gradients(network, count=10), [0.02 * 0.9**i for i in range(10)]
    steps_of([build_optimizer(network, make_recipe("muon"))], network, grads=grads, lrs=lrs)
    steps_of([theirs, adamw], peer, grads=grads, lrs=lrs)
    orthogonal = {name for name, p in peer.named_parameters() if any(p is q for q in hidden)}
    assert len(orthogonal) == len(hidden) > 0
    before, expected = dict(start.named_parameters()), dict(peer.named_parameters())
    for name, param in network.named_parameters():
        if name in orthogonal:
            moved = (expected[name] - before[name]).norm()
            assert (param - expected[name]).norm() < 0.03 * moved, name
        else:
            torch.testing.assert_close(param, expected[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_is_torch_s_own_arithmetic(shape):
    """One step of torch's Muon from zero, at rate 1 and without momentum, shows its update."""
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    updates = orthogonalise(matrices.bfloat16()).float()
    for matrix, update in zip(matrices, updates, strict=True):
        weight = nn.Parameter(torch.zeros(shape))
        weight.grad = matrix.clone()
        torch.optim.Muon([weight], lr=1.0, momentum=0.0, nesterov=False, weight_decay=0.0).step()
        theirs = -weight.detach() / max(1, shape[0] / shape[1]) ** 0.5
        torch.testing.assert_close(update, theirs, rtol=0, atol=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_iteration_is_its_quintic_on_the_singular_values(shape):
    """Directions stay; each singular value goes five times through a x + b x^3 + c x^5."""
    torch.manual_seed(1)
    matrices = torch.randn(2, *shape)
    u, s, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    s = s / s.norm(dim=1, keepdim=True)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    expected = u @ torch.diag_embed(s) @ vh
    torch.testing.assert_close(orthogonalise(matrices).double(), expected, rtol=0, atol=1e-4)
    assert 0.6 < s.min() < s.max() < 1.3


def test_an_update_has_the_root_mean_square_of_adamw_s_and_ignores_the_gradient_s_size():
    torch.manual_seed(2)
    starts = [torch.randn(48, 32), torch.randn(48, 32)]
    weights = [nn.Parameter(start.clone()) for start in starts]
    gradient = torch.randn(48, 32)
    optimizer = Muon([{"params": weights, "use_muon": True}], 0.1)
    for weight, scale in zip(weights, (1e-4, 1e4), strict=True):
        weight.grad = gradient * scale
    optimizer.step()
    moved = [w.detach() - s for w, s in zip(weights, starts, strict=True)]
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-2, atol=1e-5)
    assert moved[0].square().mean().sqrt().item() == pytest.approx(0.1 * 0.2, rel=0.2)


def test_every_parameter_is_in_one_group_and_hidden_matrices_alone_are_orthogonalised():
    network = make_network(3, self_conditioning=True)
    names = {id(param): name for name, param in network.named_parameters()}
    groups = muon_groups(network, weight_decay=0.3)
    members = [[names[id(p)] for p in group["params"]] for group in groups]
    assert sorted(n for group in members for n in group) == sorted(names.values())
    hidden, matrices, vectors = members
    shapes = {name: param.ndim for name, param in network.named_parameters()}
    assert set(hidden) == {n for n in names.values() if n.startswith("blocks.") and shapes[n] == 2}
    assert set(vectors) == {n for n in names.values() if shapes[n] <= 1}
    embeddings = {"latents", "tokenizer.positions.tables.0", "conditioning.classes.weight"}
    assert embeddings < set(matrices)
    assert [group["use_muon"] for group in groups] == [True, False, False]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.3, 0.0]


def test_bf16_training_orthogonalises_in_bf16_on_a_cpu_too():
    """Close to float32 and not equal to it: bfloat16 keeps three digits."""
    moved = []
    for precision in ("fp32", "bf16"):
        network = make_network(3)
        recipe = make_recipe("muon", precision=precision)
        grads, before = make_gradients(network, count=2)[:1], copy.deepcopy(network)
        steps_of([build_optimizer(network, recipe)], network, grads=grads, lrs=[0.02])
        pairs = zip(network.blocks.parameters(), before.blocks.parameters(), strict=True)
        moved.append(torch.cat([(a - b).flatten() for a, b in pairs if a.ndim == 2]).detach())
    assert 0 < (moved[0] - moved[1]).norm() / moved[0].norm() < 0.05


def test_the_recipe_s_name_chooses_the_optimiser():
    network = make_network(2)
    kinds = {"lamb": Lamb, "adamw": torch.optim.AdamW, "muon": Muon}
    for name, kind in kinds.items():
        optimizer = build_optimizer(network, make_recipe(name))
        assert type(optimizer) is kind
        assert {group["lr"] for group in optimizer.param_groups} == {0.02}
        assert optimizer.param_groups[-1]["betas"] == (0.8, 0.95)
