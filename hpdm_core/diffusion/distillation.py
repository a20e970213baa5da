"""The loss of a student that samples in few evaluations (progressive distillation).

Salimans and Ho 2022, Sec. 3: from a noisy video x at one noise level of the student's schedule the
teacher solves the flow to the next one, x'; the student learns the estimate D with which its own
single Euler step ends there too,

    x' = r x + (1 - r) D,  r = sigma' / sigma,  so  D = (x' - r x) / (1 - r).

The schedule is the student's final one from the start, with several teacher steps between two of
its levels, instead of halvings in turn. Each level of the pyramid trains as it is sampled: its
lower levels are finished, at `context_sigma`. Teacher and student are the same network.

Axis legend: `b` batch, `c` channels, `t h w` video, `l` level.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from hpdm_core.diffusion.denoiser import LevelDenoiser
from hpdm_core.diffusion.guidance import Guidance, guided
from hpdm_core.diffusion.patch_diffusion import LevelLosses
from hpdm_core.diffusion.preconditioning import add_noise
from hpdm_core.diffusion.samplers import Denoise, Solver, karras_sigmas, sample_edm
from hpdm_core.geometry.boxes import Box, pyramid_boxes
from hpdm_core.geometry.pyramid import Pyramid
from hpdm_core.records import Condition, Network, PatchBatch
from hpdm_core.seeds import derive_seed

SMALLEST_SIGMA = 0.002


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """The student's schedule and its teacher.

    Args:
        pyramid: the levels.
        teacher: the trained model; student and teacher share its preconditioning.
        solvers: the student's, one per level: Euler's method.
        substeps: second-order steps of the teacher for one of the student's.
        guidance: of the teacher; the student learns the guided estimate.
        level_weights: per level, weight of its error.
        context_sigma: noise level of finished lower levels.
        self_conditioning: fraction of samples whose latents start from an earlier pass.
    """

    pyramid: Pyramid
    teacher: LevelDenoiser
    solvers: tuple[Solver, ...]
    substeps: int
    guidance: Guidance
    level_weights: tuple[float, ...]
    context_sigma: float
    self_conditioning: float

    def loss(self, network: Network, batch: PatchBatch, *, seed: int, step: int) -> LevelLosses:
        """Return the weighted squared error of the student's estimate; one step of each level.

        Args:
            network: the student, or its DDP or FSDP2 wrapper.
            batch: clean patches; fewer levels than the pyramid has are its coarsest ones.
            seed: seed of the run.
            step: optimiser step that the batch belongs to; draws the step of the schedule.
        """
        boxes = pyramid_boxes(self.pyramid, batch.offsets)
        errors = [
            self._level_error(network, batch, boxes[: level + 1], seed=seed, step=step)
            for level in range(len(batch.patches))
        ]
        per_level = torch.stack(errors)
        weights = per_level.new_tensor(self.level_weights[: len(errors)])
        counts = torch.full_like(per_level.detach(), len(batch.indices))
        total = (per_level * weights).mean()
        return LevelLosses(total=total, sums=per_level.detach() * counts, counts=counts)

    def _level_error(
        self, network: Network, batch: PatchBatch, boxes: tuple[Box, ...], *, seed: int, step: int
    ) -> Tensor:
        """Return the error of the finest level of `boxes`, a scalar."""
        level = len(boxes) - 1
        steps = list(pairwise(self.solvers[level].sigmas))
        sigma, sigma_next = steps[derive_seed(seed, "distilled step", step, level) % len(steps)]
        noisy, keep = self._noisy(batch, level, sigma, seed=seed, step=step)
        target = self._target(noisy, boxes, batch.condition, sigma, sigma_next)
        rows = len(noisy[0])
        sigmas = noisy[0].new_tensor([*[self.context_sigma] * level, sigma]).expand(rows, -1)
        scalings = [
            p(sigmas[:, k]) for k, p in enumerate(self.teacher.preconditioning[: level + 1])
        ]
        inputs = tuple(scales.c_in * y for scales, y in zip(scalings, noisy, strict=True))
        c_noise = torch.stack([scales.c_noise for scales in scalings], dim=1)  # (b, l)
        latents = None
        if self.self_conditioning > 0:
            with torch.no_grad():
                _, latents = network(
                    inputs, c_noise, boxes, batch.condition, None, latents_only=True
                )
            latents = tuple(state * keep[:, None, None] for state in latents)
        outputs, _ = network(inputs, c_noise, boxes, batch.condition, latents)
        scales = scalings[level]
        estimate = scales.denoised(noisy[level], outputs[level].float())
        return (scales.weight.flatten() * (estimate - target).square().flatten(1).mean(1)).mean()

    def _noisy(
        self, batch: PatchBatch, level: int, sigma: float, *, seed: int, step: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the patches with noise, and (b,) bool: latents start from an earlier pass.

        Lower levels are at `context_sigma`, as at sampling.
        """
        device, shape = batch.patches[0].device, batch.patches[0].shape[1:]
        generator = torch.Generator(device)
        rows, keep = [], []
        for index in batch.indices.tolist():
            generator.manual_seed(derive_seed(seed, "distillation", step, level, index))
            keep.append(torch.rand(1, generator=generator, device=device))
            rows.append(torch.randn((level + 1, *shape), generator=generator, device=device))
        noise = torch.stack(rows, dim=1)  # (l, b, c, t, h, w)
        levels = (*[self.context_sigma] * level, sigma)
        noisy = tuple(
            add_noise(batch.patches[k], noise[k], noise.new_tensor(levels[k]))
            for k in range(level + 1)
        )
        return noisy, torch.cat(keep) < self.self_conditioning

    @torch.no_grad()
    def _target(
        self,
        noisy: tuple[Tensor, ...],
        boxes: tuple[Box, ...],
        condition: Condition,
        sigma: float,
        sigma_next: float,
    ) -> Tensor:
        """Return the estimate with which one Euler step ends where the teacher's steps do."""
        denoise = self._teacher(noisy, boxes, condition)
        if self.guidance.scale != 1.0:
            without = self._teacher(noisy, boxes, condition.dropped())
            denoise = guided(denoise, without, self.guidance)
        solver = self.solvers[len(boxes) - 1]
        sigmas = between(sigma, sigma_next, steps=self.substeps, solver=solver)
        heun = Solver(name="heun", steps=self.substeps)
        x = noisy[-1].double()
        ended = sample_edm(denoise, x, heun, noise=lambda: torch.zeros_like(x), sigmas=sigmas)
        ratio = sigma_next / sigma
        return ((ended - ratio * x) / (1 - ratio)).float()

    def _teacher(
        self, noisy: tuple[Tensor, ...], boxes: tuple[Box, ...], condition: Condition
    ) -> Denoise:
        """Return the teacher as a denoiser of the finest level, whose context is computed once."""
        level, features = len(boxes) - 1, []
        for k in range(level):
            context = self.teacher.context(features, boxes[: k + 1]) if k > 0 else ()
            asked = {"level": k, "condition": condition, "context": context}
            latents = None
            if self.self_conditioning > 0:
                latents = self.teacher.denoise(
                    noisy[k], self.context_sigma, latents=None, latents_only=True, **asked
                ).latents
            features.append(
                self.teacher.denoise(
                    noisy[k], self.context_sigma, latents=latents, latents_only=True, **asked
                ).features
            )
        context = self.teacher.context(features, boxes) if level > 0 else ()
        latents = None

        def denoise(x: Tensor, sigma: float) -> Tensor:
            nonlocal latents
            result = self.teacher.denoise(
                x.float(), sigma, level=level, condition=condition, context=context, latents=latents
            )
            if self.self_conditioning > 0:
                latents = result.latents
            return result.output.to(x.dtype)

        return denoise


def between(sigma: float, sigma_next: float, *, steps: int, solver: Solver) -> tuple[float, ...]:
    """Return steps + 1 noise levels from one to the next of a schedule, spaced like it.

    Before 0 they end with a hundredth of the last noise level, but with at least EDM's smallest.
    """
    if sigma_next == 0:
        smallest = min(sigma / 2, max(SMALLEST_SIGMA, sigma / 100))
        return karras_sigmas(steps, sigma_min=smallest, sigma_max=sigma, rho=solver.rho)
    inner = karras_sigmas(steps + 1, sigma_min=sigma_next, sigma_max=sigma, rho=solver.rho)
    return inner[:-1]
