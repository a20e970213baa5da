"""YAML's traps: what PyYAML's 1.1 rules would silently turn into something else."""

import pytest
import yaml

from hpdm_core.errors import RecipeError
from hpdm_core.recipe.yaml_tree import dump, parse, parse_scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-3", 5e-3),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("12:30", "12:30"),
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("2024-01-02", "2024-01-02"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        (".inf", ".inf"),
        ("010", 10),
        ("True", True),
        ("false", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("'5'", "5"),
        ("[1, [2e0, x]]", (1, (2.0, "x"))),
    ],
)
def test_words_mean_what_they_say(text, value):
    tree, problems = parse(f"key: {text}", "x.yaml")
    assert tree.plain() == {"key": value}
    assert type(tree.plain()["key"]) is type(value)
    assert problems == []


def test_places_are_those_of_the_keys():
    tree, _ = parse("a:\n  b: 1\n  c: {d: 2}\n", "x.yaml")
    assert tree.at(("a", "b")).where == "x.yaml:2:3"
    assert tree.at(("a", "c", "d")).where == "x.yaml:3:7"
    assert tree.at(("a", "absent")).where == "x.yaml:1:1"


def test_keys_that_stand_twice_are_found_at_every_depth():
    tree, problems = parse("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n", "x.yaml")
    assert tree.plain() == {"a": 1, "b": {"c": 1}}
    assert [problem.split(": ")[0] for problem in problems] == ["x.yaml:4:3", "x.yaml:5:1"]


@pytest.mark.parametrize(
    "text",
    [
        "a: &x 1\nb: *x",
        "!!python/dict {a: 1}",
        "a: !!set {b}",
        "a: !!python/object/apply:os.getcwd []",
        "a: !!python/name:os.system x",
        "a: !thing 2",
        "? [1, 2]\n: 3",
        "a: 1\n---\nb: 2",
        "a: [1",
        "\x00",
    ],
)
def test_what_recipes_do_not_use_is_refused(text):
    with pytest.raises(RecipeError, match=r"x\.yaml"):
        parse(text, "x.yaml")


@pytest.mark.parametrize(
    "value",
    [
        1e-7,
        1e22,
        0.1,
        -3,
        0,
        True,
        None,
        "no",
        "1e-5",
        "12:30",
        "0x1F",
        "null",
        "~",
        "",
        "5",
        "a: b",
        "# x",
        "[1]",
        "line\nline",
        " padded ",
        "é",
        "*x",
        "&x",
        "!x",
        [1, [2.5, "3"]],
        {"deep": [1]},
    ],
)
def test_written_values_are_read_back_here_and_by_yaml_1_1(value):
    text = dump({"key": value})
    back = parse(text, "x.yaml")[0].plain()["key"]
    assert back == _tuples(value)
    assert type(back) is type(_tuples(value))
    assert yaml.safe_load(text) == {"key": value}


def test_a_list_that_stands_twice_is_written_twice():
    sizes = [4, 16, 16]
    text = dump({"patch": sizes, "levels": [sizes, sizes]})
    assert parse(text, "x.yaml")[0].plain()["levels"] == ((4, 16, 16), (4, 16, 16))


def test_bare_words_of_overrides():
    assert parse_scalar("1e-3") == 1e-3
    assert parse_scalar("a: b") == "a: b"
    assert parse_scalar("") is None


def test_merge_replaces_lists_and_merges_sections():
    base, _ = parse("a: {b: [1, 2], c: 3}\nd: 4", "base.yaml")
    top, _ = parse("a: {b: [9]}\ne: 5", "top.yaml")
    merged = base.merge(top)
    assert merged.plain() == {"a": {"b": (9,), "c": 3}, "d": 4, "e": 5}
    assert merged.at(("a", "b")).where == "top.yaml:1:5"
    assert merged.at(("a", "c")).where == "base.yaml:1:16"


def _tuples(value: object) -> object:
    return (
        tuple(_tuples(item) for item in value)
        if isinstance(value, list)
        else (
            {key: _tuples(item) for key, item in value.items()}
            if isinstance(value, dict)
            else value
        )
    )
