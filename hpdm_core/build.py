"""From a recipe to objects: the only module that knows both."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from hpdm_core.data.dataset import VideoDataset
from hpdm_core.data.fractional import FractionalBatchMaker
from hpdm_core.data.loader import PatchLoader
from hpdm_core.device import uses_bf16
from hpdm_core.diffusion.denoiser import LevelDenoiser
from hpdm_core.diffusion.distillation import Distillation
from hpdm_core.diffusion.guidance import Guidance
from hpdm_core.diffusion.patch_diffusion import PatchDiffusion
from hpdm_core.diffusion.preconditioning import Preconditioning
from hpdm_core.diffusion.samplers import Solver
from hpdm_core.errors import HpdmError, RecipeError
from hpdm_core.geometry.tiles import parse_overlap
from hpdm_core.inference.generate import SamplingSettings
from hpdm_core.model.adaptive_computation import block_passes
from hpdm_core.model.cost import kept_numbers, level_flops, tile_numbers
from hpdm_core.model.hpdm import HPDM
from hpdm_core.recipe.sampling import PRESETS, Preset
from hpdm_core.recipe.schema import Recipe
from hpdm_core.training.lamb import Lamb, parameter_groups
from hpdm_core.training.lr import learning_rate
from hpdm_core.training.muon import Muon, muon_groups

# Prompt tokens assumed in FLOP counts; prompts are not padded to a fixed length.
COUNTED_TEXT_TOKENS = 77
FLOAT_BYTES = 4
# Under bf16 autocast, layers' activations are half as large; norms and residuals stay in float32.
BF16_SHARE = 0.6


def build_network(recipe: Recipe) -> HPDM:
    """Build the network of a recipe; under `torch.device('meta')` it takes no memory.

    Raises:
        RecipeError: the recipe is conditioned on classes but does not say how many.
    """
    model = recipe.model
    if model.conditioning == "class" and model.num_classes is None:
        raise RecipeError(
            f"recipe {recipe.name} does not say how many classes there are",
            expected="model.num_classes",
            remedy="set it, or train on a data set that has classes",
        )
    return HPDM(patch=recipe.pyramid.patch, **dict(model))


def build_diffusion(recipe: Recipe) -> PatchDiffusion:
    """Build the training loss of a recipe."""
    diffusion = recipe.diffusion
    noise_mean = zip(diffusion.noise_mean, diffusion.sigma_in, strict=True)
    return PatchDiffusion(
        pyramid=recipe.pyramid.build(),
        preconditioning=build_preconditioning(recipe),
        noise_mean=tuple(mean + math.log(sigma_in) for mean, sigma_in in noise_mean),
        noise_std=diffusion.noise_std,
        level_weights=diffusion.level_weights,
        condition_dropout=diffusion.condition_dropout,
        clean_context=diffusion.clean_context,
        context_sigma=diffusion.context_sigma,
        self_conditioning=recipe.model.self_conditioning,
    )


def build_distillation(recipe: Recipe, teacher: Recipe, network: nn.Module) -> Distillation:
    """Build the loss of a student's recipe.

    Args:
        recipe: of the student; `train.distill` is set.
        teacher: the teacher's recipe.
        network: the teacher's, on its device, in inference mode.
    """
    return Distillation(
        pyramid=recipe.pyramid.build(),
        teacher=build_denoiser(recipe, network),
        solvers=build_sampling(recipe).solvers,
        substeps=recipe.train.distill_substeps,
        guidance=build_sampling(teacher).guidance,
        level_weights=recipe.diffusion.level_weights,
        context_sigma=recipe.diffusion.context_sigma,
        self_conditioning=recipe.model.self_conditioning,
    )


def build_preconditioning(recipe: Recipe) -> tuple[Preconditioning, ...]:
    """Build the preconditioning of each level of a recipe."""
    diffusion = recipe.diffusion
    return tuple(
        Preconditioning(
            parametrisation=diffusion.parametrisation,
            sigma_data=diffusion.sigma_data,
            sigma_in=sigma_in,
            x_weight_cap=diffusion.x_weight_cap,
        )
        for sigma_in in diffusion.sigma_in
    )


def build_denoiser(recipe: Recipe, network: HPDM) -> LevelDenoiser:
    """Build a recipe's denoiser around its network."""
    return LevelDenoiser(network=network, preconditioning=build_preconditioning(recipe))


def build_optimizer(network: nn.Module, recipe: Recipe) -> Optimizer:
    """Build the recipe's optimiser over a network's parameters, whole or sharded."""
    optim = recipe.optim
    if optim.name == "muon":
        groups = muon_groups(network, weight_decay=optim.weight_decay)
        half = uses_bf16(recipe.train.precision, torch.device("cpu"))
        cpu_dtype = torch.bfloat16 if half else torch.float32
        return Muon(groups, optim.lr, betas=optim.betas, cpu_dtype=cpu_dtype)
    groups = parameter_groups(network, weight_decay=optim.weight_decay)
    if optim.name == "lamb":
        return Lamb(groups, optim.lr, betas=optim.betas)
    return AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)


def build_schedule(recipe: Recipe) -> Callable[[int], float]:
    """Build the learning rate of a recipe as a function of the updates done so far, from 0."""
    optim = recipe.optim
    return partial(
        learning_rate,
        peak=optim.lr,
        steps=recipe.train.steps,
        warmup_steps=optim.warmup_steps,
        schedule=optim.schedule,
        final_share=optim.final_lr_fraction,
    )


