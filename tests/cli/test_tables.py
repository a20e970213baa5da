"""What is printed: tables of 80 columns, lines with labels, and figures in human units."""

import pytest

from hpdm_cli.tables import Shown, print_shown, text_of
from hpdm_cli.units import count, device_hours, duration, flop, size


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
        (device_hours(0.02), "0.02 hours"),
        (device_hours(6.9e6), "6.9 M hours = 787 years"),
    ],
)
def test_figures_have_human_units(text, expected):
    assert text == expected
