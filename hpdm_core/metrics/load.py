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
from hpdm_core.metrics.bundled import MIN_FRAMES, load_bundled
from hpdm_core.metrics.c3d import load_c3d_port, load_c3d_torchscript
from hpdm_core.metrics.detectors import Detector
from hpdm_core.metrics.i3d import load_i3d_port, load_i3d_torchscript
from hpdm_core.metrics.weights import Fetch, obtain, verify
from hpdm_core.progress import Progress

MetricName = Literal["fvd", "is"]
METRICS: tuple[MetricName, ...] = ("fvd", "is")
DETECTORS = ("i3d", "bundled")  # besides files
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
            expected="fvd, is or fvd,is",
            remedy=did_you_mean(wrong[0], METRICS) if wrong else None,
        )
    if detector not in DETECTORS and not Path(detector).is_file():
        raise MetricError(
            f"unknown detector {detector!r}",
            expected="i3d, bundled, or a file of I3D weights",
            remedy=did_you_mean(detector, DETECTORS),
        )


def load_metrics(
    names: list[str], detector: str, *, folder: Path, device: torch.device, fetch: Fetch | None
) -> list[Metric]:
    """Return one metric per name.

    Args:
        names: of 'fvd' and 'is'.
        detector: 'i3d', 'bundled', or a file of I3D weights.
        folder: where detectors' files are kept.
        device: where they run.
        fetch: downloads a file; None for no network.

    Raises:
        MetricError: a file is absent or has another checksum.
    """
    if detector == "bundled":
        return [_bundled(name, device) for name in METRICS if name in names]
    loaded = []
    if "fvd" in names:
        i3d = _i3d(detector, folder, device, fetch)
        loaded.append(Metric(name="fvd", title="FVD", detector=i3d))
    if "is" in names:
        c3d = _c3d(folder, device)
        loaded.append(Metric(name="is", title="IS", detector=c3d))
    return loaded


def _bundled(name: MetricName, device: torch.device) -> Metric:
    network = load_bundled(device)
    by_features = name == "fvd"
    return Metric(
        name=name,
        title=(
            "Fréchet distance on bundled features"
            if by_features
            else "class score on bundled features"
        ),
        detector=Detector(
            name="bundled",
            output="features" if by_features else "probabilities",
            sha256=network.sha256,
            min_frames=MIN_FRAMES,
            run=network.features if by_features else network.probabilities,
        ),
        classes=network.classes,
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
