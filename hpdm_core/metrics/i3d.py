"""I3D (Carreira and Zisserman 2017, Kinetics-400), whose logits are the features of FVD.

The same network in two forms: the TorchScript file that the field uses, and our port for the state
dict that VideoGPT distributes. Features are the 400 logits before the softmax, averaged over time.

Axis legend: `b` batch, `c` channels, `t h w` video.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

from hpdm_core.errors import MetricError
from hpdm_core.metrics.detectors import Detector, resize_frames

NUM_CLASSES = 400
SIDE = 224
# Eight frames leave one cell in time, too few for the last pooling of two.
MIN_FRAMES = 9
# Of the network's TensorFlow graph; ports with 1e-5 give other features.
BATCH_NORM_EPS = 1e-3

# Name: input channels, then output channels of (b0, b1a, b1b, b2a, b2b, b3b).
MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's SAME padding (front, back) of one axis: the smaller half in front."""
    remainder = size % stride
    total = max(kernel - (remainder or stride), 0)
    return total // 2, total - total // 2


def pad_same(video: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Pad the last three axes with zeros as TensorFlow's SAME does."""
    padding = [
        amount
        for size, k, s in reversed(list(zip(video.shape[-3:], kernel, stride, strict=True)))
        for amount in same_padding(size, k, s)
    ]
    return F.pad(video, padding)


class ConvUnit(nn.Module):
    """SAME convolution without bias, batch norm, ReLU."""

    def __init__(self, c_in: int, c_out: int, *, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(c_in, c_out, kernel, stride=stride, bias=False)
        self.bn = nn.BatchNorm3d(c_out, eps=BATCH_NORM_EPS)

    def forward(self, video: Tensor) -> Tensor:
        conv = self.conv3d
        return self.bn(conv(pad_same(video, conv.kernel_size, conv.stride))).relu()


class SamePool(nn.Module):
    """SAME max-pooling; padding with zeros is right because the input follows a ReLU."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, video: Tensor) -> Tensor:
        return F.max_pool3d(pad_same(video, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """Four branches side by side: 1x1, 1x1 + 3x3, 1x1 + 3x3, pool + 1x1."""

    def __init__(self, c_in: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = widths
        self.b0 = ConvUnit(c_in, b0)
        self.b1a, self.b1b = ConvUnit(c_in, b1a), ConvUnit(b1a, b1b, kernel=3)
        self.b2a, self.b2b = ConvUnit(c_in, b2a), ConvUnit(b2a, b2b, kernel=3)
        self.b3a, self.b3b = SamePool((3, 3, 3), (1, 1, 1)), ConvUnit(c_in, b3b)

    def forward(self, video: Tensor) -> Tensor:
        branches = (
            self.b0(video),
            self.b1b(self.b1a(video)),
            self.b2b(self.b2a(video)),
            self.b3b(self.b3a(video)),
        )
        return torch.cat(branches, dim=1)


class LogitUnit(nn.Module):
    """1x1 convolution with bias."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(c_in, c_out, 1)

    def forward(self, video: Tensor) -> Tensor:
        return self.conv3d(video)


class I3D(nn.Module):
    """The RGB network, with the parameter names of VideoGPT's state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = ConvUnit(3, 64, kernel=7, stride=2)
        self.Conv3d_2b_1x1 = ConvUnit(64, 64)
        self.Conv3d_2c_3x3 = ConvUnit(64, 192, kernel=3)
        for name, (c_in, widths) in MIXED.items():
            self.add_module(name, Mixed(c_in, widths))
        self.logits = LogitUnit(1024, NUM_CLASSES)
        self.pool_space = SamePool((1, 3, 3), (1, 2, 2))
        self.pool_wide = SamePool((3, 3, 3), (2, 2, 2))
        self.pool_narrow = SamePool((2, 2, 2), (2, 2, 2))

    def forward(self, video: Tensor) -> Tensor:
        """Return logits (b, 400).

        Args:
            video: (b, 3, t, 224, 224) float32 in [-1, 1], t >= 9.
        """
        x = self.pool_space(self.Conv3d_1a_7x7(video))  #                   b  64 t/2 56 56
        x = self.pool_space(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)))  #   b 192 t/2 28 28
        x = self.pool_wide(self.Mixed_3c(self.Mixed_3b(x)))  #              b 480 t/4 14 14
        x = self.Mixed_4d(self.Mixed_4c(self.Mixed_4b(x)))  #               b 512 t/4 14 14
        x = self.pool_narrow(self.Mixed_4f(self.Mixed_4e(x)))  #            b 832 t/8  7  7
        x = self.Mixed_5c(self.Mixed_5b(x))  #                              b 1024 t/8 7  7
        x = F.avg_pool3d(x, (2, 7, 7), stride=1)  #                         b 1024 t/8-1 1 1
        return reduce(self.logits(x), "b c t 1 1 -> b c", "mean")  #        b 400


def load_i3d_port(path: Path, *, sha256: str, device: torch.device | str) -> Detector:
    """Return our port with VideoGPT's state dict; the caller has checked the file's hash.

    Raises:
        MetricError: where the file holds other parameters.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    network = I3D()
    expected = {k: v.shape for k, v in network.state_dict().items() if not _is_counter(k)}
    found = {k: v.shape for k, v in state.items() if not _is_counter(k)}
    if found != expected:
        wrong = sorted(expected.items() ^ found.items())
        raise MetricError(
            f"{path} is not VideoGPT's I3D state dict",
            got=f"{len(found)} tensors; the first that differs: {wrong[0][0]}",
            expected=f"{len(expected)} tensors such as Mixed_3b.b0.conv3d.weight",
        )
    # The file has no batch counters; they play no part in eval mode.
    network.load_state_dict(state, strict=False)
    network.eval().requires_grad_(False).to(device)

    def run(videos: Tensor) -> Tensor:
        return network(resize_frames(videos.to(device), SIDE) / 127.5 - 1)

    return Detector(
        name="i3d-port", output="features", sha256=sha256, min_frames=MIN_FRAMES, run=_exact(run)
    )


def load_i3d_torchscript(path: Path, *, sha256: str, device: torch.device | str) -> Detector:
    """Return the TorchScript network; the caller has checked the file's hash, as it is code."""
    network = torch.jit.load(str(path), map_location=device).eval()

    def run(videos: Tensor) -> Tensor:
        video = videos.to(device).movedim(-1, 1).contiguous()
        return network(x=video, rescale=True, resize=True, return_features=True)

    return Detector(
        name="i3d-torchscript",
        output="features",
        sha256=sha256,
        min_frames=MIN_FRAMES,
        run=_exact(run),
    )


def _exact(run):
    """Keep TF32 and autocast out: published features are float32."""

    def exact(videos: Tensor) -> Tensor:
        flags = torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=False, allow_tf32=False
        )
        with flags, torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return run(videos)

    return exact


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")
