"""Detectors of the Hugging Face hub: VideoMAE and V-JEPA 2, fine-tuned on Something-Something v2.

Their features depend more on motion than I3D's (Ge et al. 2024, 'On the content bias in FVD'; Luo
et al. 2024, 'Beyond FVD'). Both papers use the last layer before the classifier, as here, of
larger or earlier models of the two kinds, so that figures are not those of CD-FVD or JEDi.

A detector is `videomae` or `vjepa2`, or one of these with what to load: `videomae:FOLDER`,
`videomae:OWNER/NAME@COMMIT`. The commit that was loaded and the hash of its weights are recorded.

Axis legend: `b` batch, `c` channels, `t h w` video, `d` feature width.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError
from torch import Tensor

from hpdm_core.errors import MetricError
from hpdm_core.files import sha256_of
from hpdm_core.metrics.detectors import Detector, resize_frames

# ImageNet's, with which both were trained.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A kind of network that transformers has.

    Args:
        label: in the names of scores.
        repo: what is loaded by default.
        model_type: of its configuration.
        classifier: name of its class in transformers.
        side, frames: names of the configuration's fields.
    """

    label: str
    repo: str
    model_type: str
    classifier: str
    side: str
    frames: str


HUB_MODELS = {
    "videomae": HubModel(
        label="VideoMAE",
        repo="MCG-NJU/videomae-base-finetuned-ssv2",
        model_type="videomae",
        classifier="VideoMAEForVideoClassification",
        side="image_size",
        frames="num_frames",
    ),
    "vjepa2": HubModel(
        label="V-JEPA 2",
        repo="facebook/vjepa2-vitl-fpc16-256-ssv2",
        model_type="vjepa2",
        classifier="VJEPA2ForVideoClassification",
        side="crop_size",
        frames="frames_per_clip",
    ),
}


def hub_model(detector: str) -> HubModel | None:
    """Return the kind of a detector's name, None where it is none of these."""
    return HUB_MODELS.get(detector.partition(":")[0])


def load_hub_detector(detector: str, *, device: torch.device, offline: bool) -> Detector:
    """Return the detector of a name such as `videomae`, `vjepa2:FOLDER` or `videomae:O/N@COMMIT`.

    Frames are resized as a whole to the network's side and normalised; the features are
    what its classifier reads. In float32.

    Args:
        offline: use only what is on this machine.

    Raises:
        MetricError: it is not here and cannot be fetched, or it is another network.
    """
    name, _, source = detector.partition(":")
    kind = HUB_MODELS[name]
    folder, origin = _folder_of(kind, source or kind.repo, name=name, offline=offline)
    config = _read_config(folder, kind)
    network = _load_network(folder, kind).to(device)
    side, frames = int(config[kind.side]), int(config[kind.frames])

    def features(videos: Tensor) -> Tensor:
        pixels = resize_frames(videos.to(device), side) / 255  # b c t h w
        mean, std = (pixels.new_tensor(v)[:, None, None, None] for v in (MEAN, STD))
        return network(rearrange((pixels - mean) / std, "b c t h w -> b t c h w")).logits

    hashes = sha256_of(folder / WEIGHTS) + sha256_of(folder / CONFIG)
    return Detector(
        name=name,
        output="features",
        sha256=hashlib.sha256(hashes.encode()).hexdigest(),
        min_frames=frames,
        max_frames=frames,
        run=features,
        source=origin,
    )


def cached_folder(kind: HubModel) -> Path | None:
    """Return where the default weights of a kind are on this machine, None if they are not."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(kind.repo, file) for file in (CONFIG, WEIGHTS)]
    return Path(found[0]).parent if all(isinstance(file, str) for file in found) else None


def _folder_of(kind: HubModel, source: str, *, name: str, offline: bool) -> tuple[Path, str]:
    """Return the folder of the files, and what to record of where they come from."""
    if Path(source).is_dir():
        return Path(source), source
    from huggingface_hub import snapshot_download

    repo, _, revision = source.partition("@")
    try:
        folder = snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=[CONFIG, WEIGHTS],
            local_files_only=offline,
        )
    except (OSError, ValueError) as error:
        raise MetricError(
            f"{kind.label}'s weights ({repo}) are not on this machine",
            got=f"{type(error).__name__} on fetching them",
            remedy="fetch them where there is a network, with\n"
            f"  hf download {repo} {CONFIG} {WEIGHTS} --local-dir FOLDER\n"
            f"  and give --detector {name}:FOLDER",
        ) from error
    path = Path(folder)
    return path, f"{repo}@{path.name}"


def _read_config(folder: Path, kind: HubModel) -> dict[str, Any]:
    absent = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if absent:
        raise MetricError(
            f"{folder} is not a model of transformers", got=f"no {absent[0]}", expected=WEIGHTS
        )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise MetricError(f"cannot read {folder / CONFIG}", got=error) from error
    if config.get("model_type") != kind.model_type:
        raise MetricError(
            f"{folder} is not a {kind.label}",
            got=f"model_type {config.get('model_type')}",
            expected=kind.model_type,
        )
    return config


def _load_network(folder: Path, kind: HubModel) -> torch.nn.Module:
    import transformers

    cls = getattr(transformers, kind.classifier)
    try:
        network, info = cls.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True,
            dtype=torch.float32,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise MetricError(f"cannot read {folder / WEIGHTS}", got=error) from error
    if info["missing_keys"]:
        raise MetricError(
            f"{folder / WEIGHTS} lacks weights of a fine-tuned {kind.label}",
            got=f"no {sorted(info['missing_keys'])[0]}",
            remedy="take a model that was fine-tuned for video classification",
        )
    network.classifier = torch.nn.Identity()
    return network.eval().requires_grad_(False)
