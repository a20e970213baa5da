"""Plots as SVG written by hand: no library, no scripts, sharp at any size, a few kilobytes.

Colours and fonts come from the page's style sheet, by class.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from hpdm_core.reports.ablations import Column
from hpdm_core.reports.results import Cell, Results
from hpdm_core.reports.tables import heading, number, paper_text

ROW, TOP, PANEL, GAP = 26, 30, 162, 18
LETTER, LONGEST = 7, 33  # pixels of a label's letter, and letters of the longest label
SMALLEST, LARGEST = 0.85, 1.15  # sizes at which a plot is shown; smaller, it is scrolled
PHONE = 366  # pixels of a phone's width that a plot has
LINES_WIDTH, LINES_HEIGHT, MARGIN = 560, 300, 54
LABEL = 15  # pixels between the names of points
NUM_LINE_COLOURS = 6
MIN_TICK = 40  # between numbers on the axis


def plots(results: Results) -> list[str]:
    """Return the table's plots: bars for each column, or one plot of lines over columns."""
    if results.table.plot == "none":
        return []
    if results.table.plot == "pareto":
        return [
            pareto_plot(results, column)
            for column in results.table.columns
            if column.better == "lower" and column.key != results.table.cost
        ]
    if results.table.plot == "lines":
        return [_lines(results)]
    return [_bars(results, column) for column in results.table.columns]


def _bars(results: Results, column: Column) -> str:
    """Draw the paper's figures and ours in two panels, each with a scale of its own."""
    cells = [results.cells[row.key, column.key] for row in results.table.runnable]
    theirs, ours = heading(results, column)
    names = [_cut(cell.row.title, LONGEST) for cell in cells]
    label = LETTER * max(map(len, names), default=0) + GAP
    height = TOP + ROW * len(cells) + 8
    width = label + 2 * PANEL + GAP
    parts = [
        _text(label, 18, "paper", "head"),
        _text(label + PANEL + GAP, 18, "here", "head"),
    ]
    panels = (
        ([cell.paper if isinstance(cell.paper, int | float) else None for cell in cells], label),
        ([cell.mean for cell in cells], label + PANEL + GAP),
    )
    for place, name in enumerate(names):
        parts.append(_text(0, TOP + ROW * place + 16, name, "label"))
    for side, (values, left) in enumerate(panels):
        spreads = [(cell.std or 0.0) if side else 0.0 for cell in cells]
        top = max((v + s for v, s in zip(values, spreads, strict=True) if v), default=1.0)
        for place, (value, spread) in enumerate(zip(values, spreads, strict=True)):
            y = TOP + ROW * place
            kind = "paper" if side == 0 else "ours"
            parts.append(_bar(value, spread, top, left=left, y=y, kind=kind))
    title = f"{theirs}; here: {ours}" if ours != theirs else theirs
    return _figure(title, _arrow(column), width, height, parts)


def _bar(
    value: float | None, spread: float, top: float, *, left: float, y: float, kind: str
) -> str:
    if value is None:
        return _text(left, y + 16, "–", "value")
    room = PANEL - 62
    length = max(1.0, room * value / top) if top > 0 else 1.0
    parts = [
        f'<rect class="{kind}" x="{left}" y="{y + 4}" width="{length:.1f}" height="{ROW - 10}"/>'
    ]
    end = length
    if spread:
        low, high = (left + room * max(0.0, value + d) / top for d in (-spread, spread))
        middle = y + ROW / 2 - 1
        parts.append(
            f'<path class="spread" d="M{low:.1f} {middle}H{high:.1f}'
            f'M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8"/>'
        )
        end = max(end, high - left)
    shown = paper_text(value) if kind == "paper" else number(value)
    parts.append(_text(left + end + 5, y + 16, shown, "value"))
    return "".join(parts)


def _lines(results: Results) -> str:
    """Draw one line per row over the columns' numbers of fakes (logarithmic).

    Columns of another measure than the first one's have another unit, and are left to the table.
    """
    rows, columns = results.table.runnable, results.table.columns
    drawn = [column.key for column in columns if column.measure.of == columns[0].measure.of]
    cells = {row.key: [results.cells[row.key, key] for key in drawn] for row in rows}
    series = [(row.title, _points(cells[row.key])) for row in rows]
    points = [point for _, line in series for point in line]
    # The measure alone: each column has its own number of videos, which the axis shows.
    names = sorted({cell.name for row in cells.values() for cell in row if cell.name})
    if not points:
        return _figure(results.table.title, "nothing measured yet", 300, 30, [])
    xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
    right, bottom = LINES_WIDTH - 110, LINES_HEIGHT - 34
    span = math.log(max(xs) / min(xs)) or 1.0
    high = max(ys) * 1.05

    def place(x: float, y: float) -> tuple[float, float]:
        across = MARGIN + (right - MARGIN) * math.log(x / min(xs)) / span
        return across, bottom - (bottom - 14) * y / high

    parts = [f'<path class="axis" d="M{MARGIN} 14V{bottom}H{right}"/>']
    last = -math.inf
    for x in sorted(set(xs)):
        across, _ = place(x, 0)
        if across - last >= MIN_TICK:
            parts.append(_text(across, bottom + 16, f"{x:,}", "tick middle"))
            last = across
    for share in (0.25, 0.5, 0.75, 1.0):
        _, down = place(min(xs), high * share)
        parts.append(f'<path class="grid" d="M{MARGIN} {down:.1f}H{right}"/>')
        parts.append(_text(MARGIN - 6, down + 4, number(high * share), "tick end"))
    parts.append(_text((MARGIN + right) / 2, bottom + 31, "fakes", "tick middle"))
    for index, (_, line) in enumerate(series):
        parts.append(_line(line, place, colour=index % NUM_LINE_COLOURS))
    ends = {i: place(*line[-1][:2]) for i, (_, line) in enumerate(series) if line}
    heights = spread_out({i: y for i, (_, y) in ends.items()}, least=14, top=TOP, bottom=bottom)
    for index, y in heights.items():
        kind = f"label c{index % NUM_LINE_COLOURS}"
        parts.append(_text(ends[index][0] + 8, y + 4, _cut(series[index][0], 16), kind))
    return _figure("; ".join(names), "lower is better", LINES_WIDTH, LINES_HEIGHT, parts)


