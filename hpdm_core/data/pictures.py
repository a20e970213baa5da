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

LABEL_HEIGHT, GAP = 18, 4
ROW_HEIGHT = 192  # of videos side by side


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


def video_grid(
    videos: np.ndarray, *, columns: int = 4, min_height: int = 1, gap: int = 0
) -> np.ndarray:
    """Tile videos in a grid, row by row; gaps and the rest of the last row are black.

    Args:
        videos: (b, t, h, w, c) uint8.
        columns: maximum videos per row.
        min_height: small videos are magnified by a whole factor to at least this height.
        gap: pixels between videos.

    Returns:
        (t, rows * h, columns * w, c) uint8, without gaps.
    """
    columns = min(columns, len(videos))
    padding = np.zeros_like(videos[:1]).repeat(-len(videos) % columns, axis=0)
    videos = np.concatenate([videos, padding])
    videos = np.pad(_magnified(videos, min_height), ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)))
    grid = rearrange(videos, "(rows columns) t h w c -> t (rows h) (columns w) c", columns=columns)
    return grid[:, : grid.shape[1] - gap, : grid.shape[2] - gap]


def labelled_row(videos: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """Put videos of equal size side by side, magnified, each with a line of text above it.

    Args:
        videos: (t, h, w, 3) uint8 each.
        labels: one per video.

    Returns:
        (t, LABEL_HEIGHT + h, all w and gaps, 3) uint8.
    """
    rows = video_grid(np.stack(videos), columns=len(videos), min_height=ROW_HEIGHT, gap=GAP)
    head = Image.new("RGB", (rows.shape[2], LABEL_HEIGHT), "white")
    draw = ImageDraw.Draw(head)
    for place, label in enumerate(labels):
        left = place * (rows.shape[2] + GAP) // len(videos)
        draw.text((left + 2, 3), label, fill="black")
    heads = np.broadcast_to(np.asarray(head), (len(rows), *np.asarray(head).shape))
    return np.concatenate([heads, rows], axis=1)


def contact_sheet(
    videos: Sequence[np.ndarray], captions: Sequence[str], *, columns: int = 8, min_height: int = 96
) -> Image.Image:
    """Draw a row per video: its caption, and some of its frames with their numbers (from 0).

    Args:
        videos: (t, h, w, 3) uint8 each, of any sizes.
        captions: one line of text per video.
        columns: maximum frames per row, including the first and the last.
        min_height: small frames are magnified by a whole factor to at least this height.
    """
    strips = [_strip(video, columns, min_height) for video in videos]
    width = max(strip.width for strip in strips)
    sheet = Image.new("RGB", (width, sum(LABEL_HEIGHT + strip.height for strip in strips)), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for strip, caption in zip(strips, captions, strict=True):
        draw.text((2, top + 3), caption, fill="black")
        sheet.paste(strip, (0, top + LABEL_HEIGHT))
        top += LABEL_HEIGHT + strip.height
    return sheet


def _strip(video: np.ndarray, columns: int, min_height: int) -> Image.Image:
    """Draw evenly spaced frames side by side, with white gaps and their numbers below."""
    count = min(columns, len(video))
    numbers = np.linspace(0, len(video) - 1, count).round().astype(int)
    frames = _magnified(video[None, numbers], min_height)[0]
    height, width = frames.shape[1:3]
    strip = Image.new("RGB", (count * (width + GAP) - GAP, height + LABEL_HEIGHT), "white")
    draw = ImageDraw.Draw(strip)
    for place, (number, frame) in enumerate(zip(numbers, frames, strict=True)):
        left = place * (width + GAP)
        strip.paste(Image.fromarray(frame), (left, 0))
        draw.text((left + 2, height + 1), str(number), fill="dimgray")
    return strip


def _magnified(videos: np.ndarray, min_height: int) -> np.ndarray:
    """Magnify (b, t, h, w, c) by a whole factor to at least a height."""
    factor = max(1, -(-min_height // videos.shape[2]))
    return videos.repeat(factor, axis=2).repeat(factor, axis=3)
