"""Distillation: the target of a student's step, and the context that it learns with.

The paper names distillation as what its end-to-end models allow; the method is that of Salimans
and Ho 2022.
"""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from hpdm_core.diffusion.denoiser import LevelDenoiser
from hpdm_core.diffusion.distillation import Distillation, between
from hpdm_core.diffusion.guidance import Guidance
from hpdm_core.diffusion.samplers import Solver, karras_sigmas
from hpdm_core.geometry.boxes import pyramid_boxes
from hpdm_core.records import Condition, PatchBatch
from tests.paper.tiny import (
    PointwiseNetwork,
    draw,
    make_batch,
    make_network,
    make_preconditioning,
    make_pyramid,
    make_settings,
)

STD = 0.5


def distillation(
    network, *, levels: int = 2, steps: int = 1, substeps: int = 1, **changes
) -> Distillation:
    return Distillation(
        pyramid=make_pyramid(levels),
        teacher=LevelDenoiser(network=network, preconditioning=make_preconditioning(levels)),
        solvers=(Solver(name="euler", steps=steps, sigma_max=5.0),) * levels,
        substeps=substeps,
        guidance=changes.pop("guidance", Guidance()),
        level_weights=changes.pop("level_weights", (1.0,) * levels),
        context_sigma=0.05,
        self_conditioning=changes.pop("self_conditioning", 0.0),
    )


def rows_of(batch: PatchBatch, rows: slice) -> PatchBatch:
    return PatchBatch(
        patches=tuple(patch[rows] for patch in batch.patches),
        offsets=batch.offsets[rows],
        condition=batch.condition.select(rows),
        indices=batch.indices[rows],
    )


@pytest.mark.parametrize("step", range(4))
def test_an_euler_step_with_the_target_ends_where_the_exact_flow_does(step):
    """Gaussian data: x' = x sqrt((sd^2 + sigma'^2) / (sd^2 + sigma^2))."""
    teacher = PointwiseNetwork(
        lambda noisy, sigma, _: noisy * STD**2 / (STD**2 + sigma**2), make_preconditioning(1)
    )
    loss = distillation(teacher, levels=1, steps=4, substeps=64)
    sigma, sigma_next = list(pairwise(loss.solvers[0].sigmas))[step]
    batch = make_batch(make_pyramid(1), 2)
    noisy = batch.patches[0] + sigma * torch.randn_like(batch.patches[0])
    boxes = pyramid_boxes(loss.pyramid, batch.offsets)
    target = loss._target((noisy,), boxes, batch.condition, sigma, sigma_next)
    ended = noisy + (sigma_next - sigma) * (noisy - target) / sigma
    exact = noisy * math.sqrt((STD**2 + sigma_next**2) / (STD**2 + sigma**2))
    assert (ended - exact).abs().max() < 2e-3 * max(1.0, sigma)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_teachers_noise_levels_are_spaced_like_the_schedule(steps):
    solver = Solver(name="euler", steps=4, sigma_max=10.0)
    fine = karras_sigmas(3 * steps + 1, sigma_min=0.002, sigma_max=10.0, rho=7.0)
    coarse = fine[::steps][:4]
    for index, (sigma, sigma_next) in enumerate(pairwise(coarse)):
        found = between(sigma, sigma_next, steps=steps, solver=solver)
        assert found == pytest.approx(fine[index * steps : (index + 1) * steps + 1])
    last = between(10.0, 0.0, steps=steps, solver=solver)
    assert last[0] == pytest.approx(10.0)
    assert (last[-1], len(last)) == (0.0, steps + 1)
    assert list(last) == sorted(last, reverse=True)


