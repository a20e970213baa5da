"""Recipes made to break the reader: refused in words, with their place, and at once."""

import pytest

from hpdm_core.errors import RecipeError
from hpdm_core.recipe.bounds import MOST_LAYERS
from hpdm_core.recipe.load import find_recipe, load_recipe, recipe_from_yaml, recipe_to_yaml


@pytest.fixture(scope="module")
def resolved() -> str:
    return recipe_to_yaml(load_recipe("quickstart"))


def refusal(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe_from_yaml(text, "x.yaml")
    message = str(caught.value)
    assert "x.yaml" in message
    assert len(message) < 5000
    return message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: " + "9" * 5000, "x.yaml:1:4: a whole number of 5000 digits; expected at most 18"),
        ("a: [-" + "9" * 5000 + "]", "x.yaml:1:5: a whole number of 5001 digits"),
        ("a: " + "[" * 1000, "lie more than 16 deep"),
        ("- " * 1000, "lie more than 16 deep"),
        ("{" * 50_000, "lie more than 16 deep"),
        ("a: !!float x", "x.yaml:1:4: 'x' is no float"),
        ("a: !!int x", "'x' is no int"),
        ("a: !!bool maybe", "'maybe' is no bool"),
        ("a: !!null x", "'x' is no null"),
        ('a: "\\ud800"', "x.yaml:1:4: text with a lone surrogate"),
        ('"\\ud800": 1', "x.yaml:1:1: a key holds a lone surrogate"),
        ('a: "\\U00110000"', "not valid YAML: chr()"),
        ("%YAML 1." + "9" * 5000 + "\n---\na: 1", "not valid YAML: Exceeds the limit"),
        ("#" * 100_001, "too long for a recipe; got 100,001 characters"),
        ("k" * 900 + ": 1", "unknown key kkk"),
    ],
)
def test_a_hostile_text_is_refused_with_its_place(text, expected):
    assert expected in refusal(text)


def test_a_tag_that_fits_is_taken(resolved):
    assert recipe_from_yaml(resolved.replace("seed: 0", "seed: !!int 7"), "x.yaml").train.seed == 7


@pytest.mark.parametrize("key", ["name", "data.name"])
@pytest.mark.parametrize("name", ["../../x", "/abs", "", "..", '"a\\0b"', "a\\b"])
def test_names_that_would_leave_their_folder_are_refused_everywhere(resolved, key, name):
    with pytest.raises(RecipeError, match=r"expected one plain name"):
        load_recipe("quickstart", [f"{key}={name}"])
    if key == "name":  # as in the recipe inside a weights file
        quoted = name if name.startswith('"') else f"'{name}'"
        text = resolved.replace("name: quickstart", f"name: {quoted}")
        assert "expected one plain name" in refusal(text)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.data_width=1000000000000", "model.data_width is 1,000,000,000,000, expected at"),
        ("model.layers_per_block=1000000", "model.layers_per_block times 5 blocks is 5,000,000"),
        ("model.latent_heads=100000", "model.latent_heads times their width is"),
        ("model.num_classes=999999999999999999", "model.num_classes is 999,999,999,999,999,999"),
        ("model.levels_per_block=[]", "model.levels_per_block goes up to nothing, expected 3"),
        (f"model.levels_per_block={[3] * 2000}", f"expected at most {MOST_LAYERS:,}"),
        ("pyramid.levels=[]", "levels is empty"),
        ("model.token=[1, 1, 1]", None),
        ("train.steps=" + "1" * 5000, "train.steps; got '111"),
        ("model.mlp_ratio=1000", "model.mlp_ratio is 1,000, expected at most 128"),
    ],
)
def test_sizes_beyond_any_machine_are_refused_before_anything_is_built(override, expected):
    if expected is None:
        load_recipe("quickstart", [override])
        return
    with pytest.raises(RecipeError) as caught:
        load_recipe("quickstart", [override])
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_patches_of_too_many_tokens_are_refused():
    sizes = "[[64, 4096, 4096], [128, 8192, 8192], [256, 16384, 16384]]"
    overrides = ["pyramid.patch=[64, 4096, 4096]", f"pyramid.levels={sizes}"]
    with pytest.raises(RecipeError, match=r"model\.token cuts a patch into .* tokens, expected at"):
        load_recipe("quickstart", overrides)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (".".join("a" * 1000) + "=1", "expected section.key=value"),
        ("data.root=\udcff", "not text in UTF-8"),
        ("data.root\0=1", "expected section.key=value"),
        ("sampling.steps=" + "[" * 1000, "16 deep"),
    ],
)
def test_a_hostile_override_is_refused(override, expected):
    with pytest.raises(RecipeError) as caught:
        load_recipe("quickstart", [override])
    assert expected in str(caught.value)
    assert "\0" not in str(caught.value)


@pytest.mark.parametrize("ref", ["a" * 5000, "a\0b", "x/" * 3000])
def test_paths_that_no_file_system_takes_are_recipes_that_do_not_exist(tmp_path, ref):
    with pytest.raises(RecipeError, match=r"does not exist|no shipped recipe"):
        find_recipe(ref)
    escaped = ref.replace("\0", "\\0")
    (tmp_path / "x.yaml").write_text(f'extends: "{escaped}"')
    with pytest.raises(RecipeError, match=r"x\.yaml:1:1: extends: "):
        load_recipe(tmp_path / "x.yaml")


def test_a_long_chain_of_recipes_ends(tmp_path):
    for index in range(1500):
        (tmp_path / f"{index}.yaml").write_text(f"extends: {index + 1}.yaml")
    with pytest.raises(RecipeError, match="more than 16 recipes extend each other"):
        load_recipe(tmp_path / "0.yaml")


def test_of_very_many_mistakes_the_first_are_listed():
    text = "".join(f"key{index}: 1\n" for index in range(2000))
    message = refusal(text)
    assert "has 2008 mistakes" in message
    assert message.splitlines()[-1] == "  and 1978 more"
    assert len(message.splitlines()) == 32
