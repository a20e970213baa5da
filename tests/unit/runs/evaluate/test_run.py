"""`hpdm eval-fvd` from end to end on small videos: figures, names, caching, refusals."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hpdm_core.data.shapes import SHAPE_CLASSES
from hpdm_core.data.video_io import write_mp4
from hpdm_core.errors import DataError, HpdmError, MetricError
from hpdm_core.metrics import uncertainty, weights
from hpdm_core.metrics.load import fetch_from_mirrors
from hpdm_core.metrics.store import Chunk
from hpdm_core.progress import NoProgress
from hpdm_core.runs.evaluate.clips import GeneratedClips, draw_labels
from hpdm_core.runs.evaluate.run import run_eval_fvd
from hpdm_core.runs.evaluate.scores import accuracy
from tests.unit.runs.evaluate.evalkit import FRAMES, StandIn, write_dataset, write_shapes


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "shapes", 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("fakes"), 27, seed=5)


@pytest.fixture
def score(tmp_path, dataset, monkeypatch):
    """Run with a cache and an output folder of the test's own, and a short bootstrap."""
    short = partial(uncertainty.bootstrap_std, num_resamples=3)
    monkeypatch.setattr("hpdm_core.runs.evaluate.scores.bootstrap_std", short)

    def run(**changes):
        settings = {
            "real": dataset,
            "protocol": "fvdfull_8f",
            "metrics": ["fvd"],
            "detector": "bundled",
            "device": "cpu",
            "force": True,
            "out": tmp_path / "out",
            "cache": tmp_path / "cache",
            "fetch": no_network,
        }
        return run_eval_fvd(**(settings | changes))

    return run


def no_network(urls, path, sha256):
    raise OSError("no network in tests")


def test_two_folders_are_compared_by_one_call(score, folder):
    result = score(samples=folder, metrics=["fvd", "is"])
    distance, class_score = result["scores"]
    assert distance["name"] == "Fréchet distance on bundled features"
    assert class_score["name"] == "class score on bundled features"
    assert distance["value"] > 0
    assert distance["std"] > 0
    assert 1 < class_score["value"] <= len(SHAPE_CLASSES)
    assert result["protocol"] == "fvd27_8f"
    assert result["fakes"]["count"] == 27
    assert (result["reals"]["count"], result["reals"]["split"]) == (36, "train")
    assert result["clip"]["size"] == [32, 32]
    assert all(len(d["sha256"]) == 64 for d in result["detectors"])
    assert "27 fakes against 36 real videos are too few" in result["warnings"][0]
    written = json.loads(Path(result["file"]).read_text())
    assert written["scores"][0]["value"] == distance["value"]
    assert '"FVD"' not in Path(result["file"]).read_text()


def test_a_set_against_itself_scores_about_zero_and_others_do_not(score, dataset, folder):
    same = score(samples=dataset, real=dataset, split="all")["scores"][0]["value"]
    other = score(samples=folder, real=dataset, split="all")["scores"][0]["value"]
    assert same < 1e-6 < 0.01 < other


