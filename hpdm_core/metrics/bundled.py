"""The detector that ships with the package: a small 3D-convolution classifier of the shapes.

It scores videos of the built-in data set without any download. Its scores have their own names
('Frechet distance on bundled features', 'class score on bundled features') and are not FVD or IS:
only figures of the same detector can be compared.

Axis legend: `b` batch, `c` channels, `t h w` video, `d` feature width.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hpdm_core.errors import MetricError
from hpdm_core.files import sha256_of

WEIGHTS = Path(__file__).parents[1] / "assets" / "bundled_detector.safetensors"
INPUT_SIZE = (16, 64, 64)
MIN_FRAMES = 4
STAGE_WIDTHS = (24, 48, 96, 128)
STAGE_STRIDES = ((2, 2, 2), (2, 2, 2), (1, 2, 2), (2, 2, 2))


class BundledNetwork(nn.Module):
    """Four strided 3D convolutions; the features are the mean activation of each stage.

    Early stages respond to texture and noise, late ones to shape and motion.

    Args:
        num_outputs: width of the linear head on the last stage.
    """

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        widths = (3, *STAGE_WIDTHS)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(c_in, c_out, kernel_size=3, stride=stride, padding=1, bias=False),
                nn.BatchNorm3d(c_out),
                nn.GELU(),
            )
            for c_in, c_out, stride in zip(widths[:-1], widths[1:], STAGE_STRIDES, strict=True)
        )
        self.head = nn.Linear(STAGE_WIDTHS[-1], num_outputs)

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features (b, d) and the head's outputs (b, num_outputs).

        Args:
            video: (b, 3, 16, 64, 64) float32 in [-1, 1].
        """
        means = []
        for stage in self.stages:
            video = stage(video)  #                              b c t h w, halved by the stride
            means.append(reduce(video, "b c t h w -> b c", "mean"))
        return torch.cat(means, dim=1), self.head(means[-1])


@dataclass(frozen=True, kw_only=True)
class BundledDetector:
    """The trained classifier and its accuracy.

    Args:
        network: in eval mode.
        classes: names, in the order of `probabilities`.
        accuracy: on clean held-out videos.
        accuracy_damaged: the same for held-out videos that were recoloured, moved, blurred,
            made noisy or compressed.
        sha256: of the weights file.
    """

    network: BundledNetwork
    classes: tuple[str, ...]
    accuracy: float
    accuracy_damaged: float
    sha256: str

    name = "bundled"
    min_frames = MIN_FRAMES

    def features(self, videos: Tensor) -> Tensor:
        """Return (b, d) float32 features of videos (b, t, h, w, 3) uint8, t >= 4, any size."""
        return self._run(videos)[0]

    def probabilities(self, videos: Tensor) -> Tensor:
        """Return (b, num_classes) float32 class probabilities of videos (b, t, h, w, 3) uint8."""
        return self._run(videos)[1][:, : len(self.classes)].softmax(dim=1)

    @torch.inference_mode()
    def _run(self, videos: Tensor) -> tuple[Tensor, Tensor]:
        device = self.network.head.weight.device
        return self.network(to_network_input(videos.to(device)))


def to_network_input(videos: Tensor) -> Tensor:
    """Resize videos to the network's fixed size: nearest frames in time, antialiased in space.

    Args:
        videos: (b, t, h, w, 3) uint8 with t >= 4.

    Returns:
        (b, 3, 16, 64, 64) float32 in [-1, 1].

    Raises:
        MetricError: for another shape or type.
    """
    shape = tuple(videos.shape)
    if videos.dtype != torch.uint8 or len(shape) != 5 or shape[-1] != 3 or shape[1] < MIN_FRAMES:
        raise MetricError(
            "the bundled detector cannot read these videos",
            got=f"{videos.dtype} {shape}",
            expected=f"uint8 (b, t, h, w, 3) with at least {MIN_FRAMES} frames",
        )
    num_frames, height, width = INPUT_SIZE
    places = torch.linspace(0, shape[1] - 1, num_frames, device=videos.device).round().long()
    planes = rearrange(videos[:, places].float(), "b t h w c -> (b t) c h w")
    if shape[2:4] != (height, width):
        planes = F.interpolate(planes, size=(height, width), mode="bilinear", antialias=True)
    return rearrange(planes / 127.5 - 1, "(b t) c h w -> b c t h w", t=num_frames)


def load_bundled(device: torch.device | str = "cpu", *, path: Path = WEIGHTS) -> BundledDetector:
    """Return the detector that ships with the package.

    Raises:
        MetricError: where the file is absent or is not such a detector.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        network = BundledNetwork(len(state["head.bias"]))
        network.load_state_dict(state)
        return BundledDetector(
            network=network.eval().requires_grad_(False).to(device),
            classes=tuple(json.loads(about["classes"])),
            accuracy=float(about["accuracy"]),
            accuracy_damaged=float(about["accuracy_damaged"]),
            sha256=sha256_of(path),
        )
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise MetricError(
            f"{path} is not a bundled detector",
            got=f"{type(error).__name__}: {error}",
            remedy="train it again with `python -m hpdm_core.metrics.train_bundled`",
        ) from error
