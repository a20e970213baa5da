"""A command's result as tables: one for its figures, one for each list of rows."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = 12  # items of a list
_PIPE_WIDTH = 120  # columns where stdout is not a terminal


def print_result(result: dict, *, title: str) -> None:
    """Print what a `run_*` function returned to stdout."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    figures, rows = _split(result)
    if figures:
        console.print(_figures_table(figures, title))
    for name, entries in rows.items():
        console.print(_rows_table(entries, name))


def _split(result: dict, prefix: str = "") -> tuple[dict[str, str], dict[str, list[dict]]]:
    """Sort a nested result into single figures and lists of rows, by dotted name."""
    figures: dict[str, str] = {}
    rows: dict[str, list[dict]] = {}
    for key, value in result.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            more_figures, more_rows = _split(value, f"{name}.")
            figures |= more_figures
            rows |= more_rows
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            rows[name] = value
        else:
            figures[name] = text_of(value)
    return figures, rows


def text_of(value: object) -> str:
    """Format a value for display: 1,234,567; 0.0123; yes; 16 x 64 x 64 stays a list."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:.3e}"
    if isinstance(value, list | tuple):
        shown = ", ".join(text_of(item) for item in value[:_SHOWN]) or "-"
        more = len(value) - _SHOWN
        return shown if more <= 0 else f"{len(value)}: {shown} and {more} more (--json has all)"
    return str(value)


def _figures_table(figures: dict[str, str], title: str) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in figures.items():
        table.add_row(escape(name.replace("_", " ")), escape(value))
    return table


def _rows_table(entries: list[dict], title: str) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    names = list(dict.fromkeys(name for entry in entries for name in entry))
    table = Table(title=escape(title.replace("_", " ")), title_justify="left")
    for name in names:
        numeric = all(isinstance(entry.get(name), int | float) for entry in entries)
        table.add_column(
            escape(name.replace("_", " ")), justify="right" if numeric else "left", overflow="fold"
        )
    for entry in entries:
        table.add_row(*(escape(text_of(entry.get(name))) for name in names))
    return table
