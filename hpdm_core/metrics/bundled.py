"""The detector that ships with the package: a small video classifier of shapes and walks.

It scores videos of the rendered data sets without any download. Its scores have their own names
('Frechet distance on bundled features', 'class score on bundled features') and are not FVD or IS:
only figures of the same detector can be compared.

Axis legend: `b` batch, `c` channels, `t h w` video, `d` feature width, `s` statistics.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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
# What the second head estimates, each from 0 to about 1.
STRENGTHS = ("noise", "block_noise", "seams", "blur", "shuffled", "frozen", "colour")
# Differences below about a grey level count as equal.
FLOOR = 0.01
SCALES = (1, 2, 4)
GRIDS = (2, 4, 8)
NUM_STATISTICS = 2 * 5 * len(SCALES) + 2 * len(GRIDS) + 2
# Of the last two stages, the statistics and the strengths.
FEATURE_WIDTHS = (STAGE_WIDTHS[2], STAGE_WIDTHS[3], NUM_STATISTICS, len(STRENGTHS))


class Outputs(NamedTuple):
    """What the network says of each video.

    Args:
        features: (b, d).
        classes: (b, num_classes) logits.
        strengths: (b, 7) estimated strength of each of `STRENGTHS`.
    """

    features: Tensor
    classes: Tensor
    strengths: Tensor


class BundledNetwork(nn.Module):
    """Four strided 3D convolutions, and statistics of the finest detail beside them.

    The features are the mean activations of the last two stages, statistics of differences between
    neighbouring pixels and frames (`statistics`), and strengths of degradations, estimated from
    the statistics and the first two stages. Each feature is brought to a fixed scale
    (`feature_mean`, `feature_scale`), which sets how much it counts.

    Args:
        num_classes: width of the linear head on the last stage.
    """

    def __init__(self, num_classes: int) -> None:
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
        self.head = nn.Linear(STAGE_WIDTHS[-1], num_classes)
        width = NUM_STATISTICS + 2 * (STAGE_WIDTHS[0] + STAGE_WIDTHS[1])
        self.strengths = nn.Sequential(
            nn.BatchNorm1d(width), nn.Linear(width, 64), nn.GELU(), nn.Linear(64, len(STRENGTHS))
        )
        num_features = sum(FEATURE_WIDTHS)
        self.register_buffer("feature_mean", torch.zeros(num_features))
        self.register_buffer("feature_scale", torch.ones(num_features))

    def forward(self, video: Tensor) -> Outputs:
        """Return features, class logits and strengths.

        Args:
            video: (b, 3, 16, 64, 64) float32 in [-1, 1].
        """
        detail = statistics(video)
        first, second, third, fourth = self.activations(video)
        strengths = self.strengths(early_pool(detail, first, second))
        late = [reduce(part, "b c t h w -> b c", "mean") for part in (third, fourth)]
        features = torch.cat([*late, detail, strengths], dim=1)
        return Outputs(
            features=(features - self.feature_mean) * self.feature_scale,
            classes=self.head(late[1]),
            strengths=strengths,
        )

    def activations(self, video: Tensor) -> list[Tensor]:
        """Return each stage's output (b, c, t, h, w), halved by its strides."""
        outputs = []
        for stage in self.stages:
            video = stage(video)
            outputs.append(video)
        return outputs


