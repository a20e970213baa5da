"""Verdicts on figures whose verdict is known."""

import pytest

from hpdm_core.reports.ablations import load_table
from hpdm_core.reports.findings import interval, judge
from tests.unit.reports.made_up import results_of

TABLE = load_table("table3")


def verdicts(columns: dict) -> dict[str, str]:
    return {item.finding.text: item.verdict for item in judge(results_of(TABLE, columns))}


def test_the_interval_is_students():
    # Mean 2, deviation 1, three values: 2 -+ 2.920 / sqrt(3), of a printed table.
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 1.6859, 2 + 1.6859), abs=1e-3)


@pytest.mark.parametrize(
    ("shallow", "verdict"),
    [
        ([12.0, 12.1, 11.9], "holds"),
        ([8.0, 8.1, 7.9], "does not hold"),
        ([13.0, 8.0, 10.5], "within noise"),
        ([12.0], "not judged"),
    ],
)
def test_beats(shallow, verdict):
    columns = {"level2": {"default": [10.0, 10.1, 9.9], "shallow": shallow}}
    assert verdicts(columns)["Deep fusion beats shallow fusion"] == verdict


def test_pairs_of_seeds_are_compared_not_means():
    # Seeds differ by far more than rows, but every seed says the same.
    columns = {"level2": {"default": [10.0, 20.0, 40.0], "shallow": [11.0, 22.1, 43.9]}}
    assert verdicts(columns)["Deep fusion beats shallow fusion"] == "holds"


def test_higher_is_better_for_speed():
    name = "Adaptive computation saves time"
    fast = {"speed": {"default": [4.0, 4.1, 4.2], "no_adaptive": [2.0, 2.1, 2.2]}}
    assert verdicts(fast)[name] == "holds"
    slow = {"speed": {"default": [2.0, 2.1, 2.2], "no_adaptive": [4.0, 4.1, 4.2]}}
    assert verdicts(slow)[name] == "does not hold"


@pytest.mark.parametrize(
    ("default", "verdict"),
    [
        ([10.2, 10.21, 10.19], "holds"),  # 2% worse, of 5% that are allowed
        ([11.0, 11.01, 10.99], "does not hold"),
        ([10.5, 10.9, 10.1], "within noise"),
        ([9.0, 9.01, 8.99], "holds"),
    ],
)
def test_close(default, verdict):
    columns = {"level2": {"default": default, "no_adaptive": [10.0, 10.0, 10.0]}}
    name = "Adaptive computation costs little quality (5% at most)"
    assert verdicts(columns)[name] == verdict


def test_the_best_of_all_must_beat_each():
    table = load_table("table4")
    rows = {row.key: [10.0, 10.1, 9.9] for row in table.rows} | {"fh": [8.0, 8.1, 7.9]}

    def verdict(rows: dict) -> str:
        return judge(results_of(table, {"level2": rows}))[0].verdict

    assert verdict(rows) == "holds"
    assert verdict(rows | {"w": [8.0, 8.2, 7.8]}) == "within noise"
    assert verdict(rows | {"w": [7.0, 7.1, 6.9]}) == "does not hold"


def test_the_papers_side_is_told():
    judged = judge(results_of(TABLE, {}))
    assert judged[0].paper == "378.2 against 467, 19.0% better"
    assert judged[2].paper == "378.2 against 373.9, 1.2% worse"
    columns = {"n1": {"end": [1.0, 2.0], "half": [2.0, 3.0]}}
    assert judge(results_of(load_table("fig8"), columns))[0].paper == "curves, no figures"
