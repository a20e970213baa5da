"""Validation errors as messages: where, which field, got, expected, remedy."""

import difflib
import re
from collections.abc import Iterator

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hpdm_core.errors import RecipeError, did_you_mean
from hpdm_core.recipe.fields import is_section
from hpdm_core.recipe.schema import Recipe
from hpdm_core.recipe.yaml_tree import Marked, parse_scalar

MOST_SHOWN = 120
# What each of pydantic's error types expects; braces are filled from the error's context.
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": "a section with keys below it",
    "model_attributes_type": "a section with keys below it",
    "literal_error": "{expected}",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "too_long": "{max_length} values",
    "too_short": "at least {min_length} values",
}


def explain(error: ValidationError, tree: Marked) -> list[str]:
    """Return a line per error.

    Args:
        error: what checking `tree` against `Recipe` raised.
        tree: the recipe with the position of every value.
    """
    return [line for detail in error.errors(include_url=False) for line in _lines(detail, tree)]


def field_paths(schema: type[BaseModel] = Recipe) -> Iterator[tuple[str, ...]]:
    """Yield the path of every field that holds a value, such as ("optim", "lr")."""
    for name, field in schema.model_fields.items():
        kind = field.annotation
        if is_section(kind):
            yield from ((name, *rest) for rest in field_paths(kind))
        else:
            yield (name,)


def _lines(detail: ErrorDetails, tree: Marked) -> Iterator[str]:
    path, kind = detail["loc"], detail["type"]
    where = tree.at(path).where
    name = _dotted(path)
    if kind == "extra_forbidden":
        problem = RecipeError(f"{where}: unknown key {name}", remedy=_nearest(path))
    elif kind == "missing" and isinstance(path[-1], int):
        if path[-1] > len(detail["input"]):  # one line is enough for a list that is too short
            return
        problem = RecipeError(
            f"{where}: {_dotted(path[:-1])} has too few values",
            got=_shown(detail["input"]),
            expected=_description(tuple(key for key in path if isinstance(key, str))),
        )
    elif kind == "missing":
        problem = RecipeError(f"{where}: {name} is missing", expected=_description(path))
    elif kind == "value_error":
        yield from _own_words(detail, tree)
        return
    else:
        value, expected = detail["input"], detail["msg"].lower()
        if kind in _EXPECTED:
            expected = _EXPECTED[kind].format(**detail.get("ctx", {}))
        problem = RecipeError(
            f"{where}: {name}",
            got=_shown(value),
            expected=expected,
            remedy=_remedy(kind, value, expected),
        )
    yield str(problem)


def _own_words(detail: ErrorDetails, tree: Marked) -> Iterator[str]:
    """Add the position of the field that a check of the schema names."""
    section = _dotted(detail["loc"])
    for text in str(detail["ctx"]["error"]).split("\n"):
        first = text.split(" ", 1)[0]
        if first.split(".")[0] in Recipe.model_fields:
            yield f"{tree.at(tuple(first.split('.'))).where}: {text}"
        else:
            yield f"{tree.at(detail['loc']).where}: {section}: {text}"


def _nearest(path: tuple) -> str:
    """Suggest a key: a similar one in this section, or the same one elsewhere."""
    *parents, wrong = map(str, path)
    fields = _section(tuple(parents)).model_fields
    if len(wrong) > MOST_SHOWN:
        return f"keys here: {', '.join(fields)}"
    here = {key: (*parents, key) for key in fields}
    anywhere = {leaf[-1]: leaf for leaf in field_paths()}
    if wrong in anywhere:
        return f"did you mean {_dotted(anywhere[wrong])}?"
    for keys, likeness in ((here, 0.6), (anywhere, 0.6), (here, 0.5)):
        close = difflib.get_close_matches(wrong, keys, n=1, cutoff=likeness)
        if close:
            return f"did you mean {_dotted(keys[close[0]])}?"
    return f"keys here: {', '.join(fields)}"


def _section(path: tuple[str, ...]) -> type[BaseModel]:
    schema = Recipe
    for key in path:
        schema = schema.model_fields[key].annotation
    return schema


def _description(path: tuple) -> str | None:
    field = _section(path[:-1]).model_fields[path[-1]]
    kind = field.annotation
    if is_section(kind):
        required = [key for key, sub in kind.model_fields.items() if sub.is_required()]
        return f"a section with {', '.join(required)}"
    return field.description


def _remedy(kind: str, value: object, expected: str) -> str | None:
    if isinstance(value, str):
        word = parse_scalar(value)
        if isinstance(word, int | float) and not isinstance(word, bool):
            return "remove the quotes"
        if kind == "bool_type" and value.lower() in ("yes", "on", "no", "off"):
            return f"write {'true' if value.lower() in ('yes', 'on') else 'false'}"
    if kind == "literal_error" and isinstance(value, str):
        return did_you_mean(value, re.findall(r"'([^']*)'", expected))
    if kind == "string_type" and not isinstance(value, tuple | dict):
        return "put it in quotes if it is meant as text"
    return None


def _shown(value: object) -> str:
    """Format a value as the user wrote it, truncated if long."""
    text = _written(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _written(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"'{value}' (text)"
    if isinstance(value, tuple):
        return "[" + ", ".join(_written(item) for item in value) + "]"
    if isinstance(value, dict):
        return f"a section with {', '.join(map(str, value))}" if value else "an empty section"
    return str(value)


def _dotted(path: tuple) -> str:
    """Write ("pyramid", "levels", 2, 0) as pyramid.levels[2][0]."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text[:MOST_SHOWN] or "recipe"