def early_pool(detail: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return (b, s + 2 c1 + 2 c2): the statistics, and mean and deviation of two stages."""
    flat = [part.flatten(2) for part in (first, second)]
    pooled = [pool for part in flat for pool in (part.mean(dim=2), part.std(dim=2))]
    return torch.cat([detail, *pooled], dim=1)


def statistics(video: Tensor) -> Tensor:
    """Return (b, s): how large differences of neighbouring pixels and frames are.

    At each of three scales and for each kind of difference (along height, width, their diagonal,
    time, and the second one in time) the logarithm's mean, which responds to weak noise in flat
    regions, and the mean's logarithm, which responds to few large changes. Then, in logarithms,
    how much larger steps are at multiples of 2, 4 and 8 pixels than right beside them, along
    height and width: content hardly changes that, blocks and tiles do. In time likewise, for
    multiples of 4 and 8 frames.

    Args:
        video: (b, 3, 16, 64, 64) in [-1, 1].
    """
    found = []
    for scale in SCALES:
        coarse = F.avg_pool3d(video, (1, scale, scale)) if scale > 1 else video
        stills = coarse[:, :, ::2]
        down, time = stills.diff(dim=3), coarse.diff(dim=2)
        bands = (down, stills.diff(dim=4), 0.5 * down.diff(dim=4), time, 0.5 * time.diff(dim=2))
        for band in bands:
            size = band.abs().mean(dim=1) + FLOOR  #                                  b t h w
            found += [size.log().mean(dim=(1, 2, 3)), size.mean(dim=(1, 2, 3)).log()]
    for dim, grids in ((3, GRIDS), (4, GRIDS), (2, GRIDS[1:])):
        found += _steps_at(video, dim, grids)
    return torch.stack(found, dim=1)


def _steps_at(video: Tensor, dim: int, grids: tuple[int, ...]) -> list[Tensor]:
    """Return (b,) by grid: mean log step to its multiples along `dim`, less that beside them."""
    others = tuple(d - 1 for d in range(2, 5) if d != dim)
    size = video.diff(dim=dim).abs().mean(dim=1) + FLOOR  #                           b t h w
    steps = size.log().mean(dim=others)  #                                            b (size - 1)
    found = []
    for grid in grids:
        places = torch.arange(grid, steps.shape[1], grid, device=video.device) - 1
        beside = 0.5 * (steps[:, places - 1] + steps[:, places + 1])
        found.append((steps[:, places] - beside).mean(dim=1))
    return found


@dataclass(frozen=True, kw_only=True)
class BundledDetector:
    """The trained classifier and its accuracy.

    Args:
        network: in eval mode.
        classes: names, in the order of `probabilities`.
        accuracy: on held-out shapes and walks (`shapes`, `walks`).
        accuracy_damaged: the same for held-out videos that were recoloured, moved, degraded or
            compressed (benchmarks/degrade.py).
        sha256: of the weights file.
    """

    network: BundledNetwork
    classes: tuple[str, ...]
    accuracy: Mapping[str, float]
    accuracy_damaged: Mapping[str, float]
    sha256: str

    name = "bundled"
    min_frames = MIN_FRAMES

    def features(self, videos: Tensor) -> Tensor:
        """Return (b, d) float32 features of videos (b, t, h, w, 3) uint8, t >= 4, any size."""
        return self._run(videos).features

    def probabilities(self, videos: Tensor) -> Tensor:
        """Return (b, num_classes) float32 class probabilities of videos (b, t, h, w, 3) uint8."""
        return self._run(videos).classes.softmax(dim=1)

    def named_right(self, videos: Tensor, names: Sequence[str], *, among: Sequence[str]) -> float:
        """Return the fraction of videos whose class is the likeliest of some.

        Args:
            videos: (b, t, h, w, 3) uint8.
            names: the class of each.
            among: classes that count, all of them in `classes`.
        """
        kept = [self.classes.index(name) for name in among]
        likeliest = [self.probabilities(v[None])[0, kept].argmax().item() for v in videos]
        return sum(among[k] == name for k, name in zip(likeliest, names, strict=True)) / len(names)

    @torch.inference_mode()
    def _run(self, videos: Tensor) -> Outputs:
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
            accuracy=json.loads(about["accuracy"]),
            accuracy_damaged=json.loads(about["accuracy_damaged"]),
            sha256=sha256_of(path),
        )
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise MetricError(
            f"{path} is not a bundled detector",
            got=f"{type(error).__name__}: {error}",
            remedy="train it again with `python benchmarks/train_detector.py`",
        ) from error
