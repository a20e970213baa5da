"""From seeds to videos, level by level: the only sampling path (Sec. 4.4, appendix A).

Level 0 uses EDM's stochastic second-order solver, the later levels deterministic first-order
steps. All noise of a video comes from generators of its own, one per level, on the CPU: a video
depends on its seed, condition and settings alone.

Axis legend: `b` samples, `c` channels, `t h w` video.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hpdm_core.diffusion.denoiser import LevelDenoiser
from hpdm_core.diffusion.guidance import guided
from hpdm_core.diffusion.samplers import (
    Denoise,
    draw_like,
    karras_sigmas,
    sample_euler,
    sample_heun,
)
from hpdm_core.geometry.pyramid import Pyramid
from hpdm_core.inference.activation_cache import ActivationCache
from hpdm_core.inference.tiled_inference import Share, TiledLevel
from hpdm_core.records import Condition
from hpdm_core.seeds import derive_seed

CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """Solver and tiles.

    Args:
        steps: solver steps per level.
        overlap: axes with 50% overlap, as `parse_overlap` returns them.
        guidance: classifier-free guidance; 1 is off.
        sigma_min: smallest noise level.
        sigma_max: largest noise level.
        rho: how densely small noise levels are visited.
        churn: stochasticity of level 0.
        context_sigma: noise level at which finished levels are given as context.
        self_conditioning: whether latents start from those of the step before.
    """

    steps: tuple[int, ...]
    overlap: str
    guidance: float
    sigma_min: float
    sigma_max: float
    rho: float
    churn: float
    context_sigma: float
    self_conditioning: bool


@dataclass(frozen=True, kw_only=True)
class Work:
    """How the work is cut; none of it changes a video.

    Args:
        device: where the network is.
        tile_batch: patches per call of the network.
        make_cache: makes the store of what does not change over a level's steps, or None.
        share: this process's part of the tiles.
        advance: called after every evaluation of a level with (level, evaluations of that level).
    """

    device: torch.device
    tile_batch: int
    make_cache: Callable[[], ActivationCache | None]
    share: Share = field(default_factory=Share)
    advance: Callable[[int, int], None] = lambda level, total: None


@torch.inference_mode()
def generate(
    denoiser: LevelDenoiser,
    pyramid: Pyramid,
    settings: SamplingSettings,
    *,
    seeds: tuple[int, ...],
    condition: Condition,
    work: Work,
) -> tuple[Tensor, ...]:
    """Generate a batch of videos, all levels of each.

    Args:
        denoiser: the network.
        pyramid: the levels.
        settings: solver and tiles; `settings.steps` may stop early, at a coarser level.
        seeds: one per video.
        condition: one row per video.
        work: how the work is cut.

    Returns:
        per level (b, c, t, h, w) float32 on the CPU, about [-1, 1], not clamped.
    """
    finished: list[Tensor] = []
    lower: list[Tensor] = []
    for level in range(len(settings.steps)):
        generators = [_generator(seed, "level", level) for seed in seeds]
        denoise = _level_denoiser(
            denoiser, pyramid, settings, level=level, condition=condition, lower=lower, work=work
        )
        shape = (len(seeds), CHANNELS, *pyramid.levels[level])
        # As in EDM the solver's state is float64: rounding at large noise would outlast the steps.
        x = torch.empty(shape, device=work.device, dtype=torch.float64)
        x = draw_like(x, generators) * settings.sigma_max
        sigmas = karras_sigmas(
            settings.steps[level],
            sigma_min=settings.sigma_min,
            sigma_max=settings.sigma_max,
            rho=settings.rho,
        )
        if level == 0:
            x = sample_heun(
                denoise,
                x,
                sigmas,
                churn=settings.churn,
                noise=lambda x=x, g=generators: draw_like(x, g),
            )
        else:
            x = sample_euler(denoise, x, sigmas)
        x = x.float()
        finished.append((x * denoiser.sigma_in[level]).cpu())
        context_noise = draw_like(x, [_generator(seed, "context", level) for seed in seeds])
        lower.append(x + settings.context_sigma * context_noise)
    return tuple(finished)


def evaluations(settings: SamplingSettings, level: int) -> int:
    """Return how often a whole level is denoised, once more as often under guidance."""
    steps = settings.steps[level]
    calls = 2 * steps - 1 if level == 0 else steps
    return calls if settings.guidance == 1.0 else 2 * calls


def _level_denoiser(
    denoiser: LevelDenoiser,
    pyramid: Pyramid,
    settings: SamplingSettings,
    *,
    level: int,
    condition: Condition,
    lower: list[Tensor],
    work: Work,
) -> Denoise:
    def tiled(rows: Condition) -> Denoise:
        whole = TiledLevel(
            denoiser=denoiser,
            pyramid=pyramid,
            level=level,
            overlap=settings.overlap,
            condition=rows,
            lower=tuple(lower),
            context_sigma=settings.context_sigma,
            tile_batch=work.tile_batch,
            cache=work.make_cache(),
            self_conditioning=settings.self_conditioning,
            share=work.share,
        )

        def counted(x: Tensor, sigma: float) -> Tensor:
            denoised = whole(x.float(), sigma).to(x.dtype)
            work.advance(level, evaluations(settings, level))
            return denoised

        return counted

    if settings.guidance == 1.0:
        return tiled(condition)
    return guided(tiled(condition), tiled(condition.dropped()), settings.guidance)


def _generator(seed: int, *purpose: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))
