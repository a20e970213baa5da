"""Schedules of sampling on one trained model: quality and cost of each row.

Every row draws the same videos: the same noise and classes. The converged solution is that of the
deterministic flow from this noise, by the third-order multistep method in very many steps.

Axis legend: `b` videos, `c` channels, `t h w` frames, rows, columns, `d` feature width.
"""

import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpdm_core.device import resolve_device
from hpdm_core.errors import MetricError
from hpdm_core.geometry.tiles import tile_borders
from hpdm_core.inference.generate import SamplingSettings
from hpdm_core.metrics.bundled import load_bundled
from hpdm_core.metrics.detectors import Detector
from hpdm_core.metrics.frechet import FeatureStats, frechet_distance
from hpdm_core.metrics.kernel import kernel_distance
from hpdm_core.metrics.load import cache_folder, fetch_from_mirrors, load_metrics
from hpdm_core.metrics.quality import measure_quality
from hpdm_core.pipeline.pipeline import Pipeline
from hpdm_core.pipeline.plan import describe_sampling
from hpdm_core.pipeline.videos import to_uint8
from hpdm_core.progress import Progress
from hpdm_core.records import NO_CLASS
from hpdm_core.reports.ablations import Scale
from hpdm_core.runs.evaluate.clips import (
    ClipFormat,
    FileClips,
    in_random_order,
    open_videos,
)

DETECTOR_BATCH = 8


@dataclass(kw_only=True)
class SamplerMeter:
    """Measures rows of one table; what rows share is computed once.

    Args:
        scale: number of videos, and steps of the converged solution.
        device: 'auto', 'cpu' or 'cuda'.
        progress: progress bar.
    """

    scale: Scale
    device: str
    progress: Progress
    _converged: dict[tuple, Tensor] = field(default_factory=dict)
    _reals: dict[Path, Tensor] = field(default_factory=dict)

    def measure(self, pipeline: Pipeline, *, real: Path, seed: int) -> dict[str, dict[str, Any]]:
        """Return figures by name, those of `SAMPLER_FIGURES`.

        Args:
            pipeline: the model with the row's schedule.
            real: data set that videos are compared with.
            seed: of the first video.
        """
        settings, count = pipeline.settings, self.scale.sampled
        began = time.perf_counter()
        videos = self._draw(pipeline, settings, count, seed)
        seconds = (time.perf_counter() - began) / count
        passes = sum(
            row["block_passes_cached"] for row in describe_sampling(pipeline.recipe, settings)
        )
        pixels = to_uint8(videos)
        features, reals = self._detector(pixels, batch=DETECTOR_BATCH), self._real(pipeline, real)
        pyramid = pipeline.pyramid
        borders = tile_borders(pyramid, pyramid.num_levels - 1, settings.overlap)
        quality = measure_quality(pixels.numpy(), borders)
        figures = {
            "passes": passes,
            "seconds": seconds,
            "fvd": frechet_distance(FeatureStats.of(features), FeatureStats.of(reals)),
            "kernel": kernel_distance(features, reals),
            "flicker": quality.flicker,
            "hh": quality.hh,
            "seams": quality.seams,
            "high_frequency": quality.high_frequency,
            "named_right": _named_right(pipeline, pixels),
        }
        measured = {
            name: {"value": value, "name": name, "of": f"{count} videos"}
            for name, value in figures.items()
        }
        return measured | {"distance": self._distance(pipeline, settings, videos, seed)}

    def _distance(
        self, pipeline: Pipeline, settings: SamplingSettings, videos: Tensor, seed: int
    ) -> dict[str, Any]:
        """Return the root mean square distance to the converged solution of the same noise."""
        if any(solver.churn > 0 for solver in settings.solvers):
            return {"value": None, "text": "stochastic", "name": "distance"}
        count = min(self.scale.converged_videos, len(videos))
        target = self._solution(pipeline, settings, count, seed)
        error = (videos[:count] - target).square().mean().sqrt().item()
        return {"value": error, "name": "distance", "of": f"{count} videos"}

    def _solution(
        self, pipeline: Pipeline, settings: SamplingSettings, count: int, seed: int
    ) -> Tensor:
        """Return the converged videos; rows start them from the widest noise range of all."""
        key = (pipeline.sha256, settings.overlap, settings.guidance, count, seed)
        if key not in self._converged:
            steps = self.scale.converged
            if len(steps) != len(settings.solvers):
                raise MetricError(
                    "converged gives solver steps by level",
                    got=len(steps),
                    expected=f"{len(settings.solvers)} of them, one per level of the model",
                )
            solver = replace(settings.solvers[0], name="dpmpp_3m", churn=0.0, sigma_min=0.002)
            widest = self.scale.sigma_max
            if len(widest) == 1:
                widest *= len(steps)
            solvers = tuple(
                replace(solver, steps=number, sigma_max=sigma)
                for number, sigma in zip(steps, widest, strict=True)
            )
            exact = replace(settings, solvers=solvers, clip_denoised=False)
            self._converged[key] = self._draw(pipeline, exact, count, seed)
        return self._converged[key]

    def _draw(
        self, pipeline: Pipeline, settings: SamplingSettings, count: int, seed: int
    ) -> Tensor:
        """Return videos (b, c, t, h, w) of all classes in turn."""
        classes = len(pipeline.classes)
        labels = [i % classes if classes else NO_CLASS for i in range(count)]
        return pipeline.sample(
            range(seed, seed + count),
            pipeline.condition_of(labels),
            settings=settings,
            progress=self.progress,
        )

    def _real(self, pipeline: Pipeline, real: Path) -> Tensor:
        """Return the features (b, d) of real clips like the model's videos."""
        if real not in self._reals:
            frames, *size = pipeline.pyramid.resolution
            spec = ClipFormat(frames=frames, stride=pipeline.frame_stride, size=tuple(size))
            files = in_random_order(open_videos(real, split=None, default_split="train"), 0)
            clips = FileClips(files=files[: self.scale.sampled], spec=spec)
            found = [clip for clip in clips.clips(0, len(clips)) if isinstance(clip, np.ndarray)]
            if len(found) < 2:
                raise MetricError(
                    f"{real} has too few clips", got=len(found), expected="at least 2"
                )
            pixels = torch.from_numpy(np.stack(found))
            self._reals[real] = self._detector(pixels, batch=DETECTOR_BATCH)
        return self._reals[real]

    @cached_property
    def _detector(self) -> Detector:
        (metric,) = load_metrics(
            ["fvd"],
            self.scale.detector,
            folder=cache_folder() / "detectors",
            device=resolve_device(self.device),
            fetch=fetch_from_mirrors(self.progress),
        )
        return metric.detector


def _named_right(pipeline: Pipeline, pixels: Tensor) -> float | None:
    """Return the fraction of videos, classes in turn, that the bundled detector names right.

    None where it knows not all of the model's classes, or the model has none.
    """
    detector, names = load_bundled(pipeline.device), pipeline.classes
    if not names or not set(names) <= set(detector.classes):
        return None
    drawn = [names[i % len(names)] for i in range(len(pixels))]
    return detector.named_right(pixels, drawn, among=names)
