"""Quality measures as a detector: a row of figures per clip, so that they are cached like features.

Axis legend: `b` videos, `t h w` frames, rows, columns.
"""

from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor

from hpdm_core.files import sha256_of
from hpdm_core.metrics import quality
from hpdm_core.metrics.detectors import Detector
from hpdm_core.metrics.quality import Borders, Quality, measure_quality

MEASURES = tuple(field.name for field in fields(Quality))
# Tiles of a quarter of each axis with half overlap have their borders here.
PARTS = 8


def quality_detector() -> Detector:
    """Return what measures `MEASURES` of each clip, nan where one is undefined."""
    return Detector(
        name="quality",
        output="quality",
        sha256=sha256_of(Path(quality.__file__)),
        min_frames=1,
        run=_measure,
    )


def eighths(size: tuple[int, int, int]) -> Borders:
    """Return the borders of eighths of each axis of (t, h, w), at which seams are measured."""
    places = [
        tuple(sorted({round(k * side / PARTS) for k in range(1, PARTS)} - {0, side}))
        for side in size
    ]
    return places[0], places[1], places[2]


def _measure(videos: Tensor) -> Tensor:
    """From (b, t, h, w, 3) uint8 to (b, 6) float32."""
    clips = videos.cpu().numpy()
    borders = eighths(clips.shape[1:4])
    rows = [asdict(measure_quality([clip], borders)).values() for clip in clips]
    return torch.tensor([[float("nan") if v is None else v for v in row] for row in rows])
