"""Generated videos: pixels and frame rate, saved as files or shown in a notebook.

Axis legend: `b` videos, `c` channels, `t h w` frames, rows, columns.
"""

import base64
import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpdm_core.data.pictures import encode_webp, video_grid, write_gif, write_png, write_webp
from hpdm_core.data.video_io import write_mp4
from hpdm_core.errors import HpdmError
from hpdm_core.pipeline.conditions import Request

Writer = Callable[[Path, np.ndarray, float], object]
WRITERS: dict[str, Writer] = {
    "mp4": write_mp4,
    "gif": write_gif,
    "webp": write_webp,
    "png": lambda path, video, fps: write_png(path, video),
}
# In notebooks: minimum height of a video, and maximum number of videos.
SHOWN_HEIGHT, MOST_SHOWN = 96, 16


@dataclass(frozen=True, kw_only=True)
class Videos:
    """Generated videos.

    Args:
        frames: (b, t, h, w, 3) uint8.
        fps: frames per second.
        requests: class or prompt, and seed, of each video.
    """

    frames: np.ndarray
    fps: float
    requests: tuple[Request, ...]

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def captions(self) -> tuple[str, ...]:
        """A line of text per video: seed and class or prompt."""
        return tuple(request.caption for request in self.requests)

    def save(self, path: str | Path, format: str | None = None) -> list[Path]:
        """Write the videos.

        Args:
            path: a folder, which gets a file per video; or a file whose suffix names a format,
                which gets all videos side by side.
            format: 'mp4', 'gif', 'webp' or 'png' (all frames as one picture); None goes by the
                suffix of `path`, and is MP4 for a folder.

        Returns:
            the files, in the order of the videos.

        Raises:
            HpdmError: another format, or the files cannot be written.
        """
        path = Path(path)
        suffix = path.suffix[1:].lower()
        name = format or (suffix if suffix in WRITERS else "mp4")
        if name not in WRITERS:
            raise HpdmError(
                "unknown video format", got=name, expected=f"one of {', '.join(WRITERS)}"
            )
        if suffix == name:
            targets = {path: video_grid(self.frames)}
        else:
            named = zip(self.requests, self.frames, strict=True)
            targets = {path / f"{request.stem}.{name}": video for request, video in named}
        try:
            for target, video in targets.items():
                target.parent.mkdir(parents=True, exist_ok=True)
                WRITERS[name](target, video, self.fps)
        except OSError as error:
            raise HpdmError(f"cannot write to {path}", got=error) from error
        return list(targets)

    def _repr_html_(self) -> str:
        """Return an animated image of the videos with their captions, for notebooks."""
        shown = self.frames[:MOST_SHOWN]
        picture = encode_webp(video_grid(shown, min_height=SHOWN_HEIGHT), self.fps)
        captions = "; ".join(self.captions[:MOST_SHOWN])
        return (
            f'<img src="data:image/webp;base64,{base64.b64encode(picture).decode()}"/>'
            f"<p>{len(self)} videos at {self.fps:g} fps: {html.escape(captions)}</p>"
        )

    def __repr__(self) -> str:
        shape = "x".join(str(size) for size in self.frames.shape[1:])
        return f"Videos({len(self)} of {shape} at {self.fps:g} fps: {'; '.join(self.captions)})"


def to_uint8(videos: Tensor) -> Tensor:
    """Convert (b, c, t, h, w) in [-1, 1] to (b, t, h, w, c) uint8, rounding like evaluators."""
    return (videos * 127.5 + 128).clamp(0, 255).to(torch.uint8).movedim(1, -1)
