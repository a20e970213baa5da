"""Sampling of videos, level by level: the only sampling path (Sec. 4.4, appendix A).

All noise of a video comes from generators of its own, one per level, on the CPU: a video depends
on its seed, condition and settings alone.

Axis legend: `b` samples, `c` channels, `t h w` video.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hpdm_core.diffusion.denoiser import LevelDenoiser
from hpdm_core.diffusion.guidance import Guidance, guided
from hpdm_core.diffusion.samplers import Denoise, Solver, draw_like
from hpdm_core.errors import HpdmError
from hpdm_core.geometry.canvas import on_canvas
from hpdm_core.geometry.pyramid import Pyramid, Size3
from hpdm_core.inference.activation_cache import ActivationCache
from hpdm_core.inference.given import GUIDED_ABOVE, GUIDED_PASSES, Given
from hpdm_core.inference.shard import TileShard
from hpdm_core.inference.tiled_inference import TiledLevel
from hpdm_core.records import Condition
from hpdm_core.seeds import derive_seed

CHANNELS = 3
# Largest value of a finished video, whose pixels lie in about [-1, 1]: beyond, sampling diverged.
LARGEST_PIXEL = 1000.0
# Tokens of all tiles per call: enough to fill a device, few enough for its memory.
TOKENS_PER_CALL = {"cpu": 16384, "cuda": 262144}


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """Solvers and tiles.

    Args:
        solvers: one per level, coarsest first.
        overlap: axes with 50% overlap, as `parse_overlap` returns them.
        guidance: classifier-free guidance.
        clip_denoised: clip each estimate of the video to [-1, 1].
        context_sigma: noise level of finished levels when used as context.
        self_conditioning: whether latents start from those of the previous step.
        size: (t, h, w) of a canvas larger than the finest level; None: of that.
    """

    solvers: tuple[Solver, ...]
    overlap: str
    guidance: Guidance
    clip_denoised: bool
    context_sigma: float
    self_conditioning: bool
    size: Size3 | None = None


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """How sampling is executed; none of it affects the results.

    Args:
        device: where the network is.
        tile_batch: patches per call of the network.
        make_cache: makes a level's activation cache, or None.
        shard: this process's part of the tiles.
        advance: called after every call of a level's solver with (level, calls of that level).
    """

    device: torch.device
    tile_batch: int
    make_cache: Callable[[], ActivationCache | None]
    shard: TileShard = field(default_factory=TileShard)
    advance: Callable[[int, int], None] = lambda level, total: None


def generate(
    denoiser: LevelDenoiser,
    pyramid: Pyramid,
    settings: SamplingSettings,
    *,
    seeds: tuple[int, ...],
    condition: Condition,
    work: ExecutionOptions,
    given: Given | None = None,
) -> tuple[Tensor, ...]:
    """Generate a batch of videos, all levels of each.

    Args:
        denoiser: the network.
        pyramid: the levels.
        settings: solvers and tiles; `settings.solvers` may stop early, at a coarser level.
        seeds: one per video.
        condition: one row per video.
        work: how sampling is executed.
        given: a video that sampling starts from or keeps a part of; solvers that skip steps
            need one.

    Returns:
        per level (b, c, t, h, w) float32 on the CPU, about [-1, 1], not clamped.

    Raises:
        HpdmError: a level is not finite, or far out of range.
    """
    pyramid = on_canvas(pyramid, settings.size)
    finished: list[Tensor] = []
    lower: list[Tensor] = []
    # Guidance by known pixels takes gradients, which inference mode has none of.
    guides = given is not None and given.guides(0)
    with torch.no_grad() if guides else torch.inference_mode():
        for level in range(len(settings.solvers)):
            # A separate function, so that a level's cache is freed before the next one's is made.
            video = _sample_level(
                denoiser,
                pyramid,
                settings,
                level=level,
                seeds=seeds,
                condition=condition,
                lower=tuple(lower),
                work=work,
                given=given,
            )
            finished.append(video.cpu())
            _check_sound(finished[-1], level, settings)
            noise = draw_like(video, [_generator(seed, "context", level) for seed in seeds])
            lower.append(video + settings.context_sigma * noise)
    return tuple(finished)


def solver_calls(settings: SamplingSettings, level: int) -> int:
    """Return how often a level's solver calls the denoiser."""
    return len(settings.solvers[level].evaluated_sigmas())


