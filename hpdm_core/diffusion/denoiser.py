"""A network as a denoiser of one level's patches, in the scaled space that the solvers work in.

Axis legend: `b` patches, `c` channels, `t h w` video, `n` latents, `d` width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpdm_core.diffusion.preconditioning import coefficients, noise_label
from hpdm_core.geometry.boxes import Box
from hpdm_core.records import Condition, LevelNetwork, LevelOutput


@dataclass(frozen=True, kw_only=True)
class LevelDenoiser:
    """Preconditioning around a network.

    Args:
        network: runs one level at a time.
        sigma_in: per level, the input scale.
    """

    network: LevelNetwork
    sigma_in: tuple[float, ...]

    def denoise(
        self,
        noisy: Tensor,
        sigma: float,
        *,
        level: int,
        condition: Condition,
        context: tuple[Tensor, ...],
        latents: Tensor | None,
    ) -> LevelOutput:
        """Return the estimate of the clean scaled patches x / sigma_in, in `output`.

        Args:
            noisy: (b, c, t, h, w) x / sigma_in + sigma eps.
            sigma: noise level of all patches.
            level: level of all patches.
            condition: (b,) rows.
            context: the network's context for these patches.
            latents: (b, n, d) final latents of the step before, or None.
        """
        sigma_in = self.sigma_in[level]
        sigmas = torch.full((len(noisy),), sigma, device=noisy.device)
        scales = coefficients(sigmas, sigma_in)
        result = self.network.run_level(
            scales.c_in * noisy,
            noise_label(sigmas),
            level=level,
            condition=condition,
            context=context,
            latents=latents,
        )
        denoised = (scales.c_skip * noisy + scales.c_out * result.output.float()) / sigma_in
        return LevelOutput(output=denoised, latents=result.latents, features=result.features)

    def context(
        self, features: Sequence[tuple[Tensor, ...]], boxes: tuple[Box, ...]
    ) -> tuple[Tensor, ...]:
        """Return the network's context for patches, from the features of their ancestors."""
        return self.network.context(features, boxes)
