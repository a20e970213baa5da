"""Videos as images: GIF, WebP, strips of frames, grids and contact sheets.

Axis legend: `b` videos, `t h w` frames, rows, columns, `c` channels.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw

from hpdm_core.files import atomic_path


def write_gif(path: Path, video: np.ndarray, fps: float) -> None:
    """Write (t, h, w, 3) uint8 as an endless GIF (its clock ticks in hundredths of a second)."""
    images = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in video]
    duration = max(20, round(100 / fps) * 10)
    with atomic_path(path) as partial:
        images[0].save(
            partial, format="GIF", save_all=True, append_images=images[1:],
            duration=duration, loop=0,
        )  # fmt: skip


def write_webp(path: Path, video: np.ndarray, fps: float) -> None:
    """Write (t, h, w, 3) uint8 as an endless animated WebP."""
    with atomic_path(path) as partial:
        partial.write_bytes(encode_webp(video, fps))


def encode_webp(video: np.ndarray, fps: float) -> bytes:
    """Return (t, h, w, 3) uint8 as an endless animated WebP."""
    images = [Image.fromarray(frame) for frame in video]
    buffer = BytesIO()
    images[0].save(
        buffer, format="WEBP", save_all=True, append_images=images[1:],
        duration=round(1000 / fps), loop=0, quality=90,
    )  # fmt: skip
    return buffer.getvalue()


def write_png(path: Path, video: np.ndarray) -> None:
    """Write (t, h, w, 3) uint8 as one image, with up to eight frames per row."""
    sheet = video_grid(video[:, None], columns=8)[0]
    with atomic_path(path) as partial:
        Image.fromarray(sheet).save(partial, format="PNG")


def video_grid(videos: np.ndarray, *, columns: int = 4, min_height: int = 1) -> np.ndarray:
    """Tile videos in a grid, row by row; the last row is filled with black.

    Args:
        videos: (b, t, h, w, c) uint8.
        columns: maximum videos per row.
        min_height: small videos are magnified by a whole factor to at least this height.

    Returns:
        (t, rows * h, columns * w, c) uint8.
    """
    columns = min(columns, len(videos))
    padding = np.zeros_like(videos[:1]).repeat(-len(videos) % columns, axis=0)
    videos = np.concatenate([videos, padding])
    factor = max(1, -(-min_height // videos.shape[2]))
    videos = videos.repeat(factor, axis=2).repeat(factor, axis=3)
    return rearrange(videos, "(rows columns) t h w c -> t (rows h) (columns w) c", columns=columns)


def contact_sheet(
    videos: Sequence[np.ndarray], captions: Sequence[str], *, columns: int = 8, min_height: int = 96
) -> Image.Image:
    """Draw a row per video: its caption above some of its frames, evenly spaced in time.

    Args:
        videos: (t, h, w, 3) uint8 each, of any sizes.
        captions: one line of text per video.
        columns: maximum frames per row, including the first and the last.
        min_height: small frames are magnified by a whole factor to at least this height.
    """
    strips = []
    for video in videos:
        count = min(columns, len(video))
        frames = video[np.linspace(0, len(video) - 1, count).round().astype(int), None]
        strips.append(video_grid(frames, columns=count, min_height=min_height)[0])
    line, gap = 16, 6
    width = max(strip.shape[1] for strip in strips)
    height = sum(strip.shape[0] + line + gap for strip in strips)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for strip, caption in zip(strips, captions, strict=True):
        draw.text((2, top + 2), caption, fill="black")
        sheet.paste(Image.fromarray(strip), (0, top + line))
        top += strip.shape[0] + line + gap
    return sheet
