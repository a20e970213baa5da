"""Figures of kernel distance, nearest neighbours and quality, from detectors' outputs.

Axis legend: `n` videos.
"""

import math
from typing import Any

from torch import Tensor

from hpdm_core.metrics.kernel import JEDI, KID, estimate_kernel_distance
from hpdm_core.metrics.prdc import NEIGHBOURS, estimate_prdc
from hpdm_core.metrics.quality_detector import MEASURES
from hpdm_core.metrics.store import Chunk

# Detectors of the kind that JEDi (Luo et al. 2024) uses.
JEDI_DETECTORS = ("vjepa2",)


def kernel_figures(
    title: str, fakes: Chunk, reals: Chunk, *, detector: str, seed: int
) -> list[dict[str, Any]]:
    """Return the kernel distance, whose `std` is that of a bootstrap over both sets.

    Of V-JEPA 2's features the distance with JEDi's kernel follows.
    """
    figures = []
    for kernel in (KID, JEDI) if detector in JEDI_DETECTORS else (KID,):
        found = estimate_kernel_distance(fakes.outputs, reals.outputs, seed=seed, kernel=kernel)
        figures.append(
            {
                "metric": "kvd",
                "name": title if kernel is KID else f"{kernel.label} on {_features_of(title)}",
                "value": found.value,
                "std": found.std,
                "interval": list(found.interval),
                "subset_mean": found.subset_mean,
                "subset_std": found.subset_std,
                "subset_size": found.subset_size,
                "kernel": kernel.formula,
                "num_fakes": len(fakes.places),
                "num_reals": len(reals.places),
            }
        )
    return figures


def neighbour_figures(title: str, fakes: Chunk, reals: Chunk, *, seed: int) -> list[dict[str, Any]]:
    """Return precision, recall, density and coverage, one figure each."""
    where = _features_of(title)
    return [
        {
            "metric": "prdc",
            "name": f"{name} on {where}",
            "value": fraction.value,
            "std": fraction.std,
            "interval": list(fraction.interval),
            "neighbours": NEIGHBOURS,
            "num_fakes": len(fakes.places),
            "num_reals": len(reals.places),
        }
        for name, fraction in estimate_prdc(fakes.outputs, reals.outputs, seed=seed).items()
    ]


def quality_figures(fakes: Chunk, reals: Chunk | None) -> list[dict[str, Any]]:
    """Return each measure of the fakes, with the real videos' own where there are any.

    A value is None where the measure is undefined for all videos; `std` is that of the mean.
    """
    figures = []
    for column, name in enumerate(MEASURES):
        value, std = _mean(fakes.outputs[:, column])
        real = None if reals is None else _mean(reals.outputs[:, column])[0]
        figures.append(
            {
                "metric": "quality",
                "name": name,
                "value": value,
                "std": std,
                "real_value": real,
                "num_fakes": len(fakes.places),
                "num_reals": 0 if reals is None else len(reals.places),
            }
        )
    return figures


def _features_of(title: str) -> str:
    """Return 'V-JEPA 2 features' of 'kernel distance on V-JEPA 2 features'."""
    return title.partition(" on ")[2]


def _mean(values: Tensor) -> tuple[float | None, float | None]:
    """Return mean and its deviation over the (n,) values that are defined."""
    defined = values[~values.isnan()].double()
    if not len(defined):
        return None, None
    spread = float(defined.std() / math.sqrt(len(defined))) if len(defined) > 1 else None
    return float(defined.mean()), spread
