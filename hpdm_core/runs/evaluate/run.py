"""`hpdm eval-fvd`: score videos against real ones, each figure with its protocol and provenance.

Features are cached on disk under a key of everything that they depend on, so that an interrupted
run resumes where it stopped and a second protocol takes seconds.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hpdm_core import __version__
from hpdm_core.errors import MetricError
from hpdm_core.files import json_sha256, write_text
from hpdm_core.metrics.detectors import Detector
from hpdm_core.metrics.extract import extract
from hpdm_core.metrics.load import (
    OF_FEATURES,
    Metric,
    cache_folder,
    check_names,
    fetch_from_mirrors,
    load_metrics,
)
from hpdm_core.metrics.store import Chunk, FeatureStore
from hpdm_core.metrics.weights import Fetch
from hpdm_core.pipeline.pipeline import Pipeline
from hpdm_core.progress import NoProgress, Progress
from hpdm_core.runs.evaluate.comparison import (
    ClipSet,
    Comparison,
    check_counts,
    check_positive,
    choose_preparation,
    choose_protocol,
    plan_comparison,
)
from hpdm_core.runs.evaluate.scores import Features, scores
from hpdm_core.training.parallel import Parallel, start_parallel

# (checkpoint, device) -> the model.
OpenModel = Callable[[str, torch.device], Pipeline]
DEFAULT_OUT = Path("evals")
NUM_REASONS = 5


def open_model(ref: str, device: torch.device) -> Pipeline:
    """Load the model of a reference, such as a run folder.

    Raises:
        CheckpointError: there is none.
        MetricError: it is conditioned on text, and protocols define no prompts.
    """
    pipeline = Pipeline.from_pretrained(ref, device=device)
    if pipeline.recipe.model.conditioning == "text":
        raise MetricError(
            f"{ref} draws what a text says, and no protocol names the texts",
            remedy="draw videos with `hpdm sample --prompt` and give them as --samples",
        )
    return pipeline


def run_eval_fvd(
    *,
    checkpoint: str | Path | None = None,
    samples: Path | None = None,
    real: str | Path | None = None,
    protocol: str | None,
    metrics: list[str],
    detector: str,
    num_fakes: int | None = None,
    split: str | None = None,
    preparation: str = "hpdm",
    out: Path | None = None,
    batch: int | None = None,
    device: str = "auto",
    seed: int = 0,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    cache: Path | None = None,
    fetch: Fetch | None = None,
    load_model: OpenModel = open_model,
) -> dict[str, Any]:
    """Score fakes against real videos.

    Args:
        checkpoint: generates the fakes; or
        samples: a folder of them, of `hpdm sample` or any other.
        real: a prepared data set or a folder of videos; None uses the checkpoint's training data.
        protocol: such as `fvd10k_16f`.
        metrics: any of 'fvd', 'kvd', 'is', 'prdc', 'quality'.
        detector: of `metrics.load.DETECTORS`, a hub detector with its source, or a file of I3D
            weights.
        num_fakes: overrides the protocol's.
        split: of a prepared data set; None uses 'train'.
        preparation: of clips from files: 'hpdm', or 'stylegan-v' for that project's way.
        out: folder for the result's JSON file; None uses `evals`.
        batch: clips per pass of a detector, and videos per pass of a model.
        device: 'auto', 'cpu' or 'cuda'.
        seed: of generated videos, of the order of a folder's videos, and of the bootstrap.
        force: score even fewer than 256 videos.
        dry_run: plan only.
        progress: progress bar.
        cache: folder of detectors and features; None uses the user's cache folder.
        fetch: downloads a detector's file; None tries its known addresses.
        load_model: opens the checkpoint.

    Returns:
        the figures with everything that they depend on.

    Raises:
        MetricError: the figures cannot be computed, or would be meaningless.
    """
    began = time.monotonic()
    progress, cache = progress or NoProgress(), cache or cache_folder()
    check_names(metrics, detector)
    check_positive({"--num-fakes": num_fakes, "--batch": batch})
    chosen = choose_protocol(protocol, num_fakes)
    parallel = start_parallel(device, mode="ddp")
    model = None if checkpoint is None else load_model(str(checkpoint), parallel.device)
    comparison = plan_comparison(
        chosen, model=model, samples=samples, real=real, split=split, seed=seed, batch=batch,
        needs_real=bool(set(metrics) & set(OF_FEATURES)), uses_real="quality" in metrics,
        preparation=choose_preparation(preparation),
    )  # fmt: skip
    if dry_run:
        check_counts(comparison, metrics, force=force)
        return _dry_run(comparison, metrics, detector, cache=cache, parallel=parallel)
    loaded = load_metrics(
        metrics,
        detector,
        folder=cache / "detectors",
        device=parallel.device,
        fetch=fetch or fetch_from_mirrors(progress),
    )
    # After what a download or an installation mends: that takes longest.
    check_counts(comparison, metrics, force=force)
    extraction = FeatureExtraction(
        cache / "features", loaded, batch or _batch(comparison.frames, parallel), parallel
    )
    features = extraction.features(comparison, progress)
    figures = scores(features, comparison, loaded, seed=seed, force=force)
    # Scores first, then everything that they depend on.
    result = {"scores": figures["scores"]} | _description(comparison, loaded) | figures
    result["seconds"] = round(time.monotonic() - began, 1)
    if parallel.is_main:
        result["file"] = str(_write(out or DEFAULT_OUT, result))
    parallel.close()
    return result


def _dry_run(
    comparison: Comparison, metrics: list[str], detector: str, *, cache: Path, parallel: Parallel
) -> dict[str, Any]:
    """Return what would be compared, and how many clips still lack features."""
    try:
        loaded = load_metrics(
            metrics, detector, folder=cache / "detectors", device=parallel.device, fetch=None
        )
    except MetricError as problem:
        plan = _description(comparison, [])
        return plan | {"dry_run": True, "detectors_to_fetch": str(problem)}
    extraction = FeatureExtraction(cache / "features", loaded, 1, parallel)
    extraction.check(comparison)
    return _description(comparison, loaded) | {"dry_run": True} | extraction.outstanding(comparison)


class FeatureExtraction:
    """Features of clips: the stores, and the detectors that fill them."""

    def __init__(self, folder: Path, metrics: Sequence[Metric], batch: int, parallel: Parallel):
        self._folder, self._metrics = folder, metrics
        self._batch, self._parallel = batch, parallel

    def check(self, comparison: Comparison) -> None:
        """Raise MetricError where a detector cannot read such clips."""
        for metric in self._metrics:
            metric.detector.check_frames(comparison.frames)

    def outstanding(self, comparison: Comparison) -> dict[str, Any]:
        """Return how many clips still lack features."""
        return {
            f"{name}_to_do": sum(
                stop - start for start, stop in self._missing(clip_set, clip_set.wanted)
            )
            for name, clip_set in (("fakes", comparison.fakes), ("reals", comparison.reals))
            if clip_set is not None
        }

    def features(self, comparison: Comparison, progress: Progress) -> Features:
        """Return the outputs of all detectors for all clips, computing missing ones."""
        self.check(comparison)
        reals: Mapping[str, Chunk] = {}
        if comparison.reals is not None:
            reals = self._fill(comparison.reals, "real videos", progress)
        return Features(reals=reals, fakes=self._fill(comparison.fakes, "fakes", progress))

    def _fill(self, clip_set: ClipSet, title: str, progress: Progress) -> Mapping[str, Chunk]:
        """Fill the stores until enough clips are usable, or all have been tried."""
        stores = self._stores(clip_set)
        count = clip_set.wanted
        while True:
            self._extract(clip_set, stores, count, title, progress)
            # Also where nothing was missing: another process may have seen that earlier.
            self._parallel.barrier()
            found = {output: store.get(count) for output, store in stores.items()}
            usable = min(len(chunk.places) for chunk in found.values())
            if usable >= clip_set.wanted or count == len(clip_set.clips):
                return {o: _first(chunk, clip_set.wanted, title) for o, chunk in found.items()}
            count = min(count + clip_set.wanted - usable, len(clip_set.clips))

    def _extract(
        self,
        clip_set: ClipSet,
        stores: Mapping[str, FeatureStore],
        count: int,
        title: str,
        progress: Progress,
    ) -> None:
        """Fill this process's share of what the first `count` places lack."""
        missing = self._missing(clip_set, count)
        if not missing:
            return
        progress.start(
            f"extracting features of {title}", sum(stop - start for start, stop in missing)
        )
        extract(
            clip_set.clips,
            [(detector, stores[output]) for output, detector in self._of(clip_set).items()],
            count=count,
            batch=self._batch,
            rank=self._parallel.rank,
            world_size=self._parallel.world_size,
            on_clips=progress.advance,
        )
        progress.stop()

    def _missing(self, clip_set: ClipSet, count: int) -> list[tuple[int, int]]:
        stores = self._stores(clip_set).values()
        return sorted(set().union(*(store.missing(count) for store in stores)))

    def _of(self, clip_set: ClipSet) -> dict[str, Detector]:
        """Return the detectors by output; of real videos, class probabilities are not needed."""
        return {
            metric.detector.output: metric.detector
            for metric in self._metrics
            if metric.name != "is" or not clip_set.is_real
        }

    def _stores(self, clip_set: ClipSet) -> dict[str, FeatureStore]:
        return {
            output: FeatureStore(
                self._folder,
                dict(clip_set.key)
                | {
                    "detector": detector.name,
                    "detector_sha256": detector.sha256,
                    "output": output,
                },
            )
            for output, detector in self._of(clip_set).items()
        }


