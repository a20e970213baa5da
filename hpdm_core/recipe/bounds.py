"""Upper limits on the sizes in a recipe, checked before anything is built of them."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the schema imports this module
    from hpdm_core.recipe.schema import Recipe

# Far above anything sensible: more is a typo, and would take hours to count.
MOST_PIXELS, MOST_TOKENS, MOST_WIDTH, MOST_RATIO = 2**16, 2**20, 2**16, 128
MOST_LAYERS, MOST_CLASSES = 1024, 2**24
MOST_STEPS, MOST_GUIDANCE, FPS = 10_000, 1000.0, (0.1, 1000.0)
MOST_BATCH, MOST_WORKERS, MOST_PREVIEWS = 2**20, 1024, 1024


def size_problems(recipe: "Recipe") -> Iterator[str]:
    """Yield messages on sizes that no machine could hold."""
    model, pyramid = recipe.model, recipe.pyramid
    blocks = len(model.levels_per_block)
    products = {
        "model.latent_heads": "model.latent_heads times their width",
        "model.cross_heads": "model.cross_heads times their width",
        "model.layers_per_block": f"model.layers_per_block times {blocks:,} blocks",
    }
    sizes = {
        "pyramid.levels": (max(map(max, pyramid.levels)), MOST_PIXELS),
        "model.data_width": (model.data_width, MOST_WIDTH),
        "model.latent_width": (model.latent_width or 1, MOST_WIDTH),
        "model.condition_width": (model.condition_width, MOST_WIDTH),
        "model.num_latents": (model.num_latents or 1, MOST_TOKENS),
        "model.latent_heads": (model.latent_heads * model.latent_head_width, MOST_WIDTH),
        "model.cross_heads": (model.cross_heads * model.cross_head_width, MOST_WIDTH),
        "model.mlp_ratio": (model.mlp_ratio, MOST_RATIO),
        "model.layers_per_block": (model.layers_per_block * blocks, MOST_LAYERS),
        "model.num_classes": (model.num_classes or 1, MOST_CLASSES),
        "data.workers": (recipe.data.workers, MOST_WORKERS),
        "train.batch_size": (recipe.train.batch_size, MOST_BATCH),
        "train.preview_videos": (recipe.train.preview_videos, MOST_PREVIEWS),
        "sampling.steps": (max(recipe.sampling.steps, default=1), MOST_STEPS),
        "sampling.paper.steps": (max(recipe.sampling.paper.steps or (1,)), MOST_STEPS),
        "sampling.fast.steps": (max(recipe.sampling.fast.steps or (1,)), MOST_STEPS),
        "sampling.guidance": (recipe.sampling.guidance, MOST_GUIDANCE),
    }
    if not FPS[0] <= recipe.sampling.fps <= FPS[1]:
        yield f"sampling.fps is {recipe.sampling.fps:g}, expected from {FPS[0]:g} to {FPS[1]:g}"
    for name, (size, most) in sizes.items():
        if size > most:
            yield f"{products.get(name, name)} is {size:,}, expected at most {most:,}"
    sides = zip(pyramid.patch, model.token, strict=True)
    tokens = math.prod(max(1, patch // token) for patch, token in sides)
    if tokens > MOST_TOKENS:
        yield (
            f"model.token cuts a patch into {tokens:,} tokens, expected at most {MOST_TOKENS:,}; "
            "make it larger"
        )
