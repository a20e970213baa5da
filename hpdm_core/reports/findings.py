"""The paper's findings, judged on our figures: holds, does not hold, or within noise.

Rows are compared seed by seed: a seed is the same training order, noise and videos in every row,
so the differences vary less than the figures. The effect is the mean advantage in percent of the
other row's figure, and its interval Student's, 90%, over the seeds' differences (a paired t-test):
`beats` holds where all of it is above 0, and does not where all of it is below; `close` the same
against minus the limit. Where a row diverged with every seed, the other one beats it.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.special import stdtrit

from hpdm_core.reports.ablations import Column, Finding
from hpdm_core.reports.results import Cell, Results

Verdict = Literal["holds", "does not hold", "within noise", "not judged"]
MIN_SEEDS = 2
DIVERGED = "diverged"  # in place of a figure


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A finding and its verdict.

    Args:
        finding: the paper's.
        verdict: on our figures.
        reason: the figures behind it.
        paper: the same comparison on the paper's figures.
        effects: the advantage over each of the other rows in percent: mean, and lower and upper
            end of its interval; none where it was not judged or the other row diverged.
    """

    finding: Finding
    verdict: Verdict
    reason: str
    paper: str
    effects: tuple[tuple[float, float, float], ...] = ()


def judge(results: Results) -> list[Judged]:
    """Judge every finding of a table."""
    return [_judged(finding, results) for finding in results.table.findings]


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Return mean, and lower and upper end of its range by chance (each one-sided 95%)."""
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    reach = float(stdtrit(len(differences) - 1, 0.95)) * error  # Student's t
    return mean, mean - reach, mean + reach


def _judged(finding: Finding, results: Results) -> Judged:
    column = results.table.column(finding.column)
    cell = results.cells[finding.row, finding.column]
    others = [results.cells[key, finding.column] for key in finding.against]
    compared = [c for c in (cell, *others) if c is cell or c.text != DIVERGED]
    missing = [c.row.title for c in compared if len(c.values) < MIN_SEEDS]
    uneven = len({len(c.values) for c in compared}) > 1
    paper = finding.paper or "; ".join(_paper(finding, column, cell, c) for c in others[:3])
    if finding.paper is None and len(others) > 3:
        paper = f"{cell.paper} against {_range([c.paper for c in others])}"
    if missing or uneven:
        why = f"needs {MIN_SEEDS} seeds of {', '.join(missing)}" if missing else "seeds differ"
        return Judged(finding=finding, verdict="not judged", reason=why, paper=paper)
    verdicts, reasons, effects = [], [], []
    for other in others:
        effect = None if other.text == DIVERGED else _effect(column, cell, other)
        verdict, reason = _against(finding, other, effect)
        verdicts.append(verdict)
        reasons.append(reason)
        effects += [] if effect is None else [effect]
    overall: Verdict = "within noise"
    if "does not hold" in verdicts:
        overall = "does not hold"
    elif all(verdict == "holds" for verdict in verdicts):
        overall = "holds"
    return Judged(
        finding=finding, verdict=overall, reason="; ".join(reasons), paper=paper,
        effects=tuple(effects),
    )  # fmt: skip


def _effect(column: Column, cell: Cell, other: Cell) -> tuple[float, float, float]:
    """Return the advantage in percent of the other's, seed by seed: its mean and interval."""
    sign = 1.0 if column.better == "higher" else -1.0
    pairs = zip(cell.values, other.values, strict=True)
    return interval([100.0 * sign * (own - its) / (abs(its) or 1.0) for own, its in pairs])


def _against(
    finding: Finding, other: Cell, effect: tuple[float, float, float] | None
) -> tuple[Verdict, str]:
    """Compare with one other row; no effect where it diverged."""
    if effect is None:
        return "holds", f"{other.row.title} diverged with every seed"
    mean, low, high = effect
    bar = -finding.limit if finding.kind == "close" else 0.0
    verdict: Verdict = "holds" if low > bar else "does not hold" if high < bar else "within noise"
    word = "better" if mean >= 0 else "worse"
    reason = f"{abs(mean):.1f}% {word} than {other.row.title} ({low:+.1f}% to {high:+.1f}%)"
    if finding.size is not None:
        place = "inside" if low <= finding.size <= high else "outside"
        reason += f", the paper's {finding.size:g}% {place}"
    return verdict, reason


def _paper(finding: Finding, column: Column, cell: Cell, other: Cell) -> str:
    own, its = cell.paper, other.paper
    if own is None and its is None:
        return "curves, no figures"
    if not isinstance(own, int | float) or not isinstance(its, int | float):
        return f"{_word(own)} against {_word(its)}"
    gain = 100 * (own - its) / its * (1 if column.better == "higher" else -1)
    return f"{own:g} against {its:g}, {abs(gain):.1f}% {'better' if gain >= 0 else 'worse'}"


def _range(values: Sequence[float | str | None]) -> str:
    numbers = [value for value in values if isinstance(value, int | float)]
    return f"{min(numbers):g} to {max(numbers):g}" if numbers else "no figures"


def _word(value: float | str | None) -> str:
    return "no figure" if value is None else str(value)
