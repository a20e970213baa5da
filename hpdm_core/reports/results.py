"""What was measured: lines of rows.jsonl, and their means over seeds.

A line is one row with one seed. It is written when complete, so an interrupted table resumes
with the missing lines.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpdm_core.reports.ablations import Column, Row, Table

# Scores that mean the same here as in the paper; the bundled detector's have other names.
PAPER_SCORES = ("FVD", "IS")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One figure of the paper's table and ours.

    Args:
        row, column: its keys.
        paper: the paper's figure or word, None where it has none.
        values: ours, one per seed, in the order of the seeds.
        text: ours where it is a word, or why there is no figure.
        name: what ours is called, such as FVD.
        of: what it is of, such as '128 videos of 4x16x16'.
        comparable: whether the two may be set against each other.
        counts: number of fakes, where it is a score.
    """

    row: Row
    column: Column
    paper: float | str | None
    values: tuple[float, ...]
    text: str | None
    name: str
    of: str
    comparable: bool
    counts: int | None = None

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Deviation over seeds, None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True, kw_only=True)
class Results:
    """A table with everything that was measured for it.

    Args:
        table, name, scale: which.
        cells: by (row, column) keys, for all rows of the table.
        lines: of rows.jsonl that were counted.
    """

    table: Table
    name: str
    scale: str
    cells: dict[tuple[str, str], Cell]
    lines: tuple[dict[str, Any], ...]

    def baseline(self, column: Column) -> Cell | None:
        """Return the cell that others of the column are held against."""
        if self.table.baseline is None:
            return None
        return self.cells[self.table.baseline, column.key]

    @property
    def seeds(self) -> list[int]:
        return sorted({line["seed"] for line in self.lines})

    @property
    def seconds(self) -> float:
        """Time that all lines took."""
        return sum(line["seconds"] for line in self.lines)

    @property
    def has_paper(self) -> bool:
        """Whether the paper has any figure of this table."""
        return any(cell.paper is not None for cell in self.cells.values())

    @property
    def has_comparable(self) -> bool:
        return any(cell.comparable and cell.values for cell in self.cells.values())


def collect(
    table: Table, lines: Sequence[dict[str, Any]], *, name: str, scale: str, keys: set[str]
) -> Results:
    """Put lines beside the paper's figures.

    Args:
        table: the paper's.
        lines: of rows.jsonl; of two with the same key the later counts.
        name: of the table, such as table3.
        scale: at which it was run.
        keys: of lines that belong to the table as it is asked for now; others are out of date.
    """
    current = {line["key"]: line for line in lines if line["key"] in keys}
    counted = sorted(current.values(), key=lambda line: line["seed"])
    cells = {
        (row.key, column.key): _cell(row, column, counted, scale)
        for row in table.rows
        for column in table.columns
    }
    return Results(table=table, name=name, scale=scale, cells=cells, lines=tuple(counted))


def _cell(row: Row, column: Column, lines: Sequence[dict[str, Any]], scale: str) -> Cell:
    figures = [line["figures"].get(column.key, {}) for line in lines if line["row"] == row.key]
    values = [f["value"] for f in figures if isinstance(f.get("value"), int | float)]
    texts = [f["text"] for f in figures if f.get("text")]
    names = [f["name"] for f in figures if f.get("name")]
    name = names[0] if names else ""
    counts = [f["num_fakes"] for f in figures if f.get("num_fakes")]
    exact = column.measure.kind in ("count", "recipe")
    scored = column.measure.kind == "score" and scale == "paper" and name in PAPER_SCORES
    return Cell(
        row=row,
        column=column,
        paper=row.paper.get(column.key),
        values=tuple(float(v) * column.factor for v in values if math.isfinite(v)),
        text=texts[0] if texts and not values else None,
        name=name,
        of=next((f["of"] for f in figures if f.get("of")), ""),
        comparable=exact or scored,
        counts=counts[0] if counts else None,
    )
