"""The house's rules, held by reading the code: who imports whom, sizes, and flat arguments."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = sorted([*(ROOT / "hpdm_core").rglob("*.py"), *(ROOT / "hpdm_cli").rglob("*.py")])
MAX_FILE, MAX_FUNCTION = 350, 50

# Which part may import which: left may import right and no more. A part may import itself.
FREE = {"device", "errors", "files", "locks", "names", "progress"}
MAY_IMPORT = {
    "cli": {"recipe", "runs", "metrics.protocols"},
    "runs": {"pipeline", "recipe", "build", "data", "training", "inference", "metrics", "reports",
             "diffusion", "geometry", "records", "seeds"},
    "pipeline": {"recipe", "build", "data", "training", "inference", "geometry", "records"},
    "build": {"recipe", "model", "diffusion", "data", "training", "inference", "metrics",
              "geometry", "records", "seeds"},
    "training": {"diffusion", "records", "seeds"},
    "inference": {"diffusion", "geometry", "records", "seeds"},
    "model": {"geometry", "records"},
    "diffusion": {"geometry", "records", "seeds"},
    "data": {"geometry", "records", "seeds"},
    "metrics": {"data", "records"},
    "records": {"geometry"},
    "reports": {"recipe"},
    "recipe": {"geometry.pyramid"},
    "geometry": set(),
    "seeds": set(),
    "device": set(),
    "errors": set(),
    "files": set(),
    "locks": set(),
    "names": set(),
    "progress": set(),
}  # fmt: skip
# Inside runs/: a room per command, and which other rooms it may enter. A table's trials are
# trainings, samples and evaluations; the others share what lies below runs/.
ROOMS_MAY_IMPORT = {
    "ablate": {"train", "sample", "evaluate", "prep"},
    "evaluate": set(),
    "sample": set(),
    "train": set(),
    "prep": set(),
}
# Names that gave way to the field's terms (docs/glossary.md).
RETIRED = {
    "Fate": "KeyStatus", "fate": "status", "Start": "WarmStart", "plan_start": "plan_warm_start",
    "Judge": "Metric", "load_judges": "load_metrics", "Desk": "FeatureExtraction",
    "Side": "ClipSet", "Bench": "TrialRunner", "Unit": "Trial", "make_units": "make_trials",
    "Sheet": "ResultsFile", "Cut": "BatchSizes", "choose_cut": "choose_batch_sizes",
 "pyramid_cuts": "level_drop_prob", "Work": "ExecutionOptions",
    "Share": "TileShard or Fraction", "Draw": "SampleFn or ClipSpec", "Draws": "NoiseDraws",
    "deadly": "excluded", "open_loader": "build_loader", "noise_label": "c_noise",
    "raised": "sigma_hat", "CHURN_FROM": "s_min", "CHURN_TO": "s_max",
    "CHURN_NOISE": "s_noise", "averages": "ema", "say": "logging", "tell": "logging",
}  # fmt: skip
# Calls that pass a protocol's free-form figures on; everywhere else arguments have names.
NAMED_FIGURES = {"advance"}


def _part(module: str) -> str:
    """Return the part of the house a module belongs to: hpdm_core.model.rin -> model."""
    pieces = module.split(".")
    return "cli" if pieces[0] == "hpdm_cli" else pieces[1] if len(pieces) > 1 else "package"


def _room(module: str) -> str:
    """Return the room of a module of runs/, '' for others: hpdm_core.runs.train.fit -> train."""
    return module.split(".")[2] if module.startswith("hpdm_core.runs.") else ""


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_module(path) for path in CODE}


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            # `from hpdm_core import build` names a module too.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _own_imports(path: Path) -> set[str]:
    return {name for name in _imports(path) if name in MODULES and _part(name) != "package"}


def _functions(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _bound_names(path: Path) -> Iterator[str]:
    """Yield what a module names itself: classes, functions, arguments, variables, attributes."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", CODE, ids=_name)
