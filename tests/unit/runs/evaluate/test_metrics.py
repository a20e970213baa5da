"""All scores of `--metrics` from one pass, each against its own formula on the kept features."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from hpdm_core.data.video_io import decode_sequential, write_mp4
from hpdm_core.errors import MetricError
from hpdm_core.metrics import kernel, prdc
from hpdm_core.metrics.bundled import load_bundled
from hpdm_core.metrics.quality import measure_quality
from hpdm_core.metrics.quality_detector import MEASURES, eighths
from hpdm_core.metrics.store import Chunk
from hpdm_core.runs.evaluate.figures import kernel_figures
from hpdm_core.runs.evaluate.run import run_eval_fvd
from tests.unit.runs.evaluate.evalkit import write_shapes


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("videos")
    return write_shapes(root / "fakes", 12, seed=5), write_shapes(root / "reals", 14, seed=6)


@pytest.fixture(scope="module")
def score(tmp_path_factory, folders):
    cache = tmp_path_factory.mktemp("cache")

    def run(**changes):
        settings = {
            "samples": folders[0],
            "real": folders[1],
            "protocol": "fvdfull_8f",
            "detector": "bundled",
            "device": "cpu",
            "force": True,
            "out": cache / "out",
            "cache": cache,
            "fetch": None,
        }
        with pytest.MonkeyPatch.context() as patch:
            for name in ("estimate_kernel_distance", "estimate_prdc"):
                module = kernel if "kernel" in name else prdc
                short = partial(getattr(module, name), num_resamples=10)
                patch.setattr(f"hpdm_core.runs.evaluate.figures.{name}", short)
            return run_eval_fvd(**(settings | changes))

    return run


def frames_of(folder: Path) -> np.ndarray:
    paths = sorted(folder.rglob("*.mp4"))
    return np.stack([np.stack(list(decode_sequential(path))) for path in paths])


def test_kernel_distance_and_neighbours_are_those_of_the_features(score, folders):
    figures = score(metrics=["kvd", "prdc"])["scores"]
    detector = load_bundled()
    fakes, reals = (detector.features(torch.from_numpy(frames_of(f))) for f in folders)
    names = [figure["name"] for figure in figures]
    assert names[0] == "kernel distance on bundled features"
    assert names[1:] == [f"{name} on bundled features" for name in prdc.NAMES]
    assert figures[0]["value"] == pytest.approx(kernel.kernel_distance(fakes, reals), rel=1e-3)
    expected = prdc.precision_recall(fakes, reals)
    for figure, name in zip(figures[1:], prdc.NAMES, strict=True):
        assert figure["value"] == pytest.approx(float(expected[name].mean()))
        assert figure["interval"][0] <= figure["value"] <= figure["interval"][1]
        assert (figure["num_fakes"], figure["num_reals"]) == (12, 14)


def test_jedis_kernel_follows_for_its_kind_of_detector():
    rng = torch.Generator().manual_seed(0)
    fakes, reals = (torch.randn(8, 3, generator=rng) for _ in range(2))
    chunks = [Chunk(start=0, stop=8, places=torch.arange(8), outputs=x) for x in (fakes, reals)]
    title = "kernel distance on V-JEPA 2 features"
    figures = kernel_figures(title, *chunks, detector="vjepa2", seed=0)
    assert [(figure["name"], figure["kernel"]) for figure in figures] == [
        (title, "(x . y / d + 1)^3"),
        ("JEDi's kernel distance on V-JEPA 2 features", "(x . y / d)^2"),
    ]
    assert figures[1]["value"] == kernel.kernel_distance(fakes, reals, kernel=kernel.JEDI)
    assert len(kernel_figures("KVD", *chunks, detector="i3d", seed=0)) == 1


def test_quality_stands_beside_that_of_the_real_videos(score, folders):
    figures = score(metrics=["quality"])["scores"]
    assert [figure["name"] for figure in figures] == list(MEASURES)
    borders = eighths((8, 32, 32))
    assert borders[1] == (4, 8, 12, 16, 20, 24, 28)
    fakes, reals = (measure_quality(frames_of(folder), borders) for folder in folders)
    for figure in figures:
        name = figure["name"]
        assert figure["value"] == (
            None if getattr(fakes, name) is None else pytest.approx(getattr(fakes, name), rel=1e-5)
        )
        assert figure["real_value"] == (
            None if getattr(reals, name) is None else pytest.approx(getattr(reals, name), rel=1e-5)
        )
    alone = score(metrics=["quality"], real=None)
    assert alone["reals"] is None
    assert all(figure["real_value"] is None for figure in alone["scores"])
    assert [f["value"] for f in alone["scores"]] == [f["value"] for f in figures]


def test_scores_come_in_one_order_and_share_features(score, monkeypatch):
    first = score(metrics=["fvd", "kvd", "is", "prdc", "quality"])

    def no_decoding(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr("hpdm_core.runs.evaluate.clips.extract_clip", no_decoding)
    again = score(metrics=["prdc", "quality", "is", "kvd", "fvd"])
    assert again["scores"] == first["scores"]
    kinds = ["fvd", "kvd", "is", *["prdc"] * 4, *["quality"] * 6]
    assert [figure["metric"] for figure in first["scores"]] == kinds


def test_a_file_for_all_that_a_score_depends_on(score, folders):
    """Other metrics or real videos keep what was written; the same again does not pile up."""
    first = Path(score(metrics=["kvd"])["file"])
    assert first.name.startswith("fvd12_8f_bundled_kvd_")
    both = Path(score(metrics=["kvd", "prdc"])["file"])
    itself = score(metrics=["kvd"], real=folders[0])
    assert len({first, both, Path(itself["file"])}) == 3
    assert any("the real videos themselves" in warning for warning in itself["warnings"])
    again = score(metrics=["kvd"])
    assert Path(again["file"]) == first
    assert not any("themselves" in warning for warning in again["warnings"])


def test_what_is_undefined_is_none(score, tmp_path):
    for i in range(2):
        write_mp4(tmp_path / f"{i}.mp4", np.full((4, 32, 32, 3), 90, np.uint8), 12.5)
    found = score(metrics=["quality"], samples=tmp_path, real=None, protocol="fvdfull_4f")
    by_name = {figure["name"]: figure["value"] for figure in found["scores"]}
    assert by_name["seams"] is None
    assert by_name["flicker"] == pytest.approx(0, abs=1e-6)


def test_counts_are_refused_in_words_before_anything_is_computed(score, monkeypatch, tmp_path):
    few = write_shapes(tmp_path / "few", 5)
    monkeypatch.setattr("hpdm_core.runs.evaluate.clips.extract_clip", None)
    message = r"too few videos: .*mean over 10 parts of them; got 5 videos; expected at least 10"
    with pytest.raises(MetricError, match=message):
        score(metrics=["is"], samples=few)
    with pytest.raises(MetricError, match=message):
        score(metrics=["is"], samples=few, dry_run=True)


def test_numbers_below_one_are_refused(score):
    with pytest.raises(MetricError, match=r"--num-fakes is too small; got 0; expected at least 1"):
        score(metrics=["kvd"], num_fakes=0)
    with pytest.raises(MetricError, match=r"--batch is too small; got -2"):
        score(metrics=["kvd"], batch=-2)


def test_few_videos_are_refused_for_neighbours(score, tmp_path):
    few = write_shapes(tmp_path / "few", 5)
    with pytest.raises(MetricError, match=r"too few fakes for 5 nearest .*leave out prdc"):
        score(metrics=["prdc"], samples=few)


def test_missing_weights_are_named_before_the_count(score):
    with pytest.raises(MetricError, match=r"i3d_torchscript\.pt is needed"):
        score(metrics=["fvd"], detector="i3d", force=False, fetch=_no_network)
    with pytest.raises(MetricError, match=r"i3d_torchscript\.pt is needed"):
        score(metrics=["fvd"], detector="i3d", protocol="fvd512_8f", fetch=_no_network)


def _no_network(*_):
    raise MetricError("no network")
