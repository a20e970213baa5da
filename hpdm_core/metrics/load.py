"""Detectors of `hpdm eval-fvd`, their files, and the names of its scores."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from hpdm_core.data.download import Remote, download
from hpdm_core.errors import HpdmError, MetricError, did_you_mean
from hpdm_core.files import sha256_of
from hpdm_core.metrics import weights
from hpdm_core.metrics.bundled import MIN_FRAMES, BundledDetector, load_bundled
from hpdm_core.metrics.c3d import load_c3d_port, load_c3d_torchscript
from hpdm_core.metrics.detectors import Detector
from hpdm_core.metrics.hub_detectors import HUB_MODELS, hub_model, load_hub_detector
from hpdm_core.metrics.i3d import load_i3d_port, load_i3d_torchscript
from hpdm_core.metrics.quality_detector import quality_detector
from hpdm_core.metrics.weights import Fetch, obtain, verify
from hpdm_core.metrics.wheel_detectors import WHEEL_MODELS, load_wheel_detector
from hpdm_core.progress import Progress

MetricName = Literal["fvd", "kvd", "is", "prdc", "quality"]
METRICS: tuple[MetricName, ...] = ("fvd", "kvd", "is", "prdc", "quality")
# Those of a detector's features, which compare with real videos.
OF_FEATURES: dict[MetricName, str] = {
    "fvd": "Fréchet distance",
    "kvd": "kernel distance",
    "prdc": "precision, recall, density and coverage",
}
DETECTORS = ("i3d", "bundled", *WHEEL_MODELS, *HUB_MODELS)  # besides files
# Seconds before a retry of one mirror.
MIRROR_PAUSE = 0.05


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A detector and the score made of its outputs.

    Args:
        name: which score.
        title: what the score is called.
        detector: the network.
        classes: names of its classes where it is a classifier of ours, else empty.
    """

    name: MetricName
    title: str
    detector: Detector
    classes: tuple[str, ...] = ()


def cache_folder() -> Path:
    """Return the cache folder of detectors and features."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hpdm"


def fetch_from_mirrors(progress: Progress) -> Fetch:
    """Return a function that tries mirrors in turn."""

    def fetch(urls: Sequence[str], path: Path, sha256: str) -> None:
        problem: Exception = MetricError("no address")
        for url in urls:
            try:
                remote = Remote(url=url, sha256=sha256)
                download(remote, path, progress, pause=MIRROR_PAUSE)
                return
            except (HpdmError, OSError) as error:
                problem = error
        reason = problem.__cause__ or problem
        raise MetricError(f"none of {len(urls)} addresses gave it, the last because: {reason}")

    return fetch


def check_names(metrics: list[str], detector: str) -> None:
    """Raise MetricError for unknown metrics or detectors."""
    wrong = [name for name in metrics if name not in METRICS]
    if not metrics or wrong:
        raise MetricError(
            "unknown metrics",
            got=",".join(metrics) or "none",
            expected=f"any of {', '.join(METRICS)}",
            remedy=did_you_mean(wrong[0], METRICS) if wrong else None,
        )
    known = detector in DETECTORS or hub_model(detector) is not None
    if not known and not Path(detector).is_file():
        raise MetricError(
            f"unknown detector {detector!r}",
            expected=f"{', '.join(DETECTORS)}, or a file of I3D weights",
            remedy=did_you_mean(detector, DETECTORS),
        )


def load_metrics(
    names: list[str], detector: str, *, folder: Path, device: torch.device, fetch: Fetch | None
) -> list[Metric]:
    """Return one metric per name.

    Args:
        names: of `METRICS`; those of one detector share it.
        detector: of `DETECTORS`, or a file of I3D weights.
        folder: where detectors' files are kept.
        device: where they run.
        fetch: downloads a file; None for no network.

    Raises:
        MetricError: a file is absent or has another checksum.
    """
    bundled = load_bundled(device) if detector == "bundled" else None
    loaded: dict[MetricName, Metric] = {}
    of_features = [name for name in OF_FEATURES if name in names]
    if of_features:
        extractor, label = _extractor(detector, bundled, folder, device, fetch)
        for name in of_features:
            title = _title(name, label)
            loaded[name] = Metric(name=name, title=title, detector=extractor)
    if "is" in names and bundled:
        title = "class score on bundled features"
        classifier = _bundled(bundled, output="probabilities")
        loaded["is"] = Metric(name="is", title=title, detector=classifier, classes=bundled.classes)
    elif "is" in names:
        loaded["is"] = Metric(name="is", title="IS", detector=_c3d(folder, device))
    if "quality" in names:
        loaded["quality"] = Metric(name="quality", title="quality", detector=quality_detector())
    return [loaded[name] for name in METRICS if name in loaded]


def _extractor(
    detector: str,
    bundled: BundledDetector | None,
    folder: Path,
    device: torch.device,
    fetch: Fetch | None,
) -> tuple[Detector, str]:
    """Return the feature extractor and what scores call it."""
    kind = hub_model(detector)
    if bundled is not None:
        return _bundled(bundled), "bundled"
    if detector in WHEEL_MODELS:
        return load_wheel_detector(detector, device=device), WHEEL_MODELS[detector].label
    if kind is not None:
        network = load_hub_detector(detector, device=device, offline=fetch is None)
        return network, kind.label
    return _i3d(detector, folder, device, fetch), "I3D"


def _title(name: MetricName, label: str) -> str:
    """Only I3D features give an FVD and a KVD."""
    published = {"fvd": "FVD", "kvd": "KVD"}
    title = f"{OF_FEATURES[name]} on {label} features"
    return published.get(name, title) if label == "I3D" else title


def _bundled(network: BundledDetector, *, output: str = "features") -> Detector:
    return Detector(
        name="bundled",
        output=output,
        sha256=network.sha256,
        min_frames=MIN_FRAMES,
        run=network.features if output == "features" else network.probabilities,
    )


def _i3d(detector: str, folder: Path, device: torch.device, fetch: Fetch | None) -> Detector:
    if detector == "i3d":
        # A file on disk is preferred to a download of the other.
        port = folder / weights.I3D_STATE_DICT.name
        if port.is_file() and not (folder / weights.I3D_TORCHSCRIPT.name).is_file():
            return _i3d_file(port, device)
        return _i3d_file(obtain(weights.I3D_TORCHSCRIPT, folder, fetch=fetch), device)
    return _i3d_file(Path(detector), device)


def _i3d_file(path: Path, device: torch.device) -> Detector:
    """Identify the two public files by their checksums; no other is loaded."""
    if weights.git_blob_of(path) == weights.I3D_STATE_DICT.git_blob:
        return load_i3d_port(path, sha256=sha256_of(path), device=device)
    sha256 = verify(path, weights.I3D_TORCHSCRIPT)
    return load_i3d_torchscript(path, sha256=sha256, device=device)


def _c3d(folder: Path, device: torch.device) -> Detector:
    script = folder / weights.C3D_TORCHSCRIPT.name
    if script.is_file():
        sha256 = verify(script, weights.C3D_TORCHSCRIPT)
        return load_c3d_torchscript(script, sha256=sha256, device=device)
    arrays, mean = (obtain(file, folder) for file in (weights.C3D_ARRAYS, weights.C3D_MEAN))
    both = sha256_of(arrays) + sha256_of(mean)
    return load_c3d_port(
        arrays, mean, sha256=hashlib.sha256(both.encode()).hexdigest(), device=device
    )
