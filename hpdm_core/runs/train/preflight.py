"""Checks of `hpdm train` before it starts: recipe, data and disk; and the cost of a run.

Each error names a remedy.
"""

import json
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
from hpdm_core.recipe.load import load_recipe
from hpdm_core.recipe.schema import Recipe
from hpdm_core.runs.train.distill import plan_distillation
from hpdm_core.runs.train.fit import fit_micro_batch, fit_on_cards
from hpdm_core.runs.train.scaling import H100, simulate
from hpdm_core.runs.train.warm_start import plan_warm_start
from hpdm_core.training.checkpoint import list_checkpoints
from hpdm_core.training.parallel import free_memory, num_processes

logger = logging.getLogger("hpdm.runs")

INITIALISED = "initialised.json"  # status of a base model's weights

# What may differ between a run's recipe and the one it is resumed with: nothing here changes
# what the network learns, except that more steps stretch a cosine schedule.
RESUMABLE = {
    "name", "description", "data.root", "data.workers", "data.memory_cache_gb", "train.steps",
    "train.micro_batch", "train.compile", "train.activation_checkpointing", "train.parallel",
    "train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "train.preview_every",
    "train.preview_videos", "train.replicas", "train.async_checkpoints", "train.tensorboard",
    "train.wandb",
}  # fmt: skip
# Bytes per parameter of a checkpoint, all float32: weights, two moments, EMA weights.
BYTES_PER_SAVED_PARAMETER = 16


def plan_of_run(
    recipe: Recipe,
    out: Path,
    *,
    device: str,
    init_from: str | Path | None = None,
    devices: int | None = None,
) -> dict:
    """Return the cost of training a recipe: sizes, FLOPs, memory, and base weights.

    Args:
        devices: simulate a cluster of that many cards in place of what is here.
    """
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
    world_size = devices or num_processes()
    check_processes(recipe, world_size)
    parameters = figures["parameters"]
    free = H100.memory if devices else _free_here(device, notes)
    fit = fit_micro_batch(recipe, parameters, devices=world_size, free=free)
    if init_from is not None:
        figures["initialised"] = plan_warm_start(init_from, recipe, classes=classes).summary()
        if recipe.train.distill is not None:
            figures["distillation"] = plan_distillation(recipe, init_from)
    if devices:
        figures["scaling"] = simulate(recipe, figures, fit, devices=devices)
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


def _free_here(device: str, notes: list[str]) -> int | None:
    try:
        return free_memory(resolve_device(device))
    except DeviceError as error:
        notes.append(str(error))
        return None


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


def check_same_recipe(recipe: Recipe, saved: Path) -> None:
    """Refuse to resume a run with a different recipe.

    Args:
        recipe: what the run is to be resumed with.
        saved: the recipe file of the run.

    Raises:
        RecipeError: listing every field that differs.
    """
    before = _flat(load_recipe(saved))
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


def check_steps(recipe: Recipe, out: Path, *, done: int) -> None:
    """Refuse fewer steps than a resumed run has done.

    Raises:
        RecipeError: it has done more.
    """
    if recipe.train.steps < done:
        raise RecipeError(
            f"the run in {out} has done {done} steps already",
            got=f"train.steps={recipe.train.steps}",
            expected=f"at least {done}",
        )


def check_base(out: Path, init_from: str | Path) -> None:
    """Refuse to fine-tune into a run that was not started from a base model.

    Args:
        out: the run's folder.
        init_from: the base model that is asked for.

    Raises:
        CheckpointError: the run has checkpoints and was trained from scratch.
    """
    if not list_checkpoints(out / "checkpoints"):
        return
    if base_of(out) is None:
        raise CheckpointError(
            f"the run in {out} was trained from scratch, so it cannot start from {init_from}",
            remedy="give another --out for the fine-tuned model",
        )
    logger.info("resuming %s: %s is not read again", out, init_from)


def base_of(out: Path) -> str | None:
    """Return the recipe name of the base model that a run was started from, if any.

    Raises:
        CheckpointError: the run's record of it is damaged.
    """
    path = out / INITIALISED
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_bytes())["base_recipe"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged", got=error, remedy="restore it, or give another --out"
        ) from error


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
    """Refuse a batch size or a number of replicas that does not fit the processes.

    Raises:
        RecipeError: the batch is not a whole multiple of the processes, or they of the replicas.
    """
    if recipe.train.batch_size % world_size:
        raise RecipeError(
            "train.batch_size must be a whole multiple of the number of processes",
            got=f"{recipe.train.batch_size} over {world_size}",
            remedy=f"set train.batch_size={-(-recipe.train.batch_size // world_size) * world_size}",
        )
    if world_size > 1 and recipe.train.parallel == "fsdp" and world_size % recipe.train.replicas:
        raise RecipeError(
            "train.replicas must divide the number of processes",
            got=f"{recipe.train.replicas} of {world_size}",
            remedy="set it to the number of machines, or to 1",
        )


def check_disk(recipe: Recipe, out: Path, *, parameters: int) -> None:
    """Refuse a disk that cannot hold the checkpoints that the recipe keeps, and one being written.

    Raises:
        CheckpointError: too little space.
    """
    each = parameters * BYTES_PER_SAVED_PARAMETER
    have = len(list_checkpoints(out / "checkpoints"))
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
