"""`hpdm ablate`: every table at smoke scale, resumed after any stop, and refused in plain words."""

import json
from pathlib import Path

import pytest

from hpdm_core.runs.ablate import trial
from hpdm_core.runs.ablate.trial import in_words

# A few rows of each table: all of them run by the same code.
ROWS = {
    "table1": "small,small_adaptive",
    "table2": "hpdm_s",
    "table3": "shallow,default",
    "table4": "none,fh",
    "table5": "t2v_72,t2v_288",
    "table6": "hpdm_s",
    "table7": "t2v_16_144",
    "table8": "hpdm_s,hpdm_t2v_1k",
    "fig8": "quarter,end",
    "claims": "default,fractional",
    "samplers": "no_churn,dpmpp_2m",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder that all tests share: its data set and trainings are made once."""
    return tmp_path_factory.mktemp("ablate")


@pytest.fixture
def ablate(place, run_hpdm, monkeypatch):
    """Run `hpdm ablate ... --json` at smoke scale in the shared folder; it must succeed."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))

    def run(*args: str) -> dict:
        done = run_hpdm("ablate", *args, "--scale", "smoke", "--device", "cpu", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def _lines(place: Path, table: str, out: str = "results") -> list[dict]:
    text = (place / out / f"{table}-smoke" / "rows.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("table", ROWS)
def test_every_table_runs_at_smoke_scale(table, ablate, place):
    result = ablate(table, "--rows", ROWS[table])
    rows = ROWS[table].split(",")
    measured = [cell for cell in result["cells"] if cell["row"] in rows]
    assert all(cell["ours"] is not None for cell in measured)
    assert all(Path(file).stat().st_size > 0 for file in result["files"].values())
    for line in _lines(place, table):
        assert line["machine"]["name"]
        assert line["versions"]["hpdm"]
        assert line["key"]
    # Run again, nothing is left to do and no line is added.
    count = len(_lines(place, table))
    again = ablate(table, "--rows", ROWS[table])
    assert again["plan"]["trials_done"] == again["plan"]["trials"]
    assert len(_lines(place, table)) == count
    assert again["cells"] == result["cells"]


def test_a_score_carries_all_that_it_depends_on(ablate, place):
    ablate("table3", "--rows", ROWS["table3"])
    line = _lines(place, "table3")[0]
    figure = line["figures"]["level0"]
    assert figure["name"] == "Fréchet distance on bundled features"
    assert figure["of"] == "4 videos of 4x8x8"
    details = line["details"]["fvd4_level0"]
    assert details["detectors"][0]["sha256"]
    assert details["fakes"]["seeds"] == [0, 3]
    assert len(line["videos"]) == 2


def test_one_training_serves_tables_3_and_4(ablate, place):
    # A folder of its own: lines of other tests may tell of the training itself.
    ablate("table3", "--rows", "default", "--out", "shared")
    ablate("table4", "--rows", "none,fh", "--out", "shared")
    table3, table4 = (_lines(place, name, out="shared") for name in ("table3", "table4"))
    runs = {line["checkpoint"] for line in table4}
    assert runs == {line["checkpoint"] for line in table3 if line["row"] == "default"}
    assert all(line["training"]["taken"] for line in table4)
    keys = {line["details"]["fvd4_level2"]["fakes"]["settings"]["overlap"] for line in table4}
    assert keys == {"", "fh"}


def test_an_interrupted_table_goes_on_without_training_again(ablate, place, run_hpdm, monkeypatch):
    args = ("table3", "--rows", "detach", "--scale", "smoke", "--device", "cpu", "--json")
    out = ("--out", "stopped")

    def stop(**_: object) -> dict:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trial, "run_eval_fvd", stop)
        done = run_hpdm("ablate", *args, *out)
    assert done.returncode == 130
    assert not (place / "stopped/table3-smoke/rows.jsonl").exists()
    ablate("table3", "--rows", "detach", *out)
    assert [line["training"]["taken"] for line in _lines(place, "table3", "stopped")] == [True]


def test_the_plan_counts_and_does_nothing(ablate, place):
    plan = ablate("table3", "--dry-run", "--out", "planned")
    assert plan["plan"]["trials"] == 5
    assert plan["plan"]["fakes"] == 4 * 3 * 5
    assert [row["row"] for row in plan["rows"]][-1] == "default"
    assert plan["plan"]["hours"] >= 0
    assert not (place / "planned").exists()
    timed = ablate("table1", "--rows", "small", "--dry-run", "--out", "planned")["plan"]
    assert (timed["trials"], timed["trainings"]) == (2, 0)
    assert timed["hours"] == timed["hours_timing"]


def test_the_table_is_printed_beside_the_papers(place, ablate, run_hpdm):
    done = run_hpdm("ablate", "table8", "--rows", "hpdm_s", "--scale", "smoke", "--out", "printed")
    assert done.returncode == 0
    assert "178" in done.stdout
    assert "printed/table8-smoke/report.html" in done.stdout


def test_zero_shot_prompts_are_the_names_of_classes(ablate, place):
    ablate("table5", "--rows", "t2v_72")
    line = _lines(place, "table5")[0]
    details = line["details"]["fvd12_4f"]
    assert "circle sliding right" in details["fakes"]["settings"]["prompts"]
    assert details["reals"]["source"] == "data/ablation_smoke"
    assert line["figures"]["fvd"]["of"] == "12 videos of 4x8x8"


@pytest.mark.parametrize(
    ("name", "prompt"),
    [("ApplyEyeMakeup", "apply eye makeup"), ("YoYo", "yo yo"), ("TaiChi", "tai chi"),
     ("circle-sliding", "circle sliding"), ("HandStandPushups", "hand stand pushups")],
)  # fmt: skip
def test_classes_in_words(name, prompt):
    assert in_words(name) == prompt


def test_zero_shot_at_paper_scale_needs_a_run(hpdm):
    done = hpdm("ablate", "table5", "--scale", "paper", "--rows", "t2v_72", "--device", "cpu")
    assert done.returncode == 2
    assert "hpdm prep" in done.stderr


def test_real_data_must_be_prepared_first(hpdm):
    done = hpdm("ablate", "table2", "--scale", "paper", "--rows", "hpdm_s", "--device", "cpu")
    assert done.returncode == 2
    assert "hpdm prep" in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("table9",), "no table is called table9"),
        (("table3", "--rows", "dragon"), "dragon cannot be run"),
        (("table2", "--rows", "tats"), "tats cannot be run"),
    ],
)
def test_mistakes_are_named(args, message, hpdm):
    done = hpdm("ablate", *args)
    assert done.returncode == 2
    assert message in done.stderr
