"""From a recipe to objects: the only module that knows both."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from hpdm_core.diffusion.patch_diffusion import PatchDiffusion
from hpdm_core.errors import RecipeError
from hpdm_core.geometry.boxes import pyramid_boxes
from hpdm_core.geometry.tiles import parse_overlap
from hpdm_core.inference.generate import SamplingSettings
from hpdm_core.model.adaptive_computation import block_passes
from hpdm_core.model.hpdm import HPDM, NetworkSize
from hpdm_core.model.rin import BlockSize
from hpdm_core.recipe.schema import Recipe
from hpdm_core.records import Condition

# Tokens of a prompt that arithmetic is counted with; prompts are padded to no fixed length.
COUNTED_TEXT_TOKENS = 77


def build_network(recipe: Recipe) -> HPDM:
    """Build the network of a recipe; under `torch.device('meta')` it takes no memory.

    Raises:
        RecipeError: the recipe is conditioned on classes but does not say how many.
    """
    model = recipe.model
    by_class = model.conditioning == "class"
    if by_class and model.num_classes is None:
        raise RecipeError(
            f"recipe {recipe.name} does not say how many classes there are",
            expected="model.num_classes",
            remedy="set it, or train on a data set that has classes",
        )
    block = BlockSize(
        data_width=model.data_width,
        latent_width=model.latent_width,
        layers=model.layers_per_block,
        latent_heads=model.latent_heads,
        latent_head_width=model.latent_head_width,
        cross_heads=model.cross_heads,
        cross_head_width=model.cross_head_width,
        mlp_ratio=model.mlp_ratio,
        dropout=model.dropout,
    )
    size = NetworkSize(
        patch=recipe.pyramid.patch,
        token=model.token,
        num_latents=model.num_latents,
        levels_per_block=model.levels_per_block,
        block=block,
        num_classes=model.num_classes if by_class else None,
        condition_width=None if model.conditioning == "none" else model.condition_width,
    )
    return HPDM(
        size,
        context=model.context,
        detach_context=model.detach_context,
        coordinates=model.coordinates,
        positions=model.positions,
        self_conditioning=model.self_conditioning > 0,
    )


def build_diffusion(recipe: Recipe) -> PatchDiffusion:
    """Build the training loss of a recipe."""
    diffusion = recipe.diffusion
    return PatchDiffusion(
        pyramid=recipe.pyramid.build(),
        sigma_in=diffusion.sigma_in,
        noise_mean=diffusion.noise_mean,
        noise_std=diffusion.noise_std,
        level_weights=diffusion.level_weights,
        condition_dropout=diffusion.condition_dropout,
        clean_context=diffusion.clean_context,
        context_sigma=recipe.sampling.context_sigma,
        self_conditioning=recipe.model.self_conditioning,
    )


def build_sampling(recipe: Recipe) -> SamplingSettings:
    """Build the sampling settings of a recipe."""
    sampling = recipe.sampling
    return SamplingSettings(
        steps=sampling.steps,
        overlap=parse_overlap(sampling.overlap),
        guidance=sampling.guidance,
        sigma_min=sampling.sigma_min,
        sigma_max=sampling.sigma_max,
        rho=sampling.rho,
        churn=sampling.churn,
        context_sigma=sampling.context_sigma,
        self_conditioning=recipe.model.self_conditioning > 0,
    )


def blocks_per_level(recipe: Recipe) -> tuple[int, ...]:
    """Return how many blocks run on a patch of each level: its cost in one evaluation."""
    loads = recipe.model.levels_per_block
    return tuple(block_passes(loads, level) for level in range(len(recipe.pyramid.levels)))


def describe(recipe: Recipe) -> dict:
    """Count a recipe's parameters, tokens and arithmetic on the meta device.

    Returns:
        {"parameters": {"total", and one per part}, "levels": [{"resolution", "patch", "tokens",
        "blocks", "flops_forward"}], "tokens_per_level", "flops_per_video" (one forward pass of
        one video's patches, a multiply-add being 2), "flops_per_video_training" (forward,
        backward, and the extra pass of latent self-conditioning)}.
    """
    pyramid = recipe.pyramid.build()
    with torch.device("meta"):
        network = build_network(recipe)
    grid = network.size.grid
    tokens = grid[0] * grid[1] * grid[2]
    forward = [_count_flops(recipe, network, levels) for levels in range(1, pyramid.num_levels + 1)]
    per_level = [after - before for before, after in zip([0, *forward], forward, strict=False)]
    backward = _count_flops(recipe, network, pyramid.num_levels, backward=True)
    extra = forward[-1] if recipe.model.self_conditioning > 0 else 0
    return {
        "parameters": {
            "total": sum(p.numel() for p in network.parameters()),
            **{
                name: sum(p.numel() for p in part.parameters())
                for name, part in network.named_children()
            },
            "latents": network.latents.numel(),
        },
        "levels": [
            {
                "resolution": list(pyramid.levels[level]),
                "patch": list(pyramid.patch),
                "tokens": tokens,
                "blocks": blocks_per_level(recipe)[level],
                "flops_forward": per_level[level],
            }
            for level in range(pyramid.num_levels)
        ],
        "tokens_per_level": [tokens] * pyramid.num_levels,
        "flops_per_video": forward[-1],
        "flops_per_video_training": backward + extra,
    }


def _count_flops(recipe: Recipe, network: HPDM, levels: int, *, backward: bool = False) -> int:
    """Count one pass of the `levels` coarsest levels' patches of one video."""
    run = _meta_pass(recipe, network, levels)
    with FlopCounterMode(display=False) as counter:
        total = run()
        if backward:
            total.backward()
    return counter.get_total_flops()


def _meta_pass(recipe: Recipe, network: HPDM, levels: int) -> Callable[[], torch.Tensor]:
    pyramid, model = recipe.pyramid.build(), recipe.model
    with torch.device("meta"):
        inputs = tuple(torch.empty(1, 3, *pyramid.patch) for _ in range(levels))
        labels = torch.empty(1, levels)
        offsets = torch.zeros(1, pyramid.num_levels, 3, dtype=torch.int64)
        condition = Condition(
            labels=torch.zeros(1, dtype=torch.int64) if model.conditioning == "class" else None,
            text=torch.empty(1, COUNTED_TEXT_TOKENS, model.condition_width),
            text_mask=torch.ones(1, COUNTED_TEXT_TOKENS, dtype=torch.bool),
        )
    boxes = pyramid_boxes(pyramid, offsets)[:levels]

    def run() -> torch.Tensor:
        with torch.device("meta"):
            outputs, _ = network(inputs, labels, boxes, condition, None)
        return torch.stack([output.sum() for output in outputs]).sum()

    return run
