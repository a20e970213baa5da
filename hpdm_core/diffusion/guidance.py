"""Classifier-free guidance as a wrapper of two denoisers (Ho and Salimans 2022)."""

from torch import Tensor

from hpdm_core.diffusion.samplers import Denoise


def guided(conditional: Denoise, unconditional: Denoise, guidance: float) -> Denoise:
    """Return D_none + guidance (D_condition - D_none); 0 is unconditional, 1 conditional."""

    def denoise(x: Tensor, sigma: float) -> Tensor:
        base = unconditional(x, sigma)
        return base + guidance * (conditional(x, sigma) - base)

    return denoise
