"""Scores of `hpdm eval-fvd` from detectors' outputs, with their uncertainty and names."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpdm_core.errors import MetricError
from hpdm_core.metrics.frechet import FeatureStats, frechet_distance
from hpdm_core.metrics.inception import NUM_SPLITS, inception_score
from hpdm_core.metrics.load import Metric
from hpdm_core.metrics.protocols import MIN_VIDEOS
from hpdm_core.metrics.store import Chunk
from hpdm_core.metrics.uncertainty import bootstrap_std, distance_by_count, small_sample_bias
from hpdm_core.runs.evaluate.comparison import Comparison
from hpdm_core.runs.evaluate.figures import kernel_figures, neighbour_figures, quality_figures

logger = logging.getLogger("hpdm.runs")

# Fig. 8's numbers of fakes.
COUNTS = (128, 256, 512, 2048, 10_000)
NUM_REASONS = 20


@dataclass(frozen=True, kw_only=True)
class Features:
    """Outputs of the detectors.

    Args:
        reals: by output of the detector; empty if no score needs them.
        fakes: the same.
    """

    reals: Mapping[str, Chunk]
    fakes: Mapping[str, Chunk]


def scores(
    features: Features,
    comparison: Comparison,
    metrics: Sequence[Metric],
    *,
    seed: int,
    force: bool,
) -> dict[str, Any]:
    """Return the figures, and facts on the sets that are known only now.

    Args:
        features: outputs of the detectors.
        comparison: what was compared.
        metrics: one per figure.
        seed: of the bootstrap.
        force: score even fewer than 256 videos.

    Raises:
        MetricError: too many videos could not be used.
    """
    figures, warnings = [], list(comparison.warnings)
    for metric in metrics:
        found = _figures(metric, features, comparison, seed=seed, force=force)
        figures += found
        if metric.name == "fvd":
            warnings += _doubts(found[0])
    counted = {
        name: next(iter(chunks.values()), None)
        for name, chunks in (("fakes", features.fakes), ("reals", features.reals))
    }
    clip_sets = {"fakes": comparison.fakes, "reals": comparison.reals}
    used = {}
    for name, chunk in counted.items():
        if chunk is None or clip_sets[name] is None:
            continue
        used[name] = dict(clip_sets[name].facts) | {
            "count": len(chunk.places),
            "skipped": len(chunk.skipped),
            "skipped_reasons": [reason for _, reason in chunk.skipped[:NUM_REASONS]],
        }
        if chunk.skipped:
            example = chunk.skipped[0][1]
            warnings.append(f"{len(chunk.skipped)} {name} could not be used, such as {example}")
    for warning in warnings:
        logger.warning(warning)
    # A figure of fewer fakes than requested must not carry the name of the larger number.
    protocol = replace(comparison.protocol, num_fakes=len(counted["fakes"].places))
    return used | {"protocol": protocol.name, "scores": figures, "warnings": warnings}


def _figures(
    metric: Metric, features: Features, comparison: Comparison, *, seed: int, force: bool
) -> list[dict[str, Any]]:
    output = metric.detector.output
    fakes, reals = features.fakes[output], features.reals.get(output)
    if metric.name == "is":
        return [_class_score(metric, fakes, comparison)]
    if metric.name == "quality":
        return quality_figures(fakes, reals)
    assert reals is not None
    if metric.name == "kvd":
        detector = metric.detector.name
        return kernel_figures(metric.title, fakes, reals, detector=detector, seed=seed)
    if metric.name == "prdc":
        return neighbour_figures(metric.title, fakes, reals, seed=seed)
    return [_frechet(metric, fakes, reals, seed=seed, force=force)]


def _frechet(
    metric: Metric, fakes: Chunk, reals: Chunk, *, seed: int, force: bool
) -> dict[str, Any]:
    for name, chunk in (("fakes", fakes), ("real videos", reals)):
        if len(chunk.places) < MIN_VIDEOS and not force:
            raise MetricError(
                f"too few {name} can be used",
                got=f"{len(chunk.places)}, with {len(chunk.skipped)} skipped",
                expected=f"at least {MIN_VIDEOS}",
                remedy="the distance grows as videos get fewer; --force computes it all the same",
            )
    real = FeatureStats.of(reals.outputs)
    fake = FeatureStats.of(fakes.outputs)
    num = len(fakes.places)
    return {
        "metric": metric.name,
        "name": metric.title,
        "value": frechet_distance(fake, real),
        "std": bootstrap_std(fakes.outputs, real, seed=seed),
        "bias_of_few_fakes": small_sample_bias(fakes.outputs, real, seed=seed),
        "bias_of_few_reals": small_sample_bias(reals.outputs, fake, seed=seed),
        "by_count": distance_by_count(fakes.outputs, real, sorted({*COUNTS, num})),
        "num_fakes": num,
        "num_reals": len(reals.places),
        "feature_width": fakes.outputs.shape[1],
    }


def _doubts(figure: Mapping[str, Any]) -> list[str]:
    doubts = []
    fakes, reals = figure["num_fakes"], figure["num_reals"]
    bias = sum(figure[f"bias_of_few_{name}"] or 0.0 for name in ("fakes", "reals"))
    if min(fakes, reals) < MIN_VIDEOS:
        doubts.append(
            f"{fakes} fakes against {reals} real videos are too few: {figure['name']} "
            f"{figure['value']:.4g} is too high by roughly {bias:.3g}"
        )
    if min(fakes, reals) <= figure["feature_width"]:
        doubts.append(
            f"{min(fakes, reals)} videos do not span the {figure['feature_width']} dimensions of "
            "the features: compare only with figures of as many videos"
        )
    return doubts


def _class_score(metric: Metric, fakes: Chunk, comparison: Comparison) -> dict[str, Any]:
    mean, std = inception_score(fakes.outputs, num_splits=NUM_SPLITS)
    figure = {
        "metric": metric.name,
        "name": metric.title,
        "value": mean,
        "std": std,
        "num_splits": NUM_SPLITS,
        "num_fakes": len(fakes.outputs),
    }
    reals = comparison.reals.classes if comparison.reals is not None else ()
    right = accuracy(metric.classes, fakes, meant=comparison.fakes.classes, candidates=reals)
    return figure if right is None else figure | {"named_right": right}


def accuracy(
    classes: Sequence[str],
    fakes: Chunk,
    *,
    meant: Sequence[str | None],
    candidates: Sequence[str | None],
) -> float | None:
    """Return the fraction of fakes of the class they are meant to be, None where it is not known.

    Args:
        classes: of the classifier.
        fakes: its probabilities.
        meant: class of each place.
        candidates: only these may be guessed, where all of `meant` are among them.
    """
    names = [meant[place] or "" for place in fakes.places.tolist()]
    if not names or not set(names) <= set(classes):
        return None
    allowed = set(candidates) if set(names) <= set(candidates) else set(classes)
    kept = [label for label, name in enumerate(classes) if name in allowed]
    guesses = fakes.outputs[:, kept].argmax(dim=1).tolist()
    hits = [classes[kept[guess]] == name for guess, name in zip(guesses, names, strict=True)]
    return sum(hits) / len(hits)
