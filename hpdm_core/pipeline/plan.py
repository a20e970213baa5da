"""Cost of sampling, computed in advance: tiles, NFE, block passes, memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from hpdm_core.build import blocks_per_level, build_network, build_sampling, tile_bytes
from hpdm_core.errors import HpdmError, RecipeError
from hpdm_core.files import gigabytes
from hpdm_core.geometry.canvas import on_canvas
from hpdm_core.geometry.pyramid import Pyramid
from hpdm_core.geometry.tiles import make_ancestry, parse_overlap
from hpdm_core.inference.generate import (
    TOKENS_PER_CALL,
    SamplingSettings,
    evaluations,
    further_passes,
    solver_calls,
)
from hpdm_core.recipe.bounds import MOST_GUIDANCE, MOST_STEPS
from hpdm_core.recipe.sampling import PRESETS
from hpdm_core.recipe.schema import Recipe

FLOAT_BYTES, HALF_BYTES = 4, 2
DEFAULT_FREE = 16 << 30
MOST_VIDEOS = 16


@dataclass(frozen=True, kw_only=True)
class BatchSizes:
    """Videos per batch and tiles per forward pass.

    Args:
        videos: videos at a time.
        tiles: tiles in one pass of the network, over all these videos.
        video_bytes: size of these videos while their last level is solved.
        cache_bytes: size of the activation cache for the largest level of these videos.
        latents_bytes: of the latents of all tiles, kept from step to step, on the device.
        host_latents_bytes: the same in main memory, where half of the device's does not hold them.
    """

    videos: int
    tiles: int
    video_bytes: int
    cache_bytes: int
    latents_bytes: int = 0
    host_latents_bytes: int = 0


def with_options(
    settings: SamplingSettings,
    *,
    overlap: str | None,
    steps: Sequence[int] | None,
    guidance: float | None,
    text: bool,
    pyramid: Pyramid,
    size: Sequence[int] | None,
) -> SamplingSettings:
    """Apply a caller's options to a recipe's settings.

    Args:
        overlap: axes on which tiles overlap; None keeps the recipe's, as for all below.
        steps: solver steps of each level, coarsest first.
        guidance: classifier-free guidance scale; 1 disables it.
        text: whether the model is conditioned on text: then nothing is stochastic (appendix A).
        pyramid: the levels.
        size: frames, height, width of a canvas larger than the finest level.

    Raises:
        HpdmError: an option is out of range.
    """
    if steps is not None:
        if len(steps) != len(settings.solvers):
            raise HpdmError(
                "steps gives solver steps per level",
                got=f"{len(steps)} of them",
                expected=f"{len(settings.solvers)}, coarsest first",
            )
        if min(steps) < 1 or max(steps) > MOST_STEPS:
            raise HpdmError(
                "steps counts solver steps", got=list(steps), expected=f"from 1 to {MOST_STEPS:,}"
            )
    if guidance is not None and not 0 <= guidance <= MOST_GUIDANCE:
        raise HpdmError(
            "guidance is out of range", got=guidance, expected=f"from 0 to {MOST_GUIDANCE:g}"
        )
    if size is not None and len(size) != 3:
        raise HpdmError("size is frames, height, width", got=f"{len(size)} numbers", expected="3")
    canvas = on_canvas(pyramid, None if size is None else tuple(size)).canvas
    solvers = settings.solvers
    if steps is not None:
        solvers = tuple(replace(s, steps=count) for s, count in zip(solvers, steps, strict=True))
    if text:
        solvers = tuple(replace(solver, churn=0.0) for solver in solvers)
    scale = settings.guidance.scale if guidance is None else guidance
    return replace(
        settings,
        solvers=solvers,
        overlap=settings.overlap if overlap is None else parse_overlap(overlap),
        guidance=replace(settings.guidance, scale=scale),
        size=canvas,
    )


def describe_sampling(
    recipe: Recipe, settings: SamplingSettings, *, guided: bool = False
) -> list[dict]:
    """Count the cost of one video, level by level.

    A block pass is one block on one tile. `block_passes_uncached` includes every tile's
    ancestors in each evaluation; `block_passes_cached` is the tiles alone, and
    `block_passes_context` the ancestors, once. Both of the former include what guidance by known
    pixels costs, `block_passes_guided`.

    Args:
        recipe: of the model.
        settings: solver and tiles.
        guided: whether known pixels of a given video guide level 0.
    """
    pyramid, blocks = on_canvas(recipe.pyramid.build(), settings.size), blocks_per_level(recipe)
    rows = []
    for level in range(pyramid.num_levels):
        ancestry = make_ancestry(pyramid, level, settings.overlap)
        tiles, calls = len(ancestry.offsets[level]), evaluations(settings, level)
        branches = 1 if calls == solver_calls(settings, level) else 2
        further = further_passes(settings) if guided and level == 0 else 0
        own, below = (calls + further) * tiles * blocks[level], calls * tiles * sum(blocks[:level])
        once = sum(len(ancestry.offsets[k]) * blocks[k] for k in range(level))
        rows.append(
            {
                "resolution": list(pyramid.sizes[level]),
                "tiles": tiles,
                "solver": settings.solvers[level].name,
                "steps": settings.solvers[level].steps,
                "evaluations": calls,
                "block_passes_cached": own,
                "block_passes_uncached": own + below,
                "block_passes_guided": further * tiles * blocks[level],
                # With latent self-conditioning an ancestor runs twice, as in training.
                "block_passes_context": once * branches * (1 + settings.self_conditioning),
                "cache_bytes": branches * tiles * _context_bytes(recipe, level),
                "latents_bytes": branches * tiles * _latent_bytes(recipe),
            }
        )
    return rows


def choose_batch_sizes(
    recipe: Recipe,
    rows: list[dict],
    *,
    free: int | None,
    count: int,
    device_type: str,
    cached: bool,
    videos: int | None,
    tiles: int | None,
) -> BatchSizes:
    """Choose batch sizes that fit into free memory.

    Args:
        rows: what `describe_sampling` returned.
        free: free bytes on the device; None if unknown.
        count: videos to be made.
        device_type: 'cpu' or 'cuda'.
        cached: whether the activation cache is on.
        videos: overrides the choice.
        tiles: overrides the choice.
    """
    free = DEFAULT_FREE if free is None else free
    room = free // 4
    latents = max(row["latents_bytes"] for row in rows)
    kept = max(row["cache_bytes"] for row in rows) if cached else 0
    if videos is None:
        each = kept + latents + _video_bytes(rows)
        videos = max(1, min(count, MOST_VIDEOS, room // each))
    if tiles is None:
        enough = TOKENS_PER_CALL[device_type] // _tokens(recipe)
        tiles = max(1, min(room // tile_bytes(recipe), enough))
    on_host = device_type == "cuda" and 2 * videos * latents > free
    return BatchSizes(
        videos=videos,
        tiles=tiles,
        cache_bytes=videos * kept,
        video_bytes=videos * _video_bytes(rows),
        latents_bytes=0 if on_host else videos * latents,
        host_latents_bytes=videos * latents if on_host else 0,
    )


def plan_sampling(
    recipe: Recipe,
    settings: SamplingSettings,
    *,
    where: str,
    cached: bool,
    videos: int | None,
    tiles: int | None,
    guided: bool = False,
) -> dict:
    """Return the result of a dry run: the cost of one video on a GPU, and that of each preset.

    Args:
        recipe: of the model.
        settings: solver and tiles.
        where: the model's name in the result.
        cached: whether the activation cache is on.
        videos: videos at a time; None chooses.
        tiles: tiles in one pass; None chooses.
        guided: whether known pixels of a given video guide level 0.
    """
    rows = describe_sampling(recipe, settings, guided=guided)
    sizes = choose_batch_sizes(
        recipe,
        rows,
        free=None,
        count=1,
        device_type="cuda",
        cached=cached,
        videos=videos,
        tiles=tiles,
    )

    def passes(preset: str) -> int:
        chosen = replace(settings, solvers=build_sampling(recipe, preset=preset).solvers)
        counted = describe_sampling(recipe, chosen, guided=guided)
        return sum(row["block_passes_cached"] for row in counted)

    return {
        "model": where,
        "overlap": settings.overlap or "none",
        "guidance": settings.guidance.scale,
        "levels": rows,
        "block_passes_cached": sum(row["block_passes_cached"] for row in rows),
        "block_passes_uncached": sum(row["block_passes_uncached"] for row in rows),
        "presets": {preset: passes(preset) for preset in PRESETS},
        "memory_bytes": memory_estimate(recipe, sizes),
        "videos_at_a_time": sizes.videos,
        "tiles_at_a_time": sizes.tiles,
    }


def memory_estimate(recipe: Recipe, sizes: BatchSizes) -> dict[str, int]:
    """Estimate the memory of sampling in bytes: weights, cache, latents, videos, activations.

    `total` is the device's; `latents_on_host` lies in main memory, or if that does not hold it
    `latents_on_host_half`, in bfloat16.
    """
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_network(recipe).parameters())
    parts = {
        "weights": parameters * FLOAT_BYTES,
        "cache": sizes.cache_bytes,
        "latents": sizes.latents_bytes,
        "videos": sizes.video_bytes,
        "tiles": sizes.tiles * tile_bytes(recipe),
    }
    host = {
        "latents_on_host": sizes.host_latents_bytes,
        "latents_on_host_half": sizes.host_latents_bytes * HALF_BYTES // FLOAT_BYTES,
    }
    return parts | {"total": sum(parts.values())} | host


def memory_verdict(recipe: Recipe, sizes: BatchSizes, *, free: int | None) -> str:
    """Say whether sampling fits into free memory, and if not what to change."""
    needed = memory_estimate(recipe, sizes)["total"]
    if free is None:
        return f"needs {gigabytes(needed)}; free memory is unknown"
    if needed <= free:
        return f"fits: {gigabytes(needed)} of {gigabytes(free)} free"
    remedy = "use --batch 1" if sizes.videos > 1 else "use --tile-batch 1, --cache cpu or off"
    return f"does not fit: {gigabytes(needed)} of {gigabytes(free)} free; {remedy}"


def _video_bytes(rows: list[dict]) -> int:
    """Return the bytes of a video while its last level is solved: float64 state, sums, results."""
    return 8 * FLOAT_BYTES * 3 * math.prod(rows[-1]["resolution"])


def _tokens(recipe: Recipe) -> int:
    sizes = zip(recipe.pyramid.patch, recipe.model.token, strict=True)
    return math.prod(patch // token for patch, token in sizes)


def _latent_bytes(recipe: Recipe) -> int:
    """Return the bytes of the latents that a tile keeps from one step to the next."""
    model = recipe.model
    if model.block == "transformer" or model.self_conditioning == 0:
        return 0
    return FLOAT_BYTES * model.num_latents * model.latent_width


def _context_bytes(recipe: Recipe, level: int) -> int:
    """Return the bytes of one tile's context: a term before each block that its level enters."""
    if level == 0:
        return 0
    model = recipe.model
    terms = blocks_per_level(recipe)[level] if model.context != "shallow" else 1
    return FLOAT_BYTES * terms * _tokens(recipe) * model.data_width


def check_overlaps(overlaps: Sequence[str]) -> list[str]:
    """Return the overlaps to compare, parsed.

    Raises:
        RecipeError: one is unknown, or there is only one.
    """
    parsed = [parse_overlap(overlap) for overlap in overlaps]
    if len(set(parsed)) != len(parsed) or len(parsed) == 1:
        raise RecipeError(
            "--compare-overlaps puts overlaps side by side",
            got=", ".join(overlaps),
            expected="two or more different ones",
        )
    return parsed
