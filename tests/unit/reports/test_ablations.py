"""The shipped tables: figures as printed, rows that resolve at every scale, and plain mistakes."""

import pytest

from hpdm_core.errors import RecipeError
from hpdm_core.recipe.load import find_recipe, load_recipe, shipped_tables
from hpdm_core.reports.ablations import (
    SCALES,
    choose_rows,
    load_table,
    protocol_of,
    read_table,
    recipe_of,
)

NAMES = [path.stem for path in shipped_tables()]
# Sums of the columns as the paper prints them, added up from its text.
SUMS = {
    ("table1", "speed_256"): 18.42,
    ("table1", "memory_256"): 150.0,
    ("table2", "fvd"): 5669.67,
    ("table3", "level0"): 1501.7,
    ("table3", "level2"): 2005.9,
    ("table3", "speed"): 20.91,
    ("table4", "level1"): 3039.61,
    ("table4", "level2"): 3709.06,
    ("table5", "fvd"): 5293.4,
    ("table7", "fvd_64"): 2436.22,
    ("table8", "parameters"): 9092,
}


def test_all_of_the_papers_tables_are_there():
    tables = [f"table{number}" for number in range(1, 9)]
    assert ["claims", "fig8", "samplers", *tables] == NAMES


@pytest.mark.parametrize(("name", "column"), SUMS)
def test_figures_are_the_papers(name, column):
    figures = [row.paper.get(column) for row in load_table(name).rows]
    total = sum(figure for figure in figures if isinstance(figure, int | float))
    assert total == pytest.approx(SUMS[name, column], abs=0.005)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", SCALES)
def test_every_row_resolves_to_a_recipe_and_a_protocol(name, scale):
    table = load_table(name)
    settings = table.scales[scale]
    for row in choose_rows(table, settings, []):
        for column in (None, *table.columns):
            base, overrides = recipe_of(table, settings, row, column)
            load_recipe(base, overrides)
    for column in table.columns:
        if column.measure.kind == "score":
            assert protocol_of(settings, column).startswith("fvd")


# What a table is scored by at tiny scale beside its Frechet distances.
SCORED_BY = {
    "table2": {"is", "kvd", "flicker", "hh"},
    "table3": {"kvd", "flicker", "hh"},
    "table4": {"kvd", "flicker", "hh", "seams_space", "seams_time"},
    "table5": {"is", "kvd"},
    "table6": {"is", "kvd"},
    "table7": {"is", "kvd"},
    "fig8": {"kvd"},
    "claims": {"kvd", "high_frequency", "hh", "seams"},
}


@pytest.mark.parametrize("name", SCORED_BY)
def test_scores_are_distances_and_what_tells_rows_apart(name):
    table = load_table(name)
    scored = [column for column in table.columns if column.measure.kind == "score"]
    assert {column.measure.of for column in scored} == {"fvd"} | SCORED_BY[name]
    for scale in ("tiny", "smoke"):
        protocols = {c.key: protocol_of(table.scales[scale], c) for c in scored}
        # The paper's own protocol has hundreds of videos: every column has one of its own here.
        assert set(table.scales[scale].protocols) == set(protocols)
        # A kernel distance has the features of a Frechet distance: no video is made for it alone.
        frechet = {protocols[c.key] for c in scored if c.measure.of == "fvd"}
        assert {protocols[c.key] for c in scored if c.measure.of == "kvd"} <= frechet


@pytest.mark.parametrize("name", [name for name in NAMES if name != "samplers"])
def test_findings_are_judged_on_a_column_that_has_a_better_end(name):
    table = load_table(name)
    for finding in table.findings:
        assert table.column(finding.column).better in ("lower", "higher")
        known = {row.key for row in table.runnable}
        assert {finding.row, *finding.against} <= known
    assert len({finding.text for finding in table.findings}) == len(table.findings)


def test_the_ablations_recipe_is_its_own():
    """A change of another recipe must not change what the tables' figures are of."""
    text = find_recipe("ablation_tiny").read_text(encoding="utf-8")
    assert not any(line.startswith("extends") for line in text.splitlines())


