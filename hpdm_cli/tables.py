"""What a command prints: tables of at most 80 columns, and about five lines with labels."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 80  # columns where stdout is not a terminal
_SHOWN = 8  # items of a list

Rows = Sequence[dict[str, object]]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What is printed of a result; `--json` prints all of it.

    Args:
        lines: (label, text): what was made, where it is, its figures, the next command.
        tables: rows of columns, by title; printed above the lines.
    """

    lines: Sequence[tuple[str, str]] = ()
    tables: dict[str, Rows] | None = None


def command_line(*words: object) -> str:
    """Return a command as a shell takes it."""
    return shlex.join(map(str, words))


def print_shown(shown: Shown) -> None:
    """Print tables and lines to stdout."""
    out = console()
    for title, rows in (shown.tables or {}).items():
        _print_rows(out, rows, title)
    width = max([6, *(len(label) for label, _ in shown.lines)]) + 2
    for label, text in shown.lines:
        out.print(f"{label:<{width}}{text}", markup=False, highlight=False, soft_wrap=True)


def console() -> "Console":
    """Return a console on stdout, 80 columns wide unless it is a wider terminal."""
    from rich.console import Console

    class Output(Console):
        """Leaves it to the command what a closed pipe means; rich would exit with 1."""

        def on_broken_pipe(self) -> None:
            raise  # the BrokenPipeError that is being handled

    return Output(width=None if sys.stdout.isatty() else PIPE_WIDTH)


def text_of(value: object) -> str:
    """Format a value for a cell: 1,234,567; 0.0123; yes; 16x64x64 stays as it is."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:.3e}"
    if isinstance(value, list | tuple):
        more = len(value) - _SHOWN
        shown = ", ".join(text_of(item) for item in value[:_SHOWN]) or "-"
        return shown if more <= 0 else f"{len(value)}: {shown} and {more} more"
    return str(value)


def _print_rows(out: "Console", rows: Rows, title: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=escape(title),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        min_width=min(len(title), out.width),  # a narrow table would break its title
    )
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        numeric = all(isinstance(row.get(name), int | float) for row in rows)
        justify = "right" if numeric else "left"
        table.add_column(escape(name), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(escape(text_of(row.get(name))) for name in names))
    out.print(table)