@pytest.mark.parametrize("block", ["rin", "transformer"])
@pytest.mark.parametrize("context", ["deep", "shallow"])
def test_a_teacher_of_one_step_has_nothing_to_teach_itself(block, context):
    """One step of the schedule and of the teacher: its own estimate, with the same context."""
    network = make_network(2, block=block, context=context)
    batch = make_batch(make_pyramid(2), 3)
    losses = distillation(network).loss(network, batch, seed=0, step=0)
    assert losses.per_level.shape == (2,)
    assert losses.total < 1e-8
    other = make_network(2, block=block, context=context, seed=1)
    assert distillation(network).loss(other, batch, seed=0, step=0).total > 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"substeps": 3},
        {"guidance": Guidance(scale=2.0)},
        {"level_weights": (1.0, 3.0)},
        {"self_conditioning": 1.0},
    ],
    ids=str,
)
def test_every_option_changes_the_loss(changes):
    network = make_network(2, self_conditioning=True)
    student = make_network(2, self_conditioning=True, seed=1)
    batch = make_batch(make_pyramid(2), 3)
    totals = [
        distillation(network, **options).loss(student, batch, seed=0, step=0).total
        for options in ({}, changes)
    ]
    assert not torch.allclose(totals[0], totals[1], rtol=1e-4)


def test_the_loss_of_a_batch_is_the_mean_over_its_parts():
    network, student = make_network(3), make_network(3, seed=1)
    batch = make_batch(make_pyramid(3), 4)
    loss = distillation(network, levels=3, steps=3, substeps=2).loss
    whole = loss(student, batch, seed=4, step=7)
    parts = [
        loss(student, rows_of(batch, slice(k, k + 2)), seed=4, step=7).per_level for k in (0, 2)
    ]
    assert torch.allclose(whole.per_level, (parts[0] + parts[1]) / 2, rtol=1e-4)
    # Fewer levels are the coarsest ones, as under level dropout.
    coarse = loss(student, replace(batch, patches=batch.patches[:2]), seed=4, step=7)
    assert torch.allclose(coarse.per_level, whole.per_level[:2], rtol=1e-4)


def test_all_steps_of_the_schedule_are_learned_and_the_teacher_is_not_changed():
    network, student = make_network(2), make_network(2, seed=1)
    network.requires_grad_(False)
    batch = make_batch(make_pyramid(2), 1)
    loss = distillation(network, steps=3)
    values = {loss.loss(student, batch, seed=0, step=k).per_level[0].item() for k in range(12)}
    assert len(values) == 12  # other noise in each update
    loss.loss(student, batch, seed=0, step=0).total.backward()
    assert all(p.grad is None for p in network.parameters())
    assert sum(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters()) > 20


def test_a_student_comes_closer_to_the_converged_video_than_its_teacher_in_as_few_steps():
    """Two evaluations; the data are the teacher's own videos."""
    pyramid = make_pyramid(1)
    teacher, student = (make_network(1, conditioning="none") for _ in range(2))

    def drawn(network, steps: int, seeds: range, solver: str = "euler") -> torch.Tensor:
        smallest = 0.25 if steps == 2 else 0.002
        settings = make_settings(
            (steps,), overlap="", solver=solver, sigma_min=smallest, sigma_max=5.0
        )
        (video,) = draw(network, pyramid, settings, seeds=seeds, condition=Condition())
        return video.clone()

    data, converged = (drawn(teacher, 40, r, "dpmpp_3m") for r in (range(32), range(900, 932)))
    loss = distillation(teacher, levels=1, steps=2, substeps=4)
    loss = replace(loss, solvers=(Solver(name="euler", steps=2, sigma_min=0.25, sigma_max=5.0),))
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    for step in range(48):
        rows = slice(step % 2 * 16, step % 2 * 16 + 16)
        batch = PatchBatch(patches=(data[rows],), offsets=torch.zeros(16, 1, 3, dtype=torch.int64))
        optimizer.zero_grad()
        loss.loss(student, batch, seed=0, step=step).total.backward()
        optimizer.step()
    error = {
        name: (drawn(network, 2, range(900, 932)) - converged).square().mean().sqrt()
        for name, network in (("teacher", teacher), ("student", student))
    }
    assert error["student"] < 0.85 * error["teacher"]
