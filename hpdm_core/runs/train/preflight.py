"""Checks of `hpdm train` before it starts: recipe, data and disk; and the cost of a run.

Each error names a remedy.
"""

import logging
import shutil
from pathlib import Path

from hpdm_core.build import describe
from hpdm_core.data.dataset import VideoDataset, open_dataset
from hpdm_core.data.loader import usable_entries
from hpdm_core.data.order import ClipRules
from hpdm_core.device import resolve_device
from hpdm_core.errors import CheckpointError, DataError, DeviceError, RecipeError
from hpdm_core.files import gigabytes
from hpdm_core.recipe.load import recipe_from_yaml
from hpdm_core.recipe.schema import Recipe
from hpdm_core.runs.train.fit import fit_micro_batch, fit_on_cards
from hpdm_core.runs.train.warm_start import plan_warm_start
from hpdm_core.training.parallel import free_memory, num_processes

logger = logging.getLogger("hpdm.runs")

# What may differ between a run's recipe and the one it is resumed with: nothing here changes
# what the network learns, except that more steps stretch a cosine schedule.
RESUMABLE = {
    "name", "description", "data.root", "data.workers", "data.memory_cache_gb", "train.steps",
    "train.micro_batch", "train.compile", "train.activation_checkpointing", "train.parallel",
    "train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "train.preview_every",
    "train.preview_videos", "train.tensorboard", "train.wandb",
}  # fmt: skip
# Bytes per parameter of a checkpoint, all float32: weights, two moments, EMA weights.
BYTES_PER_SAVED_PARAMETER = 16


def plan_of_run(
    recipe: Recipe, out: Path, *, device: str, init_from: str | Path | None = None
) -> dict:
    """Return the cost of training a recipe: sizes, FLOPs, memory, and base weights."""
    notes, classes = [], None
    try:
        dataset = open_dataset(recipe.data.root, recipe.data.name)
        classes = dataset.classes
        recipe = with_classes(recipe, dataset)
    except DataError as error:
        notes.append(str(error))
        if recipe.model.conditioning == "class" and recipe.model.num_classes is None:
            notes.append("counted with one class")
            recipe = recipe.with_fields("model", {"num_classes": 1})
    figures = describe(recipe)
    world_size = num_processes()
    parameters = figures["parameters"]
    try:
        free = free_memory(resolve_device(device))
    except DeviceError as error:
        free = None
        notes.append(str(error))
    fit = fit_micro_batch(recipe, parameters, devices=world_size, free=free)
    if init_from is not None:
        figures["initialised"] = plan_warm_start(init_from, recipe, classes=classes).summary()
    return {
        **figures,
        "steps": recipe.train.steps,
        "batch_size": recipe.train.batch_size,
        "devices": world_size,
        "micro_batch": fit.micro_batch,
        "memory_bytes_per_device": dict(fit.needed),
        "memory_verdict": fit.verdict,
        "memory_on_cards": fit_on_cards(recipe, parameters, devices=world_size),
        "checkpoint_bytes": parameters["total"] * BYTES_PER_SAVED_PARAMETER,
        "out": str(out),
        "notes": notes,
    }


def with_classes(recipe: Recipe, dataset: VideoDataset) -> Recipe:
    """Fill in the number of classes from the data set.

    Raises:
        RecipeError: the recipe has fewer classes than the data set.
        DataError: the recipe needs classes and the data set has none.
    """
    if recipe.model.conditioning != "class":
        return recipe
    if not dataset.classes:
        raise DataError(
            f"data set {dataset.folder} has no classes, but the recipe is conditioned on them",
            remedy="set model.conditioning=none, or put videos of each class into a sub-folder",
        )
    number = recipe.model.num_classes
    if number is not None and number < len(dataset.classes):
        raise RecipeError(
            "model.num_classes is too small for the data set",
            got=number,
            expected=f"at least {len(dataset.classes)}, the classes of {dataset.folder}",
            remedy="leave model.num_classes out to take the data set's number",
        )
    if number is not None:
        return recipe
    return recipe.with_fields("model", {"num_classes": len(dataset.classes)})


def check_same_recipe(recipe: Recipe, saved: Path, *, step: int) -> None:
    """Refuse to resume a run with a different recipe.

    Args:
        recipe: what the run is to be resumed with.
        saved: the recipe file of the run.
        step: steps completed.

    Raises:
        RecipeError: listing every field that differs.
    """
    before = _flat(recipe_from_yaml(saved.read_text(), str(saved)))
    after = _flat(recipe)
    changed = [
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
        and name not in RESUMABLE
        and not name.startswith("sampling.")
    ]
    if changed:
        raise RecipeError(
            f"the run in {saved.parent} was started with another recipe ({'; '.join(changed)})",
            remedy="change these back to resume it, or give another --out to start again",
        )
    if recipe.train.steps < step:
        raise RecipeError(
            f"the run in {saved.parent} has done {step} steps already",
            got=f"train.steps={recipe.train.steps}",
            expected=f"at least {step}",
        )


def check_data(recipe: Recipe, dataset: VideoDataset) -> None:
    """Refuse a data set without usable videos; log if there are few.

    Raises:
        DataError: all videos of the split are too short.
    """
    data = recipe.data
    entries = dataset.split(data.split)
    rules = ClipRules(
        pyramid=recipe.pyramid.build(),
        frame_stride=data.frame_stride,
        short_clips=data.short_clips,
        flip=data.flip,
        image_fraction=data.image_fraction,
    )
    usable = usable_entries(dataset, data.split, rules)
    short = len(entries) - len(usable)
    if short or len(usable) < recipe.train.batch_size:
        logger.info("%d of %d videos usable, %d too short", len(usable), len(entries), short)
    if len(usable) < recipe.train.batch_size:
        size = recipe.train.batch_size
        logger.info("a batch of %d holds more than one clip of each video", size)


def check_processes(recipe: Recipe, world_size: int) -> None:
    """Refuse a batch size that the processes do not divide.

    Raises:
        RecipeError: the batch is not a whole multiple of the processes.
    """
    if recipe.train.batch_size % world_size:
        raise RecipeError(
            "train.batch_size must be a whole multiple of the number of processes",
            got=f"{recipe.train.batch_size} over {world_size}",
            remedy=f"set train.batch_size={-(-recipe.train.batch_size // world_size) * world_size}",
        )


def check_disk(recipe: Recipe, out: Path, *, parameters: int) -> None:
    """Refuse a disk that cannot hold the checkpoints that the recipe keeps, and one being written.

    Raises:
        CheckpointError: too little space.
    """
    each = parameters * BYTES_PER_SAVED_PARAMETER
    have = len(list((out / "checkpoints").glob("step-*")))
    needed = each * max(1, recipe.train.keep_checkpoints + 1 - have)
    free = shutil.disk_usage(_existing(out)).free
    if free < needed:
        raise CheckpointError(
            f"too little space for checkpoints in {out}",
            got=f"{gigabytes(free)} free",
            expected=f"{gigabytes(needed)} ({gigabytes(each)} each)",
            remedy="free space, lower train.keep_checkpoints, or give --out on a larger disk",
        )


def _existing(path: Path) -> Path:
    """Return the nearest existing parent folder."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _flat(recipe: Recipe) -> dict[str, object]:
    flat: dict[str, object] = {}
    for section, value in recipe.model_dump(mode="json").items():
        if isinstance(value, dict):
            flat.update({f"{section}.{name}": field for name, field in value.items()})
        else:
            flat[section] = value
    return flat