def test_rows_differ_by_what_they_are_called():
    table, recipes = load_table("table3"), {}
    for row in table.rows:
        base, overrides = recipe_of(table, table.scales["tiny"], row, None)
        recipes[row.key] = load_recipe(base, overrides).model
    default = recipes["default"]
    changed = {
        key: {name for name, value in model if value != getattr(default, name)}
        for key, model in recipes.items()
    }
    assert changed == {
        "default": set(),
        "shallow": {"context"},
        "detach": {"detach_context"},
        "no_coordinates": {"coordinates"},
        "no_adaptive": {"levels_per_block"},
    }


@pytest.mark.parametrize("scale", SCALES)
def test_no_adaptive_computation_has_as_many_blocks_as_the_default(scale):
    table, blocks = load_table("table3"), {}
    for row in table.rows:
        loads = load_recipe(
            *recipe_of(table, table.scales[scale], row, None)
        ).model.levels_per_block
        blocks[row.key] = len(loads)
        assert (min(loads) == max(loads)) is (row.key == "no_adaptive")
    assert len(set(blocks.values())) == 1


def test_table_1_keeps_the_papers_proportions_at_every_scale():
    table = load_table("table1")
    for scale, by in (("paper", 1), ("tiny", 4), ("smoke", 16)):
        base, overrides = recipe_of(
            table, table.scales[scale], table.row("small_adaptive"), table.column("speed_512")
        )
        recipe = load_recipe(base, overrides)
        assert recipe.pyramid.patch == (16, 64 // by, 64 // by)
        assert recipe.pyramid.levels[-1] == (64, 512 // by, 512 // by)
        assert recipe.model.levels_per_block == (1, 1, 2, 2, 3, 4)


def test_table_4_and_fig_8_share_the_training_of_table_3_at_tiny_scale():
    def default(name: str, row: str):
        table = load_table(name)
        return load_recipe(*recipe_of(table, table.scales["tiny"], table.row(row), None))

    assert default("table4", "fhw") == default("table3", "default") == default("fig8", "half")


def test_tables_are_not_recipes():
    with pytest.raises(RecipeError, match=r"table3 is a table.*hpdm ablate table3"):
        load_recipe("table3")
    with pytest.raises(RecipeError, match="hpdm ablate fig8"):
        find_recipe(shipped_tables()[1])


def test_unknown_tables_and_rows_are_named():
    expected = "no table is called table9; expected claims, fig8, samplers, table1"
    with pytest.raises(RecipeError, match=expected):
        load_table("table9")
    table = load_table("table2")
    with pytest.raises(RecipeError, match="--rows: tats cannot be run; expected of hpdm_s"):
        choose_rows(table, table.scales["tiny"], ["hpdm_s", "tats"])
    chosen = choose_rows(table, table.scales["tiny"], [])
    assert [row.key for row in chosen] == ["hpdm_s", "hpdm_m", "hpdm_l"]


def test_zero_shot_rows_are_runs_at_paper_scale_and_trained_below():
    table = load_table("table5")
    paper, tiny = (choose_rows(table, table.scales[s], []) for s in ("paper", "tiny"))
    assert [row.checkpoint for row in paper] == ["runs/hpdm_t2v"] * 3 + ["runs/hpdm_t2v_1k"]
    assert [(row.key, row.level, row.checkpoint) for row in tiny] == [
        ("t2v_72", 0, None), ("t2v_144", 1, None), ("t2v_288", 2, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("baseline: default", "baseline: nobody"), "no row is called nobody"),
        (("level0: 298.9", "level9: 298.9"), "no column is called level9"),
        (
            ("of: fvd, protocol: fvd512_level0", "of: speed, protocol: x"),
            "a score is of fvd or kvd",
        ),
        (("better: higher", "beter: higher"), r"columns.6.beter: Extra inputs"),
        (("title: Shallow fusion", "title: Shallow fusion, use: [none]"), "no set is called none"),
    ],
)
def test_mistakes_in_a_table_are_explained(tmp_path, change, message):
    source = next(path for path in shipped_tables() if path.stem == "table3")
    file = tmp_path / "table3.yaml"
    file.write_text(source.read_text(encoding="utf-8").replace(*change, 1), encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        read_table(file)
