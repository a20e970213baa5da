"""A table's figures in words: the grid that Markdown, LaTeX, the terminal and HTML share."""

from dataclasses import dataclass
from typing import Any

from hpdm_core.reports.ablations import Column
from hpdm_core.reports.findings import Judged, judge
from hpdm_core.reports.results import Cell, Results

NOTHING = "–"
QUOTED = "†"  # of rows that are quoted from the paper and not run
# Of one page: more columns go down.
MOST_COLUMNS = 10
NOT_COMPARABLE = (
    "Run at {scale} scale: small models on small data. Scores below come from another detector "
    "than the paper's or from other data, are not FVD or IS, and must not be set beside the "
    "paper's figures. What may be compared is the order of rows and each row's change against "
    "“{baseline}”."
)
OTHER_MACHINE = (
    "Speed and memory depend on the machine; their ratios to “{baseline}” are what travels."
)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A cell in words.

    Args:
        paper: the paper's figure.
        ours: our mean, with the deviation over seeds.
        difference: ours against the paper's where the two are comparable, else both changes
            against the table's baseline.
        good: whether ours is at least as good as the paper's; None where that says nothing.
    """

    paper: str
    ours: str
    difference: str
    good: bool | None


def show(cell: Cell, baseline: Cell | None) -> Shown:
    """Put a cell into words."""
    ours = cell.text or NOTHING
    if cell.mean is not None:
        ours = _ours(cell.mean, cell.std, unit=cell.column.unit)
    elif cell.row.reference is not None:
        ours = QUOTED
    return Shown(
        paper=paper_text(cell.paper),
        ours=ours,
        difference=_difference(cell, baseline),
        good=_good(cell),
    )


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Layout of a table: a pair of cells, paper and ours, for every line and head.

    Args:
        heads: over each pair, what the paper calls it and what ours is.
        lines: title, whether the others are held against it, and its cells.
    """

    heads: list[tuple[str, str]]
    lines: list[tuple[str, bool, list[Shown]]]


def grid(results: Results) -> Grid:
    """Lay the table out: a line for each row; with many columns, a line for each of them."""
    table = results.table
    heads = [heading(results, column) for column in table.columns]
    by_row = [
        [
            show(results.cells[row.key, column.key], results.baseline(column))
            for column in table.columns
        ]
        for row in table.rows
    ]
    if turned(results):
        by_column = [list(cells) for cells in zip(*by_row, strict=True)]
        return Grid(
            heads=[(row.title, row.title) for row in table.rows],
            lines=[(_both(*head), False, own) for head, own in zip(heads, by_column, strict=True)],
        )
    rows = zip(table.rows, by_row, strict=True)
    return Grid(heads=heads, lines=[(r.title, r.key == table.baseline, own) for r, own in rows])


def turned(results: Results) -> bool:
    """Return whether columns go down and rows across, since so many columns fit no page."""
    return len(results.table.columns) > MOST_COLUMNS


def _both(theirs: str, ours: str) -> str:
    return theirs if ours == theirs else f"{theirs}; ours: {ours}"


def heading(results: Results, column: Column) -> tuple[str, str]:
    """Return what the paper calls a column, and what ours are."""
    unit = f" ({column.unit})" if column.unit else ""
    cells = [results.cells[row.key, column.key] for row in results.table.rows]
    names = sorted({f"{cell.name}, {cell.of}" for cell in cells if cell.name})
    # A score's own name stands there, so that no figure of another detector passes as FVD.
    if column.measure.kind == "score":
        return f"{column.heading}{unit}", "; ".join(names) or "nothing yet"
    return f"{column.heading}{unit}", f"{column.heading}{unit}"


def notices(results: Results) -> list[str]:
    """Return what a reader must know before comparing."""
    kinds = {column.measure.kind for column in results.table.columns}
    names = {"scale": results.scale, "baseline": baseline_title(results)}
    found = []
    if "score" in kinds and not results.has_comparable and results.scale != "paper":
        found.append(NOT_COMPARABLE.format_map(names))
    if "step" in kinds:
        found.append(OTHER_MACHINE.format_map(names))
    return found


