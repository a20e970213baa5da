"""What is shown of a figure: its own name, the difference where there is one, notices."""

import json

import pytest

from hpdm_core.files import append_line, read_whole_lines
from hpdm_core.reports.ablations import load_table
from hpdm_core.reports.html import report
from hpdm_core.reports.results import collect
from hpdm_core.reports.tables import latex, markdown, notices, number, provenance, show
from tests.unit.reports.made_up import BUNDLED, line, results_of, score

TABLE = load_table("table3")
COLUMNS = {"level2": {"default": [10.0, 12.0], "shallow": [22.0, 24.0]}}


def cell(results, row: str, column: str = "level2"):
    found = results.cells[row, column]
    return show(found, results.baseline(found.column))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (12.0, "12"), (378.24, "378.2"), (14.2, "14.20"), (4.4, "4.400"),
     (0.0052, "0.0052"), (0.0000123, "1.2e-05"), (10000.0, "10,000"), (1234.56, "1,234.6"),
     (-14.2, "-14.20")],
)  # fmt: skip
def test_numbers(value, text):
    assert number(value) == text


def test_means_deviations_and_changes_against_the_baseline():
    results = results_of(TABLE, COLUMNS)
    shown = cell(results, "shallow")
    assert shown.ours == "23.00 ± 1.41"
    assert shown.difference == "2.09x, paper +23.5%"  # 23 / 11; 467.0 / 378.2
    assert cell(results, "default").difference == ""
    assert cell(results, "detach").ours == "–"


def test_figures_of_another_detector_are_never_called_fvd_nor_judged():
    results = results_of(TABLE, COLUMNS)
    assert not results.has_comparable
    assert all(cell(results, row.key).good is None for row in TABLE.rows)
    assert any("are not FVD" in text for text in notices(results))
    text = markdown(results)
    ours = [part for part in text.split("|") if part.strip().startswith("ours:")]
    assert ours
    assert not any("FVD" in part for part in ours)
    assert f"ours: {BUNDLED}, 4 videos of 4x8x8" in text


@pytest.mark.parametrize(("scale", "name"), [("tiny", "FVD"), ("paper", BUNDLED)])
def test_only_fvd_at_paper_scale_is_held_against_the_paper(scale, name):
    results = results_of(TABLE, COLUMNS, scale=scale, name=name)
    assert not results.has_comparable
    assert cell(results, "default").good is None


def test_fvd_at_paper_scale_has_a_difference():
    columns = {"level2": {"default": [370.0], "shallow": [500.0]}}
    results = results_of(TABLE, columns, scale="paper", name="FVD")
    assert cell(results, "default").difference == "−8.2, −2.2%"
    assert cell(results, "default").good is True
    assert cell(results, "shallow").good is False
    assert not any("not FVD" in text for text in notices(results))


def test_counts_and_settings_are_always_comparable():
    table = load_table("table8")
    figures = {
        "parameters": {"value": 178_300_000, "name": "counted"},
        "latents": {"value": None, "text": "768", "name": "recipe"},
        "token": {"value": None, "text": "1/2/2", "name": "recipe"},
    }
    results = collect(
        table, [line("hpdm_s", 0, figures)], name="table8", scale="tiny", keys={"hpdm_s/0"}
    )
    assert cell(results, "hpdm_s", "parameters").difference == "+0.3, +0.2%"
    assert cell(results, "hpdm_s", "latents").difference == ""
    assert cell(results, "hpdm_s", "token").difference == "differs"


def test_what_did_not_fit_is_said():
    table = load_table("table1")
    figures = {"memory_512": {"value": None, "text": "does not fit (about 300 GB)"}}
    results = collect(
        table, [line("full", 0, figures)], name="table1", scale="tiny", keys={"full/0"}
    )
    shown = cell(results, "full", "memory_512")
    assert (shown.paper, shown.ours) == ("OOM", "does not fit (about 300 GB)")


