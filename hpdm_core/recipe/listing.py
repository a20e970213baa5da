"""The recipes that come with the package: a list of them, and copies to edit."""

from pathlib import Path

from hpdm_core.errors import RecipeError
from hpdm_core.recipe.load import find_shipped, load_recipe, shipped_recipes


def list_recipes() -> list[dict]:
    """Return name, description, data set and finest resolution of every shipped recipe."""
    recipes = [load_recipe(path) for path in shipped_recipes()]
    return [
        {
            "recipe": recipe.name,
            "description": recipe.description,
            "data": recipe.data.name,
            "resolution": list(recipe.pyramid.levels[-1]),
        }
        for recipe in recipes
    ]


def copy_recipe(name: str, *, folder: Path = Path()) -> Path:
    """Write a shipped recipe to NAME.yaml in a folder, to be edited.

    What it extends is named without `.yaml`, so that it is found from anywhere.

    Raises:
        RecipeError: no recipe has this name, or the file exists.
    """
    source, target = find_shipped(name), folder / f"{name}.yaml"
    text = source.read_text(encoding="utf-8")
    for base in shipped_recipes():
        text = text.replace(f"\nextends: {base.name}\n", f"\nextends: {base.stem}\n")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise RecipeError(f"{target} exists", remedy="remove it, or copy elsewhere") from None
    return target
