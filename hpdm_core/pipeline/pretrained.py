"""Trained models: resolve a reference to a weights file, and read it safely.

A weights file is safetensors with the recipe (YAML) and the classes (JSON) in its header. Files may
be untrusted: everything in a header is checked and nothing is unpickled.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from hpdm_core import __version__
from hpdm_core.build import build_network
from hpdm_core.errors import CheckpointError, RecipeError, did_you_mean
from hpdm_core.files import sha256_of
from hpdm_core.names import has_unprintable
from hpdm_core.pipeline.hub import HUB, download_weights
from hpdm_core.recipe.load import recipe_from_yaml
from hpdm_core.recipe.schema import Recipe
from hpdm_core.training import checkpoint

# What the header's plain values look like; a value that is absent was not written by this version.
_PLAIN = {
    "step": ("[0-9]{1,18}", "a number of steps"),
    "seconds": ("[0-9]{1,12}([.][0-9]{1,9})?", "a number of seconds"),
}
_NAMES = TypeAdapter(list[str])

ASSETS = Path(__file__).resolve().parents[1] / "assets"
SHIPPED, BEST = "shipped", "shapes"  # 'shipped' stands for the best of the models in ASSETS
RUNS = Path("runs")


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
        ref: a run folder, checkpoint folder, exported folder or weights file; the name of a model
            that comes with the package, 'shipped' for the best of them; 'hf://owner/name' or
            'hf://owner/name@revision' for one on the Hugging Face Hub; None for the newest run
            under runs/, else 'shipped'.

    Raises:
        CheckpointError: there is none.
    """
    if ref is None:
        ref = newest_run() or SHIPPED
    if str(ref).startswith(HUB):
        return download_weights(str(ref))
    shipped = shipped_models()
    name = BEST if str(ref) == SHIPPED else str(ref)
    if name in shipped:
        return shipped[name]
    if str(ref) == SHIPPED:
        raise CheckpointError(
            "this installation has no shipped model",
            expected=str(ASSETS / f"{BEST}.safetensors"),
            remedy="train one: `hpdm prep shapes ./data`, then `hpdm train shapes`",
        )
    if not Path(ref).exists():
        near = did_you_mean(str(ref), [SHIPPED, *shipped, *map(str, run_folders())])
        raise CheckpointError(
            f"no checkpoint at {ref}",
            expected="a run folder, a checkpoint folder, a .safetensors file, or one of "
            + ", ".join([SHIPPED, *shipped]),
            remedy=near or "train one with `hpdm train`; `hpdm sample --list` shows what is here",
        )
    return checkpoint.find_weights(Path(ref))


def shipped_models() -> dict[str, Path]:
    """Return the weights files of the models that come with the package, by name."""
    return {path.stem: path for path in sorted(ASSETS.glob("*.safetensors")) if _is_model(path)}


def _is_model(path: Path) -> bool:
    try:
        checkpoint.read_header(path)
    except CheckpointError:
        return False
    return True


def model_name(path: Path) -> str:
    """Return what to call a weights file: by its run, its own name, or its folder."""
    path = path.resolve()
    if path.parent.parent.name == "checkpoints":
        return path.parents[2].name
    return path.parent.name if path.stem in ("ema", "model") else path.stem


def describe_model(path: Path) -> str:
    """Return a weights file's path, or the name of a model that comes with the package."""
    return f"{path.stem}, shipped with hpdm" if path.parent == ASSETS else str(path)


def run_folders(runs: Path = RUNS) -> list[Path]:
    """Return the runs that have checkpoints, sorted by name."""
    found = sorted(run for run in runs.glob("*") if run.is_dir())
    return [run for run in found if checkpoint.list_checkpoints(run / "checkpoints")]


def newest_run(runs: Path = RUNS) -> Path | None:
    """Return the run folder whose newest checkpoint is the newest of all, or None."""
    newest = {run: newest_checkpoint(run).stat().st_mtime for run in run_folders(runs)}
    return max(newest, key=newest.get) if newest else None


def newest_checkpoint(run: Path) -> Path:
    """Return the newest checkpoint of a run that has any, intact or not."""
    return checkpoint.list_checkpoints(run / "checkpoints")[-1]


def read_header(path: Path) -> Header:
    """Read the header of a weights file, without the weights.

    Raises:
        CheckpointError: it is damaged, not written by hpdm, or written by a version whose recipes
            this one does not know.
    """
    metadata = checkpoint.read_header(path)
    for name, (pattern, expected) in _PLAIN.items():
        if name in metadata and not re.fullmatch(pattern, metadata[name]):
            raise _damaged(path, name, metadata[name], expected)
    try:
        recipe = recipe_from_yaml(metadata["recipe"], "its recipe")
    except RecipeError as error:
        raise CheckpointError(
            f"{path} cannot be used by this version of hpdm ({__version__})",
            got=f"a model of hpdm {_version(metadata)} ({_first_problem(error)})",
            expected="a recipe that this version knows",
            remedy="retrain the model, or use the version that wrote it",
        ) from error
    classes = _classes(path, metadata["classes"], recipe)
    return Header(recipe=recipe, classes=classes, step=int(metadata["step"]), metadata=metadata)


def _classes(path: Path, text: str, recipe: Recipe) -> tuple[str, ...]:
    """Return the class names in a header."""
    try:
        classes = _NAMES.validate_json(text, strict=True)
    except ValidationError:
        raise _damaged(path, "classes", text, "a list of names") from None
    if any(has_unprintable(name) or not name.strip() for name in classes):
        raise _damaged(path, "classes", text, "names that can be printed")
    number = recipe.model.num_classes
    if recipe.model.conditioning == "class" and not 1 <= len(classes) <= (number or 0):
        raise _damaged(path, "classes", f"{len(classes)} names", f"names of {number} classes")
    return tuple(classes)


def _damaged(path: Path, field: str, text: str, expected: str) -> CheckpointError:
    got = f"{field} {ascii(text)[:60]}"
    return CheckpointError(f"the header of {path} is damaged", got=got, expected=expected)


def read_network(path: Path, header: Header) -> tuple[nn.Module, str]:
    """Return the network of a weights file on the CPU, for inference, and the file's SHA-256.

    Raises:
        CheckpointError: the weights do not fit the recipe, or are not finite.
    """
    tensors = checkpoint.read_tensors(path)
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            got = f"{name} of {tensor.dtype}"
            raise CheckpointError(f"cannot use {path}", got=got, expected="weights of float32")
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
