"""20,000 recipes made to break the reader: each is read, or refused by a RecipeError."""

import random
from contextlib import suppress

import pytest

from hpdm_core.build import describe
from hpdm_core.errors import HpdmError, RecipeError
from hpdm_core.names import plain_name
from hpdm_core.recipe.explain import field_paths
from hpdm_core.recipe.load import load_recipe, recipe_from_yaml, recipe_to_yaml
from hpdm_core.recipe.schema import Recipe

from .fuzzing import Memory, cases, enough, mutated, within_time

pytestmark = pytest.mark.slow

VALUES = [
    "", "~", "true", "-1", "0", "1", "2", "3", "7", "1e3", "1e999", "-0.0", ".5", ".nan", "1000000",
    "999999999999", "9" * 18, "9" * 5000, "-" + "9" * 30, "[]", "{}", "[[]]", "[1]", "[1, 2, 3]",
    "[4, 16, 16]", "[[4, 16, 16], [8, 32, 32]]", "[1" + ", 1" * 500 + "]", "[" * 1000, "{a: 1}",
    "'" + "x" * 5000 + "'", '"\\ud800"', '"\\0"', '"\\U00110000"', "!!float x", "!!int x",
    "!!str 5",
    "!!python/name:os.system x", "!!binary aGk=", "*x", "&x 1", "../../x", "/abs", "..", "'a/b'",
    "|\n  text", "none", "fhw", "class", "text", "deep", "é", "\u2028", "# x", "? x", "- x",
    "- - x",
    "2024-01-01", "0x10", "1_000", "<<: x", "@x", "%x", "`x", "x: y: z", "\t", "\x07", "\ufeff",
]  # fmt: skip
TOKENS = [value.encode() for value in VALUES] + [b"\n", b"  ", b": ", b"---\n", b"\xff"]
PATHS = [".".join(path) for path in field_paths(Recipe)]


def hostile_text(rng: random.Random, text: str) -> str:
    lines = text.splitlines()
    for _ in range(rng.choice((1, 1, 2, 5))):
        index = rng.randrange(len(lines))
        key, colon, _ = lines[index].partition(":")
        kind = rng.randrange(6)
        if kind <= 2 and colon:
            lines[index] = f"{key}: {rng.choice(VALUES)}"
        elif kind == 3:
            lines.insert(index, rng.choice(lines))
        elif kind == 4:
            lines[index] = " " * rng.randrange(6) + lines[index].strip()
        else:
            data = mutated(rng, "\n".join(lines).encode(), TOKENS)
            return data.decode("utf-8", rng.choice(("replace", "surrogateescape")))
    return "\n".join(lines)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    names = ("quickstart", "hpdm_s", "hpdm_t2v")
    return [recipe_to_yaml(load_recipe(name, ["model.num_classes=9"])) for name in names]


def test_every_recipe_is_read_or_refused(texts):
    memory, read = Memory(warm_up=500), 0
    for seed in cases(20_000):
        with within_time(seed) as rng:
            try:
                recipe = recipe_from_yaml(hostile_text(rng, rng.choice(texts)), "x.yaml")
            except RecipeError as error:
                message = str(error)
                assert "x.yaml" in message
                assert len(message) < 10_000
            else:
                read += 1
                check(recipe, dry_run=read % 50 == 0)
        memory.note()
    enough(read, 500, of="recipes read")


def test_every_override_is_taken_or_refused(tmp_path):
    (tmp_path / "x.yaml").write_text("extends: quickstart")
    for seed in cases(1_000):
        with within_time(seed) as rng:
            chosen = rng.sample(PATHS, rng.choice((1, 2, 4)))
            overrides = [f"{path}={rng.choice(VALUES)}" for path in chosen]
            try:
                check(load_recipe(tmp_path / "x.yaml", overrides), dry_run=False)
            except RecipeError as error:
                message = str(error)
                assert "override" in message or ".yaml:" in message


def check(recipe: Recipe, *, dry_run: bool) -> None:
    """What was read is written and read back to the same, and can be counted in seconds."""
    assert recipe_from_yaml(recipe_to_yaml(recipe), "back") == recipe
    plain_name(recipe.name)
    if dry_run:
        with suppress(HpdmError):  # such as no number of classes
            describe(recipe)
