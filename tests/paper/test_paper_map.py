"""docs/paper_map.md names files, functions and tests that exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from hpdm_core.reports.ablations import load_table

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "paper_map.md").read_text(encoding="utf-8")
REFERENCES = sorted(set(re.findall(r"`((?:hpdm_core|hpdm_cli|tests|benchmarks)/[^`]+)`", PAGE)))


@cache
def names_in(path: Path) -> set[str]:
    """Return the functions, classes and methods (Class.method) that a file defines."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (item for item in node.body if isinstance(item, ast.FunctionDef))
            found.update(f"{node.name}.{item.name}" for item in methods)
    return found


@pytest.mark.parametrize("reference", REFERENCES)
def test_reference_exists(reference):
    path, _, name = reference.partition("::")
    assert (ROOT / path).is_file(), f"{path} is not there"
    assert not name or name in names_in(ROOT / path), f"{path} has no {name}"


def test_every_row_of_the_claims_has_its_place():
    section = PAGE.split("## Claims in words")[1].split("\n## ")[0]
    told = re.findall(r"`(\w+)`", " ".join(line.split("|")[3] for line in _rows(section)))
    rows = {row.key for row in load_table("claims").rows}
    assert rows - set(told) == {"default"}


def _rows(section: str) -> list[str]:
    return [line for line in section.splitlines() if line.startswith("| ") and "`" in line]


def test_every_equation_and_the_listing_has_code_and_a_test():
    for row in ("Eq. 1", "Eq. 2, 3", "Eq. 4, 5", "Eq. 6", "Eq. 7", "Eq. 8", "Eq. 9", "Listing 1"):
        line = next(line for line in PAGE.splitlines() if line.startswith(f"| {row} |"))
        assert "`hpdm_core/" in line
        assert "`tests/" in line


def test_every_file_of_paper_tests_is_on_the_page():
    for path in (ROOT / "tests" / "paper").glob("test_[0-9]*.py"):
        assert f"tests/paper/{path.name}::" in PAGE, path.name