def build_loader(
    recipe: Recipe,
    dataset: VideoDataset,
    *,
    batch_size: int,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
) -> PatchLoader:
    """Build the loader of one process's part of each batch.

    Args:
        recipe: sizes of clips and patches.
        dataset: prepared data set.
        batch_size: videos per step over all processes.
        workers: decoding processes.
        rank, world_size: which part of each batch.
    """
    data = recipe.data
    loader = PatchLoader(
        dataset,
        pyramid=recipe.pyramid.build(),
        batch_size=batch_size,
        seed=recipe.train.seed,
        split=data.split,
        frame_stride=data.frame_stride,
        short_clips=data.short_clips,
        flip=data.flip,
        image_fraction=data.image_fraction,
        conditioning=recipe.model.conditioning,
        workers=workers,
        memory_cache_bytes=int(data.memory_cache_gb * 1e9),
        rank=rank,
        world_size=world_size,
    )
    if recipe.pyramid.offsets == "fractional":
        loader.maker = FractionalBatchMaker(maker=loader.maker)
    return loader


def build_sampling(recipe: Recipe, *, preset: Preset | None = None) -> SamplingSettings:
    """Build the sampling settings of a recipe, or of one of its presets.

    Raises:
        HpdmError: no such preset.
    """
    if preset is not None and preset not in PRESETS:
        raise HpdmError("no such preset", got=preset, expected=" or ".join(PRESETS))
    sampling, levels = recipe.sampling.with_preset(preset), len(recipe.pyramid.levels)
    names = ("steps", "sigma_min", "sigma_max", "churn", "s_min", "s_max", "s_noise")
    columns = [sampling.by_level(name, levels) for name in ("solver", *names)]
    return SamplingSettings(
        solvers=tuple(
            Solver(name=solver, rho=sampling.rho, **dict(zip(names, values, strict=True)))
            for solver, *values in zip(*columns, strict=True)
        ),
        overlap=parse_overlap(sampling.overlap),
        guidance=Guidance(scale=sampling.guidance, interval=sampling.guidance_interval),
        clip_denoised=sampling.clip_denoised,
        context_sigma=recipe.diffusion.context_sigma,
        self_conditioning=recipe.model.self_conditioning > 0,
    )


def blocks_per_level(recipe: Recipe) -> tuple[int, ...]:
    """Return how many blocks run on a patch of each level: its cost in one forward pass."""
    loads = recipe.model.levels_per_block
    return tuple(block_passes(loads, level) for level in range(len(recipe.pyramid.levels)))


def activation_bytes_per_video(recipe: Recipe) -> int:
    """Return the bytes that one video's pyramid keeps for the backward pass."""
    numbers = kept_numbers(
        _meta_network(recipe),
        text_tokens=COUNTED_TEXT_TOKENS,
        checkpointing=recipe.train.activation_checkpointing,
    )
    share = BF16_SHARE if recipe.train.precision == "bf16" else 1.0
    return int(FLOAT_BYTES * share * numbers)


def tile_bytes(recipe: Recipe) -> int:
    """Estimate the bytes in flight while a block runs on one tile in sampling."""
    return FLOAT_BYTES * tile_numbers(_meta_network(recipe))


def _meta_network(recipe: Recipe) -> HPDM:
    """Build a network for counting; one class stands in for a number that depends on the data."""
    with torch.device("meta"):
        counted = {"num_classes": recipe.model.num_classes or 1}
        return build_network(recipe.with_fields("model", counted))


def describe(recipe: Recipe) -> dict:
    """Count a recipe's parameters, tokens and FLOPs on the meta device.

    Returns:
        {"parameters": {"total", and one per part}, "levels": [{"resolution", "patch", "tokens",
        "blocks", "flops_forward", "flops_training"}], "tokens_per_level", "flops_per_video" (one
        forward pass of one video's patches, a multiply-add being 2), "flops_per_video_training"
        (forward, backward, and the extra pass of latent self-conditioning)}.
    """
    pyramid = recipe.pyramid.build()
    with torch.device("meta"):
        network = build_network(recipe)
    tokens = math.prod(network.grid)
    # The backward pass has two matrix products for each of the forward pass.
    passes = 1 + 2 + (1 if recipe.model.self_conditioning > 0 else 0)
    levels = []
    for level, resolution in enumerate(pyramid.levels):
        forward = level_flops(network, level, text_tokens=COUNTED_TEXT_TOKENS)
        levels.append(
            {
                "resolution": list(resolution),
                "patch": list(pyramid.patch),
                "tokens": tokens,
                "blocks": block_passes(recipe.model.levels_per_block, level),
                "flops_forward": forward,
                "flops_training": passes * forward,
            }
        )
    parts = {
        name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()
    }
    return {
        "parameters": {
            "total": sum(p.numel() for p in network.parameters()),
            **parts,
            "latents": 0 if network.latents is None else network.latents.numel(),
        },
        "levels": levels,
        "tokens_per_level": [tokens] * pyramid.num_levels,
        "flops_per_video": sum(level["flops_forward"] for level in levels),
        "flops_per_video_training": sum(level["flops_training"] for level in levels),
    }
