"""Verdicts on figures whose verdict is known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

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
    fast = {"ratio": {"default": [1.0, 1.01, 0.99], "no_adaptive": [0.6, 0.61, 0.62]}}
    assert verdicts(fast)[name] == "holds"
    slow = {"ratio": {"default": [1.0, 1.01, 0.99], "no_adaptive": [1.6, 1.61, 1.62]}}
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


@pytest.mark.parametrize(
    ("overlapped", "verdict"),
    [([1.1, 1.12, 1.09], "holds"), ([1.7, 1.72, 1.69], "does not hold")],
)
def test_quality_is_judged_like_any_score(overlapped, verdict):
    table = load_table("table4")
    columns = {"seams_space": {"none": [1.5, 1.52, 1.49], "hw": overlapped}}
    judged = {item.finding.text: item for item in judge(results_of(table, columns))}
    found = judged["Overlap along height and width takes seams in space away"]
    assert found.verdict == verdict
    assert found.paper == "averages overlaps for local consistency (Sec. 4.4)"


def test_a_kernel_distance_below_zero_says_nothing_false():
    """An unbiased distance of two equal sets is on either side of 0: percent are then no guide."""
    columns = {"kernel": {"default": [0.001, -0.001, 0.002], "shallow": [-0.001, 0.002, -0.001]}}
    assert verdicts(columns)["Deep fusion beats shallow fusion, by kernel distance"] == (
        "within noise"
    )


def test_the_papers_side_is_told():
    judged = judge(results_of(TABLE, {}))
    assert judged[0].paper == "378.2 against 467, 19.0% better"
    assert judged[2].paper == "378.2 against 373.9, 1.2% worse"
    columns = {"n1": {"end": [1.0, 2.0], "half": [2.0, 3.0]}}
    assert judge(results_of(load_table("fig8"), columns))[0].paper == "curves, no figures"


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_interval_and_verdict_are_those_of_a_paired_t_test(seeds):
    rng = np.random.default_rng(seeds)
    own, its = 10 + rng.normal(size=seeds), 11 + rng.normal(size=seeds)
    gains = 100 * (its - own) / its
    found = stats.ttest_1samp(gains, 0.0).confidence_interval(0.90)
    mean, low, high = interval(list(gains))
    assert (mean, low, high) == pytest.approx((gains.mean(), found.low, found.high))
    columns = {"level2": {"default": list(own), "shallow": list(its)}}
    better = stats.ttest_1samp(gains, 0.0, alternative="greater").pvalue < 0.05
    worse = stats.ttest_1samp(gains, 0.0, alternative="less").pvalue < 0.05
    verdict = "holds" if better else "does not hold" if worse else "within noise"
    assert verdicts(columns)["Deep fusion beats shallow fusion"] == verdict


CLAIMS = load_table("claims")


def claim(text: str, columns: dict, texts: dict | None = None):
    """Judge one finding of `claims`; `texts` has words in place of a row's figures."""
    results = results_of(CLAIMS, columns)
    for place, word in (texts or {}).items():
        results.cells[place] = replace(results.cells[place], text=word)
    return next(item for item in judge(results) if item.finding.text == text)


@pytest.mark.parametrize(
    ("detach", "place"), [([10.5, 10.6, 10.4], "inside"), ([12.5, 12.6, 12.4], "outside")]
)
def test_the_papers_size_is_held_against_the_interval(detach, place):
    columns = {"fvd": {"default": [10.0, 10.0, 10.0], "detach": detach}}
    judged = claim("Gradients through context improve the last level", columns)
    assert judged.verdict == "holds"
    assert judged.reason.endswith(f", the paper's 5% {place}")
    assert judged.paper == "about 5% (Sec. 4.2); Table 3: 4.8%"


def test_a_row_that_diverged_with_every_seed_is_beaten():
    text, place = "Raw coordinates are better than sinusoidal ones", ("sinusoidal", "fvd")
    default = {"fvd": {"default": [10.0, 10.1, 9.9]}}
    judged = claim(text, default, {place: "diverged"})
    assert (judged.verdict, judged.reason) == (
        "holds", "Sinusoidal coordinates diverged with every seed",
    )  # fmt: skip
    # With some seeds only: their figures are missing, and nothing is concluded.
    some = {"fvd": {**default["fvd"], "sinusoidal": [12.0, 12.1]}}
    assert claim(text, some).verdict == "not judged"
    # One seed of the other row is no result either.
    assert claim(text, {"fvd": {"default": [10.0]}}, {place: "diverged"}).verdict == "not judged"
