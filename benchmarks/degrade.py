"""Video degradations of known strength, which scores must detect and detectors must tolerate.

Every function takes and returns a video (t, h, w, 3) uint8 and leaves its argument as it was.

Axis legend: `t h w` frames, rows, columns.
"""

import io

import av
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def add_noise(video: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise of `std` grey levels to every pixel of every frame."""
    noise = torch.randn(video.shape, generator=generator) * std
    return (video + noise).round().clamp(0, 255).to(torch.uint8)


def add_block_noise(video: Tensor, std: float, generator: torch.Generator, *, block: int) -> Tensor:
    """Add noise of `std` grey levels that is constant over block x block pixels of a frame."""
    frames, height, width, colours = video.shape
    cells = (frames, -(-height // block), -(-width // block), colours)
    noise = torch.randn(cells, generator=generator) * std
    noise = noise.repeat_interleave(block, dim=1).repeat_interleave(block, dim=2)
    return (video + noise[:, :height, :width]).round().clamp(0, 255).to(torch.uint8)


def add_seams(
    video: Tensor, std: float, generator: torch.Generator, *, tile: tuple[int, int, int]
) -> Tensor:
    """Shift the colour of every (t, h, w) tile by its own `std` grey levels: steps at borders."""
    sizes = video.shape[:3]
    cells = [-(-size // side) for size, side in zip(sizes, tile, strict=True)]
    shift = torch.randn((*cells, 3), generator=generator) * std
    for dim, side in enumerate(tile):
        shift = shift.repeat_interleave(side, dim=dim)
    shift = shift[: sizes[0], : sizes[1], : sizes[2]]
    return (video + shift).round().clamp(0, 255).to(torch.uint8)


def shift_colour(video: Tensor, amount: float) -> Tensor:
    """Add `amount` grey levels to red and take them from blue."""
    return (video + amount * torch.tensor([1.0, 0.0, -1.0])).round().clamp(0, 255).to(torch.uint8)


def blur(video: Tensor, sigma: float) -> Tensor:
    """Blur every frame by a Gaussian of `sigma` pixels, mirrored at the border."""
    height, width = video.shape[1:3]
    radius = min(max(1, round(3 * sigma)), height - 1, width - 1)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    taps = taps / taps.sum()
    planes = rearrange(video.float(), "t h w c -> (t c) 1 h w")
    planes = F.pad(planes, (radius, radius, radius, radius), mode="reflect")
    planes = F.conv2d(planes, rearrange(taps, "k -> 1 1 k 1"))
    planes = F.conv2d(planes, rearrange(taps, "k -> 1 1 1 k"))
    frames = rearrange(planes, "(t c) 1 h w -> t h w c", c=3)
    return frames.round().clamp(0, 255).to(torch.uint8)


def shuffle_frames(video: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Shuffle a random subset of the frames among themselves."""
    num = len(video)
    chosen = torch.randperm(num, generator=generator)[: round(share * num)]
    order = torch.arange(num)
    order[chosen.sort().values] = chosen
    return video[order]


def freeze_frames(video: Tensor, share: float) -> Tensor:
    """Freeze the last fraction of the frames at the frame before them."""
    last = max(0, len(video) - 1 - round(share * len(video)))
    return video[torch.arange(len(video)).clamp(max=last)]


def compress_h264(video: Tensor, crf: int) -> Tensor:
    """Encode as H.264 at a constant rate factor (18 is fine, 40 is poor) and decode again.

    Odd sides are padded by one repeated row or column first, as 4:2:0 chroma needs even ones.
    """
    _, height, width, _ = video.shape
    frames = np.pad(video.numpy(), ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(crf), "preset": "ultrafast", "threads": "1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(decoded))[:, :height, :width]
