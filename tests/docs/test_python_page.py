"""Python in the documentation runs as it stands, on a tiny model in place of the shipped one."""

import json
import re

import pytest

from hpdm_core.pipeline import pretrained
from tests import hub_server
from tests.unit.runs.conftest import make_weights  # noqa: F401, a fixture

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def elsewhere(make_weights, tmp_path, monkeypatch):  # noqa: F811
    """An empty folder, with the tiny model and a stand-in Hub."""
    weights = make_weights()
    monkeypatch.setattr(pretrained, "ASSETS", weights.parent)
    monkeypatch.setattr(pretrained, "BEST", weights.stem)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with hub_server.serve(tmp_path, monkeypatch):
        yield folder


def run(blocks, where):
    assert blocks
    names = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{where}, block {number}", "exec"), names)
    return names


def test_the_page_on_python(root, elsewhere):
    # The blocks on training: tests/unit/test_python_training.py.
    page, _ = (root / "docs/python.md").read_text().split("## Train on your own tensors")
    names = run(BLOCK.findall(page), "docs/python.md")
    assert names["videos"].frames.shape == (2, 4, 16, 16, 3)
    assert {path.suffix for path in (elsewhere / "out").iterdir()} == {".mp4", ".webp"}
    assert (elsewhere / "all.gif").is_file()
    assert names["pipe"].path.name == names["again"].path.name == "ema.safetensors"


def test_the_readme(root, elsewhere):
    blocks = BLOCK.findall((root / "README.md").read_text())
    # Its class is one that the shipped model knows.
    names = run([block.replace("square-falling", "square") for block in blocks], "README.md")
    assert names["videos"].frames.shape == (2, 4, 16, 16, 3)
    assert len(list((elsewhere / "out").glob("*.mp4"))) == 2


@pytest.mark.parametrize("name", ["sample"])
def test_notebooks_run_and_are_kept_without_outputs(root, elsewhere, name):
    notebook = json.loads((root / f"examples/{name}.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    run(["".join(cell["source"]) for cell in cells], name)
    assert len(list((elsewhere / "out").glob("*.gif"))) == 3
