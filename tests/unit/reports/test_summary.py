"""Lines on what all tables say: verdicts that are known, numbers that are worked out by hand."""

from hpdm_core.reports.ablations import load_table
from hpdm_core.reports.results import collect
from hpdm_core.reports.summary import HEAD, Part, line
from tests.unit.reports.made_up import line as row_line
from tests.unit.reports.made_up import results_of

TABLE = load_table("table3")
# Advantages of 20, 21 and 19% over shallow; of -14.3, -11.3 and -17.4% over detach; of 0, 6 and
# -6.6% over no coordinates.
LEVEL_2 = {
    "default": [8.0, 7.9, 8.1],
    "shallow": [10.0, 10.0, 10.0],
    "detach": [7.0, 7.1, 6.9],
    "no_coordinates": [8.0, 8.4, 7.6],
}


def cells(text: str) -> list[str]:
    return [cell.strip() for cell in text.strip("| ").split(" | ")]


def part(columns: dict) -> Part:
    results = results_of(TABLE, columns)
    return Part(results=results, wanted=15, link="there/table.md")


def test_findings_stand_below_their_verdict_with_effect_and_interval():
    found = cells(line("Table 3", [part({"level2": LEVEL_2})]))
    assert len(found) == len(cells(HEAD[0]))
    assert found[0] == "[Table 3](there/table.md)"
    # The other findings lack a row or a column.
    waiting = len(TABLE.findings) - 3
    assert found[1] == f"12 of 15, 3 seeds; {waiting} findings wait"
    # Student's t of two degrees of freedom, 2.920, times a deviation of 1 over the root of 3.
    assert found[2] == "Deep fusion beats shallow fusion: +20.0% (+18.3 to +21.7)"
    assert found[3].startswith("Detaching the context hurts the last level: -14.3% (")
    assert found[4].startswith("Coordinates help: ")


def test_what_was_not_run_says_so():
    found = cells(line("Table 3", [part({})]))
    assert found == ["Table 3", "**not run**", "–", "–", f"{len(TABLE.findings)} findings wait"]


def test_tables_with_one_training_share_a_line():
    other = load_table("table4")
    rows = results_of(other, {"seams_time": {"none": [1.5, 1.6], "f": [1.1, 1.2]}})
    second = Part(results=rows, wanted=24, link="elsewhere/table.md")
    found = cells(line("Both", [part({}), second]))
    assert found[0] == "[Both](elsewhere/table.md)"
    assert found[1].startswith("4 of 39, 2 seeds; ")
    assert found[2].startswith("Overlap along frames takes seams in time away: +25.8% (")


def test_the_smallest_effect_stands_for_all_rows_it_was_held_against():
    other = load_table("table4")
    rows = {row.key: [10.0, 10.1, 9.9] for row in other.rows} | {"fh": [8.0, 8.08, 7.92]}
    rows["w"] = [9.0, 9.09, 8.91]
    results = results_of(other, {"level2": rows})
    found = cells(line("Table 4", [Part(results=results, wanted=24, link="x")]))
    best = "Overlap along frames and height is the best of all, at the finest level"
    assert f"{best}: +11.1% (+11.1 to +11.1)" in found[2]


def test_counts_are_held_against_the_papers_in_place_of_findings():
    table = load_table("table8")
    figures = {"parameters": {"value": 181_560_000, "name": "counted"}}  # 2% above 178M
    results = collect(
        table, [row_line("hpdm_s", 0, figures)], name="table8", scale="tiny", keys={"hpdm_s/0"}
    )
    found = cells(line("Table 8", [Part(results=results, wanted=5, link="x")]))
    assert found[1:3] == ["1 of 5, 1 seed", "counted: sizes within 2.0% of the paper's"]
