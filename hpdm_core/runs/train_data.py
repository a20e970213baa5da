"""The loader of a recipe's data set."""

from hpdm_core.data.dataset import VideoDataset
from hpdm_core.data.loader import PatchLoader
from hpdm_core.recipe.schema import Recipe


def open_loader(
    recipe: Recipe,
    dataset: VideoDataset,
    *,
    batch_size: int,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
) -> PatchLoader:
    """Open the loader of one process's share of each batch.

    Args:
        recipe: what clips and patches are like.
        dataset: where they come from.
        batch_size: videos per step over all processes.
        workers: decoding processes.
        rank, world_size: which share of each batch.
    """
    data = recipe.data
    return PatchLoader(
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
