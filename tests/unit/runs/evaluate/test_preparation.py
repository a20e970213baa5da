"""StyleGAN-V's way of cutting clips, beside ours."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpdm_core.data.video_io import write_mp4
from hpdm_core.errors import MetricError
from hpdm_core.runs.evaluate.clips import (
    ClipFormat,
    Skipped,
    VideoFile,
    extract_clip,
)
from hpdm_core.runs.evaluate.comparison import choose_preparation
from hpdm_core.runs.evaluate.framing import fit_frames, lanczos_frames
from hpdm_core.runs.evaluate.run import run_eval_fvd
from tests.unit.runs.evaluate.evalkit import write_shapes


def test_a_wide_frame_is_cropped_at_column_42_of_341():
    """UCF-101's 240x320 becomes 256x341; its 256 columns start at 42."""
    ramp = np.broadcast_to(np.arange(320)[:, None] * 255 / 319, (1, 240, 320, 3))
    frames = ramp.round().astype(np.uint8)
    whole = np.asarray(Image.fromarray(frames[0]).resize((341, 256), Image.Resampling.LANCZOS))
    assert np.array_equal(lanczos_frames(frames, (256, 256))[0], whole[:, 42:298])
    ours = fit_frames(frames, (256, 256)).astype(float)
    # Ours crops before it resizes, from the exact middle: half a column aside.
    assert 0.1 < np.abs(ours - lanczos_frames(frames, (256, 256))).mean() < 1


@pytest.fixture(scope="module")
def ramp(tmp_path_factory) -> Path:
    """Ten frames, each of its own grey."""
    path = tmp_path_factory.mktemp("ramp") / "ramp.mp4"
    frames = np.broadcast_to(20 * np.arange(10)[:, None, None, None], (10, 32, 32, 3))
    write_mp4(path, frames.astype(np.uint8), 12.5, crf=4)
    return path


@pytest.mark.parametrize("preparation", ["hpdm", "stylegan-v"])
def test_starts_reach_as_far_as_the_last_frame(ramp, preparation):
    """Three frames at stride 3 of ten: starts 0 to 1 by frames x stride, 0 to 3 by the last."""
    expected = {"hpdm": {0, 1}, "stylegan-v": {0, 1, 2, 3}}[preparation]
    found = Counter()
    for name in range(40):
        file = VideoFile(name=str(name), path=ramp, num_frames=10)
        spec = ClipFormat(frames=3, stride=3, size=(32, 32), start_seed=0, preparation=preparation)
        found[round(float(extract_clip(file, spec)[0].mean()) / 20)] += 1
    assert set(found) == expected


def test_a_video_may_be_shorter_by_stride_less_one(ramp):
    file = VideoFile(name="a", path=ramp, num_frames=10)
    spec = {"frames": 4, "stride": 3, "size": (32, 32), "start_seed": 0}
    assert isinstance(extract_clip(file, ClipFormat(**spec)), Skipped)
    assert extract_clip(file, ClipFormat(**spec, preparation="stylegan-v")).shape[0] == 4


def test_the_option_is_recorded_and_keys_the_cache(tmp_path):
    folder = write_shapes(tmp_path / "videos", 3)
    common = {
        "samples": folder, "protocol": "fvdfull_4f_stride2", "metrics": ["quality"],
        "detector": "bundled", "device": "cpu", "cache": tmp_path, "dry_run": True,
    }  # fmt: skip
    assert run_eval_fvd(**common)["clip"]["preparation"] == "hpdm"
    run_eval_fvd(**common | {"dry_run": False, "out": tmp_path / "out"})
    assert run_eval_fvd(**common)["fakes_to_do"] == 0
    other = run_eval_fvd(**common, preparation="stylegan-v")
    assert other["clip"]["preparation"] == "stylegan-v"
    assert other["fakes_to_do"] == 3


def test_another_name_is_refused():
    with pytest.raises(MetricError, match=r"got styleganv; .*did you mean stylegan-v\?"):
        choose_preparation("styleganv")
