"""A network as a denoiser of one level's patches.

Axis legend: `b` patches, `c` channels, `t h w` video, `n` latents, `d` width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hpdm_core.diffusion.preconditioning import Preconditioning
from hpdm_core.geometry.boxes import Box
from hpdm_core.records import Condition, LevelNetwork, LevelOutput


@dataclass(frozen=True, kw_only=True)
class LevelDenoiser:
    """Preconditioning around a network.

    Args:
        network: runs one level at a time.
        preconditioning: per level, the parametrisation and its coefficients.
    """

    network: LevelNetwork
    preconditioning: tuple[Preconditioning, ...]

    def denoise(
        self,
        noisy: Tensor,
        sigma: float,
        *,
        level: int,
        condition: Condition,
        context: tuple[Tensor, ...],
        latents: Tensor | None,
        latents_only: bool = False,
    ) -> LevelOutput:
        """Return the estimate of the clean patches, in `output`.

        Args:
            noisy: (b, c, t, h, w) x + sigma eps.
            sigma: noise level of all patches.
            level: level of all patches.
            condition: (b,) rows.
            context: the network's context for these patches.
            latents: (b, n, d) final latents of the step before, or None.
            latents_only: compute latents and features alone; `output` is then empty.
        """
        sigmas = torch.full((len(noisy),), sigma, device=noisy.device)
        scales = self.preconditioning[level](sigmas)
        result = self.network.run_level(
            scales.c_in * noisy,
            scales.c_noise,
            level=level,
            condition=condition,
            context=context,
            latents=latents,
            latents_only=latents_only,
        )
        if latents_only:
            return result
        denoised = scales.denoised(noisy, result.output.float())
        return replace(result, output=denoised)

    def context(
        self, features: Sequence[tuple[Tensor, ...]], boxes: tuple[Box, ...]
    ) -> tuple[Tensor, ...]:
        """Return the network's context for patches, from the features of their ancestors."""
        return self.network.context(features, boxes)
