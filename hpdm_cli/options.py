"""Command-line options shared by several commands."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from hpdm_core.errors import HpdmError

if TYPE_CHECKING:
    from hpdm_core.recipe.schema import Recipe

Number = TypeVar("Number", int, float)

RecipeRef = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE",
        help="Path of a recipe (recipes/hpdm_m.yaml), or the name of a shipped one (hpdm_m).",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Override recipe fields: optim.lr=1e-3 data.root=/big sampling.steps=[64,32,16].",
        show_default=False,
    ),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option("--device", help="Where to compute; auto uses CUDA if available."),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the plan and its cost, and do nothing."),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help='Print one JSON object on stdout and nothing else; on failure {"error": ...}.',
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder to write to.", show_default=False),
]


def read_recipe(ref: str, overrides: list[str] | None, *, seed: int | None = None) -> "Recipe":
    """Load a recipe with the command line's overrides; `--seed` is one of them."""
    from hpdm_core.recipe.load import load_recipe

    seeded = [] if seed is None else [f"train.seed={seed}"]
    return load_recipe(ref, [*(overrides or ()), *seeded])


def same_command(ctx: typer.Context) -> str:
    """Return the command as it was given, without `--dry-run` and what needs it."""
    kept, rest = [], iter(ctx.obj)
    for word in rest:
        if word == "--devices":
            next(rest)
        elif word != "--dry-run" and not word.startswith("--devices="):
            kept.append(word)
    return shlex.join(["hpdm", *kept])


def examples(*lines: str, title: str = "Examples") -> str:
    """Return an epilog that is not wrapped: one command per line, ready to copy."""
    return "\b\n" + "\n".join([f"{title}:", *(f"  {line}" for line in lines)])


def words(text: str | None) -> list[str]:
    """Split a comma-separated list: `fvd,is`."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def height_width(text: str | None, *, option: str) -> tuple[int, int] | None:
    """Read `288x512`, or `128` for a square; None if not given."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", text.strip())
    if match is None:
        raise HpdmError(
            f"{option} takes height and width in pixels", got=text, expected="288x512 or 128"
        )
    return int(match[1]), int(match[2] or match[1])


def whole_numbers(text: str | None, *, option: str) -> tuple[int, ...] | None:
    """Split `128,64,32` into numbers, None if not given."""
    return _numbers(text, int, f"{option} takes whole numbers", "for example 128,64,32")


def fractions(text: str | None, *, option: str) -> tuple[float, ...] | None:
    """Split `0.3,0.5,1` into numbers, None if not given."""
    return _numbers(
        text, float, f"{option} takes numbers from 0 to 1", "for example 0.6 or 0.3,0.5,1"
    )


def _numbers(
    text: str | None, kind: Callable[[str], Number], what: str, expected: str
) -> tuple[Number, ...] | None:
    if text is None:
        return None
    try:
        return tuple(kind(word) for word in words(text))
    except ValueError as error:
        raise HpdmError(what, got=text, expected=expected) from error
