"""EDM coefficients with v-prediction and input scaling (Sec. 4.6; Menapace et al. 2024, Chen 2023).

The forward process divides the video by `sigma_in` before noise is added:
x_sigma = x / sigma_in + sigma * eps. The network F predicts v / (sigma_d sqrt(sigma^2 +
sigma_d^2)) with v = sigma_d^2 eps - sigma x, and the denoised video is
D = c_skip x_sigma + c_out F(c_in x_sigma). Here sigma_d = 1.

Axis legend: `b` batch; `...` the axes of a video.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """Scalings at some noise levels, each of shape (b, 1, 1, 1, 1).

    Args:
        c_in: scales the noisy video to unit variance.
        c_skip: share of the noisy video in the denoised one.
        c_out: share of the network's output in the denoised one; negative, as F points along +v.
        loss_weight: weight of the squared error of F, equal to 1 + 1 / sigma^2 on that of D.
    """

    c_in: Tensor
    c_skip: Tensor
    c_out: Tensor
    loss_weight: Tensor


def coefficients(sigma: Tensor, sigma_in: float) -> Coefficients:
    """Return the scalings at noise levels `sigma` (b,) of a level with input scale `sigma_in`."""
    s = sigma.reshape(-1, 1, 1, 1, 1)
    norm = (1 + s**2).sqrt()
    return Coefficients(
        c_in=(1 / sigma_in**2 + s**2).rsqrt(),
        c_skip=sigma_in / (1 + sigma_in * s**2),
        c_out=-sigma_in * s * norm / (1 + sigma_in * s**2),
        loss_weight=(1 + s**2) ** 2 / (s**2 + 1 / sigma_in) ** 2,
    )


def add_noise(video: Tensor, noise: Tensor, sigma: Tensor, sigma_in: float) -> Tensor:
    """Return x_sigma = x / sigma_in + sigma eps; `sigma` is (b,)."""
    return video / sigma_in + sigma.reshape(-1, 1, 1, 1, 1) * noise


def network_target(video: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return v / sqrt(sigma^2 + 1) with v = eps - sigma x; `sigma` is (b,)."""
    s = sigma.reshape(-1, 1, 1, 1, 1)
    return (noise - s * video) * (1 + s**2).rsqrt()


def noise_label(sigma: Tensor) -> Tensor:
    """Return what the network is told of the noise level: ln(sigma) / 4 (EDM, Table 1)."""
    return torch.log(sigma) / 4
