"""From a network F to a denoiser D (Sec. 4.6; Karras et al. 2022, Eq. 7).

A noisy video is y = x + sigma eps with x in [-1, 1]: sigma means the same on every level, in
training, solvers and caches. The denoised video is D = c_skip y + c_out F(c_in y, c_noise).
`docs/learning.md` compares the three parametrisations of F.

- `v`: v-prediction (Salimans and Ho 2022) for videos of standard deviation sigma_data, which is
  EDM's form (Karras et al. 2022, Table 1).
- `x`: the clean video itself, which JiT (Li and He 2025) recommends where a token holds about as
  many values as the network is wide.
- `snapvideo`: v of the video divided by the input scale (Menapace et al. 2024, Eq. 35, 43).

Axis legend: `b` batch; `...` the axes of a video.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Parametrisation = Literal["v", "x", "snapvideo"]


@dataclass(frozen=True, kw_only=True)
class Scalings:
    """The coefficients at some noise levels, each of shape (b, 1, 1, 1, 1) but `c_noise`.

    Args:
        c_in: scales the noisy video for the network.
        c_skip: factor on the noisy video.
        c_out: factor on the network's output.
        c_noise: (b,) noise conditioning of the network.
        weight: weight of the squared error of the denoised video in the loss.
    """

    c_in: Tensor
    c_skip: Tensor
    c_out: Tensor
    c_noise: Tensor
    weight: Tensor

    def denoised(self, noisy: Tensor, output: Tensor) -> Tensor:
        """Return D from y and F, both (b, c, t, h, w)."""
        return self.c_skip * noisy + self.c_out * output


@dataclass(frozen=True, kw_only=True)
class Preconditioning:
    """Preconditioning of one level's network.

    Args:
        parametrisation: 'v', 'x' or 'snapvideo'.
        sigma_data: standard deviation of the videos, for 'v' and 'x'.
        sigma_in: input scale, for 'snapvideo'.
        x_weight_cap: largest weight of the error of D, for 'x'.
    """

    parametrisation: Parametrisation
    sigma_data: float
    sigma_in: float
    x_weight_cap: float

    def __call__(self, sigma: Tensor) -> Scalings:
        """Return the coefficients at noise levels `sigma` (b,)."""
        return {"v": self._v, "x": self._x, "snapvideo": self._snapvideo}[self.parametrisation](
            sigma.reshape(-1, 1, 1, 1, 1)
        )

    def _v(self, sigma: Tensor) -> Scalings:
        """EDM, Table 1: unit variance of input and target, weight 1 on the error of F."""
        sd = self.sigma_data
        total = sigma**2 + sd**2
        return Scalings(
            c_in=total.rsqrt(),
            c_skip=sd**2 / total,
            c_out=sigma * sd * total.rsqrt(),
            c_noise=_quarter_log(sigma),
            weight=total / (sigma * sd) ** 2,
        )

    def _x(self, sigma: Tensor) -> Scalings:
        """D = sigma_data F, without a skip of the noisy video. The weight is v's, capped."""
        sd = self.sigma_data
        total = sigma**2 + sd**2
        return Scalings(
            c_in=total.rsqrt(),
            c_skip=torch.zeros_like(sigma),
            c_out=torch.full_like(sigma, sd),
            c_noise=_quarter_log(sigma),
            weight=(total / (sigma * sd) ** 2).clamp(max=self.x_weight_cap),
        )

    def _snapvideo(self, sigma: Tensor) -> Scalings:
        """SnapVideo's form with its sigma_data of 1, at s = sigma / sigma_in of the scaled video.

        F points along +v = eps - s x, so c_out is negative. Its weight equals 1 + 1 / s^2 on D.
        """
        s = sigma / self.sigma_in
        return Scalings(
            c_in=(1 + sigma**2).rsqrt(),
            c_skip=1 / (1 + self.sigma_in * s**2),
            c_out=-sigma * (1 + s**2).sqrt() / (1 + self.sigma_in * s**2),
            c_noise=_quarter_log(s),
            weight=1 + 1 / s**2,
        )


def add_noise(video: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return y = x + sigma eps (Eq. 1); `sigma` is (b,)."""
    return video + sigma.reshape(-1, 1, 1, 1, 1) * noise


def _quarter_log(sigma: Tensor) -> Tensor:
    """Return c_noise = ln(sigma) / 4 (EDM, Table 1), (b,)."""
    return torch.log(sigma.flatten()) / 4
