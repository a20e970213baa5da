"""The results under docs/results are those of the tables as they stand, written by the command."""

from pathlib import Path

import pytest

from hpdm_core.files import read_whole_lines
from hpdm_core.reports import tables
from hpdm_core.reports.ablations import choose_rows, load_table
from hpdm_core.reports.results import collect
from hpdm_core.runs.ablate.trials import make_trials

RESULTS = Path(__file__).parents[3] / "docs" / "results"


@pytest.mark.parametrize("name", ["table8"])
def test_committed_results_are_current_and_whole(name):
    """Where this fails, run `hpdm ablate NAME --scale tiny --out docs/results` again."""
    folder = RESULTS / f"{name}-tiny"
    table = load_table(name)
    settings = table.scales["tiny"]
    trials = make_trials(table, settings, choose_rows(table, settings, []), seed=0)
    lines = read_whole_lines(folder / "rows.jsonl")
    assert {line["key"] for line in lines} == {trial.key for trial in trials}
    assert len(lines) == len(trials)
    assert all(line["machine"]["processor"] for line in lines)
    results = collect(table, lines, name=name, scale="tiny", keys={trial.key for trial in trials})
    assert (folder / "table.md").read_text() == tables.markdown(results)
    assert (folder / "table.tex").read_text() == tables.latex(results)
    assert table.title in (folder / "report.html").read_text()
