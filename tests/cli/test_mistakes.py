"""What a user may get wrong: one message each, exit code 2, no traceback, nothing half-written."""

import json

import pytest

from hpdm_core.locks import LOCK, lock_folder


def _refused(done, *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["train"], ["Missing argument", "RECIPE"]),
        (["train", "hpdm_s", "--dry"], ["No such option", "--dry"]),
        (["fly"], ["No such command", "fly"]),
        (
            ["train", "hpdm_s", "--device", "cuba"],
            ["'--device': 'cuba' is not one of 'auto', 'cpu', 'cuda'. Did you mean cuda?"],
        ),
        (["train", "absent.yaml"], ["recipe absent.yaml does not exist"]),
        (["train", "hpdm-s"], ["did you mean the shipped recipe hpdm_s?"]),
        (
            ["train", "hpdm_s", "optim.lrate=1"],
            ["override optim.lrate=1", "did you mean optim.lr?"],
        ),
        (["train", "hpdm_s", "--dry-run", "lr"], ["override lr: expected section.key=value"]),
        (["train", "hpdm_s", "--devices", "8"], ["--devices", "needs --dry-run"]),
        (["finetune", "hpdm_t2v"], ["Missing option", "--from"]),
        (["sample", "--steps", "many"], ["--steps takes whole numbers; got many"]),
        (["sample", "optim.lr=1"], ["no recipe is given", "--recipe"]),
        (["prep", "folder", "data"], ["Missing option", "--source"]),
        (["prep", "folder", "data", "--source", ".", "--size", "big"], ["--size", "288x512"]),
    ],
)
def test_mistakes_are_refused_plainly(hpdm, tmp_path, args, parts):
    _refused(hpdm(*args), *parts)
    assert list(tmp_path.iterdir()) == []


def test_all_mistakes_of_a_recipe_come_at_once_with_their_lines(hpdm, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "extends: hpdm_s\n"
        "optim:\n"
        "  lrate: 1e-3\n"
        "train:\n"
        "  steps: many\n"
        "  steps: 10\n"
        "model: {token: [1, 4]}\n"
    )
    done = hpdm("train", "mine.yaml", "data.nmae=x")
    _refused(
        done,
        "recipe mine.yaml has 5 mistakes",
        "mine.yaml:3:3: unknown key optim.lrate; did you mean optim.lr?",
        "mine.yaml:5:3: train.steps; got 'many' (text); expected a whole number",
        "mine.yaml:6:3: duplicate key 'steps'",
        "mine.yaml:7:9: model.token has too few values",
        "override data.nmae=x: unknown key data.nmae; did you mean data.name?",
    )


def test_a_resolution_that_does_not_divide(hpdm, tmp_path):
    (tmp_path / "odd.yaml").write_text(
        "extends: hpdm_s\npyramid: {levels: [[16, 64, 64], [32, 120, 128], [64, 256, 256]]}\n"
    )
    done = hpdm("train", "odd.yaml")
    _refused(done, "odd.yaml:2:1", "level 1 has height 120", "choose 128", "level 2 has height 256")


def test_mistakes_with_json(hpdm):
    done = hpdm("train", "absent.yaml", "--json")
    _refused(done, "absent.yaml")
    assert json.loads(done.stdout)["kind"] == "RecipeError"


@pytest.mark.parametrize("command", ["train", "sample"])
def test_a_folder_that_another_command_writes_to_is_refused(hpdm, tmp_path, command):
    args = ["sample", "--checkpoint", "shipped", "--num", "1"]
    if command == "train":
        assert hpdm("prep", "shapes", "data", "--num", "4", "--workers", "1").returncode == 0
        args = ["train", "quickstart"]
    with lock_folder(tmp_path / "out", doing="testing", remedy="wait"):
        done = hpdm(*args, "--out", "out", "--device", "cpu")
    _refused(done, "Error: another command is", "out; wait for it, stop it, or give another --out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]
