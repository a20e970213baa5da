"""`hpdm sample --input`: videos from a given one, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpdm_core.data.video_io import decode_sequential, write_mp4
from tests.unit.runs.conftest import make_weights  # noqa: F401, a fixture


@pytest.fixture
def clip(tmp_path):
    """A smooth video of (8, 24, 24) at 25 fps; the tiny model makes (4, 16, 16) at 25."""
    t, y, x = np.mgrid[:8, :24, :24]
    frames = np.stack([8 * y, 8 * x, 20 * t], axis=-1).astype(np.uint8)
    write_mp4(tmp_path / "clip.mp4", frames, 25.0)
    return str(tmp_path / "clip.mp4")


@pytest.mark.parametrize(
    ("args", "frames"),
    [
        (["--upscale"], 4),
        (["--upscale", "--context-noise", "0.3", "--class", "star"], 4),
        (["--strength", "0.5"], 4),
        (["--strength", "0.3,1"], 4),
        (["--mask", "2,2,10,10", "--repeats", "2,1"], 4),
        (["--first-frames", "2"], 4),
        (["--extend", "3"], 11),
        (["--first-frames", "3", "--extend", "4"], 7),
    ],
)
def test_given_videos(hpdm, make_weights, clip, args, frames):  # noqa: F811
    command = ["sample", "--checkpoint", str(make_weights()), "--input", clip, "--out", "out",
               "--device", "cpu", "--json", *args]  # fmt: skip
    first = json.loads(hpdm(*command).stdout)
    assert (first["videos"], first["made"]) == (1, 1)
    line = json.loads(Path("out/samples.jsonl").read_text())
    assert line["settings"]["input"] == clip
    made = np.stack(list(decode_sequential(Path("out") / line["file"])))
    assert made.shape == (frames, 16, 16, 3)
    # Again, nothing is missing; with another setting the folder is refused.
    assert json.loads(hpdm(*command).stdout)["made"] == 0
    other = hpdm(*command, "--steps", "1,1")
    assert other.returncode == 2
    assert "videos of other settings" in other.stderr


def test_a_dry_run_tells_the_windows(hpdm, make_weights, clip):  # noqa: F811
    command = ["sample", "--checkpoint", str(make_weights()), "--input", clip, "--dry-run"]
    plan = json.loads(hpdm(*command, "--extend", "5", "--json").stdout)
    assert plan["windows"] == 3  # one or two of four frames are held
    full = json.loads(hpdm(*command, "--strength", "1", "--json").stdout)
    half = json.loads(hpdm(*command, "--strength", "0.5", "--json").stdout)
    assert full["block_passes_cached"] > half["block_passes_cached"] > 0
    # Known pixels guide level 0, whose passes cost more, and no other level.
    guided = [level["block_passes_guided"] for level in plan["levels"]]
    assert guided[0] > 0 == guided[1]
    more = plan["block_passes_cached"] - full["block_passes_cached"]
    assert more == guided[0] == plan["block_passes_uncached"] - full["block_passes_uncached"]
    assert not any(level["block_passes_guided"] for level in full["levels"])
    upscaled = json.loads(hpdm(*command, "--upscale", "--json").stdout)
    assert [level["evaluations"] for level in upscaled["levels"]] == [0, 2]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--input", "no.mp4", "--upscale"], "no.mp4: cannot be read"),
        (["--upscale"], "--upscale is about a given video; add --input VIDEO"),
        (["--input", "clip.mp4"], "upscaled, edited or extended; got none of them"),
        (["--input", "clip.mp4", "--upscale", "--extend", "3"], "got --upscale and --first"),
        (["--input", "text.mp4", "--upscale"], "the file holds text"),
        (["--input", "clip.mp4", "--strength", "much"], "--strength takes numbers from 0 to 1"),
        (["--input", "clip.mp4", "--strength", "2"], "strength is out of range"),
        (["--input", "clip.mp4", "--mask", "small.png"], "got 8x8; expected 24x24"),
        (["--input", "clip.mp4", "--mask", "none.png"], "mask none.png: cannot be read"),
        (["--input", "clip.mp4", "--mask", "30,0,5,5"], "the mask covers nothing"),
        (["--input", "clip.mp4", "--mask", "0,0,24,24"], "the mask covers the whole video"),
        (["--input", "clip.mp4", "--first-frames", "9"], "too short; got 8 frames at 25 fps"),
    ],
)
def test_wrong_input_leaves_nothing(hpdm, make_weights, clip, tmp_path, args, message):  # noqa: F811
    weights = str(make_weights())
    (tmp_path / "text.mp4").write_text("no video")
    Image.new("L", (8, 8), 255).save(tmp_path / "small.png")
    before = sorted(tmp_path.iterdir())
    done = hpdm("sample", "--checkpoint", weights, "--device", "cpu", *args)
    assert done.returncode == 2, done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_a_canvas(hpdm, make_weights):  # noqa: F811
    command = ["sample", "--checkpoint", str(make_weights()), "--num", "1", "--out", "out",
               "--device", "cpu", "--json", "--size"]  # fmt: skip
    plan = json.loads(hpdm(*command, "4,16,32", "--dry-run").stdout)
    assert [level["tiles"] for level in plan["levels"]] == [3, 2 * 3 * 7]
    assert plan["levels"][-1]["resolution"] == [4, 16, 32]
    done = json.loads(hpdm(*command, "4,16,32").stdout)
    assert done["settings"]["resolution"] == [4, 16, 32]
    made = next(Path("out").glob("*.mp4"))
    assert np.stack(list(decode_sequential(made))).shape == (4, 16, 32, 3)
    refused = hpdm(*command, "4,16,30")
    assert refused.returncode == 2
    assert "the nearest that does is 4,16,32" in refused.stderr
