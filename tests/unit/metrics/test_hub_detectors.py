"""VideoMAE and V-JEPA 2 through transformers, with tiny random weights of the same classes."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError

from hpdm_core.errors import MetricError
from hpdm_core.metrics.hub_detectors import HUB_MODELS, load_hub_detector
from hpdm_core.metrics.load import check_names, load_metrics

CPU = torch.device("cpu")
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 5}


def tiny(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if name == "videomae":
        config = transformers.VideoMAEConfig(
            image_size=32, patch_size=16, num_frames=4, intermediate_size=16, **SIZES
        )
        return transformers.VideoMAEForVideoClassification(config).eval()
    config = transformers.VJEPA2Config(
        crop_size=32, patch_size=16, frames_per_clip=4, num_pooler_layers=1, mlp_ratio=1.0,
        pred_hidden_size=16, pred_num_attention_heads=2, pred_num_hidden_layers=1, **SIZES,
    )  # fmt: skip
    return transformers.VJEPA2ForVideoClassification(config).eval()


@pytest.fixture(params=list(HUB_MODELS))
def saved(request, tmp_path: Path) -> tuple[str, Path, torch.nn.Module]:
    model = tiny(request.param)
    model.save_pretrained(tmp_path)
    return request.param, tmp_path, model


@pytest.fixture
def videos() -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 4, 32, 32, 3), generator=rng, dtype=torch.uint8)


@torch.inference_mode()
def test_features_are_what_the_classifier_reads(saved, videos):
    """The whole model's logits, fed by transformers' own video processor, are those of them."""
    name, folder, model = saved
    detector = load_hub_detector(f"{name}:{folder}", device=CPU, offline=True)
    features = detector(videos, batch=2)
    assert features.shape == (3, 16)
    mean, std = transformers.image_utils.IMAGENET_DEFAULT_MEAN, (0.229, 0.224, 0.225)
    normalised = (videos / 255 - torch.tensor(mean)) / torch.tensor(std)
    logits = model(normalised.movedim(-1, 2)).logits
    torch.testing.assert_close(model.classifier(features), logits, rtol=1e-4, atol=1e-5)


def test_provenance_and_frames(saved, videos):
    name, folder, _ = saved
    detector = load_hub_detector(f"{name}:{folder}", device=CPU, offline=True)
    assert (detector.name, detector.source) == (name, str(folder))
    assert len(detector.sha256) == 64
    with pytest.raises(MetricError, match="cannot read clips of 8 frames; expected at least 4 and"):
        detector.check_frames(8)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-3}))
    other = load_hub_detector(f"{name}:{folder}", device=CPU, offline=True)
    assert other.sha256 != detector.sha256


def test_scores_have_names_of_their_own(saved):
    name, folder, _ = saved
    metrics = load_metrics(
        ["kvd", "fvd"], f"{name}:{folder}", folder=folder, device=CPU, fetch=None
    )
    label = HUB_MODELS[name].label
    assert [metric.title for metric in metrics] == [
        f"Fréchet distance on {label} features",
        f"kernel distance on {label} features",
    ]
    assert metrics[0].detector is metrics[1].detector


def test_a_commit_of_the_hub_is_pinned_and_recorded(monkeypatch, tmp_path):
    folder = tmp_path / "snapshots" / "0123abc"
    tiny("videomae").save_pretrained(folder)
    asked = []

    def snapshot_download(repo, *, revision, allow_patterns, local_files_only):
        asked.append((repo, revision, allow_patterns, local_files_only))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    detector = load_hub_detector("videomae:me/mine@0123abc", device=CPU, offline=False)
    assert detector.source == "me/mine@0123abc"
    default = load_hub_detector("videomae", device=CPU, offline=True)
    assert default.source == f"{HUB_MODELS['videomae'].repo}@0123abc"
    files = ["config.json", "model.safetensors"]
    assert asked == [
        ("me/mine", "0123abc", files, False),
        (HUB_MODELS["videomae"].repo, None, files, True),
    ]


def test_refusals(monkeypatch, tmp_path):
    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(MetricError) as caught:
        load_hub_detector("vjepa2", device=CPU, offline=True)
    message = str(caught.value)
    assert "V-JEPA 2's weights (facebook/vjepa2-vitl-fpc16-256-ssv2) are not on this" in message
    assert "--detector vjepa2:FOLDER" in message
    assert max(map(len, message.splitlines()[1:])) <= 100
    with pytest.raises(MetricError, match=r"not a model of transformers; got no config.json"):
        load_hub_detector(f"videomae:{tmp_path}", device=CPU, offline=True)
    tiny("vjepa2").save_pretrained(tmp_path)
    with pytest.raises(MetricError, match=r"not a VideoMAE; got model_type vjepa2"):
        load_hub_detector(f"videomae:{tmp_path}", device=CPU, offline=True)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(MetricError, match=r"cannot read .*model.safetensors"):
        load_hub_detector(f"vjepa2:{tmp_path}", device=CPU, offline=True)
    model = tiny("videomae").videomae
    model.save_pretrained(tmp_path)
    with pytest.raises(MetricError, match=r"lacks weights of a fine-tuned VideoMAE"):
        load_hub_detector(f"videomae:{tmp_path}", device=CPU, offline=True)
    with pytest.raises(MetricError, match=r"unknown detector 'videomea'.*did you mean videomae"):
        check_names(["fvd"], "videomea")