def footnotes(results: Results) -> list[str]:
    """Return what the mark of quoted rows means."""
    reasons = {row.reference: row for row in results.table.rows if row.reference is not None}
    return (
        [f"{QUOTED} quoted from the paper, not run here: {'; '.join(reasons)}"] if reasons else []
    )


def baseline_title(results: Results) -> str:
    """Return the title of the row that others are held against."""
    key = results.table.baseline
    return results.table.row(key).title if key is not None else "no row"


def markdown(results: Results) -> str:
    """Write the table as Markdown: paper and ours side by side, or ours where it has none."""
    table, laid, both = results.table, grid(results), results.has_paper
    heads = ["setup"]
    for theirs, ours in laid.heads:
        own = "ours" if ours == theirs else f"ours: {ours}"
        heads += [f"{theirs}: paper", own] if both else [theirs]
    lines = [f"# {table.title}", "", table.about, ""]
    lines += [f"Scale: **{results.scale}**, {table.scales[results.scale].about}.", ""]
    lines += [f"> {text}\n" for text in notices(results)]
    lines += [_md_row(heads), _md_row(["---"] * len(heads))]
    for title, _, cells in laid.lines:
        pairs = [(shown.paper, _with_difference(shown))[0 if both else 1 :] for shown in cells]
        lines.append(_md_row([title, *(text for pair in pairs for text in pair)]))
    lines += [text for note in footnotes(results) for text in ("", note)]
    lines += ["", *_md_findings(judge(results))]
    lines += [f"- {note}" for note in table.notes]
    return "\n".join([*lines, "", *provenance(results)]) + "\n"


def latex(results: Results) -> str:
    """Write the table as a LaTeX `tabular` (package booktabs): paper and ours side by side."""
    laid = grid(results)
    first = " & ".join(rf"\multicolumn{{2}}{{c}}{{{_tex(theirs)}}}" for theirs, _ in laid.heads)
    second = " & ".join("paper & ours" for _ in laid.heads)
    body = []
    for title, _, cells in laid.lines:
        pairs = [_tex(text) for shown in cells for text in (shown.paper, shown.ours)]
        body.append(" & ".join([_tex(title), *pairs]) + r" \\")
    said = [results.table.title, *notices(results), *footnotes(results), *provenance(results)]
    about = [f"% {line}" for line in said]
    return "\n".join(
        [*about, rf"\begin{{tabular}}{{l{'rr' * len(laid.heads)}}}", r"\toprule",
         rf"& {first} \\", rf"setup & {second} \\", r"\midrule", *body, r"\bottomrule",
         r"\end{tabular}"]
    ) + "\n"  # fmt: skip


def provenance(results: Results) -> list[str]:
    """Return a line on each kind of machine, and one on seeds and versions."""
    machines = sorted({_machine(line["machine"]) for line in results.lines})
    versions = sorted({line["versions"]["hpdm"] for line in results.lines})
    if not results.lines:
        return ["Nothing has been run yet."]
    return [
        f"Made by `hpdm ablate {results.name} --scale {results.scale}` of hpdm "
        f"{', '.join(versions)}: {len(results.lines)} rows, seeds "
        f"{', '.join(map(str, results.seeds))}, {_time(results.seconds)}, on "
        f"{'; '.join(machines)}. "
        "Everything that a figure depends on is in rows.jsonl."
    ]


def _time(seconds: float) -> str:
    hours, minutes = seconds / 3600, seconds / 60
    return f"{hours:.1f} hours" if hours >= 1 else f"{minutes:.1f} minutes"


def number(value: float) -> str:
    """Write a figure with as many digits as tables have: 378.2, 14.20, 4.400, 0.0052, 10,000."""
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    size = abs(value)
    return f"{value:,.{_decimals(size)}f}" if size >= 0.001 else f"{value:.2g}"


