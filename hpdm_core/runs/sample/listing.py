"""`hpdm sample --list`: the models that can be sampled from here."""

from pathlib import Path

from hpdm_core.errors import CheckpointError
from hpdm_core.pipeline.pretrained import (
    BEST,
    SHIPPED,
    newest_checkpoint,
    read_header,
    run_folders,
    shipped_models,
)
from hpdm_core.training.checkpoint import EMA


def list_models() -> dict:
    """Return the shipped models and the runs under runs/, as `--checkpoint` takes them.

    Returns:
        `models`: for each its checkpoint, step, data, classes, resolution, or why it is unusable;
        `shipped`: the model that this name stands for.
    """
    runs = {str(run): newest_checkpoint(run) / EMA for run in run_folders()}
    found = shipped_models() | runs
    return {"models": [_facts(name, path) for name, path in found.items()], SHIPPED: BEST}


def _facts(name: str, path: Path) -> dict:
    try:
        header = read_header(path)
    except CheckpointError as error:
        return {"checkpoint": name, "unusable": str(error)}
    recipe = header.recipe
    by_class = recipe.model.conditioning == "class"
    return {
        "checkpoint": name,
        "step": header.step,
        "data": recipe.data.name,
        "conditioning": recipe.model.conditioning,
        "classes": list(header.classes) if by_class else [],
        "resolution": list(recipe.pyramid.levels[-1]),
        "file": str(path),
    }
