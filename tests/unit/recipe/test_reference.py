"""docs/recipes.md says what the schema says."""

from hpdm_core.recipe.explain import field_paths
from hpdm_core.recipe.reference import recipe_reference


def test_every_field_is_described():
    page = recipe_reference()
    for path in field_paths():
        row = next(line for line in page.splitlines() if f"| `{'.'.join(path)}` |" in line)
        assert row.count(" | ") == 3
        assert not row.endswith("|  |"), f"{path} has no description"


def test_the_page_is_up_to_date(root):
    written = (root / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert written == recipe_reference(), "run `make docs`"
