"""Classifier-free guidance around a denoiser (Ho and Salimans 2022; Kynkäänniemi et al. 2024).

Axis legend: `b` batch; `...` the axes of a video.
"""

from dataclasses import dataclass

from torch import Tensor

from hpdm_core.diffusion.samplers import Denoise


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Guidance scale, and the noise levels that it is applied at.

    Args:
        scale: 0 is unconditional, 1 conditional, more exaggerates the condition.
        interval: smallest and largest noise level with guidance; None: all. Outside it the
            conditional estimate is used (Kynkäänniemi et al. 2024).
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None

    def active(self, sigma: float) -> bool:
        """Return whether an estimate at noise level `sigma` needs the unconditional one too."""
        if self.scale == 1.0:
            return False
        return self.interval is None or self.interval[0] <= sigma <= self.interval[1]


def guided(conditional: Denoise, unconditional: Denoise, guidance: Guidance) -> Denoise:
    """Return the denoiser D_none + scale (D_condition - D_none), where guidance is active."""

    def denoise(x: Tensor, sigma: float) -> Tensor:
        estimate = conditional(x, sigma)
        if not guidance.active(sigma):
            return estimate
        without = unconditional(x, sigma)
        return without + guidance.scale * (estimate - without)

    return denoise
