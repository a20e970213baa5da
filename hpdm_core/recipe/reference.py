"""The recipe's fields as a page: `python -m hpdm_core.recipe.reference > docs/recipes.md`."""

import re
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from hpdm_core.recipe.fields import BY_LEVEL, is_section
from hpdm_core.recipe.load import load_recipe, shipped_recipes
from hpdm_core.recipe.schema import Recipe

_HEAD = """\
# Recipes

A recipe is a YAML file that defines a model and its training. `hpdm train` takes its path, or the
name of one that is shipped with the package:

```
hpdm train recipes/hpdm_m.yaml
hpdm train hpdm_m optim.lr=1e-3 data.root=/big sampling.steps=[64,32,16]
```

- `extends: hpdm_s.yaml` inherits another recipe's fields except `name` and `description`; the
  file's own fields override them. Lists are replaced whole.
- `name` defaults to the file's name.
- `section.key=value` after the recipe changes a field; `null` clears an optional one.
- Numbers may be written as `5e-3`; `no`, `on` and `12:30` are text; true and false are `true` and
  `false`.
- Wrong keys, types and values are reported with file and line, all at once.
- Level 0 is the coarsest; lists by level begin with it. Where the type allows it, a single
  value holds for all levels.

This page is written by `make docs` from `hpdm_core/recipe/schema.py`.
"""


def recipe_reference() -> str:
    """Return the page, in Markdown."""
    parts = [_HEAD, "\n## Shipped recipes\n\n| name | description |\n|---|---|"]
    for path in shipped_recipes():
        parts.append(f"| `{path.stem}` | {load_recipe(path).description} |")
    parts.append("\n## Fields\n")
    parts += _table(Recipe, prefix="")
    for name, field in Recipe.model_fields.items():
        if is_section(field.annotation):
            parts += _section(field.annotation, name)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts) + "\n")


def _section(schema: type[BaseModel], name: str) -> list[str]:
    """Return a section's fields, and below them those of the sections that it holds."""
    parts = [f"\n### {name}\n\n{schema.__doc__}\n", *_table(schema, prefix=f"{name}.")]
    for inner, field in schema.model_fields.items():
        if is_section(field.annotation):
            head = f"\n`{name}.{inner}` ({field.description}):\n"
            parts += [head, *_table(field.annotation, prefix=f"{name}.{inner}.")]
    return parts


def _table(schema: type[BaseModel], *, prefix: str) -> list[str]:
    lines = ["| field | type | default | description |", "|---|---|---|---|"]
    for name, field in schema.model_fields.items():
        if is_section(field.annotation):
            continue
        kind = _kind(field.annotation, field.metadata)
        text = (field.description or "").replace("|", "\\|")
        default = "the file's name" if (prefix, name) == ("", "name") else _default(field)
        lines.append(f"| `{prefix}{name}` | {kind} | {default} | {text} |")
    return lines


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "(must be given)"
    if field.default is None:
        return "(empty)"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    if BY_LEVEL in field.metadata:
        (value,) = field.default
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if text else "(empty)"


def _kind(annotation: object, metadata: list) -> str:
    """Format a type: `whole number > 0`, `list of number`, `"a" or "b"`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *extra = get_args(annotation)
        limits = [item for info in extra for item in getattr(info, "metadata", [info])]
        return _kind(inner, [*limits, *metadata])
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(annotation))
    if origin in (Union, UnionType):
        kinds = [_kind(kind, metadata) for kind in get_args(annotation) if kind is not NoneType]
        return " or ".join([*kinds, "empty"])
    if origin is tuple:
        first, *more = get_args(annotation)
        item = _kind(first, [])
        if BY_LEVEL in metadata:
            return f"{item}, or a list by level"
        return f"list of {item}" if more == [Ellipsis] else f"[{1 + len(more)} x {item}]"
    words = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return " ".join([words[annotation], " and ".join(_limits(metadata))]).rstrip()


def _limits(metadata: list) -> list[str]:
    signs = {Gt: ("> {}", "gt"), Ge: (">= {}", "ge"), Lt: ("< {}", "lt"), Le: ("<= {}", "le")}
    found = [(signs[type(item)], item) for item in metadata if type(item) in signs]
    return [sign.format(getattr(item, name)) for (sign, name), item in found]


if __name__ == "__main__":
    print(recipe_reference(), end="")