def test_features_are_kept_for_a_second_run_and_another_protocol(score, folder, monkeypatch):
    first = score(samples=folder)

    def no_decoding(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr("hpdm_core.runs.evaluate.clips.extract_clip", no_decoding)
    assert score(samples=folder)["scores"] == first["scores"]
    fewer = score(samples=folder, protocol="fvd16_8f")
    assert fewer["protocol"] == "fvd16_8f"
    assert score(samples=folder, dry_run=True)["fakes_to_do"] == 0
    with pytest.raises(AssertionError, match="decoded again"):
        score(samples=folder, protocol="fvdfull_4f")


def test_dry_run_counts_and_does_nothing(score, folder, tmp_path):
    plan = score(samples=folder, dry_run=True, protocol="fvd20_8f")
    assert plan["dry_run"]
    assert (plan["fakes_to_do"], plan["reals_to_do"]) == (20, 36)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()
    plan = score(samples=folder, dry_run=True, detector="i3d", protocol="fvd20_16f")
    assert "i3d_torchscript.pt" in plan["detectors_to_fetch"]


def test_a_checkpoint_is_sampled_with_seeds_and_classes_of_the_data(score, dataset):
    model = StandIn(dataset)
    result = score(
        checkpoint="x", real=None, protocol="fvd24_8f", metrics=["fvd", "is"], load_model=model.load
    )
    # One pass serves both figures.
    assert model.seeds == list(range(24))
    assert result["fakes"]["seeds"] == [0, 23]
    assert result["fakes"]["classes"] == "as in the real data"
    assert 0 <= result["scores"][1]["named_right"] <= 1


def test_only_classes_of_the_real_data_may_be_guessed():
    rows = torch.tensor([[0.3, 0.1, 0.6], [0.1, 0.2, 0.7]])
    fakes = Chunk(start=0, stop=2, places=torch.arange(2), outputs=rows, skipped=())
    named = partial(accuracy, ("a", "b", "c"), fakes)
    assert named(meant=["a", "b"], candidates=["a", "b", "a"]) == 1.0
    assert named(meant=["a", "b"], candidates=[]) == 0.0
    assert named(meant=["c", "b"], candidates=["a", "b"]) == 0.5
    assert named(meant=["a", None], candidates=["a", "b"]) is None
    assert named(meant=["a", "else"], candidates=["a", "b"]) is None


@pytest.mark.parametrize(("level", "clip"), [(0, (4, 2, 16)), (1, (8, 1, 32))])
def test_a_level_is_compared_at_its_own_resolution(score, dataset, level, clip):
    model = StandIn(dataset)
    result = score(
        checkpoint="x", protocol=f"fvd40_level{level}", split="all", load_model=model.load
    )
    # The stand-in's level is the real videos' own: reals must have been brought down alike.
    assert result["scores"][0]["value"] < 1e-4
    frames, stride, side = clip
    assert result["clip"]["frames"] == frames
    assert result["clip"]["real_stride"] == stride
    assert result["clip"]["size"] == [side, side]


def test_more_fakes_later_make_only_the_new_ones(score, dataset):
    model = StandIn(dataset)
    score(checkpoint="x", protocol="fvd16_8f", load_model=model.load)
    model.seeds.clear()
    score(checkpoint="x", protocol="fvd32_8f", load_model=model.load)
    assert model.seeds == list(range(16, 32))
    model.seeds.clear()
    score(checkpoint="x", protocol="fvd16_8f", seed=8, load_model=model.load)
    assert model.seeds == list(range(8, 24))


def test_generation_goes_on_where_it_stopped(score, dataset):
    model = StandIn(dataset)

    class Interrupted(StandIn):
        def sample(self, seeds, condition, **options):
            if seeds[0] >= 32:
                raise KeyboardInterrupt
            return super().sample(seeds, condition, **options)

    with pytest.raises(KeyboardInterrupt):
        score(checkpoint="x", protocol="fvd40_8f", batch=4, load_model=Interrupted(dataset).load)
    model.seeds.clear()
    score(checkpoint="x", protocol="fvd40_8f", batch=4, load_model=model.load)
    assert model.seeds == list(range(32, 40))


def test_unusable_videos_are_replaced_by_others_and_reported(score, tmp_path):
    fakes = write_shapes(tmp_path / "fakes", 20, seed=3)
    (fakes / "broken.mp4").write_text("not a video")
    for i in range(3):
        write_mp4(fakes / f"short{i}.mp4", torch.zeros(4, 32, 32, 3).byte().numpy(), 12.5)
    result = score(samples=fakes, protocol="fvd20_8f")
    assert result["protocol"] == "fvd20_8f"
    assert 1 <= result["fakes"]["skipped"] <= 4
    everything = score(samples=fakes, protocol="fvdfull_8f")
    assert everything["protocol"] == "fvd20_8f"
    assert everything["fakes"]["skipped"] == 4
    reasons = "\n".join(everything["fakes"]["skipped_reasons"])
    assert "broken.mp4: not a video" in reasons
    assert f"too short, 4 of {FRAMES} frames" in reasons
    assert any("4 fakes could not be used, such as " in text for text in everything["warnings"])
    with pytest.raises(MetricError, match=r"none of the fakes can be used.*too short"):
        score(samples=fakes, protocol="fvdfull_64f", metrics=["is"])


def test_samples_of_hpdm_sample_bring_files_and_classes(score, tmp_path):
    samples = write_shapes(tmp_path / "s", 18, seed=4)
    names = sorted(path.relative_to(samples).as_posix() for path in samples.rglob("*.mp4"))
    lines = [
        {"index": i, "class": Path(name).parent.name, "file": name, "files": [name]}
        for i, name in enumerate(names[:16])
    ]
    # A picture comes first, and another level's video stands beside the sample's own.
    png, other = names[0].replace(".mp4", ".png"), names[0].replace(".mp4", "_level0.mp4")
    lines[0] |= {"file": png, "files": [png, names[0], other]}
    for rank in (0, 1):
        text = "".join(json.dumps(line) + "\n" for line in lines[rank::2])
        (samples / f"samples{rank or ''}.jsonl").write_text(text)
    result = score(samples=samples, metrics=["is"], real=None)
    assert result["fakes"]["of"] == 16
    assert result["reals"] is None
    assert result["scores"][0]["named_right"] == 1.0
    (samples / names[0]).unlink()
    with pytest.raises(HpdmError, match=r"lists a video that is not there.*--format mp4"):
        score(samples=samples)
    lines[0]["files"] = [png]
    (samples / "samples.jsonl").write_text(json.dumps(lines[0]))
    with pytest.raises(HpdmError, match=r"got only .*png"):
        score(samples=samples)


def test_videos_of_several_sizes_are_brought_to_one(score, tmp_path):
    fakes = write_shapes(tmp_path / "fakes", 4)
    write_mp4(fakes / "wide.mp4", torch.zeros(8, 40, 64, 3).byte().numpy(), 12.5)
    result = score(samples=fakes)
    assert result["clip"]["size"] == [256, 256]
    assert any("differ in size" in warning for warning in result["warnings"])


class Logits(torch.nn.Module):
    """Stands for the TorchScript I3D."""

    def forward(
        self, x, rescale: bool = False, resize: bool = False, return_features: bool = False
    ):
        return x.float().mean(dim=[3, 4]).flatten(1)


def test_i3d_from_the_cache_folder_or_a_path_scores_as_fvd(score, folder, tmp_path, monkeypatch):
    path = tmp_path / "cache" / "detectors" / "i3d_torchscript.pt"
    path.parent.mkdir(parents=True)
    torch.jit.script(Logits()).save(str(path))
    fakes = write_shapes(tmp_path / "fakes", 6, frames=10)
    changes = {"samples": fakes, "real": fakes, "protocol": "fvdfull_10f"}
    with pytest.raises(MetricError, match=r"is not i3d_torchscript.pt; got SHA-256"):
        score(**changes, detector="i3d")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    known = replace(weights.I3D_TORCHSCRIPT, sha256=sha256, git_blob=None)
    monkeypatch.setattr(weights, "I3D_TORCHSCRIPT", known)
    result = score(**changes, detector="i3d")
    assert result["scores"][0]["name"] == "FVD"
    assert result["scores"][0]["value"] < 1e-6
    assert result["detectors"][0]["sha256"] == sha256
    moved = path.rename(tmp_path / "mine.pt")
    assert score(**changes, detector=str(moved))["scores"] == result["scores"]
    with pytest.raises(MetricError, match="cannot read clips of 8 frames"):
        score(samples=folder, detector=str(moved), protocol="fvdfull_8f")


def test_absent_detectors_are_named_with_all_that_is_needed(score, folder):
    parts = r"(?s)i3d_torchscript\.pt.*no network.*dropbox.*bec6519f"
    with pytest.raises(MetricError, match=parts) as caught:
        score(samples=folder, detector="i3d")
    # One thing a line; only an address may be longer than a terminal is wide.
    lines = [line for line in str(caught.value).splitlines() if "/" not in line]
    assert max(map(len, lines)) <= 80
    with pytest.raises(MetricError, match=r"(?s)conv3d_deepnetA_ucf\.npz.*github.com/rezoo"):
        score(samples=folder, detector="i3d", metrics=["is"])


def test_mirrors_are_tried_in_turn(tmp_path, monkeypatch):
    asked = []

    def download(remote, target, progress, *, pause):
        asked.append((remote.url, remote.sha256))
        progress.start("downloading", 3)
        progress.advance(1, rate="slow")
        progress.stop()
        if remote.url != "b":
            raise DataError(f"{remote.url} is gone") from OSError("HTTP 404")

    monkeypatch.setattr("hpdm_core.metrics.load.download", download)
    fetch = fetch_from_mirrors(NoProgress())
    fetch(("a", "b", "c"), tmp_path / "net.pt", "abc")
    assert asked == [("a", "abc"), ("b", "abc")]
    with pytest.raises(
        MetricError, match="none of 2 addresses gave it, the last because: HTTP 404"
    ):
        fetch(("a", "c"), tmp_path / "net.pt", "abc")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"force": False}, r"too few fakes.*got 27; expected at least 256.*--force.*bias"),
        ({"protocol": None}, "no protocol; expected --protocol.*fvd10k_16f"),
        ({"protocol": "fvd10k"}, r"unknown protocol.*; did you mean fvd10k_16f\?"),
        ({"protocol": "fvd512_8f"}, "too few videos for fvd512_8f; got 27.*--num-fakes 27"),
        ({"protocol": "fvd16_level0"}, "needs a model's pyramid"),
        (
            {"metrics": ["fid"]},
            "unknown metrics; got fid; expected any of fvd, kvd, is, prdc, quality",
        ),
        ({"metrics": []}, "unknown metrics; got none"),
        ({"detector": "resnet"}, "unknown detector 'resnet'"),
        ({"real": None}, "no real videos to compare with"),
        ({"real": "/nowhere"}, "/nowhere is not a folder of videos"),
        ({"split": "validation"}, "no videos in split 'validation'"),
        ({"protocol": "fvdfull_3f"}, "bundled cannot read clips of 3 frames"),
    ],
)
def test_refusals(score, folder, changes, message):
    with pytest.raises(HpdmError, match=message):
        score(**({"samples": folder} | changes))


