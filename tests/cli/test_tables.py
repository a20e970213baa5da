"""Results as tables: every figure and every row of the JSON object is shown."""

import pytest

from hpdm_cli.tables import print_result, text_of


def test_figures_rows_and_nested_parts_are_shown(capsys):
    print_result(
        {
            "parameters": {"total": 178317104},
            "levels": [{"resolution": [16, 64, 64], "tiles": 1}, {"tiles": 343}],
            "out": "runs/[x]",
            "done": True,
        },
        title="Plan [1]",
    )
    text = capsys.readouterr().out
    for word in ("Plan [1]", "parameters.total", "178,317,104", "runs/[x]", "yes", "levels",
                 "16, 64, 64", "343"):  # fmt: skip
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
    assert text.endswith("and 28 more (--json has all)")
