"""`hpdm sample`: what is written, what a second run does, and what is refused."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from hpdm_core.data import video_io
from hpdm_core.data.pictures import GAP, LABEL_HEIGHT
from hpdm_core.errors import CheckpointError, HpdmError
from hpdm_core.inference import generate
from hpdm_core.locks import LOCK, lock_folder
from hpdm_core.pipeline import pipeline
from hpdm_core.pipeline.pipeline import Pipeline
from hpdm_core.pipeline.pretrained import newest_run
from hpdm_core.recipe.load import load_recipe
from hpdm_core.runs.sample import folder
from hpdm_core.runs.sample import run as sample_run
from hpdm_core.runs.sample.options import SampleOptions
from hpdm_core.runs.sample.run import run_sample


@pytest.fixture
def sample(make_weights, tmp_path):
    """Run with defaults as the command line gives them."""

    def run(**changes):
        own = {} if "recipe" in changes else {"checkpoint": str(make_weights())}
        defaults = {"out": tmp_path / "out", "device": "cpu"}
        return run_sample(SampleOptions(**(own | defaults | changes)))

    return run


def lines(folder):
    return [json.loads(text) for text in (folder / "samples.jsonl").read_text().splitlines()]


def frames(path):
    return np.stack(list(video_io.decode_sequential(path)))


def test_a_file_per_video_a_sheet_and_a_line_each(sample, tmp_path):
    result = sample(num=4, formats=("mp4", "gif", "webp", "png"))
    assert result["made"] == 4
    written = lines(tmp_path / "out")
    assert [line["class"] for line in written] == ["circle", "square", "star", "circle"]
    assert [line["seed"] for line in written] == [0, 1, 2, 3]
    for line in written:
        assert line["settings"]["sha256"] == written[0]["settings"]["sha256"]
        names = {name.rsplit(".")[-1] for name in line["files"]}
        assert names == {"mp4", "gif", "webp", "png"}
        assert frames(tmp_path / "out" / line["file"]).shape == (4, 16, 16, 3)
    with Image.open(tmp_path / "out" / written[0]["files"][1]) as gif:
        assert gif.n_frames == 4
    with Image.open(result["contact_sheet"]) as sheet:
        assert sheet.height > 4 * 96
    with Image.open(result["preview"]) as preview:
        assert (preview.n_frames, preview.size) == (4, (2 * 96, 2 * 96))


def test_all_classes_by_turns_where_none_is_asked_for(sample, tmp_path):
    sample()
    assert [line["class"] for line in lines(tmp_path / "out")] == ["circle", "square", "star"]


def test_classes_by_name_in_any_case_and_by_index(sample, tmp_path):
    sample(classes=("SQUARE", "2"))
    assert [line["label"] for line in lines(tmp_path / "out")] == [1, 2]


def test_a_second_run_makes_exactly_what_is_missing(sample, tmp_path):
    sample(num=5)
    before = {line["seed"]: line for line in lines(tmp_path / "out")}
    kept = {s: (tmp_path / "out" / before[s]["file"]).stat().st_mtime_ns for s in (0, 1, 2, 4)}
    pixels = frames(tmp_path / "out" / before[3]["file"])
    (tmp_path / "out" / before[3]["file"]).unlink()
    (tmp_path / "out" / ".half.partial.mp4").write_bytes(b"torn")
    result = sample(num=6)
    assert result["made"] == 2
    assert len(lines(tmp_path / "out")) == 6
    assert not (tmp_path / "out" / ".half.partial.mp4").exists()
    assert np.array_equal(frames(tmp_path / "out" / before[3]["file"]), pixels)
    assert kept == {s: (tmp_path / "out" / before[s]["file"]).stat().st_mtime_ns for s in kept}


def test_a_line_that_was_torn_by_a_kill_is_made_again(sample, tmp_path):
    sample(num=2)
    listing = tmp_path / "out" / "samples.jsonl"
    listing.write_text(listing.read_text()[:-40])
    assert sample(num=2)["made"] == 1
    assert len(lines(tmp_path / "out")) == 2


def test_another_class_in_the_same_folder_loses_no_line(sample, tmp_path):
    sample(num=2, classes=("circle",))
    assert sample(num=2, classes=("star",))["made"] == 2
    found = [(line["index"], line["seed"], line["class"]) for line in lines(tmp_path / "out")]
    assert found == [(0, 0, "circle"), (0, 0, "star"), (1, 1, "circle"), (1, 1, "star")]
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 4


@pytest.mark.parametrize("text", ["{}", '{"index": "0"}', "[1]", "\xff", "[" * 9999])
def test_a_line_that_was_not_written_here_is_refused_or_left_out(sample, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "samples.jsonl").write_text(text + "\n", encoding="latin-1")
    if text[0] == "{":
        with pytest.raises(HpdmError, match="holds a line that `hpdm sample` did not write"):
            sample(num=1)
    else:
        assert sample(num=1)["made"] == 1


def test_sampling_that_diverges_is_refused_with_the_setting(sample, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "LARGEST_PIXEL", 1e-6)
    with pytest.raises(HpdmError, match=r"diverged on level 0.*guidance scale, which is 900"):
        sample(num=1, guidance=900.0)
    with pytest.raises(HpdmError, match=r"diverged on level 0.*an earlier checkpoint"):
        sample(num=1)
    assert not list((tmp_path / "out").glob("*.mp4"))


def test_a_network_that_gives_nan_is_refused(sample, monkeypatch):
    read = pipeline.read_network

    def broken(path, header):
        network, sha256 = read(path, header)
        network.detokenizer.project.bias.data[0] = float("nan")
        return network, sha256

    monkeypatch.setattr(pipeline, "read_network", broken)
    with pytest.raises(HpdmError, match="diverged on level 0; got pixels of nan"):
        sample(num=1)


def test_videos_of_other_settings_are_not_mixed(sample):
    sample(num=1)
    with pytest.raises(HpdmError, match=r"holds videos of other settings.*--out"):
        sample(num=1, overlap="none")


def test_videos_of_another_version_of_sampling_are_not_mixed(sample, monkeypatch):
    sample(num=1)
    monkeypatch.setattr(sample_run, "SAMPLING_VERSION", sample_run.SAMPLING_VERSION + 1)
    with pytest.raises(HpdmError, match="videos of other settings"):
        sample(num=1)


def test_two_commands_do_not_sample_into_one_folder(sample, tmp_path):
    with lock_folder(tmp_path / "out", doing="sampling into", remedy="wait"):
        with pytest.raises(HpdmError, match=r"another command is sampling into .*out; .*--out"):
            sample(num=1)
        assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]
    assert sample(num=1)["made"] == 1


def test_the_default_folder_is_free_or_holds_the_same_settings(sample, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = tmp_path.name  # of the folder with model.safetensors
    assert sample(num=1, out=None)["out"] == f"samples/{name}_hw"
    assert sample(num=2, out=None)["made"] == 1
    assert sample(num=1, out=None, steps=(3, 2))["out"] == f"samples/{name}_hw_2"


@pytest.mark.parametrize("change", [{"batch": 1}, {"tile_batch": 1}, {"cache": "off"}])
def test_how_the_work_is_cut_changes_no_video(sample, tmp_path, change):
    sample(num=3)
    sample(num=3, out=tmp_path / "cut", **change)
    for line in lines(tmp_path / "out"):
        one, other = (frames(tmp_path / folder / line["file"]) for folder in ("out", "cut"))
        # A value at the border of two grey levels may fall to either; more would be a fault.
        assert np.abs(one.astype(int) - other).max() <= 3
        assert np.mean(one != other) < 0.01


def test_levels_and_overlaps_side_by_side(sample, tmp_path):
    made = sample(num=1, save_levels=True, compare_overlaps=("none", "hw", "fhw"))
    files = lines(tmp_path / "out")[0]["files"]
    by_end = {name.rsplit("_")[-1]: tmp_path / "out" / name for name in files}
    assert frames(by_end["level0.mp4"]).shape == (2, 8, 8, 3)
    video = frames(by_end["compare.mp4"])
    assert video.shape == (4, LABEL_HEIGHT + 192, 3 * 192 + 2 * GAP, 3)  # enlarged 12 times
    with Image.open(by_end["compare.png"]) as picture:
        assert picture.size == video.shape[2:0:-1]
    assert made["comparisons"] == [str(by_end[f"compare.{kind}"]) for kind in ("png", "mp4")]
    assert video[:, :LABEL_HEIGHT].min() < 100  # there is writing


def test_guidance_and_overlap_change_the_video(sample, tmp_path):
    for name, change in {"a": {}, "b": {"guidance": 3.0}, "c": {"overlap": "fhw"}}.items():
        sample(num=1, out=tmp_path / name, **change)
    first = {n: frames(tmp_path / n / lines(tmp_path / n)[0]["file"]) for n in "abc"}
    assert not np.array_equal(first["a"], first["b"])
    assert not np.array_equal(first["a"], first["c"])


def test_dry_run_counts_the_papers_tiles_and_block_passes(sample):
    plan = sample(recipe=load_recipe("hpdm_s"), overlap="fhw", dry_run=True)
    assert [level["tiles"] for level in plan["levels"]] == [1, 27, 343]
    assert [level["steps"] for level in plan["levels"]] == [128, 64, 32]
    # Level by level: evaluations x tiles x blocks. Heun's last step takes one evaluation, not two.
    assert plan["block_passes_cached"] == 255 * 6 + 64 * 27 * 4 + 32 * 343 * 2
    assert plan["block_passes_uncached"] == 255 * 6 + 64 * 27 * 10 + 32 * 343 * 12
    paper, fast = plan["block_passes_cached"], 63 * 6 + 16 * 27 * 4 + 8 * 343 * 2
    assert plan["presets"] == {"paper": paper, "fast": fast}
    chosen = sample(recipe=load_recipe("hpdm_s"), overlap="fhw", preset="fast", dry_run=True)
    assert chosen["block_passes_cached"] == fast
    assert [level["steps"] for level in chosen["levels"]] == [32, 16, 8]
    none = sample(recipe=load_recipe("hpdm_s"), overlap="none", dry_run=True)
    assert [level["tiles"] for level in none["levels"]] == [1, 8, 64]


def test_dry_run_writes_nothing(sample, tmp_path):
    assert sample(num=7, dry_run=True)["videos"] == 7
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ("squire",)}, "does not know the class; got 'squire'.*did you mean square"),
        ({"classes": ("3",)}, "an index below 3"),
        ({"prompts": ("a fox",)}, "a prompt is given; got a model conditioned on class"),
        ({"overlap": "hx"}, "unknown overlap; got 'hx'; expected none, f, h, w, fh"),
        ({"steps": (4,)}, "steps gives solver steps per level; got 1 of them; expected 2"),
        ({"steps": (4, 0)}, "from 1 to 10,000"),
        ({"guidance": -1.0}, "guidance is out of range"),
        ({"num": 0}, "--num counts videos"),
        ({"num": 10**9, "dry_run": True}, "--num counts videos; got 1000000000"),
        ({"classes": ("²",)}, "does not know the class; got '.xb2'"),
        ({"classes": ("9" * 5000,)}, "does not know the class; got '9999"),
        ({"cache_gb": float("nan")}, "--cache-gb is a size in GB; got nan"),
        ({"cache_gb": -1.0}, "--cache-gb is a size in GB; got -1"),
        ({"guidance": float("nan")}, "guidance is out of range"),
        ({"guidance": 1e9}, "guidance is out of range"),
        ({"steps": (10**12, 1)}, "steps counts solver steps"),
        ({"prompts": ("a\udcfffox",)}, "a prompt is a line of text"),
        ({"batch": 0}, "--batch counts"),
        ({"formats": ("avi",)}, "--format names file formats; got avi"),
        ({"compare_overlaps": ("hw",)}, "two or more"),
        ({"checkpoint": "nowhere"}, "no checkpoint at nowhere"),
        ({"device": "tpu"}, "unknown device"),
        ({"shard": "frames"}, "--shard says what processes share; got frames"),
    ],
)
def test_mistakes_are_said_in_plain_words(sample, tmp_path, change, message):
    with pytest.raises(HpdmError, match=message):
        sample(**change)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_an_error_and_loses_nothing(sample, tmp_path, monkeypatch):
    write, calls = folder.WRITERS["mp4"], []

    def fills_up(path, video, fps):
        calls.append(path)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        write(path, video, fps)

    monkeypatch.setitem(folder.WRITERS, "mp4", fills_up)
    with pytest.raises(HpdmError, match=r"a full disk.*run the same command again"):
        sample(num=3, batch=1)
    assert len(lines(tmp_path / "out")) == 2
    monkeypatch.setitem(folder.WRITERS, "mp4", write)
    assert sample(num=3)["made"] == 1


def test_text_models_want_a_prompt(sample, make_weights):
    text = make_weights(("conditioning: class", "conditioning: text"), name="text")
    with pytest.raises(HpdmError, match=r"conditioned on text; got no prompt; expected --prompt"):
        sample(checkpoint=str(text))
    with pytest.raises(HpdmError, match=r"which text encoder.*--text-encoder"):
        sample(checkpoint=str(text), prompts=("a fox",))


def test_weights_that_do_not_fit_their_recipe_are_refused(make_weights, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = make_weights()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["latents"] = torch.zeros(5, 16)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"does not fit the recipe inside it.*latents"):
        Pipeline.from_pretrained(path, device="cpu")


def test_the_newest_run_is_the_default(make_weights, tmp_path, monkeypatch):
    assert newest_run(tmp_path / "runs") is None
    for number, name in enumerate(["old", "new"]):
        folder = tmp_path / "runs" / name / "checkpoints" / "step-00000003"
        folder.mkdir(parents=True)
        shutil.copy(make_weights(), folder / "ema.safetensors")
        os.utime(folder, (number, number))
    assert newest_run(tmp_path / "runs").name == "new"
