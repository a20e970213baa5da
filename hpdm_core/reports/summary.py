"""What all tables say of the paper's findings, one line of Markdown for each table.

`benchmarks/findings.py` writes these lines into README.md and docs/results/README.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hpdm_core.reports.findings import Judged, Verdict, judge
from hpdm_core.reports.results import Results

HEAD = (
    "| table | rows run | holds | does not hold | within noise |",
    "|---|---|---|---|---|",
)
NONE = "–"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A table of a line.

    Args:
        results: what was measured.
        wanted: number of rows, each with each seed, that the table has at this scale.
        link: address of its table.md, from the page that the line is for.
    """

    results: Results
    wanted: int
    link: str


def line(title: str, parts: Sequence[Part]) -> str:
    """Return the line of one table, or of tables that share their trainings.

    A finding that was judged has the effect in percent and its 90% interval; against several rows
    the smallest of them.
    """
    judged = [item for part in parts for item in judge(part.results)]
    if all(not part.results.lines for part in parts):
        cells = ["**not run**", NONE, NONE, f"{len(judged)} findings wait" if judged else NONE]
        return _row([title, *cells])
    run = sum(len(part.results.lines) for part in parts)
    seeds = max(len(part.results.seeds) for part in parts)
    ran = f"{run} of {sum(part.wanted for part in parts)}, {seeds} seed{'s' if seeds > 1 else ''}"
    link = next(part.link for part in parts if part.results.lines)
    if not judged:
        return _row([f"[{title}]({link})", ran, counted(parts[0].results), NONE, NONE])
    cells = [_listed(judged, verdict) for verdict in ("holds", "does not hold", "within noise")]
    waiting = sum(item.verdict == "not judged" for item in judged)
    if waiting:
        ran += f"; {waiting} findings wait"
    return _row([f"[{title}]({link})", ran, *cells])


def counted(results: Results) -> str:
    """Return how far counts lie from the paper's, for a table without findings."""
    gaps = [
        abs(cell.mean - cell.paper) / cell.paper
        for cell in results.cells.values()
        if cell.comparable and cell.mean is not None and isinstance(cell.paper, int | float)
    ]
    return f"counted: sizes within {100 * max(gaps):.1f}% of the paper's" if gaps else NONE


def _listed(judged: Sequence[Judged], verdict: Verdict) -> str:
    found = [_with_effect(item) for item in judged if item.verdict == verdict]
    return "; ".join(found) or NONE


def _with_effect(item: Judged) -> str:
    if not item.effects:
        return f"{item.finding.text} ({item.reason})"
    mean, low, high = min(item.effects, key=lambda effect: effect[1])
    return f"{item.finding.text}: {mean:+.1f}% ({low:+.1f} to {high:+.1f})"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