def _decimals(size: float) -> int:
    return 1 if size >= 100 else 2 if size >= 10 else 3 if size >= 1 else 4


def _spread(mean: float, std: float) -> str:
    """Write a mean and its deviation with the same decimals: 14.20 ± 0.35."""
    decimals = _decimals(abs(mean))
    return f"{mean:,.{decimals}f} ± {std:,.{decimals}f}"


def _ours(mean: float, std: float | None, *, unit: str | None) -> str:
    """Write our figure: memory below a GB in MB."""
    small = unit == "GB" and mean < 1
    factor, ending = (1000, " MB") if small else (1, "")
    shown = number(mean * factor) if std is None else _spread(mean * factor, std * factor)
    return shown + ending


def _machine(machine: dict[str, Any]) -> str:
    if machine["device"] != "cpu":
        return machine["name"]
    threads = machine["threads"]
    return f"{machine['processor']}, {threads} thread{'' if threads == 1 else 's'}"


def paper_text(value: float | str | None) -> str:
    """Write the paper's figure with the digits that it has."""
    if value is None:
        return NOTHING
    return value if isinstance(value, str) else f"{value:,.10g}"


def _difference(cell: Cell, baseline: Cell | None) -> str:
    if cell.column.measure.kind == "recipe":
        same = cell.text == paper_text(cell.paper)
        return "" if cell.paper is None or same else "differs"
    if cell.comparable:
        if cell.mean is None or not isinstance(cell.paper, int | float):
            return ""
        gap = cell.mean - cell.paper
        shown = f"{abs(gap):,.{_decimals(abs(cell.mean))}f}"
        return f"{'+' if gap >= 0 else '−'}{shown}, {_percent(gap / cell.paper)}"
    if baseline is None or baseline.row.key == cell.row.key:
        return ""
    own, theirs = _change(cell.mean, baseline.mean), _change(cell.paper, baseline.paper)
    parts = ([own] if own else []) + ([f"paper {theirs}"] if theirs else [])
    return ", ".join(parts) if own else ""


def _change(value: float | str | None, against: float | str | None) -> str:
    """Return the change against a baseline: in percent, as a ratio where it is large."""
    if not isinstance(value, int | float) or not isinstance(against, int | float) or not against:
        return ""
    ratio = value / against
    return f"{ratio:.2f}x" if ratio > 2 or ratio < 0.5 else _percent(ratio - 1)


def _percent(share: float) -> str:
    text = f"{abs(100 * share):.1f}%"
    return text if text == "0.0%" else f"{'+' if share > 0 else '−'}{text}"


def _good(cell: Cell) -> bool | None:
    """Judge scores alone, and only where they are the paper's own kind."""
    if not cell.comparable or cell.mean is None or not isinstance(cell.paper, int | float):
        return None
    if cell.column.better == "neither":
        return None
    return cell.mean <= cell.paper if cell.column.better == "lower" else cell.mean >= cell.paper


def _with_difference(shown: Shown) -> str:
    return f"{shown.ours} ({shown.difference})" if shown.difference else shown.ours


def _md_row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _md_findings(judged: list[Judged]) -> list[str]:
    if not judged:
        return []
    rows = [
        _md_row([item.finding.text, f"**{item.verdict}**", item.reason, item.paper])
        for item in judged
    ]
    return [
        "## Findings of the paper", "",
        _md_row(["finding", "here", "our figures, by seed", "paper"]),
        _md_row(["---"] * 4), *rows, "",
    ]  # fmt: skip


def _tex(text: str) -> str:
    table = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "²": "$^2$", "±": r"$\pm$",
             "†": r"\dag", "–": "--", "−": "$-$", "“": "``", "”": "''"}  # fmt: skip
    return "".join(table.get(letter, letter) for letter in text)
