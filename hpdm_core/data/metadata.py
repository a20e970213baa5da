"""Reader of untrusted metadata: JSON lines, typed and bounded.

Whatever is wrong with a file is a `DataError` that names it with its line.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from hpdm_core.errors import DataError

Parsed = TypeVar("Parsed")
LONGEST_LINE = 1 << 24
_SHOWN = 60
_AGAIN = "prepare the data set again"


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text) of every line that is not blank.

    Lines end at line feeds alone: U+2028 and similar may occur inside JSON.

    Raises:
        DataError: the file is not UTF-8, or a line of it is too long.
    """
    number = 0
    # As bytes, so that a line is measured before all of it is in memory.
    with path.open("rb") as file:
        while data := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(data) > LONGEST_LINE:
                raise DataError(
                    f"{path}:{number} is too long", expected=f"at most {LONGEST_LINE:,} bytes"
                )
            try:
                text = data.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n \t")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number} is not text in UTF-8", remedy="save it as UTF-8"
                ) from error
            if text:
                yield number, text


def parse_object(text: str, place: str, *, expected: str | None = None) -> dict[str, Any]:
    """Return the JSON object that a line holds.

    Args:
        place: `file:line`, for messages.
        expected: an example of a valid line.

    Raises:
        DataError: it is not JSON, or not an object.
    """
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)[:_SHOWN]
        raise DataError(
            f"{place} is not JSON: {reason}", got=ascii(text[:_SHOWN]), expected=expected
        ) from error
    if not isinstance(found, dict):
        raise DataError(f"{place} is not a JSON object", got=ascii(text[:_SHOWN]))
    return found


def read_typed(path: Path, kind: TypeAdapter[Parsed]) -> Iterator[tuple[str, Parsed]]:
    """Yield (`file:line`, value) of a file with a value of one kind per line.

    Raises:
        DataError: naming line, field, found and expected value.
    """
    for number, text in read_lines(path):
        yield f"{path}:{number}", parse_typed(text, kind, f"{path}:{number}")


def parse_typed(text: str | bytes, kind: TypeAdapter[Parsed], place: str) -> Parsed:
    """Return the value that JSON text holds; unknown fields are left out.

    Raises:
        DataError: as `read_typed`.
    """
    try:
        return kind.validate_json(text, strict=True)
    except ValidationError as error:
        raise _explained(error, place) from error


def check_typed(value: object, kind: TypeAdapter[Any], place: str) -> None:
    """Raise DataError unless a mapping that was not read from JSON is of a kind."""
    try:
        kind.validate_python(value)
    except ValidationError as error:
        raise _explained(error, place) from error


def _explained(error: ValidationError, place: str) -> DataError:
    detail = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(map(str, detail["loc"]))
    if detail["type"] == "json_invalid":
        return DataError(f"{place} is not JSON", got=detail["msg"][:_SHOWN], remedy=_AGAIN)
    if detail["type"] == "missing":
        return DataError(f"{place} lacks a field", got=f"no {field}", remedy=_AGAIN)
    return DataError(
        f"{place}: {field or 'the line'}",
        got=ascii(detail["input"])[:_SHOWN],
        expected=detail["msg"].removeprefix("Input should be ").removeprefix("a valid "),
        remedy=_AGAIN,
    )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
