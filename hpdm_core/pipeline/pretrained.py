"""Trained models: resolve a reference to a weights file, and read it safely.

A weights file is safetensors with the recipe (YAML) and the classes (JSON) in its header. Files may
be untrusted: everything in a header is checked and nothing is unpickled.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hpdm_core import __version__
from hpdm_core.build import build_network
from hpdm_core.errors import CheckpointError, RecipeError
from hpdm_core.files import sha256_of
from hpdm_core.pipeline.hub import HUB, download_weights
from hpdm_core.recipe.load import recipe_from_yaml
from hpdm_core.recipe.schema import Recipe
from hpdm_core.training import checkpoint

SHIPPED = "shipped"
SHIPPED_WEIGHTS = Path(__file__).resolve().parents[1] / "assets" / "shapes.safetensors"


@dataclass(frozen=True, kw_only=True)
class Header:
    """Header of a weights file.

    Args:
        recipe: of its training.
        classes: class names; empty for a model without classes.
        step: optimiser steps of its training.
        metadata: all of it as text; besides the above `hpdm_version`, and in files written by
            newer versions `seconds` of training and `machine`.
    """

    recipe: Recipe
    classes: tuple[str, ...]
    step: int
    metadata: Mapping[str, str]


def find_model(ref: str | Path | None) -> Path:
    """Resolve a reference to a weights file.

    Args:
        ref: a run folder, checkpoint folder, exported folder or weights file; 'shipped' for the
            model that comes with the package; 'hf://owner/name' or 'hf://owner/name@revision' for
            one on the Hugging Face Hub; None for the newest run under runs/, else the shipped one.

    Raises:
        CheckpointError: there is none.
    """
    if ref is None:
        ref = newest_run() or SHIPPED
    if str(ref).startswith(HUB):
        return download_weights(str(ref))
    if str(ref) != SHIPPED:
        return checkpoint.find_weights(Path(ref))
    if not SHIPPED_WEIGHTS.is_file():
        raise CheckpointError(
            "this installation has no shipped model",
            expected=str(SHIPPED_WEIGHTS),
            remedy="train one: `hpdm prep shapes ./data`, then `hpdm train shapes`",
        )
    return SHIPPED_WEIGHTS


def newest_run(runs: Path = Path("runs")) -> Path | None:
    """Return the run folder whose newest checkpoint is the newest of all, or None."""
    newest = {
        run: found[-1].stat().st_mtime
        for run in runs.glob("*")
        if (found := checkpoint.list_checkpoints(run / "checkpoints"))
    }
    return max(newest, key=newest.get) if newest else None


def read_header(path: Path) -> Header:
    """Read the header of a weights file, without the weights.

    Raises:
        CheckpointError: it is damaged, not written by hpdm, or written by a version whose recipes
            this one does not know.
    """
    metadata = checkpoint.read_header(path)
    try:
        classes, step = json.loads(metadata["classes"]), int(metadata["step"])
    except ValueError as error:
        raise CheckpointError(f"the header of {path} is damaged", got=error) from error
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise CheckpointError(
            f"the header of {path} is damaged",
            got=f"classes {metadata['classes'][:60]}",
            expected="a list of names",
        )
    try:
        recipe = recipe_from_yaml(metadata["recipe"], "its recipe")
    except RecipeError as error:
        raise CheckpointError(
            f"{path} cannot be used by this version of hpdm ({__version__})",
            got=f"a model of hpdm {_version(metadata)} ({_first_problem(error)})",
            expected="a recipe that this version knows",
            remedy="retrain the model, or use the version that wrote it",
        ) from error
    return Header(recipe=recipe, classes=tuple(classes), step=step, metadata=metadata)


def read_network(path: Path, header: Header) -> tuple[nn.Module, str]:
    """Return the network of a weights file on the CPU, for inference, and the file's SHA-256.

    Raises:
        CheckpointError: the weights do not fit the recipe, or are not finite.
    """
    tensors = checkpoint.read_tensors(path)
    for name, tensor in tensors.items():
        check_finite(tensor, name=name, path=path)
    with torch.device("meta"):
        network = build_network(header.recipe)
    try:
        network.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not fit the recipe inside it",
            got=f"{str(error).splitlines()[1].strip()} (hpdm {_version(header.metadata)})",
            expected="a file as `hpdm train` of this version writes it",
        ) from error
    return network.eval().requires_grad_(False), sha256_of(path)


def check_finite(tensor: Tensor, *, name: str, path: Path) -> None:
    """Reject a weights file with NaN or infinity.

    Raises:
        CheckpointError: it does.
    """
    if not torch.isfinite(tensor).all():
        raise CheckpointError(
            f"{path} holds weights that are not finite",
            got=f"NaN or infinity in {name}",
            expected="finite numbers",
            remedy="use an earlier checkpoint: this training diverged",
        )


def _version(metadata: Mapping[str, str]) -> str:
    return metadata.get("hpdm_version", "of an unknown version")


def _first_problem(error: RecipeError) -> str:
    """Return the first of several problems, without its hint."""
    lines = [line.strip() for line in str(error).splitlines()]
    return (lines[1] if len(lines) > 1 else lines[0]).partition("; ")[0]