def _first(chunk: Chunk, wanted: int, title: str) -> Chunk:
    if not len(chunk.places):
        reasons = "; ".join(reason for _, reason in chunk.skipped[:NUM_REASONS])
        raise MetricError(
            f"none of the {title} can be used",
            got=f"{len(chunk.skipped)} skipped: {reasons}",
            remedy="choose a protocol with fewer frames, or repair the files",
        )
    return replace(chunk, places=chunk.places[:wanted], outputs=chunk.outputs[:wanted])


def _batch(frames: int, parallel: Parallel) -> int:
    """Return a batch whose activations fit a common device: about 256 frames on CUDA."""
    return max(1, (256 if parallel.device.type == "cuda" else 64) // frames)


def _description(comparison: Comparison, metrics: Sequence[Metric]) -> dict[str, Any]:
    return {
        "protocol": comparison.protocol.name,
        "clip": comparison.clip_facts,
        "fakes": dict(comparison.fakes.facts),
        "reals": None if comparison.reals is None else dict(comparison.reals.facts),
        "detectors": [
            {
                "metric": metric.name,
                "name": metric.detector.name,
                "output": metric.detector.output,
                "sha256": metric.detector.sha256,
                "source": metric.detector.source,
            }
            for metric in metrics
        ],
        "warnings": list(comparison.warnings),
        "versions": {"hpdm": __version__, "torch": torch.__version__},
    }


def _write(folder: Path, result: Mapping[str, Any]) -> Path:
    """Write the result to a file of its own for all that it depends on; run again, to the same."""
    identity = json_sha256({key: result[key] for key in ("clip", "fakes", "reals", "detectors")})
    detectors = result["detectors"]
    metrics = "-".join(detector["metric"] for detector in detectors)
    name = f"{result['protocol']}_{detectors[0]['name']}_{metrics}_{identity[:8]}.json"
    write_text(folder / name, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return folder / name
