"""From a recipe to objects: the only module that knows both."""

from hpdm_core.diffusion.patch_diffusion import PatchDiffusion
from hpdm_core.errors import RecipeError
from hpdm_core.model.hpdm import HPDM, NetworkSize
from hpdm_core.model.rin import BlockSize
from hpdm_core.recipe.schema import Recipe


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