def test_refusals_of_models_and_of_plain_folders(score, folder, dataset, tmp_path):
    model = StandIn(dataset)
    with pytest.raises(MetricError, match="one of --checkpoint and --samples"):
        score()
    with pytest.raises(MetricError, match="one of --checkpoint and --samples"):
        score(checkpoint="x", samples=folder, load_model=model.load)
    with pytest.raises(MetricError, match="a model makes endless ones"):
        score(checkpoint="x", load_model=model.load)
    with pytest.raises(MetricError, match="too short for fvd16_16f; got 8 frames"):
        score(checkpoint="x", protocol="fvd16_16f", load_model=model.load)
    with pytest.raises(MetricError, match="no level 2; expected 0 to 1"):
        score(checkpoint="x", protocol="fvd16_level2", load_model=model.load)
    with pytest.raises(MetricError, match="has no splits"):
        score(samples=folder, real=folder, split="test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MetricError, match="no video in"):
        score(samples=tmp_path / "empty")


def test_another_stride_of_training_is_pointed_out(score, dataset):
    model = StandIn(dataset)

    def load(checkpoint, device):
        return replace(model.load(checkpoint, device), frame_stride=2)

    result = score(checkpoint="x", protocol="fvd16_8f", load_model=load)
    assert any("trained on every 2. frame" in warning for warning in result["warnings"])


def test_labels_follow_the_real_classes():
    real = ["b", "b", "b", "a", None, "unknown to the model"]
    labels = draw_labels(("a", "b", "c"), real, count=4000, seed=0)
    counts = Counter(labels)
    assert counts[2] == 0
    assert counts[1] / 4000 == pytest.approx(0.75, abs=0.03)
    assert draw_labels(("a", "b", "c"), real, count=10, seed=0) == labels[:10]
    assert draw_labels(("a", "b", "c"), real, count=4000, seed=1) != labels
    uniform = Counter(draw_labels(("a", "b"), [None], count=2000, seed=0))
    assert uniform[0] / 2000 == pytest.approx(0.5, abs=0.05)
    assert set(draw_labels((), real, count=5, seed=0)) == {-1}


def test_fakes_become_grey_levels_as_the_peers_make_them():
    values = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0])
    model = SimpleNamespace(
        condition_of=lambda labels: None,
        sample=lambda seeds, condition, **options: values.repeat(len(seeds), 3, 4, 1, 1),
    )
    source = GeneratedClips(
        pipeline=model, seed=0, labels=(0, 0, 0), level=0, frames=2, stride=2, batch=2,
    )  # fmt: skip
    clips = list(source.clips(0, 3))
    assert [clip.shape for clip in clips] == [(2, 1, 6, 3)] * 3
    assert clips[0][0, 0, :, 0].tolist() == [0, 0, 128, 191, 255, 255]