def evaluations(settings: SamplingSettings, level: int) -> int:
    """Return the NFE of a level: two per solver call where guidance is active."""
    sigmas = settings.solvers[level].evaluated_sigmas()
    return len(sigmas) + sum(settings.guidance.active(sigma) for sigma in sigmas)


def further_passes(settings: SamplingSettings) -> int:
    """Return what guidance by known pixels costs on level 0, in passes beside the NFE."""
    sigmas = settings.solvers[0].evaluated_sigmas()
    return GUIDED_PASSES * sum(sigma >= GUIDED_ABOVE for sigma in sigmas)


def _sample_level(
    denoiser: LevelDenoiser,
    pyramid: Pyramid,
    settings: SamplingSettings,
    *,
    level: int,
    seeds: tuple[int, ...],
    condition: Condition,
    lower: tuple[Tensor, ...],
    work: ExecutionOptions,
    given: Given | None,
) -> Tensor:
    """Return the video of one level, (b, c, t, h, w) float32 on the device."""
    cache = work.make_cache()

    def tiled(rows: Condition, branch: str) -> Denoise:
        return TiledLevel(
            denoiser=denoiser,
            pyramid=pyramid,
            level=level,
            overlap=settings.overlap,
            condition=rows,
            lower=lower,
            context_sigma=settings.context_sigma,
            tile_batch=work.tile_batch,
            cache=cache,
            self_conditioning=settings.self_conditioning,
            shard=work.shard,
            branch=branch,
        )

    estimate = conditional = tiled(condition, "conditional")
    if settings.guidance.scale != 1.0:
        without = tiled(condition.dropped(), "unconditional")
        estimate = guided(estimate, without, settings.guidance)
    solver, calls = settings.solvers[level], solver_calls(settings, level)
    known = given or Given(videos=())

    def denoise(x: Tensor, sigma: float) -> Tensor:
        denoised = estimate(x, sigma)
        work.advance(level, calls)
        denoised = denoised.clamp(-1, 1) if settings.clip_denoised else denoised
        if not known.guides(level, sigma):
            return known.held(denoised, level)
        return known.guided(denoised, x, sigma, pull_back=conditional.pulled_back)

    generators = [_generator(seed, "level", level) for seed in seeds]
    shape = (len(seeds), CHANNELS, *pyramid.sizes[level])
    # As in EDM the solver's state is float64: rounding errors at high noise would persist.
    x = torch.empty(shape, device=work.device, dtype=torch.float64)
    x = draw_like(x, generators) * solver.start
    x = known.started(x, level, from_video=solver.skip > 0)
    video = solver.solve(denoise, x, noise=lambda: draw_like(x, generators))
    # Few steps may end above the noise levels at which known pixels take their places.
    return known.held(video, level).float()


def _check_sound(video: Tensor, level: int, settings: SamplingSettings) -> None:
    """Refuse a video that diverged: written as pixels, it would be black or noise."""
    largest = video.abs().max().item()
    if largest <= LARGEST_PIXEL:  # False for NaN
        return
    scale = settings.guidance.scale
    if scale == 1.0:
        remedy = "use an earlier checkpoint (this training diverged), or more solver steps"
    else:
        remedy = f"lower the guidance scale, which is {scale:g}, or use more solver steps"
    raise HpdmError(
        f"sampling diverged on level {level}",
        got=f"pixels of {largest:g}",
        expected="about -1 to 1",
        remedy=remedy,
    )


def _generator(seed: int, *purpose: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))
