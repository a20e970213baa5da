"""How much memory the activations of a training pass take, counted from the recipe.

Every tensor that the backward pass needs is counted once: normalised inputs, queries, keys and
values, attention outputs and both sides of each MLP's GELU. Attention weights are not stored
(fused attention). A test holds this against what autograd really saves.

Symbols: `n` data tokens, `m` latents, `k` conditioning tokens of one patch.
"""

import math

from hpdm_core.recipe.schema import ModelRecipe, Recipe

BYTES = 4
TEXT_TOKENS = 128


def activation_bytes_per_video(recipe: Recipe) -> int:
    """Return the bytes that one video's pyramid keeps for the backward pass."""
    model = recipe.model
    n = math.prod(p // t for p, t in zip(recipe.pyramid.patch, model.token, strict=True))
    full = [_block(model, n) * load for load in model.levels_per_block]
    if recipe.train.activation_checkpointing:
        held = (n * model.data_width + model.num_latents * model.latent_width) * sum(
            model.levels_per_block
        )
        blocks = held + max(full)
    else:
        blocks = sum(full)
    fusion = n * (3 * model.data_width + 3) * sum(load - 1 for load in model.levels_per_block)
    pixels = 3 * math.prod(recipe.pyramid.patch)
    ends = len(recipe.pyramid.levels) * (6 * pixels + 4 * n * model.data_width)
    share = 0.6 if recipe.train.precision == "bf16" else 1.0
    return int(BYTES * share * (blocks + fusion + ends))


def _block(model: ModelRecipe, n: int) -> int:
    """Return the numbers that one block keeps for one patch."""
    m, x, d, ratio = model.num_latents, model.latent_width, model.data_width, model.mlp_ratio
    k = 1 + (TEXT_TOKENS if model.conditioning == "text" else model.conditioning == "class")
    cross = model.cross_heads * model.cross_head_width
    inner = model.latent_heads * model.latent_head_width
    latent_mlp = m * (2 * x + 2 * ratio * x)
    read_condition = m * (2 * x + 2 * cross) + k * (2 * x + 2 * cross)
    read_data = m * (2 * x + 2 * cross) + n * (2 * d + 2 * cross)
    compute = model.layers_per_block * (m * (2 * x + 4 * inner) + latent_mlp)
    write = n * (2 * d + 2 * cross) + m * (2 * x + 2 * cross) + n * (2 * d + 2 * ratio * d)
    return read_condition + read_data + 2 * latent_mlp + compute + write
