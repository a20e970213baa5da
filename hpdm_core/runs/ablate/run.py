"""`hpdm ablate`: a table of the paper, run row by row and compared with the paper's figures.

The same command run again resumes: finished rows are in rows.jsonl, a training resumes from its
newest checkpoint, and extracted features are cached.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpdm_core.device import resolve_device
from hpdm_core.errors import RecipeError
from hpdm_core.files import append_line, read_whole_lines, write_text
from hpdm_core.pipeline.pretrained import find_model, read_header
from hpdm_core.progress import NoProgress, Progress, process_rank
from hpdm_core.reports import html, tables
from hpdm_core.reports.ablations import Row, ScaleName, Table, choose_rows, load_table
from hpdm_core.reports.findings import judge
from hpdm_core.reports.results import Results, collect
from hpdm_core.runs.ablate.data import prepare
from hpdm_core.runs.ablate.plan import plan_table
from hpdm_core.runs.ablate.trial import TrialRunner
from hpdm_core.runs.ablate.trials import Trial, make_trials

logger = logging.getLogger("hpdm.runs")

OUT = Path("results")
LINES, MARKDOWN, LATEX, HTML = "rows.jsonl", "table.md", "table.tex", "report.html"


def run_ablate(
    name: str,
    *,
    scale: ScaleName,
    rows: list[str],
    out: Path | None,
    device: str,
    seed: int,
    dry_run: bool,
    progress: Progress,
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """Run a table of the paper, or plan it.

    Args:
        name: table1 to table8, fig8, claims, or samplers.
        scale: 'paper', 'tiny' or 'smoke'.
        rows: keys of the rows to run; empty for all.
        out: folder of results; the table gets a folder of its own below it.
        device: 'auto', 'cpu' or 'cuda'.
        seed: of the first replicate.
        dry_run: plan only.
        progress: progress bar.
        checkpoint: model whose schedules are measured, for `samplers`; None: the scale's.

    Returns:
        the plan, and unless `dry_run` the figures, findings and files.

    Raises:
        HpdmError: the table cannot be run, with what it needs.
        KeyboardInterrupt: interrupted; finished trials are kept.
    """
    table = load_table(name)
    settings = table.scales[scale]
    if checkpoint is not None:
        settings = settings.model_copy(update=_from_checkpoint(table, name, checkpoint))
    chosen = choose_rows(table, settings, rows)
    if not rows:
        chosen = _for_device(chosen, device)
    trials = make_trials(table, settings, chosen, seed=seed)
    # Rows that were run before and are not requested now stay in the table.
    all_trials = make_trials(table, settings, choose_rows(table, settings, []), seed=seed)
    results = ResultsFile(
        table=table, name=name, scale=scale, folder=(out or OUT) / f"{name}-{scale}",
        keys=frozenset(trial.key for trial in all_trials),
    )  # fmt: skip
    plan = plan_table(table, settings, trials, done=results.done, device=device)
    head = {"table": name, "title": table.title, "scale": scale, "about": settings.about}
    if dry_run:
        rows_to_do = _planned(trials, results.done)
        needs = list(settings.needs)
        return head | {
            "plan": plan, "needs": needs, "rows": rows_to_do, "out": str(results.folder),
        }  # fmt: skip
    progress = progress if process_rank() == 0 else NoProgress()
    _log_plan(plan)
    prepare(settings, trials, progress=progress)
    runner = TrialRunner(
        table=table, name=name, scale=settings, scale_name=scale, folder=results.folder,
        device=device, first_seed=seed, progress=progress,
    )  # fmt: skip
    for number, trial in enumerate(trials, 1):
        if trial.key not in results.done:
            title = f"{trial.row.title}, seed {trial.seed}"
            logger.info("%d of %d: %s", number, len(trials), title)
            results.add(runner.run(trial))
            results.write(plan)
    results.write(plan)
    return head | {"plan": plan} | _summary(results.collected()) | {"files": _files(results.folder)}


def _for_device(rows: tuple[Row, ...], device: str) -> tuple[Row, ...]:
    """Leave out rows that only a GPU runs in reasonable time."""
    if resolve_device(device).type != "cpu" or not any(row.gpu for row in rows):
        return rows
    names = ", ".join(row.key for row in rows if row.gpu)
    logger.info("left out on a CPU: %s (name rows with --rows to run them all the same)", names)
    return tuple(row for row in rows if not row.gpu)


def _from_checkpoint(table: Table, name: str, checkpoint: str) -> dict[str, Any]:
    """Return what a scale changes to measure schedules of a given model on its own data.

    Raises:
        RecipeError: the table trains its rows.
        CheckpointError: there is no such model.
    """
    if any(column.measure.kind != "sampler" for column in table.columns):
        raise RecipeError(
            f"{name} trains its rows", got=f"--checkpoint {checkpoint}",
            remedy="leave it out; `hpdm ablate samplers` takes a checkpoint",
        )  # fmt: skip
    data = read_header(find_model(checkpoint)).recipe.data
    own = {"data.root": data.root, "data.name": data.name}
    return {"checkpoint": checkpoint, "shapes": None, "set": own}


class ResultsFile:
    """A table's results on disk: its lines, and the report made of them.

    Args:
        table, name, scale: of the results.
        folder: of the results.
        keys: of lines that belong to the current table.
    """

    def __init__(
        self, *, table: Table, name: str, scale: str, folder: Path, keys: frozenset[str]
    ) -> None:
        self._table, self._name, self._scale = table, name, scale
        self._keys, self.folder = keys, folder
        self._lines = read_whole_lines(folder / LINES)

    @property
    def done(self) -> set[str]:
        return {line["key"] for line in self._lines}

    def add(self, line: dict[str, Any]) -> None:
        """Append a line; other commands may append to the same file."""
        if process_rank() == 0:
            append_line(self.folder / LINES, line)
        self._lines.append(line)

    def collected(self) -> Results:
        return collect(
            self._table, self._lines, name=self._name, scale=self._scale, keys=set(self._keys)
        )

    def write(self, plan: dict[str, Any]) -> None:
        """Write the table as Markdown, LaTeX and HTML; each file atomically."""
        if process_rank() != 0:
            return
        self._lines = read_whole_lines(self.folder / LINES)
        results, folder = self.collected(), self.folder
        clips = [
            html.Clip(row=line["row"], caption=video["caption"], path=folder / video["file"])
            for line in results.lines
            for video in line["videos"]
            if (folder / video["file"]).is_file()
        ]
        write_text(folder / MARKDOWN, tables.markdown(results))
        write_text(folder / LATEX, tables.latex(results))
        write_text(folder / HTML, html.report(results, clips, plan=plan))


def _summary(results: Results) -> dict[str, Any]:
    cells = []
    for row in results.table.rows:
        for column in results.table.columns:
            cell = results.cells[row.key, column.key]
            shown = tables.show(cell, results.baseline(column))
            theirs, ours = tables.heading(results, column)
            cells.append(
                {
                    "row": row.key,
                    "setup": row.title,
                    "column": column.key,
                    "heading": theirs,
                    "ours_heading": ours,
                    "paper": cell.paper,
                    "ours": cell.mean if cell.mean is not None else cell.text,
                    "ours_name": cell.name,
                    "std": cell.std,
                    "seeds": len(cell.values),
                    "comparable": cell.comparable,
                    "shown": {"paper": shown.paper, "ours": shown.ours, "diff": shown.difference},
                }
            )
    findings = [
        {
            "finding": item.finding.text,
            "verdict": item.verdict,
            "ours": item.reason,
            "paper": item.paper,
        }
        for item in judge(results)
    ]
    return {
        "notices": tables.notices(results),
        "turned": tables.turned(results),
        "cells": cells,
        "findings": findings,
        "trials_done": len(results.lines),
        "seconds": results.seconds,
    }


def _planned(trials: Sequence[Trial], done: set[str]) -> list[dict[str, Any]]:
    return [
        {
            "row": trial.row.key,
            "setup": trial.row.title,
            "seed": trial.seed,
            "run": None if trial.folder is None else str(trial.folder),
            "done": trial.key in done,
        }
        for trial in trials
    ]


def _log_plan(plan: dict[str, Any]) -> None:
    left = plan["trials"] - plan["trials_done"]
    text = f"{left} of {plan['trials']} rows and seeds left"
    if "hours" in plan:
        here = f"about {plan['hours']:,.2f} hours here (by {plan['hours_by']})"
        text += (
            f": {plan['trainings']} trainings, {plan['training_steps']:,} steps, "
            f"{plan['fakes']:,} videos; "
            f"{'more than a year here' if plan['too_long_here'] else here}, {plan['disk_gb']} GB"
        )
    logger.info(text)


def _files(folder: Path) -> dict[str, str]:
    named = {"lines": LINES, "markdown": MARKDOWN, "latex": LATEX, "report": HTML}
    return {name: str(folder / file) for name, file in named.items()}
