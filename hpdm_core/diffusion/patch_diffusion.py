"""The training loss: nested patches, each level with its own noise (Sec. 4, Eq. 4).

All draws of a sample come from a generator of its own, seeded by (seed, step, index in the global
batch): the loss is the same for any split of the batch over passes and devices.

Axis legend: `b` batch, `c` channels, `t h w` video, `l` level.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hpdm_core.diffusion.preconditioning import Preconditioning, add_noise
from hpdm_core.geometry.boxes import pyramid_boxes
from hpdm_core.geometry.pyramid import Pyramid
from hpdm_core.records import Network, PatchBatch
from hpdm_core.seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class LevelLosses:
    """The loss of a batch.

    Args:
        total: scalar, the mean over the batch of the levels' weighted mean.
        sums: (l,) detached weighted squared errors, added up over samples.
        counts: (l,) how many samples contributed to each.
    """

    total: Tensor
    sums: Tensor
    counts: Tensor

    @property
    def per_level(self) -> Tensor:
        """(l,) mean errors; 0 where no sample contributed."""
        return mean_by_level(self.sums, self.counts)


def mean_by_level(sums: Tensor, counts: Tensor) -> Tensor:
    """Return sums over counts, 0 where nothing was counted."""
    return torch.where(counts > 0, sums / counts.clamp(min=1e-9), 0.0)


@dataclass(frozen=True, kw_only=True)
class NoiseDraws:
    """The random part of a batch.

    Args:
        sigma: (b, l) noise levels.
        counts: (b, l) 1 where the level contributes to the loss, 0 where it is only clean context.
        noise: per level (b, c, t, h, w) standard normal.
        drop: (b,) bool, True where the condition is dropped.
        self_condition: (b,) bool, True where latents start from an earlier pass.
    """

    sigma: Tensor
    counts: Tensor
    noise: tuple[Tensor, ...]
    drop: Tensor
    self_condition: Tensor


@dataclass(frozen=True, kw_only=True)
class PatchDiffusion:
    """Noise distribution and loss weights.

    Args:
        pyramid: the levels.
        preconditioning: per level, the parametrisation and its loss weight.
        noise_mean: per level, mean of ln sigma, in the video's own units.
        noise_std: per level, standard deviation of ln sigma.
        level_weights: per level, weight of its error.
        condition_dropout: fraction of samples trained without condition.
        clean_context: fraction of samples in which the levels below one drawn at random are at
            `context_sigma`, as at sampling; the errors of these do not count.
        context_sigma: noise level of finished lower levels.
        self_conditioning: fraction of samples whose latents start from an earlier pass.
    """

    pyramid: Pyramid
    preconditioning: tuple[Preconditioning, ...]
    noise_mean: tuple[float, ...]
    noise_std: tuple[float, ...]
    level_weights: tuple[float, ...]
    condition_dropout: float
    clean_context: float
    context_sigma: float
    self_conditioning: float

    def loss(self, network: Network, batch: PatchBatch, *, seed: int, step: int) -> LevelLosses:
        """Return the weighted squared error of the network's prediction (Eq. 4).

        Args:
            network: the network, or its DDP or FSDP2 wrapper.
            batch: clean patches; fewer levels than the pyramid has are its coarsest ones.
            seed: seed of the run.
            step: optimiser step that the batch belongs to.
        """
        draws = self.draw(batch, seed=seed, step=step)
        levels = len(batch.patches)
        scalings = [self.preconditioning[level](draws.sigma[:, level]) for level in range(levels)]
        noisy = [
            add_noise(batch.patches[level], draws.noise[level], draws.sigma[:, level])
            for level in range(levels)
        ]
        inputs = tuple(scales.c_in * y for scales, y in zip(scalings, noisy, strict=True))
        c_noise = torch.stack([scales.c_noise for scales in scalings], dim=1)  # (b, l)
        boxes = pyramid_boxes(self.pyramid, batch.offsets)[:levels]
        condition = batch.condition.drop(draws.drop)
        latents = None
        if self.self_conditioning > 0:
            with torch.no_grad():
                _, latents = network(inputs, c_noise, boxes, condition, None, latents_only=True)
            keep = draws.self_condition[:, None, None]
            latents = tuple(state * keep for state in latents)
        outputs, _ = network(inputs, c_noise, boxes, condition, latents)
        errors = draws.counts * torch.stack(
            [
                scales.weight.flatten()
                * (scales.denoised(y, output.float()) - x).square().flatten(1).mean(1)
                for scales, y, output, x in zip(
                    scalings, noisy, outputs, batch.patches, strict=True
                )
            ],
            dim=1,
        )  # (b, l)
        level_weights = errors.new_tensor(self.level_weights[:levels])
        total = (errors @ level_weights).mean() / levels
        return LevelLosses(total=total, sums=errors.detach().sum(0), counts=draws.counts.sum(0))

    def draw(self, batch: PatchBatch, *, seed: int, step: int) -> NoiseDraws:
        """Draw noise levels, noise and dropout for each sample of a batch."""
        device = batch.patches[0].device
        generator = torch.Generator(device)
        levels, shape = len(batch.patches), batch.patches[0].shape[1:]
        uniforms, normals = [], []
        for index in batch.indices.tolist():
            generator.manual_seed(derive_seed(seed, "noise", step, index))
            uniforms.append(torch.rand(4, generator=generator, device=device))
            # Noise levels first, then each level in a call of its own (generators draw in blocks),
            # so that leaving out fine levels changes nothing on coarse ones.
            ln_sigma = torch.randn(self.pyramid.num_levels, generator=generator, device=device)
            noise = [torch.randn(shape, generator=generator, device=device) for _ in range(levels)]
            normals.append((ln_sigma[:levels], torch.stack(noise)))
        uniform = torch.stack(uniforms)  # (b, 4)
        noise = torch.stack([n for _, n in normals], dim=1)  # (l, b, c, t, h, w)
        mean = uniform.new_tensor(self.noise_mean[:levels])
        std = uniform.new_tensor(self.noise_std[:levels])
        sigma = (mean + std * torch.stack([z for z, _ in normals])).exp()  # (b, l)
        cleaned = self._cleaned_levels(uniform[:, 2], uniform[:, 3], levels)
        return NoiseDraws(
            sigma=torch.where(cleaned, self.context_sigma, sigma),
            counts=(~cleaned).to(sigma.dtype),
            noise=tuple(noise),
            drop=uniform[:, 0] < self.condition_dropout,
            self_condition=uniform[:, 1] < self.self_conditioning,
        )

    def _cleaned_levels(self, chosen: Tensor, which: Tensor, levels: int) -> Tensor:
        """Return (b, l) bool: the levels below one drawn from 1..l-1, in the chosen samples."""
        index = torch.arange(levels, device=chosen.device)
        # The finest level always contributes, also if it is the only one.
        first_noisy = (1 + (which * (levels - 1)).floor()).clamp(max=levels - 1)
        return (chosen < self.clean_context)[:, None] & (index < first_noisy[:, None])
