"""Numbers that the command line hands to `prep`: refused by name, before any work."""

import inspect
import time
from itertools import product

import pytest

from hpdm_core.errors import DataError
from hpdm_core.progress import NoProgress
from hpdm_core.runs import prep

WILD = (-(10**30), -1, 0, 1, 10**9, 10**30)
RUNS = (prep.run_prep_shapes, prep.run_prep_vizdoom, prep.run_prep_folder, prep.run_prep_captions)
NUMBERS = ("num", "size", "frames", "min_frames", "workers")


def cases() -> list:
    """Return every number that a function takes, with every wild value."""
    found = []
    for run, name, value in product(RUNS, NUMBERS, WILD):
        if name in inspect.signature(run).parameters:
            pair = name == "size" and run not in RUNS[:2]
            given = (value, 64) if pair else value
            found.append(pytest.param(run, name, given, id=f"{run.__name__}-{name}-{value:.0e}"))
    return found


@pytest.mark.parametrize(("run", "name", "value"), cases())
def test_numbers_out_of_range_are_refused_by_name(tmp_path, monkeypatch, run, name, value):
    monkeypatch.setattr(prep, "installed_engine", lambda: "test")
    (tmp_path / "a.mp4").write_bytes(b"no video")
    (tmp_path / "list.jsonl").write_text('{"file": "a.mp4", "caption": "a fox"}\n')
    source = {"run_prep_folder": tmp_path, "run_prep_captions": tmp_path / "list.jsonl"}
    given = {"source": source[run.__name__]} if run.__name__ in source else {"num": 2}
    begun = time.monotonic()
    if value == 1 and name != "size":
        plan = run(tmp_path / "data", progress=NoProgress(), dry_run=True, **given | {name: value})
        assert plan["files"] >= 1
    else:
        option = name.replace("_", "-")
        with pytest.raises(DataError, match=f"--{option} is out of range; got .*; expected [0-9]"):
            run(tmp_path / "data", progress=NoProgress(), **given | {name: value})
    assert time.monotonic() - begun < 5
    assert not (tmp_path / "data" / run.__name__.rpartition("_")[2] / "videos").exists()
