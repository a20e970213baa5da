"""What a table will take before it is run: trainings, samples, hours by a measured step, disk."""

from collections.abc import Sequence
from typing import Any

from hpdm_core.build import build_sampling, describe
from hpdm_core.device import resolve_device
from hpdm_core.metrics.protocols import parse_protocol
from hpdm_core.pipeline.plan import describe_sampling
from hpdm_core.recipe.schema import Recipe
from hpdm_core.reports.ablations import Scale, Table, protocol_of
from hpdm_core.runs.ablate_step import measured_rate, with_some_classes
from hpdm_core.runs.ablate_units import Unit
from hpdm_core.runs.train_checks import BYTES_PER_SAVED_PARAMETER
from hpdm_core.training.checkpoint import list_checkpoints, step_of


def plan_table(
    table: Table, scale: Scale, units: Sequence[Unit], *, done: set[str], device: str
) -> dict[str, Any]:
    """Say what the units that are left will take.

    Args:
        table, scale: whose.
        units: all of them.
        done: keys of those that have their line.
        device: where they would run.

    Returns:
        {"units", "units_done"}; where something is computed at length also {"trainings",
        "training_steps", "training_videos", "fakes", "hours_training", "hours_sampling",
        "hours_timing", "hours", "hours_by", "disk_gb"}.
    """
    left = [unit for unit in units if unit.key not in done]
    plan: dict[str, Any] = {"units": len(units), "units_done": len(units) - len(left)}
    counted = _Counted()
    timing = sum(_timed_flops(table, scale, unit, counted) for unit in left)
    sampled = [unit for unit in left if unit.folder is not None]
    if not sampled and not timing:
        return plan
    trainings = {str(unit.folder): unit for unit in sampled if unit.trained}
    steps = {name: _steps_left(unit) for name, unit in trainings.items()}
    videos = {name: steps[name] * unit.recipe.train.batch_size for name, unit in trainings.items()}
    training = sum(
        videos[name] * counted.of(unit.recipe)["flops_per_video_training"]
        for name, unit in trainings.items()
    )
    fakes = {unit.key: _fakes(table, scale, unit) for unit in sampled}
    sampling = sum(
        number * counted.sampling_flops(unit, level)
        for unit in sampled
        for level, number in fakes[unit.key].items()
    )
    rate, how = measured_rate(_smallest(left, counted), resolve_device(device))
    disk = sum(
        counted.of(unit.recipe)["parameters"]["total"] * BYTES_PER_SAVED_PARAMETER * _kept(unit)
        for unit in trainings.values()
    )
    return plan | {
        "trainings": len(trainings),
        "training_steps": sum(steps.values()),
        "training_videos": sum(videos.values()),
        "fakes": sum(sum(levels.values()) for levels in fakes.values()),
        "hours_training": _hours(training, rate),
        "hours_sampling": _hours(sampling, rate),
        "hours_timing": _hours(timing, rate),
        "hours": _hours(training + sampling + timing, rate),
        "hours_by": how,
        "disk_gb": round(disk / 1e9, 2),
    }


class _Counted:
    """Counts of recipes; those that differ by the seed alone are counted once."""

    def __init__(self) -> None:
        self._known: dict[str, dict] = {}

    def of(self, recipe: Recipe) -> dict:
        recipe = with_some_classes(recipe)
        key = recipe.model.model_dump_json() + recipe.pyramid.model_dump_json()
        if key not in self._known:
            self._known[key] = describe(recipe)
        return self._known[key]

    def sampling_flops(self, unit: Unit, level: int) -> float:
        """Return the arithmetic of one video up to a level, with the row's own tiles."""
        changed = unit.recipe.sampling.model_copy(update=unit.row.sampling)
        recipe = unit.recipe.model_copy(update={"sampling": changed})
        rows = describe_sampling(recipe, build_sampling(recipe))[: level + 1]
        blocks = self.of(recipe)["levels"]
        return sum(
            row["tiles"] * row["evaluations"] * blocks[k]["flops_forward"]
            for k, row in enumerate(rows)
        )


def _timed_flops(table: Table, scale: Scale, unit: Unit, counted: _Counted) -> float:
    """Return the arithmetic of a unit's timed steps."""
    total = 0.0
    for column in table.columns:
        if column.measure.kind == "step":
            of_memory = column.measure.of == "memory"
            videos = 1 if of_memory else sum(scale.batches) * (scale.rounds + 1)
            recipe = unit.recipes[column.key]
            total += videos * counted.of(recipe)["flops_per_video_training"]
    return total


def _smallest(units: Sequence[Unit], counted: _Counted) -> Recipe:
    """Return the recipe whose step is the shortest to try."""
    recipes = [recipe for unit in units for recipe in unit.recipes.values()]
    return min(recipes, key=lambda recipe: counted.of(recipe)["flops_per_video_training"])


def _hours(flops: float, rate: float) -> float:
    return round(flops / rate / 3600, 2)


def _fakes(table: Table, scale: Scale, unit: Unit) -> dict[int, int]:
    """Return how many videos of each level are made: columns of one level share them."""
    finest = len(unit.recipe.pyramid.levels) - 1
    if unit.row.level is not None:
        finest = unit.row.level
    numbers: dict[int, int] = {}
    for column in table.columns:
        if column.measure.kind == "score":
            protocol = parse_protocol(protocol_of(scale, column))
            level = finest if protocol.level is None else protocol.level
            numbers[level] = max(numbers.get(level, 0), protocol.num_fakes or 0)
    return numbers


def _steps_left(unit: Unit) -> int:
    done = list_checkpoints(unit.folder / "checkpoints") if unit.folder else []
    return unit.recipe.train.steps - (step_of(done[-1]) if done else 0)


def _kept(unit: Unit) -> int:
    train = unit.recipe.train
    return max(1, min(train.keep_checkpoints, train.steps // train.checkpoint_every))