def test_lines_that_are_out_of_date_do_not_count():
    lines = [line("default", 0, {"level2": score(1.0)}), line("default", 1, {"level2": score(9.0)})]
    results = collect(TABLE, lines, name="table3", scale="tiny", keys={"default/1"})
    assert results.cells["default", "level2"].values == (9.0,)


def test_a_torn_line_is_passed_over_and_ended(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_line(path, {"key": "a"})
    with path.open("a") as file:
        file.write('{"key": "b", "fig')
    append_line(path, {"key": "c"})
    assert read_whole_lines(path) == [{"key": "a"}, {"key": "c"}]


def test_latex_has_a_line_per_row_and_no_bare_signs():
    text = latex(results_of(TABLE, COLUMNS))
    body = [row for row in text.splitlines() if row.endswith(r"\\")]
    assert len(body) == 2 + len(TABLE.rows)
    assert {row.count("&") - row.count(r"\&") for row in body[1:]} == {2 * len(TABLE.columns)}
    lines = [row for row in text.splitlines() if not row.startswith("%")]
    assert not any(sign in row for row in lines for sign in "²±–−“”_")


def test_markdown_has_as_many_cells_in_every_row():
    rows = [row for row in markdown(results_of(TABLE, COLUMNS)).splitlines() if row[:1] == "|"]
    table = rows[: 2 + len(TABLE.rows)]
    assert {row.count("|") for row in table} == {2 + 2 * len(TABLE.columns)}


def test_results_survive_json():
    entry = line("default", 0, {"level2": score(1.5)})
    assert json.loads(json.dumps(entry)) == entry


@pytest.mark.parametrize(
    ("machine", "named"),
    [
        ({"device": "cpu", "threads": 1}, "on a CPU, 1 thread."),
        ({"device": "cpu", "threads": 2}, "on a CPU, 2 threads."),
        ({"device": "cuda:0", "threads": 2}, "on a GPU."),
    ],
)
def test_provenance_names_the_machine(machine, named):
    lines = [line("shallow", seed, {}) for seed in (0, 1)]
    for made in lines:
        made["machine"] = {"name": "a GPU", "processor": "a CPU"} | machine
    results = collect(TABLE, lines, name="t", scale="tiny", keys={made["key"] for made in lines})
    (said,) = provenance(results)
    assert named in said
    assert "`hpdm ablate t --scale tiny`" in said
    assert "2 rows, seeds 0, 1" in said


def test_many_columns_go_down_and_rows_across():
    table = load_table("table8")
    results = results_of(table, {"parameters": {"hpdm_m": [320e6], "hpdm_s": [178e6]}})
    text = markdown(results).splitlines()
    head = next(row for row in text if row.startswith("| setup"))
    titles = [cell.removesuffix(": paper") for cell in head.strip("| ").split(" | ")[1::2]]
    assert titles == [row.title for row in table.rows]
    line_ = next(row for row in text if row.startswith("| parameters"))
    cells = line_.strip("| ").split(" | ")
    place = titles.index("HPDM-M")
    assert cells[1 + 2 * place] == "321"
    assert cells[2 + 2 * place].startswith("320")
    assert rf"{{l{'rr' * len(table.rows)}}}" in latex(results)


def test_few_columns_stay_across():
    text = markdown(results_of(TABLE, COLUMNS)).splitlines()
    assert [row for row in text if row.startswith("| Shallow fusion")]


def test_a_table_that_the_paper_lacks_has_no_columns_of_its_figures():
    table = load_table("samplers")
    lines = [line("recipe", 0, {"passes": {"value": 2459}}), line("half", 0, {})]
    keys = {entry["key"] for entry in lines}
    results = collect(table, lines, name="samplers", scale="tiny", keys=keys)
    (row,) = (text for text in markdown(results).splitlines() if "the recipe's" in text)
    assert row.count("|") == 2 + len(table.columns)
    assert "2,459" in row
    assert "paper</th>" not in report(results, [], plan={})
