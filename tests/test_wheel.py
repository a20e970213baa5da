"""The wheel: what a plain `pip install` puts on a machine is whole, and works away from here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("hpdm_cli", "hpdm_core", "recipes", "pyproject.toml", "LICENSE")
# Finds what is shipped beside the code: recipes, tables, a model, the detector.
PROBE = """
import hpdm_core
from hpdm_core.metrics.bundled import WEIGHTS
from hpdm_core.pipeline.pretrained import find_model
from hpdm_core.recipe.load import load_recipe, shipped_recipes, shipped_tables
assert hpdm_core.__file__.startswith(FOLDER), hpdm_core.__file__
for path in shipped_recipes():
    load_recipe(path.stem)
assert load_recipe("recipes/hpdm_m.yaml").name == "hpdm_m"
assert find_model("shipped").is_file() and WEIGHTS.is_file()
print(len(shipped_recipes()), len(shipped_tables()))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of the checkout, unpacked into a folder."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("needs setuptools 77, as pyproject.toml says")
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:  # a build leaves folders behind: not in the checkout
        path = ROOT / name
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, source / name)
    subprocess.run(
        [sys.executable, "-c", "from setuptools import build_meta as b; b.build_wheel('dist')"],
        cwd=source, check=True, capture_output=True,
    )  # fmt: skip
    (built,) = (source / "dist").glob("hpdm-*.whl")
    with ZipFile(built) as archive:
        archive.extractall(folder)
    return folder


def _files(folder: Path, suffixes: tuple[str, ...]) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.suffix in suffixes and "__pycache__" not in path.parts
    }


@pytest.mark.slow
def test_the_wheel_holds_all_code_recipes_and_assets_and_nothing_else(wheel):
    for name in ("hpdm_cli", "hpdm_core"):
        kinds = (".py", ".safetensors")
        assert _files(wheel / name, kinds) == _files(ROOT / name, kinds)
    assert _files(wheel / "hpdm_recipes", (".yaml",)) == _files(ROOT / "recipes", (".yaml",))
    tops = {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"hpdm_cli", "hpdm_core", "hpdm_recipes"}
    (info,) = wheel.glob("*.dist-info")
    assert "hpdm = hpdm_cli.__main__:main" in (info / "entry_points.txt").read_text()


@pytest.mark.slow
def test_what_is_shipped_is_found_away_from_the_checkout(wheel, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROBE.replace("FOLDER", repr(str(wheel)))],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(wheel)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    recipes, tables = map(int, done.stdout.split())
    assert recipes == len(list((ROOT / "recipes").glob("*.yaml")))
    assert tables == len(list((ROOT / "recipes" / "tables").glob("*.yaml")))
