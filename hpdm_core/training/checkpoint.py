"""Checkpoints that appear whole or not at all, and that notice when they are damaged.

A checkpoint is a folder `step-NNNNNNNN` of safetensors files (raw weights, averaged weights,
optimiser), the resolved recipe and `state.json`, which lists every file's size and checksum. It is
written under another name, flushed to the disk and renamed. Each weights file carries the recipe
and the classes in its header, so that a single `ema.safetensors` is a complete model. Nothing here
reads or writes pickles.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpdm_core.errors import CheckpointError
from hpdm_core.files import json_sha256, sha256_of

FORMAT = 1
MODEL, EMA, OPTIMIZER = "model.safetensors", "ema.safetensors", "optimizer.safetensors"
STATE, RECIPE = "state.json", "recipe.yaml"
_PREFIX, _PARTIAL, _DAMAGED, _OLD = "step-", ".partial-", "damaged-", ".old-"

Say = Callable[[str], None]


def checkpoint_name(step: int) -> str:
    """Return the folder name of a step's checkpoint."""
    return f"{_PREFIX}{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Return all checkpoint folders below `folder`, oldest first."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir())


def step_of(path: Path) -> int:
    """Return the step in a checkpoint folder's name."""
    return int(path.name.removeprefix(_PREFIX))


def partial_folder(folder: Path, step: int) -> Path:
    """Return the folder into which a checkpoint is written before it gets its name."""
    return folder / f"{_PARTIAL}{checkpoint_name(step)}"


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one safetensors file."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, path, metadata=metadata)


def finish(partial: Path, *, recipe: str, progress: dict, say: Say) -> Path:
    """Complete a checkpoint whose tensors are written, and give it its name.

    Args:
        partial: folder from `partial_folder`.
        recipe: resolved recipe as YAML.
        progress: what else a resumed run needs, JSON-able.
        say: told when a folder of the same name had to be put aside.

    Returns:
        The finished checkpoint folder.
    """
    (partial / RECIPE).write_text(recipe)
    files = {}
    for path in sorted(path for path in partial.rglob("*") if path.is_file()):
        _flush(path)
        name = path.relative_to(partial).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    name = partial.name.removeprefix(_PARTIAL)
    state = {"format": FORMAT, "step": step_of(Path(name)), "progress": progress, "files": files}
    state["checksum"] = json_sha256(state)
    (partial / STATE).write_text(json.dumps(state, indent=1))
    for path in (partial / STATE, *(path for path in partial.rglob("*") if path.is_dir()), partial):
        _flush(path)
    final = partial.with_name(name)
    if final.exists():
        set_aside(final, "a checkpoint of the same step was written", say)
    os.replace(partial, final)
    _flush(final.parent)
    return final


def clean_up(folder: Path) -> None:
    """Remove what a killed process left half-written or half-removed."""
    for pattern in (f"{_PARTIAL}*", f"{_OLD}*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def prune(folder: Path, *, keep: int, every: int) -> None:
    """Remove all checkpoints but `keep`: the newest, and before it the newest due ones.

    What an interruption saved between two due ones stays only while it is the newest, so that a
    run ends with the same checkpoints whether it was interrupted or not.

    Args:
        folder: of the checkpoints, at least one.
        keep: how many stay, one at least.
        every: steps between the due ones.
    """
    *older, _ = list_checkpoints(folder)
    due = [path for path in older if step_of(path) % every == 0]
    kept = due[max(0, len(due) - keep + 1) :]
    for path in set(older).difference(kept):
        old = path.with_name(f"{_OLD}{path.name}")
        os.replace(path, old)
        shutil.rmtree(old, ignore_errors=True)


def set_aside(path: Path, reason: str, say: Say) -> None:
    """Rename a checkpoint that cannot be used, so that it is neither taken nor pruned."""
    target = path.with_name(f"{_DAMAGED}{path.name}")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(path, target)
    say(f"{path.name}: {reason}; kept as {target}, which can be deleted")


def damage(path: Path, *, only: str | None = None) -> str | None:
    """Return what is wrong with a checkpoint; None where it is as it was written.

    Args:
        path: checkpoint folder.
        only: look at this file alone.
    """
    try:
        state = json.loads((path / STATE).read_text())
        checksum = state.pop("checksum")
        if checksum != json_sha256(state) or state["step"] != step_of(path):
            return f"{STATE} is damaged"
        files = state["files"]
        for name in files if only is None else [only]:
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != files[name]["bytes"]:
                return f"{name} is cut short"
            if sha256_of(file) != files[name]["sha256"]:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{STATE} is missing or damaged"
    return None


def newest_intact(folder: Path, *, say: Say, only: str | None = None) -> Path | None:
    """Return the newest checkpoint that is as it was written; None where there is none at all.

    Args:
        folder: the run's checkpoints folder.
        say: told about every damaged checkpoint that was passed over.
        only: file to check; default: all of them.

    Raises:
        CheckpointError: there are checkpoints, and each of them is damaged.
    """
    found = list_checkpoints(folder)
    for path in reversed(found):
        reason = damage(path, only=only)
        if reason is None:
            return path
        say(f"checkpoint {path}: {reason}; falling back to the one before")
    if found:
        raise CheckpointError(
            f"no checkpoint in {folder} can be used",
            got=f"{len(found)} damaged",
            remedy="move the folder away to train from the start",
        )
    return None


def read_progress(path: Path) -> dict:
    """Return what `finish` was given as progress."""
    return json.loads((path / STATE).read_text())["progress"]


def find_weights(ref: Path, *, say: Say = lambda text: None) -> Path:
    """Return the file of averaged weights that `ref` stands for.

    Args:
        ref: a run folder, a checkpoint folder or a weights file.
        say: told about damaged checkpoints that were passed over.

    Raises:
        CheckpointError: there is none.
    """
    if ref.is_file() and ref.suffix == ".safetensors":
        return ref
    if (ref / EMA).is_file():
        return ref / EMA
    for folder in (ref / "checkpoints", ref):
        newest = newest_intact(folder, say=say, only=EMA)
        if newest is not None:
            return newest / EMA
    raise CheckpointError(
        f"no checkpoint at {ref}",
        expected="a run folder, a checkpoint folder or a .safetensors file",
        remedy="train one with `hpdm train`, or check the path",
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file onto the CPU, by name.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read weights {path}", got=error) from error


def read_header(path: Path) -> dict[str, str]:
    """Return what a weights file says about its model, without reading the weights.

    Raises:
        CheckpointError: it is damaged, or was not written by hpdm.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read weights {path}", got=error) from error
    missing = {"recipe", "classes", "step", "kind"} - metadata.keys()
    if missing:
        raise CheckpointError(
            f"{path} does not say which model it belongs to",
            got=f"no {', '.join(sorted(missing))} in its header",
            expected="a weights file written by hpdm",
        )
    return metadata


def read_into(
    path: Path, targets: dict[str, Tensor], copy: Callable[[Tensor, Tensor], None]
) -> None:
    """Copy a file's tensors into `targets` through `copy(target, source)`, one at a time.

    Raises:
        CheckpointError: a tensor is absent or has another shape.
    """
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        for name, target in targets.items():
            source = file.get_tensor(name) if name in names else None
            if source is None or source.shape != target.shape:
                raise CheckpointError(
                    f"{path} does not fit this model at {name}",
                    got="nothing" if source is None else list(source.shape),
                    expected=list(target.shape),
                )
            copy(target, source)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a safetensors file, without reading it."""
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _flush(path: Path) -> None:
    """Force a file or a folder's list of names to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