def pareto_plot(results: Results, column: Column) -> str:
    """Draw a figure of each row against its cost (logarithmic), and the line of the best.

    The best are the rows that no other beats in both (`pareto_front`).
    """
    cost = results.table.column(results.table.cost)
    named = {row.key: row.title for row in results.table.runnable}
    points = {
        key: (results.cells[key, cost.key].mean, results.cells[key, column.key].mean)
        for key in named
    }
    points = {key: (x, y) for key, (x, y) in points.items() if x is not None and y is not None}
    if not points:
        return _figure(column.heading, "nothing measured yet", 300, 30, [])
    xs, ys = [x for x, _ in points.values()], [y for _, y in points.values()]
    total = max(LINES_HEIGHT, LABEL * len(points) + TOP + 34)
    right, bottom = LINES_WIDTH - 200, total - 34
    span = math.log(max(xs) / min(xs)) or 1.0
    low, high = min(0.0, *ys), max(ys) * 1.05 or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = MARGIN + 8 + (right - MARGIN - 8) * math.log(x / min(xs)) / span
        return across, bottom - (bottom - 14) * (y - low) / (high - low)

    parts = [f'<path class="axis" d="M{MARGIN} 14V{bottom}H{right}"/>']
    for share in (0.25, 0.5, 0.75, 1.0):
        value = low + (high - low) * share
        _, down = place(min(xs), value)
        parts.append(f'<path class="grid" d="M{MARGIN} {down:.1f}H{right}"/>')
        parts.append(_text(MARGIN - 6, down + 4, number(value), "tick end"))
    for x in (min(xs), max(xs)):
        parts.append(_text(place(x, 0)[0], bottom + 16, number(x), "tick middle"))
    parts.append(_text((MARGIN + right) / 2, bottom + 31, cost.heading, "tick middle"))
    front = [place(*points[key]) for key in pareto_front(points)]
    parts.append(f'<path class="line c0" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in front)}"/>')
    heights = {key: place(*point)[1] for key, point in points.items()}
    # Names in a column of their own, in the order of the figures: points may lie on each other.
    for key, label in spread_out(heights, least=LABEL, top=TOP, bottom=bottom).items():
        x, y = place(*points[key])
        parts.append(f'<path class="grid" d="M{x:.1f} {y:.1f}L{right + 16} {label:.1f}"/>')
        parts.append(f'<circle class="dot c0" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
        parts.append(_text(right + 20, label + 4, _cut(named[key], 28), "label"))
    return _figure(column.heading, "lower and further left is better", LINES_WIDTH, total, parts)


def pareto_front(points: dict[str, tuple[float, float]]) -> list[str]:
    """Return the keys of the (cost, figure) that no other equals or beats in both, by cost."""
    front: list[str] = []
    best = math.inf
    for key in sorted(points, key=points.get):
        if points[key][1] < best:
            best = points[key][1]
            front.append(key)
    return front


def spread_out(
    heights: dict[Any, float], *, least: float, top: float, bottom: float
) -> dict[Any, float]:
    """Move labels apart to a least distance, between top and bottom where there is room for all."""
    placed = dict(heights)
    order = sorted(heights, key=heights.get)
    limit = top
    for key in order:
        placed[key] = max(placed[key], limit)
        limit = placed[key] + least
    limit = bottom
    for key in reversed(order):
        placed[key] = min(placed[key], limit)
        limit = placed[key] - least
    return placed


def _line(line: Sequence[tuple[int, float, float]], place, *, colour: int) -> str:
    if not line:
        return ""
    spots = [place(x, y) for x, y, _ in line]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
    parts = [f'<path class="line c{colour}" d="{path}"/>']
    for (x, y), (count, value, std) in zip(spots, line, strict=True):
        low, high = place(count, max(0.0, value - std))[1], place(count, value + std)[1]
        parts.append(f'<path class="line c{colour} thin" d="M{x:.1f} {low:.1f}V{high:.1f}"/>')
        parts.append(f'<circle class="dot c{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
    return "".join(parts)


def _points(cells: Sequence[Cell]) -> list[tuple[int, float, float]]:
    """Return (fakes, mean, deviation) of the cells that have a figure, by rising number."""
    known = [(c.counts, c.mean, c.std or 0.0) for c in cells if c.counts and c.mean is not None]
    return sorted(known)


def _figure(title: str, subtitle: str, width: float, height: float, parts: list[str]) -> str:
    least = SMALLEST * width
    hint = '<p class="hint">Scroll the plot sideways →</p>' if least > PHONE else ""
    return (
        f'<figure><figcaption>{escape(title)} <span class="dim">{escape(subtitle)}</span>'
        f'</figcaption>{hint}<div class="wide"><svg viewBox="0 0 {width:.0f} {height}" role="img" '
        f'style="min-width:{least:.0f}px;max-width:{LARGEST * width:.0f}px" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg></div></figure>'
    )


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _arrow(column: Column) -> str:
    return "" if column.better == "neither" else f"{column.better} is better"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
