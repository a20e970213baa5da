"""The interface of detectors, and their common preprocessing.

Axis legend: `b` batch, `c` channels, `t h w` video, `d` output width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from hpdm_core.errors import MetricError


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A feature extractor or classifier: videos in, one row per video out.

    Args:
        name: names the network and the variant, such as `i3d-torchscript`.
        output: `features` or `probabilities`.
        sha256: of the weights file; part of every cached figure's key.
        min_frames: fewest frames that it can read.
        max_frames: most frames that it can read, None for any.
        source: where its weights come from, where several may have its name.
        run: videos (b, t, h, w, 3) uint8 -> (b, d) float32.
    """

    name: str
    output: str
    sha256: str
    min_frames: int
    run: Callable[[Tensor], Tensor]
    max_frames: int | None = None
    source: str | None = None

    def check_frames(self, frames: int) -> None:
        """Raise MetricError unless clips of `frames` frames can be read."""
        if frames < self.min_frames or (self.max_frames is not None and frames > self.max_frames):
            most = "" if self.max_frames is None else f" and at most {self.max_frames}"
            raise MetricError(
                f"{self.name} cannot read clips of {frames} frames",
                expected=f"at least {self.min_frames}{most}",
                remedy="choose a protocol with another number of frames",
            )

    @torch.inference_mode()
    def __call__(self, videos: Tensor, *, batch: int) -> Tensor:
        """Return (n, d) float32 on the CPU for videos (n, t, h, w, 3) uint8, `batch` at a time."""
        if videos.dtype != torch.uint8 or videos.ndim != 5 or videos.shape[-1] != 3:
            raise MetricError(
                f"{self.name} cannot read these videos",
                got=f"{videos.dtype} {tuple(videos.shape)}",
                expected="uint8 (b, t, h, w, 3)",
            )
        self.check_frames(videos.shape[1])
        rows = [self.run(part).float().cpu() for part in videos.split(batch)]
        outputs = torch.cat(rows)
        if outputs.ndim != 2:
            raise MetricError(
                f"{self.name} returned one row per video and place",
                got=tuple(outputs.shape),
                expected="(b, d)",
                remedy="the file does not resize its input, so it is another detector",
            )
        return outputs


def resize_frames(videos: Tensor, side: int, *, align_corners: bool = False) -> Tensor:
    """Resize every frame to side x side, bilinear without antialiasing, as other evaluators do.

    Args:
        videos: (b, t, h, w, 3) of any type.

    Returns:
        (b, 3, t, side, side) float32, in the units of `videos`.
    """
    frames = rearrange(videos, "b t h w c -> (b t) c h w").float()
    frames = F.interpolate(frames, size=(side, side), mode="bilinear", align_corners=align_corners)
    return rearrange(frames, "(b t) c h w -> b c t h w", b=len(videos))
