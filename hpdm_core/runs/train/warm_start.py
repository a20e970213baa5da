"""Initialise a network from another's weights (`hpdm finetune`), with the status of each.

The paper's text-to-video models start this way from a base model of the lowest level alone (Sec. 5,
Table 8). New fusion layers start at the identity, so that level 0 initially equals the base;
positions are interpolated where the patch has another number of tokens.

Axis legend: `t h w` tokens of a patch, `d` width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from safetensors import safe_open
from torch import Tensor, nn

from hpdm_core.build import build_network
from hpdm_core.errors import CheckpointError
from hpdm_core.pipeline.pretrained import check_finite, find_model, read_header
from hpdm_core.recipe.schema import Recipe
from hpdm_core.training.checkpoint import tensor_shapes
from hpdm_core.training.sharding import copy_whole

KeyStatus = Literal["loaded", "interpolated", "missing", "unexpected"]
STATUSES: tuple[KeyStatus, ...] = ("loaded", "interpolated", "missing", "unexpected")
POSITIONS, CLASSES = "tokenizer.positions.tables.", "conditioning.classes.weight"
# Their elements are pixels of a token, so an equal shape is not enough.
PIXELS = ("tokenizer.project", "detokenizer.project")
# Layers that level 0 does not use.
FINER_LEVELS = ("fusion.", "tokenizer.project_context.")
# Fields that shape every block, by its kind.
WIDTHS = {
    "rin": (
        "data_width", "latent_width", "latent_heads", "latent_head_width", "cross_heads",
        "cross_head_width", "mlp_ratio",
    ),
    "transformer": ("data_width", "head_width", "mlp_ratio"),
}  # fmt: skip
WIDTHS["shared_rin"] = WIDTHS["rin"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Status of one weight of the new model, or (unexpected) of the base.

    Args:
        name: of the parameter.
        status: loaded as it is, interpolated, missing in the base, or unexpected: in the base only.
        size: number of elements.
        why: reason if it is not loaded unchanged.
    """

    name: str
    status: KeyStatus
    size: int
    why: str = ""

    @property
    def part(self) -> str:
        """The part of the network, by its first name; positions count as a part."""
        return "positions" if self.name.startswith(POSITIONS) else self.name.split(".")[0]


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base model, as described by its file's header.

    Args:
        path: weights file.
        recipe: that it was trained by.
        classes: class names.
        step: optimiser steps it was trained for.
        shapes: of its weights, by name.
    """

    path: Path
    recipe: Recipe
    classes: tuple[str, ...]
    step: int
    shapes: dict[str, tuple[int, ...]]

    @property
    def grid(self) -> tuple[int, int, int]:
        return token_grid(self.recipe)


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """Initialisation of a new model from a base: the status of every weight.

    Args:
        base: source of the weights.
        recipe: of the new model.
        entries: one per weight of either model.
    """

    base: Base
    recipe: Recipe
    entries: tuple[Entry, ...]

    @property
    def level_0_as_base(self) -> bool:
        """Whether the new model's lowest level gives exactly the base's output."""
        return not self._level_0_changes()

    @torch.no_grad()
    def apply(self, network: nn.Module) -> None:
        """Copy loaded and interpolated weights into a network (or this process's shards of it)."""
        params = dict(network.named_parameters())
        statuses = {entry.name: entry.status for entry in self.entries}
        with safe_open(self.base.path, framework="pt") as file:
            for name, param in params.items():
                if statuses[name] == "loaded":
                    tensor = file.get_tensor(name)
                    check_finite(tensor, name=name, path=self.base.path)
                    copy_whole(param, tensor)
            if "interpolated" in statuses.values():
                names = sorted(name for name in self.base.shapes if name.startswith(POSITIONS))
                tables = resized_positions(
                    [file.get_tensor(name) for name in names],
                    grid=self.base.grid,
                    new_grid=token_grid(self.recipe),
                    kind=self.recipe.model.positions,
                )
                for index, table in enumerate(tables):
                    copy_whole(params[f"{POSITIONS}{index}"], table)

    def summary(self) -> dict:
        """Return the table, JSON-able: counts of numbers by part, and names by status."""
        parts = list(dict.fromkeys(entry.part for entry in self.entries))
        return {
            "from": str(self.base.path),
            "base_recipe": self.base.recipe.name,
            "base_step": self.base.step,
            "level_0_as_base": self.level_0_as_base,
            "weights": [self._row(part) for part in parts],
            **{status: [e.name for e in self.entries if e.status == status] for status in STATUSES},
        }

    def lines(self) -> list[str]:
        """Return the table as lines of text, with a conclusion on level 0."""
        head = " ".join(f"{status:>13}" for status in STATUSES)
        lines = [f"weights from {self.base.path} ({self.base.recipe.name}):", f"{'':16} {head}"]
        for row in self.summary()["weights"]:
            counts = " ".join(f"{_count(row[status]):>13}" for status in STATUSES)
            lines.append(f"{row['part']:16} {counts}  {row['why']}".rstrip())
        changes = self._level_0_changes()
        if changes:
            lines.append(f"level 0 does not start as the base does: {'; '.join(changes)}")
        else:
            lines.append("level 0 starts as exactly the base model")
        return lines

    def _row(self, part: str) -> dict:
        entries = [entry for entry in self.entries if entry.part == part]
        sizes = {status: sum(e.size for e in entries if e.status == status) for status in STATUSES}
        whys = dict.fromkeys(entry.why for entry in entries if entry.why)
        return {"part": part, **sizes, "why": "; ".join(whys)}

    def _level_0_changes(self) -> list[str]:
        return list(
            dict.fromkeys(
                f"{entry.part} {entry.status}"
                for entry in self.entries
                if entry.status != "loaded" and not entry.name.startswith(FINER_LEVELS)
            )
        )


def plan_warm_start(
    ref: str | Path,
    recipe: Recipe,
    *,
    classes: Sequence[str] | None,
) -> WarmStart:
    """Read a base model's header and determine the status of every weight.

    Args:
        ref: the base model, as `find_model` resolves it.
        recipe: of the new model.
        classes: names of its classes; None where they are not known.

    Raises:
        CheckpointError: there is no such model, or its blocks are of another kind or width.
    """
    base = _read_base(ref)
    _check_widths(base, recipe)
    with torch.device("meta"):
        network = build_network(recipe)
    entries = [
        _entry(name, param, base=base, recipe=recipe, classes=classes)
        for name, param in network.named_parameters()
    ]
    used = {entry.name for entry in entries if entry.status == "loaded"}
    positions_used = any(entry.status == "interpolated" for entry in entries)
    for name, shape in base.shapes.items():
        if name not in used and not (positions_used and name.startswith(POSITIONS)):
            entries.append(Entry(name=name, status="unexpected", size=torch.Size(shape).numel()))
    return WarmStart(base=base, recipe=recipe, entries=tuple(entries))


def resized_positions(
    tables: Sequence[Tensor],
    *,
    grid: tuple[int, int, int],
    new_grid: tuple[int, int, int],
    kind: Literal["learned", "factorised"],
) -> list[Tensor]:
    """Interpolate position embeddings to another number of tokens, of either kind.

    Trilinear between token centres. Factorised embeddings are means over the other axes: exact if
    the positions were factorised before, else the least-squares fit.

    Args:
        tables: one (n, d), or (t, d), (h, d) and (w, d).
        grid: tokens per axis of `tables`.
        new_grid: tokens per axis of the result.
        kind: 'learned' gives one tensor, 'factorised' three.
    """
    t, h, w = grid
    if len(tables) == 1:
        cells = rearrange(tables[0], "(t h w) d -> 1 d t h w", t=t, h=h, w=w)
    else:
        frames, rows, columns = tables
        whole = frames[:, None, None] + rows[:, None] + columns
        cells = rearrange(whole, "t h w d -> 1 d t h w")
    cells = F.interpolate(cells, size=new_grid, mode="trilinear", align_corners=False)
    if kind == "learned":
        return [rearrange(cells, "1 d t h w -> (t h w) d")]
    mean = reduce(cells, "1 d t h w -> d", "mean")
    return [
        reduce(cells, "1 d t h w -> t d", "mean"),
        reduce(cells, "1 d t h w -> h d", "mean") - mean,
        reduce(cells, "1 d t h w -> w d", "mean") - mean,
    ]


def token_grid(recipe: Recipe) -> tuple[int, int, int]:
    """Return the tokens of a patch per axis."""
    sizes = zip(recipe.pyramid.patch, recipe.model.token, strict=True)
    return tuple(patch // token for patch, token in sizes)


def _read_base(ref: str | Path) -> Base:
    path = find_model(ref)
    header = read_header(path)
    return Base(
        path=path,
        recipe=header.recipe,
        classes=header.classes,
        step=header.step,
        shapes=tensor_shapes(path),
    )


def _entry(
    name: str, param: Tensor, *, base: Base, recipe: Recipe, classes: Sequence[str] | None
) -> Entry:
    status, why = "loaded", ""
    source = base.shapes.get(name)
    kinds = (base.recipe.model.conditioning, recipe.model.conditioning)
    resized = _resized(base, recipe) if name.startswith(POSITIONS) else ""
    if resized and base.recipe.model.data_width == recipe.model.data_width:
        status, why = "interpolated", resized
    elif name.startswith("conditioning.") and source is None:
        status, why = "missing", f"base: {kinds[0]}, here: {kinds[1]}"
    elif source is None:
        status, why = (
            "missing",
            "at the identity" if name.startswith("fusion.") else "none in the base",
        )
    elif name.startswith(PIXELS) and base.recipe.model.token != recipe.model.token:
        status, why = (
            "missing",
            f"token {_size(base.recipe.model.token)} -> {_size(recipe.model.token)}",
        )
    elif name.startswith("conditioning.project") and kinds[0] != kinds[1]:
        status, why = "missing", f"base: {kinds[0]}, here: {kinds[1]}"
    elif name == CLASSES and classes is not None and tuple(classes) != base.classes:
        status, why = "missing", "other classes"
    elif source != tuple(param.shape):
        status, why = "missing", f"{_size(source)} in the base, {_size(param.shape)} here"
    return Entry(name=name, status=status, size=param.numel(), why=why)


def _resized(base: Base, recipe: Recipe) -> str:
    """Return how the positions differ from the base's, '' if they do not."""
    before = (base.recipe.model.positions, base.grid)
    after = (recipe.model.positions, token_grid(recipe))
    if before == after:
        return ""
    kinds = "" if before[0] == after[0] else f"{before[0]} -> {after[0]}, "
    return f"{kinds}{_size(before[1])} -> {_size(after[1])} tokens"


def _check_widths(base: Base, recipe: Recipe) -> None:
    old, new = base.recipe.model, recipe.model
    names = WIDTHS[new.block] if old.block == new.block else ("block",)
    differing = [name for name in names if getattr(old, name) != getattr(new, name)]
    if differing:
        raise CheckpointError(
            f"the blocks of {base.path} are of another kind or width than this recipe's",
            got=", ".join(f"model.{name}={getattr(new, name)}" for name in differing),
            expected=", ".join(f"model.{name}={getattr(old, name)}" for name in differing),
            remedy="give the recipe the base model's kind of block and widths",
        )


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"


def _size(numbers: Sequence[int]) -> str:
    return "x".join(str(number) for number in numbers)
