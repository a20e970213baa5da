"""Discovery: what is shipped, what is here, copies to edit, and the nearest right word."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpdm_core.metrics.load import DETECTORS, METRICS
from hpdm_core.metrics.protocols import parse_protocol
from hpdm_core.pipeline import pretrained
from hpdm_core.recipe.load import load_recipe, shipped_recipes, shipped_tables

ROOT = Path(__file__).resolve().parents[2]


def _json(done) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_recipes_are_listed_and_copied(hpdm, tmp_path):
    found = _json(hpdm("train", "--list", "--json"))["recipes"]
    assert [row["recipe"] for row in found] == [path.stem for path in shipped_recipes()]
    assert all(row["description"] for row in found)
    for row in found:
        _json(hpdm("train", "--copy", row["recipe"], "--json"))
        copy = load_recipe(tmp_path / f"{row['recipe']}.yaml")
        assert copy == load_recipe(row["recipe"])
    done = hpdm("train", "--copy", "quickstart")
    assert (done.returncode, done.stderr) == (
        2,
        "Error: quickstart.yaml exists; remove it, or copy elsewhere\n",
    )
    assert (
        "did you mean the shipped recipe quickstart?"
        in hpdm("train", "--copy", "quickstrat").stderr
    )


def test_tables_are_listed(hpdm):
    found = _json(hpdm("ablate", "--list", "--json"))["tables"]
    assert [row["table"] for row in found] == [path.stem for path in shipped_tables()]
    assert found[0]["scales"] == ["paper", "tiny", "smoke"]


def test_scores_are_listed_with_what_is_here(hpdm, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = _json(hpdm("eval-fvd", "--list", "--json"))
    assert [row["metric"] for row in found["metrics"]] == list(METRICS)
    assert all(
        parse_protocol(row["protocol"]).name == row["protocol"] for row in found["protocols"]
    )
    here = {row["detector"]: row["here"] for row in found["detectors"]}
    assert (here["bundled"], here["i3d"]) == (True, False)
    assert next(iter(here)) == "bundled"
    assert {name for name in here if not name.startswith("c3d")} == set(DETECTORS)
    file = Path(found["detectors"][1]["files"][0])
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    found = _json(hpdm("eval-fvd", "--list", "--json"))
    assert found["detectors"][1]["here"]
    *lines, names, folder = hpdm("eval-fvd", "--list").stdout.splitlines()
    assert "only i3d gives FVD" in names
    assert max(map(len, lines)) <= 80
    assert str(file.parent) in folder


def test_checkpoints_are_listed_by_what_finds_them(hpdm, tmp_path):
    shipped = pretrained.shipped_models()
    assert pretrained.BEST in shipped
    run = tmp_path / "runs" / "mine" / "checkpoints" / "step-00000003"
    run.mkdir(parents=True)
    shutil.copy(shipped["shapes"], run / "ema.safetensors")
    broken = tmp_path / "runs" / "broken" / "checkpoints" / "step-00000003"
    broken.mkdir(parents=True)
    (broken / "ema.safetensors").write_bytes(b"torn")
    pipe = tmp_path / "runs" / "pipe" / "checkpoints" / "step-00000003"
    pipe.mkdir(parents=True)
    os.mkfifo(pipe / "ema.safetensors")
    found = _json(hpdm("sample", "--list", "--json"))
    by_name = {row["checkpoint"]: row for row in found["models"]}
    assert list(by_name) == [*shipped, "runs/broken", "runs/mine", "runs/pipe"]
    assert by_name["shapes"]["step"] == by_name["runs/mine"]["step"] > 0
    assert by_name["shapes"]["data"] == "shapes"
    assert "cannot read weights" in by_name["runs/broken"]["unusable"]
    assert "got it is a pipe, not a file" in by_name["runs/pipe"]["unusable"]
    assert all(pretrained.find_model(name) == path for name, path in shipped.items())
    printed = hpdm("sample", "--list").stdout
    assert max(map(len, printed.splitlines())) <= 80
    assert printed.rstrip().endswith("hpdm sample --checkpoint runs/mine")


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["sample", "--formt", "gif"], "--format"),
        (["sample", "--cache", "gpuu"], "Did you mean gpu?"),
        (["sample", "--checkpoint", "shaps"], "did you mean shapes?"),
        (["train", "quickstart", "optim.name=muonn"], "did you mean muon?"),
        (["ablate", "tabel3"], "did you mean table3?"),
        (["ablate", "table3", "--rows", "shalow"], "did you mean shallow?"),
        (["prep", "vizdoom", "d", "--scenes", "brick-mase"], "did you mean brick-maze?"),
    ],
)
def test_the_nearest_right_word_is_named(hpdm, args, hint):
    done = hpdm(*args)
    assert done.returncode == 2
    assert hint in done.stderr


def test_the_nearest_data_set_and_split_are_named(hpdm):
    assert hpdm("prep", "shapes", "data", "--num", "4", "--workers", "1").returncode == 0
    args = ("train", "quickstart", "--device", "cpu", "--out", "run")
    assert "did you mean shapes?" in hpdm(*args, "data.name=shaeps").stderr
    assert "did you mean train?" in hpdm(*args, "data.split=trian").stderr


@pytest.mark.parametrize(
    "args", [["train", "--json"], ["fly", "--json"], ["sample", "-x", "--json"]]
)
def test_usage_errors_are_json_under_json(hpdm, args):
    done = hpdm(*args)
    found = json.loads(done.stdout)
    assert (done.returncode, found["kind"], found["exit_code"]) == (2, "UsageError", 2)


def test_any_text_can_be_printed_in_ascii_and_streams_may_be_closed(tmp_path):
    def run(*args: str, redirect: str = "") -> subprocess.CompletedProcess:
        command = f'exec "$0" -m hpdm_cli "$@" {redirect}'
        return subprocess.run(
            ["sh", "-c", command, sys.executable, *args],
            cwd=tmp_path,
            env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            timeout=120,
            check=False,
        )

    done = run("train", "nicht-möglich")
    assert done.returncode == 2
    assert b"no shipped recipe is called nicht-m" in done.stderr
    assert run("ablate", "--list").returncode == 0
    closed = run("train", "--copy", "hpdm_m", redirect="<&- >&- 2>&-")
    assert (closed.returncode, closed.stdout) == (0, b"")
    assert (tmp_path / "hpdm_m.yaml").is_file()
    if Path("/dev/full").exists():  # what is wrong cannot be said anywhere: the exit code is left
        assert run("train", "--lisst", redirect="2>/dev/full").returncode == 2
        assert run("train", "nothing", redirect="2>/dev/full").returncode == 2
