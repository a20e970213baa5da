"""Read recipes: YAML with one `extends` and overrides, all errors reported at once.

A recipe is a file, or the name of one that is shipped with the package. `name` and
`description` are not inherited by `extends`; `name` defaults to the file's.
"""

import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

from pydantic import BaseModel, ValidationError

from hpdm_core.errors import RecipeError, did_you_mean
from hpdm_core.files import irregular
from hpdm_core.names import has_unprintable, is_unicode
from hpdm_core.recipe.explain import explain
from hpdm_core.recipe.fields import is_section
from hpdm_core.recipe.schema import Recipe
from hpdm_core.recipe.yaml_tree import (
    MOST_CHARACTERS,
    MOST_DEPTH,
    Marked,
    dump,
    parse,
    parse_scalar,
)

log = logging.getLogger("hpdm.recipe")

_OWN = ("name", "description")
# The folder beside the recipes with the tables of the paper (hpdm_core.reports).
_TABLES = "tables"
# Errors reported at once.
_MOST_PROBLEMS = 30
_OVERRIDE = re.compile(r"^(?P<path>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)=(?P<value>.*)$", re.DOTALL)


def load_recipe(ref: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides such as `optim.lr=1e-3`.

    Args:
        ref: path of a YAML file, or a bare name such as `hpdm_m` of a shipped recipe.
        overrides: `section.key=value`, later ones win; a value is YAML, `[1, 2]` is a list.

    Raises:
        RecipeError: naming every error with its file and line, or its override.
    """
    path = find_recipe(ref)
    tree, problems = _read(path, seen=())
    if "name" not in tree.value:
        tree = tree.set(("name",), Marked(value=path.stem, where=str(ref)))
    for override in overrides:
        tree = _overridden(tree, override, problems)
    return _validated(tree, problems, what=f"recipe {ref}")


def recipe_to_yaml(recipe: Recipe) -> str:
    """Write a resolved recipe: every field, no `extends`."""
    return dump(recipe.model_dump(mode="json"))


def recipe_from_yaml(text: str, source: str) -> Recipe:
    """Read what `recipe_to_yaml` wrote.

    Args:
        text: the YAML.
        source: what to call it in messages, such as the checkpoint's path.

    Raises:
        RecipeError: naming every error with its line.
    """
    tree, problems = parse(text, source)
    return _validated(tree, problems, what=f"recipe in {source}")


def find_recipe(ref: str | Path) -> Path:
    """Resolve a path or a shipped recipe's name to a file.

    `recipes/NAME.yaml` takes the shipped recipe where no such file exists.
    """
    path = Path(ref)
    tables = {file.stem: file for file in shipped_tables()}
    # The user's own recipe may have a table's name.
    if path.stem in tables and (not os.path.isfile(path) or path.resolve() == tables[path.stem]):
        raise RecipeError(
            f"{ref} is a table of the paper, not a recipe", remedy=f"run `hpdm ablate {path.stem}`"
        )
    if os.path.isfile(path):  # False also for a name that no file system takes
        return path
    shipped = {file.stem: file for file in shipped_recipes()}
    bare = path.parent == Path(".") and path.suffix not in (".yaml", ".yml")
    if bare and path.name in shipped:
        return shipped[path.name]
    if path.parent == Path("recipes") and path.suffix == ".yaml" and path.stem in shipped:
        log.info("no file %s here; taking the shipped recipe %s", path, path.stem)
        return shipped[path.stem]
    if os.path.exists(path):
        raise RecipeError(f"cannot read recipe {ref}", got=irregular(path), expected="a .yaml file")
    if not bare and path.stem in shipped:
        remedy = f"the shipped recipe is called by its bare name: {path.stem}"
        raise RecipeError(f"recipe {ref} does not exist", remedy=remedy)
    raise _no_recipe(f"{ref}" if bare else f"{path}", path.stem, shipped, bare=bare)


def find_shipped(name: str) -> Path:
    """Return the file of a shipped recipe.

    Raises:
        RecipeError: there is none of this name.
    """
    shipped = {file.stem: file for file in shipped_recipes()}
    if name not in shipped:
        raise _no_recipe(name, name, shipped, bare=True)
    return shipped[name]


def _no_recipe(ref: str, word: str, shipped: Iterable[str], *, bare: bool) -> RecipeError:
    near = did_you_mean(word, shipped)
    remedy = near.replace("mean", "mean the shipped recipe") if near else "see `hpdm train --list`"
    what = f"no shipped recipe is called {ref}" if bare else f"recipe {ref} does not exist"
    return RecipeError(what, remedy=remedy)


def shipped_recipes() -> list[Path]:
    """Return the recipes that come with the package, sorted by name."""
    return sorted(_shipped_folder().glob("*.yaml"))


def shipped_tables() -> list[Path]:
    """Return the paper's tables that come with the package, sorted by name."""
    return sorted((_shipped_folder() / _TABLES).glob("*.yaml"))


def _shipped_folder() -> Path:
    # Beside hpdm_core: `hpdm_recipes` where it is installed, `recipes` in a checkout.
    root = Path(__file__).resolve().parents[2]
    return next((root / n for n in ("hpdm_recipes", "recipes") if (root / n).is_dir()), root)


def _read(path: Path, *, seen: tuple[Path, ...]) -> tuple[Marked, list[str]]:
    """Return the file's tree merged into what it extends, and the problems of both."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"recipe {path} is not text in UTF-8", remedy="save it as UTF-8"
        ) from error
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read: {error.strerror}") from error
    tree, problems = parse(text, str(path))
    if not isinstance(tree.value, dict):
        raise RecipeError(
            f"{tree.where}: a recipe is made of sections",
            got=f"{type(tree.value).__name__}",
            expected="lines such as `optim:` with keys below",
        )
    children = dict(tree.value)
    extends = children.pop("extends", None)
    own = Marked(value=children, where=tree.where)
    if extends is None:
        return own, problems
    base_path = _base(extends, path)
    seen = (*seen, path.resolve())
    if len(seen) > MOST_DEPTH:
        raise RecipeError(f"{extends.where}: more than {MOST_DEPTH} recipes extend each other")
    if base_path.resolve() in seen:
        chain = " -> ".join(file.name for file in (*seen, base_path))
        raise RecipeError(f"{extends.where}: recipes extend each other in a circle: {chain}")
    base, more = _read(base_path, seen=seen)
    inherited = {key: child for key, child in base.value.items() if key not in _OWN}
    return Marked(value=inherited, where=base.where).merge(own), more + problems


def _base(extends: Marked, path: Path) -> Path:
    if not isinstance(extends.value, str):
        raise RecipeError(
            f"{extends.where}: extends takes one recipe",
            got=extends.plain(),
            expected="a path relative to this file, or a shipped recipe's bare name",
        )
    beside = path.parent / extends.value
    if os.path.isfile(beside):
        return beside
    try:
        return find_recipe(extends.value)
    except RecipeError as error:
        raise RecipeError(f"{extends.where}: extends: {error}") from error


def _overridden(tree: Marked, override: str, problems: list[str]) -> Marked:
    shown = ascii(override) if has_unprintable(override) else override
    where = f"override {shown if len(shown) <= 80 else shown[:80] + '...'}"
    match = _OVERRIDE.match(override)
    if not is_unicode(override):
        problems.append(f"{where}: not text in UTF-8")
        return tree
    if match is None or match["path"].count(".") > MOST_DEPTH:
        problems.append(f"{where}: expected section.key=value, such as optim.lr=1e-3")
        return tree
    text = match["value"]
    if text[:1] in ("[", '"', "'"):
        try:
            value, bare = parse(text, where)[0].value, None
        except RecipeError as error:
            problems.append(str(error))
            return tree
    else:
        value, bare = parse_scalar(text), text
    return tree.set(tuple(match["path"].split(".")), Marked(value=value, where=where, text=bare))


def _validated(tree: Marked, problems: list[str], *, what: str) -> Recipe:
    """Validate a tree; all problems go into one error."""
    try:
        recipe = Recipe.model_validate(_plain(tree, Recipe))
    except ValidationError as error:
        problems = [*problems, *explain(error, tree)]
    if problems:
        if len(problems) == 1:
            raise RecipeError(problems[0])
        more = len(problems) - _MOST_PROBLEMS
        listed = [*problems[:_MOST_PROBLEMS], *([f"and {more} more"] if more > 0 else [])]
        raise RecipeError(f"{what} has {len(problems)} mistakes:\n  " + "\n  ".join(listed))
    return recipe


def _plain(tree: Marked, schema: type[BaseModel]) -> object:
    """Return the tree's plain values; overrides of text fields stay text (`data.name=101`)."""
    if not isinstance(tree.value, dict):
        return tree.plain()
    values = {}
    for key, child in tree.value.items():
        field = schema.model_fields.get(key)
        kind = None if field is None else field.annotation
        if is_section(kind):
            values[key] = _plain(child, kind)
        elif _is_text(kind) and child.text is not None and child.where.startswith("override "):
            values[key] = child.text
        else:
            values[key] = child.plain()
    return values


def _is_text(kind: object) -> bool:
    return kind is str or str in get_args(kind)
