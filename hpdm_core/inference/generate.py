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
from hpdm_core.diffusion.guidance import guided, with_and_without
from hpdm_core.diffusion.samplers import (
    draw_like,
    heun_evaluations,
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
        advance: called after every call of a level's solver with (level, calls of that level).
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
        # In a function of its own, so that a level's cache is gone before the next one's is made.
        scaled = _sample_level(
            denoiser,
            pyramid,
            settings,
            level=level,
            seeds=seeds,
            condition=condition,
            lower=tuple(lower),
            work=work,
        )
        finished.append((scaled * denoiser.sigma_in[level]).cpu())
        noise = draw_like(scaled, [_generator(seed, "context", level) for seed in seeds])
        lower.append(scaled + settings.context_sigma * noise)
    return tuple(finished)


def solver_calls(settings: SamplingSettings, level: int) -> int:
    """Return how often the solver asks for a level's estimate."""
    steps = settings.steps[level]
    return heun_evaluations(steps) if level == 0 else steps


def evaluations(settings: SamplingSettings, level: int) -> int:
    """Return how often a whole level is denoised: under guidance twice for each call."""
    calls = solver_calls(settings, level)
    return calls if settings.guidance == 1.0 else 2 * calls


def _sample_level(
    denoiser: LevelDenoiser,
    pyramid: Pyramid,
    settings: SamplingSettings,
    *,
    level: int,
    seeds: tuple[int, ...],
    condition: Condition,
    lower: tuple[Tensor, ...],
    work: Work,
) -> Tensor:
    """Return the scaled video of one level, (b, c, t, h, w) float32 on the device."""
    guidance = settings.guidance
    if guidance != 1.0:  # each sample runs as two rows
        condition = with_and_without(condition, len(seeds), device=work.device)
        lower = tuple(torch.cat([video, video]) for video in lower)
    whole = TiledLevel(
        denoiser=denoiser,
        pyramid=pyramid,
        level=level,
        overlap=settings.overlap,
        condition=condition,
        lower=lower,
        context_sigma=settings.context_sigma,
        tile_batch=work.tile_batch,
        cache=work.make_cache(),
        self_conditioning=settings.self_conditioning,
        share=work.share,
    )

    def denoise(x: Tensor, sigma: float) -> Tensor:
        rows = x if guidance == 1.0 else torch.cat([x, x])
        denoised = whole(rows.float(), sigma).to(x.dtype)
        work.advance(level, solver_calls(settings, level))
        return denoised if guidance == 1.0 else guided(denoised, guidance)

    generators = [_generator(seed, "level", level) for seed in seeds]
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
    if level > 0:
        return sample_euler(denoise, x, sigmas).float()
    x = sample_heun(
        denoise, x, sigmas, churn=settings.churn, noise=lambda: draw_like(x, generators)
    )
    return x.float()


def _generator(seed: int, *purpose: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))
