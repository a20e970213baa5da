"""What is printed: tables of 80 columns, lines with labels, and figures in human units."""

import pytest

from hpdm_cli.endings import ablation_plan, sampling_plan
from hpdm_cli.score_endings import scored
from hpdm_cli.tables import Shown, print_shown, text_of
from hpdm_cli.units import count, duration, flop, gpu_hours, size


def test_tables_fit_80_columns_and_lines_are_not_wrapped(capsys):
    rows = [{"name": f"row {k} [x]", "about": "word " * 30, "n": 10**k} for k in range(8)]
    path = "/a/" + "long/" * 30
    print_shown(Shown(tables={"Rows [1]": rows}, lines=[("in", path), ("next", "hpdm [x]")]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [f"in      {path}", "next    hpdm [x]"]
    assert max(map(len, lines[:-2])) <= 80
    text = "\n".join(lines)
    for word in ("Rows [1]", "row 7 [x]", "10,000,000"):
        assert word in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (False, "no"),
        (0.012345, "0.01235"),
        (1.5e9, "1.500e+09"),
        ([], "-"),
        ("a", "a"),
    ],
)
def test_values_are_written_for_people(value, text):
    assert text_of(value) == text


def test_long_lists_are_counted():
    text = text_of([f"weight.{i}" for i in range(40)])
    assert text.startswith("40: weight.0, ")
    assert text.endswith("and 32 more")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (count(950), "950"),
        (count(2_364_556), "2.36 M"),
        (count(999_900), "1 M"),
        (flop(2.4e12), "2.4 TFLOP"),
        (size(226e9), "226 GB"),
        (duration(12.3), "12.3 s"),
        (duration(7200), "2 h"),
        (duration(86400 * 3), "3 days"),
        (duration(86400 * 1000), "2.74 years"),
        (duration(86400 * 365.25 * 4940), "4.94 k years"),
        (gpu_hours(0.02), "0.02 GPU-hours"),
        (gpu_hours(6.9e6), "6.9 M GPU-hours = 787 GPU-years"),
    ],
)
def test_figures_have_human_units(text, expected):
    assert text == expected


@pytest.mark.parametrize(
    ("hours", "too_long", "cost"),
    [
        (5.6, False, "about 5.6 h of this device (by a step)"),
        (4.3e7, True, "more than a year of this device"),
    ],
)
def test_a_tables_cost_is_said_in_units_that_a_reader_can_wait_for(hours, too_long, cost):
    plan = {
        "trials": 2, "trials_done": 0, "trainings": 1, "training_steps": 130_000, "fakes": 20_000,
        "hours": hours, "hours_by": "a step", "too_long_here": too_long, "gpu_hours": 21_000,
        "gpu_hours_by": "H100", "disk_gb": 226,
    }  # fmt: skip
    result = {"plan": plan, "rows": [], "needs": [], "title": "T", "scale": "paper", "about": "a"}
    lines = dict(ablation_plan(result, command="it").lines)
    assert lines["work"] == "1 training, 130 k steps; 20 k generated videos"
    assert lines["cost"] == f"{cost}, 226 GB of disk"
    assert lines["on GPUs"] == "about 21 k GPU-hours = 2.4 GPU-years (H100)"
    plan["gpu_hours"] = 0.0
    assert "on GPUs" not in dict(ablation_plan(result, command="it").lines)


@pytest.mark.parametrize(
    ("fast", "said"), [(100, "fast 100: 4.0 times fewer"), (400, "fast 400"), (500, "fast 500")]
)
def test_a_preset_that_costs_no_less_is_not_called_cheaper(fast, said):
    result = {
        "levels": [], "block_passes_cached": 400, "block_passes_uncached": 800, "model": "it",
        "presets": {"paper": 400, "fast": fast}, "memory_bytes": {"total": 1}, "overlap": "hw",
        "videos_at_a_time": 1, "tiles_at_a_time": 1,
    }  # fmt: skip
    lines = dict(sampling_plan(result, command="it").lines)
    assert lines["presets"] == f"paper 400 block passes a video, {said}"


def test_scores_end_with_what_a_reader_compares():
    """Warnings are logged while a comparison runs, so only a dry run ends with them."""
    figures = [
        {"name": "kernel distance", "value": 0.123456, "std": 0.0123},
        {"name": "hh", "value": 0.01, "std": None, "real_value": 0.02},
        {"name": "seams", "value": None, "std": None},
        {"name": "class score", "value": 8.5, "std": 0.25, "named_right": 0.975},
    ]
    sets = {"fakes": {"count": 6}, "reals": {"count": 12}, "protocol": "fvd6_16f"}
    warnings = {"warnings": ["few videos"]}
    result = {"scores": figures, "file": "a.json", "seconds": 3} | sets | warnings
    shown = scored(result, command="hpdm eval-fvd --samples a")
    assert shown.lines == [
        ("score", "kernel distance 0.1235 ± 0.012"),
        ("score", "hh 0.01 (real videos 0.02)"),
        ("score", "seams undefined for all videos"),
        ("score", "class score 8.5 ± 0.25 (98% recognised as their class)"),
        ("sets", "6 fakes, 12 reals; protocol fvd6_16f"),
        ("in", "a.json"),
        ("took", "3 s"),
        ("next", "hpdm eval-fvd --list"),
    ]
    planned = scored({"dry_run": True, "fakes_to_do": 6} | sets | warnings, command="it").lines
    assert planned[-1] == ("next", "it")
    assert ("warning", "few videos") in planned
