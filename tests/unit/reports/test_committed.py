"""The results under docs/results are those of the tables as they stand, written by the command.

README's table of findings is made of them.
"""

import re
from pathlib import Path

import findings
import pytest

from hpdm_core.files import read_whole_lines
from hpdm_core.recipe.load import shipped_tables
from hpdm_core.reports import tables
from hpdm_core.reports.ablations import choose_rows, load_table
from hpdm_core.reports.results import collect
from hpdm_core.runs.ablate.trials import make_trials

RESULTS = Path(__file__).parents[3] / "docs" / "results"


RUN = sorted(path.parent.name.removesuffix("-tiny") for path in RESULTS.glob("*/rows.jsonl"))


@pytest.mark.parametrize("name", RUN)
def test_committed_results_are_current(name):
    """Where this fails, run `hpdm ablate NAME --scale tiny --out docs/results` again."""
    folder = RESULTS / f"{name}-tiny"
    table = load_table(name)
    settings = table.scales["tiny"]
    trials = make_trials(table, settings, choose_rows(table, settings, []), seed=0)
    lines = read_whole_lines(folder / "rows.jsonl")
    found = [line["key"] for line in lines]
    # A table may be run in part: the pages say how many rows there are of how many.
    assert set(found) <= {trial.key for trial in trials}
    assert len(set(found)) == len(found)
    assert all(line["machine"]["processor"] for line in lines)
    results = collect(table, lines, name=name, scale="tiny", keys={trial.key for trial in trials})
    assert (folder / "table.md").read_text() == tables.markdown(results)
    assert (folder / "table.tex").read_text() == tables.latex(results)
    assert table.title in (folder / "report.html").read_text()


@pytest.mark.parametrize("page", findings.PAGES, ids=lambda page: page.parent.name)
def test_pages_say_what_the_results_say(page):
    """Where this fails, run `python benchmarks/findings.py --write`."""
    shown = findings.between_marks(page.read_text(encoding="utf-8"))
    assert shown == findings.findings(findings.PAGES[page])
    lines = shown.splitlines()
    assert len(lines) == 2 + 8
    for target in re.findall(r"\]\(([^)]+)\)", shown):
        assert (page.parent / target).is_file()


def test_every_table_has_a_place_on_the_pages():
    told = [name for names in findings.LINES.values() for name in names]
    shipped = {path.stem for path in shipped_tables()}
    assert sorted(told) == sorted(shipped - {"samplers"})  # not the paper's
