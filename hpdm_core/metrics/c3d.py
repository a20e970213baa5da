"""C3D (Tran et al. 2015), fine-tuned on UCF-101: the classifier of the field's Inception Score.

Our port for the arrays that TGANv2 distributes (Saito et al. 2020), and the TorchScript
file of later evaluators. Both read 16 frames and return probabilities of the 101 classes.

Axis legend: `b` batch, `c` channels, `t h w` video.
"""

import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from hpdm_core.errors import MetricError
from hpdm_core.metrics.detectors import Detector, resize_frames

NUM_CLASSES = 101
SIDE, FRAMES = 112, 16
# The mean video is 128 x 171; the network's authors cut its 112 x 112 from this corner.
MEAN_CORNER = 8
CONVS = {
    "conv1a": (3, 64),
    "conv2a": (64, 128),
    "conv3a": (128, 256),
    "conv3b": (256, 256),
    "conv4a": (256, 512),
    "conv4b": (512, 512),
    "conv5a": (512, 512),
    "conv5b": (512, 512),
}
LINEARS = {"fc6": (512 * 4 * 4, 4096), "fc7": (4096, 4096), "fc8": (4096, NUM_CLASSES)}


class C3D(nn.Module):
    """The network, with the layer names of TGANv2's arrays."""

    def __init__(self) -> None:
        super().__init__()
        for name, (c_in, c_out) in CONVS.items():
            self.add_module(name, nn.Conv3d(c_in, c_out, 3, padding=1))
        for name, (d_in, d_out) in LINEARS.items():
            self.add_module(name, nn.Linear(d_in, d_out))
        self.register_buffer("mean", torch.zeros(3, FRAMES, SIDE, SIDE))

    def forward(self, videos: Tensor) -> Tensor:
        """Return probabilities (b, 101).

        Args:
            videos: (b, 16, h, w, 3) uint8, RGB.
        """
        # Evaluators map grey levels to x / 127.5 - 1 and the network back by 128 x + 128, which
        # is kept with its factor of 128 / 127.5. Corners are aligned as Chainer's resize does.
        x = resize_frames(videos, SIDE, align_corners=True) / 127.5 - 1  #    b 3 16 112 112
        x = 128 * x.flip(1) + 128 - self.mean  #                              channels are BGR
        x = _pool(self.conv1a(x).relu(), time=1)  #                           b  64 16 56 56
        x = _pool(self.conv2a(x).relu(), time=2)  #                           b 128  8 28 28
        x = _pool(self.conv3b(self.conv3a(x).relu()).relu(), time=2)  #       b 256  4 14 14
        x = _pool(self.conv4b(self.conv4a(x).relu()).relu(), time=2)  #       b 512  2  7  7
        x = _pool(self.conv5b(self.conv5a(x).relu()).relu(), time=2)  #       b 512  1  4  4
        x = rearrange(x, "b c 1 h w -> b (c h w)")
        return self.fc8(self.fc7(self.fc6(x).relu()).relu()).softmax(dim=1)  # b 101


def load_c3d_port(
    weights: Path, mean: Path, *, sha256: str, device: torch.device | str
) -> Detector:
    """Return our port with TGANv2's arrays `conv3d_deepnetA_ucf.npz` and `mean2.npz`.

    Raises:
        MetricError: where a file holds other arrays.
    """
    state = {}
    arrays = _read_arrays(weights)
    for name in (*CONVS, *LINEARS):
        state[f"{name}.weight"] = _array(arrays, f"{name}/W", weights)
        state[f"{name}.bias"] = _array(arrays, f"{name}/b", weights)
    whole = rearrange(_array(_read_arrays(mean), "mean", mean), "... h w -> (...) h w")
    crop = slice(MEAN_CORNER, MEAN_CORNER + SIDE)
    network = C3D()
    try:
        state["mean"] = rearrange(whole[:, crop, crop], "(c t) h w -> c t h w", c=3, t=FRAMES)
        network.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise MetricError(f"{weights} and {mean} are not TGANv2's C3D", got=error) from error
    network.eval().requires_grad_(False).to(device)
    return _detector("c3d-port", sha256, lambda videos: network(videos.to(device)))


def load_c3d_torchscript(path: Path, *, sha256: str, device: torch.device | str) -> Detector:
    """Return the TorchScript network; the caller has checked the file's hash, as it is code."""
    network = torch.jit.load(str(path), map_location=device).eval()
    return _detector(
        "c3d-torchscript",
        sha256,
        lambda videos: network(videos.to(device).movedim(-1, 1).contiguous()),
    )


def _detector(name: str, sha256: str, run) -> Detector:
    return Detector(
        name=name,
        output="probabilities",
        sha256=sha256,
        min_frames=FRAMES,
        max_frames=FRAMES,
        run=run,
    )


def _pool(video: Tensor, *, time: int) -> Tensor:
    # Sizes round up, so that 7 x 7 becomes 4 x 4.
    return F.max_pool3d(video, (time, 2, 2), ceil_mode=True)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise MetricError(f"{path} is not a file of arrays (.npz)", got=error) from error


def _array(arrays: dict[str, np.ndarray], key: str, path: Path) -> Tensor:
    if key not in arrays:
        raise MetricError(f"{path} has no array {key!r}", got=", ".join(sorted(arrays)[:5]))
    return torch.from_numpy(arrays[key].astype(np.float32))
