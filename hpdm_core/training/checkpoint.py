"""Atomic checkpoints with checksums.

A checkpoint is a folder `step-NNNNNNNN` of safetensors files (raw weights, EMA weights,
optimiser), the resolved recipe and `state.json`, which lists every file's size and checksum. It is
written under a temporary name, flushed to disk and renamed. Each weights file carries the recipe
and the classes in its header, so that a single `ema.safetensors` is a complete model. No pickles.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpdm_core.errors import CheckpointError
from hpdm_core.files import irregular, json_sha256, sha256_of

logger = logging.getLogger("hpdm.training")

FORMAT = 1
MODEL, EMA, OPTIMIZER = "model.safetensors", "ema.safetensors", "optimizer.safetensors"
STATE, RECIPE = "state.json", "recipe.yaml"
_PREFIX, _PARTIAL, _DAMAGED, _OLD = "step-", ".partial-", "damaged-", ".old-"
_NAME = re.compile(f"{_PREFIX}[0-9]{{8,18}}")


def checkpoint_name(step: int) -> str:
    """Return the folder name of a step's checkpoint."""
    return f"{_PREFIX}{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Return all checkpoint folders below `folder`, oldest first.

    Other names and empty folders are left alone: a checkpoint gets its name when it is complete.
    """
    named = [path for path in folder.glob(f"{_PREFIX}*") if _NAME.fullmatch(path.name)]
    return sorted((path for path in named if path.is_dir() and any(path.iterdir())), key=step_of)


def step_of(path: Path) -> int:
    """Return the step in a checkpoint folder's name."""
    return int(path.name.removeprefix(_PREFIX))


def partial_folder(folder: Path, step: int) -> Path:
    """Return the temporary folder of a checkpoint that is being written."""
    return folder / f"{_PARTIAL}{checkpoint_name(step)}"


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one safetensors file."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, path, metadata=metadata)


def finish(partial: Path, *, recipe: str, progress: dict) -> Path:
    """Complete a checkpoint whose tensors are written, and rename it to its final name.

    Args:
        partial: folder from `partial_folder`.
        recipe: resolved recipe as YAML.
        progress: what else a resumed run needs, JSON-able.

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
        set_aside(final, "a checkpoint of the same step was written")
    os.replace(partial, final)
    _flush(final.parent)
    return final


def clean_up(folder: Path) -> None:
    """Remove partial folders of a killed process."""
    for pattern in (f"{_PARTIAL}*", f"{_OLD}*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def prune(folder: Path, *, keep: int, every: int) -> None:
    """Remove all checkpoints but `keep`: the newest one, and the newest regular ones before it.

    A checkpoint saved by an interruption between two regular ones is kept only while it is the
    newest, so that a run ends with the same checkpoints whether it was interrupted or not.

    Args:
        folder: of the checkpoints, at least one.
        keep: number of checkpoints to keep, at least 1.
        every: steps between regular ones.
    """
    *older, _ = list_checkpoints(folder)
    due = [path for path in older if step_of(path) % every == 0]
    kept = due[max(0, len(due) - keep + 1) :]
    for path in set(older).difference(kept):
        old = path.with_name(f"{_OLD}{path.name}")
        os.replace(path, old)
        shutil.rmtree(old, ignore_errors=True)


def set_aside(path: Path, reason: str) -> None:
    """Rename a checkpoint that cannot be used, so that it is neither used nor pruned."""
    target = path.with_name(f"{_DAMAGED}{path.name}")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(path, target)
    logger.warning("%s: %s; kept as %s, which can be deleted", path.name, reason, target)


def damage(path: Path, *, only: str | None = None) -> str | None:
    """Return what is wrong with a checkpoint; None if it is intact.

    Args:
        path: checkpoint folder.
        only: check this file only.
    """
    if irregular(path / STATE):  # a pipe would block
        return f"{STATE} is missing or damaged"
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{STATE} is missing or damaged"
    return None


def newest_intact(folder: Path, *, only: str | None = None) -> Path | None:
    """Return the newest intact checkpoint; None if there are no checkpoints.

    Args:
        folder: the run's checkpoints folder.
        only: file to check; default: all of them.

    Raises:
        CheckpointError: all checkpoints are damaged.
    """
    found = list_checkpoints(folder)
    for path in reversed(found):
        reason = damage(path, only=only)
        if reason is None:
            return path
        logger.warning("checkpoint %s: %s; falling back to the one before", path, reason)
    if found:
        raise CheckpointError(
            f"no checkpoint in {folder} can be used",
            got=f"{len(found)} damaged",
            remedy="use another checkpoint, or move the folder away and train from the start",
        )
    return None


def read_progress(path: Path) -> dict:
    """Return the `progress` given to `finish`."""
    return json.loads((path / STATE).read_text())["progress"]


def find_weights(ref: Path) -> Path:
    """Resolve a reference to a file of EMA weights.

    Args:
        ref: a run folder, a checkpoint folder or a weights file.

    Raises:
        CheckpointError: there is none.
    """
    if ref.is_file() and ref.suffix == ".safetensors":
        return ref
    if ref.exists() and not ref.is_dir():
        _check_regular(ref)
        raise CheckpointError(
            f"{ref} is no .safetensors file",
            expected="a run folder, a checkpoint folder or a .safetensors file",
            remedy="pickled weights (.pt, .ckpt) are never read, as they may run code",
        )
    if (ref / EMA).is_file():
        return ref / EMA
    for folder in (ref / "checkpoints", ref):
        newest = newest_intact(folder, only=EMA)
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
    _check_regular(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def read_header(path: Path) -> dict[str, str]:
    """Read the header of a weights file, without the weights.

    Raises:
        CheckpointError: it is damaged, or was not written by hpdm.
    """
    _check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
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


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"cannot read weights {path}",
        got=error,
        expected="a whole .safetensors file",
        remedy="copy or download it again, or use an earlier checkpoint",
    )


def _check_regular(path: Path) -> None:
    if fault := irregular(path):
        raise CheckpointError(
            f"cannot read weights {path}", got=fault, expected="a .safetensors file"
        )


def _flush(path: Path) -> None:
    """Flush a file or a folder's directory entry to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