def test_imports_go_one_way(path):
    part = _part(_module(path))
    if part == "package":
        return
    for name in _own_imports(path):
        target, exact = _part(name), name.removeprefix("hpdm_core.")
        allowed = target in FREE | {part} | MAY_IMPORT[part] or exact in MAY_IMPORT[part]
        assert allowed, f"{_name(path)} ({part}) imports {name}"


def test_every_part_has_its_rule():
    parts = {_part(_module(path)) for path in CODE} - {"package"}
    assert parts == set(MAY_IMPORT)
    rooms = {room for path in CODE if (room := _room(_module(path)))}
    assert rooms == set(ROOMS_MAY_IMPORT)


@pytest.mark.parametrize("path", CODE, ids=_name)
def test_rooms_of_commands_are_separate(path):
    room = _room(_module(path))
    if not room:
        return
    entered = {_room(name) for name in _own_imports(path)} - {"", room}
    assert entered <= ROOMS_MAY_IMPORT[room], f"{_name(path)} imports runs.{entered}"


@pytest.mark.parametrize("path", CODE, ids=_name)
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE


@pytest.mark.parametrize("path", CODE, ids=_name)
def test_functions_are_short(path):
    # Signatures and docstrings are free: what is limited is how much happens.
    for function in _functions(path):
        body = function.body[1:] if ast.get_docstring(function) else function.body
        length = function.end_lineno - body[0].lineno + 1 if body else 0
        assert length <= MAX_FUNCTION, f"{function.name} has {length} lines"


@pytest.mark.parametrize("path", CODE, ids=_name)
def test_arguments_have_names(path):
    for function in _functions(path):
        if function.name not in NAMED_FIGURES:
            assert function.args.kwarg is None, f"{function.name} takes **{function.args.kwarg}"


@pytest.mark.parametrize("path", CODE, ids=_name)
def test_modules_and_public_names_say_what_they_are(path):
    tree = _tree(path)
    assert ast.get_docstring(tree), f"{_name(path)} has no docstring"
    for node in tree.body:
        public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        assert not public or ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize("path", CODE, ids=_name)
def test_nothing_is_unpickled_and_no_yaml_makes_objects(path):
    assert not {"pickle", "cloudpickle", "dill", "joblib"} & set(_imports(path))
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            assert call not in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec")
            if call == "torch.load":
                assert "weights_only=True" in ast.unparse(node), f"{_name(path)}: {call}"


@pytest.mark.parametrize("path", CODE, ids=_name)
def test_process_ranks_are_read_in_two_places_only(path):
    readers = ("hpdm_core/progress.py", "hpdm_core/training/parallel.py")
    text = path.read_text(encoding="utf-8")
    reads = any(f'"{name}"' in text for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    assert not reads or _name(path) in readers


@pytest.mark.parametrize("module", ["hpdm_cli.app", "hpdm_core.recipe.load", "hpdm_core.progress"])
def test_parts_that_must_start_fast_need_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_every_folder_of_code_is_packaged():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = set(re.findall(r'"(.+)"', re.search(r"\npackages = \[(.*?)\]", project, re.S)[1]))
    folders = {_module(path.parent / "__init__.py") for path in CODE}
    assert folders == packages - {"hpdm_recipes"}
    for folder in folders:
        assert (ROOT / folder.replace(".", "/") / "__init__.py").is_file()


def test_no_path_of_one_machine_is_written_down():
    # Joined, so that this file does not hold them.
    places = ["/" + name + "/" for name in ("work", "root", "tmp")]
    files = [*CODE, *(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "docs").rglob("*.md")]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not any(place in text for place in places), path


@pytest.mark.parametrize("path", CODE, ids=_name)
def test_retired_words_stay_retired(path):
    for name in _bound_names(path):
        word = name.lstrip("_")
        assert word not in RETIRED, f"{_name(path)} names {name}; say {RETIRED[word]}"


def test_the_glossary_points_at_what_is_there():
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    places = re.findall(r"\| `([^`]+)::([^`]+)` \|", text)
    rows = [
        line for line in text.splitlines() if line.startswith("| ") and "defined in" not in line
    ]
    assert len(places) == len(rows) > 30
    for file, name in places:
        assert name in set(_bound_names(ROOT / file)), f"{file} does not define {name}"
