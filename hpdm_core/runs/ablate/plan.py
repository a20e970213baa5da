"""Cost of a table in advance: trainings, samples, hours (measured, or at a stated rate), disk."""

from collections.abc import Sequence
from typing import Any

from hpdm_core.build import build_sampling, describe
from hpdm_core.device import resolve_device
from hpdm_core.metrics.protocols import parse_protocol
from hpdm_core.pipeline.plan import describe_sampling
from hpdm_core.recipe.schema import Recipe
from hpdm_core.reports.ablations import Scale, Table, protocol_of
from hpdm_core.runs.ablate.profiling import measured_rate, with_some_classes
from hpdm_core.runs.ablate.trials import Trial
from hpdm_core.runs.train.preflight import BYTES_PER_SAVED_PARAMETER
from hpdm_core.runs.train.scaling import H100
from hpdm_core.training.checkpoint import list_checkpoints, step_of

# Nobody waits for a device that takes more, and its exact number says nothing.
LONGEST_HOURS = 365 * 24


def plan_table(
    table: Table, scale: Scale, trials: Sequence[Trial], *, done: set[str], device: str
) -> dict[str, Any]:
    """Return what the remaining trials will cost.

    Args:
        table, scale: of the trials.
        trials: all of them.
        done: keys of finished ones.
        device: where they would run.

    Returns:
        {"trials", "trials_done"}; where anything is trained or sampled also {"trainings",
        "training_steps", "training_videos", "fakes", "hours_training", "hours_sampling",
        "hours_timing", "hours", "hours_by", "too_long_here", "gpu_hours", "gpu_hours_by",
        "disk_gb"}. GPU-hours are counted operations of training and sampling over an assumed rate
        of a card.
    """
    left = [trial for trial in trials if trial.key not in done]
    plan: dict[str, Any] = {"trials": len(trials), "trials_done": len(trials) - len(left)}
    counted = _Counted()
    timing = sum(_timed_flops(table, scale, trial, counted) for trial in left)
    sampled = [trial for trial in left if trial.folder is not None]
    if not sampled and not timing:
        return plan
    trainings = {str(trial.folder): trial for trial in sampled if trial.trained}
    steps = {name: _steps_left(trial) for name, trial in trainings.items()}
    videos = {
        name: steps[name] * trial.recipe.train.batch_size for name, trial in trainings.items()
    }
    work = {
        name: videos[name] * counted.of(trial.recipe)["flops_per_video_training"]
        for name, trial in trainings.items()
    }
    training = sum(work.values())
    fakes = {trial.key: _fakes(table, scale, trial) for trial in sampled}
    drawing = {
        trial.key: sum(
            number * counted.sampling_flops(trial, level)
            for level, number in fakes[trial.key].items()
        )
        for trial in sampled
    }
    sampling = sum(drawing.values())
    on_gpu = sum(work[name] / _gpu_rate(trial.recipe) for name, trial in trainings.items())
    on_gpu += sum(drawing[trial.key] / _gpu_rate(trial.recipe) for trial in sampled)
    rate, how = measured_rate(_smallest(left, counted), resolve_device(device))
    hours = _hours(training + sampling + timing, rate)
    disk = sum(
        counted.of(trial.recipe)["parameters"]["total"] * BYTES_PER_SAVED_PARAMETER * _kept(trial)
        for trial in trainings.values()
    )
    return plan | {
        "trainings": len(trainings),
        "training_steps": sum(steps.values()),
        "training_videos": sum(videos.values()),
        "fakes": sum(sum(levels.values()) for levels in fakes.values()),
        "hours_training": _hours(training, rate),
        "hours_sampling": _hours(sampling, rate),
        "hours_timing": _hours(timing, rate),
        "hours": hours,
        "hours_by": how,
        "too_long_here": hours > LONGEST_HOURS,
        "gpu_hours": round(on_gpu / 3600, 2),
        "gpu_hours_by": f"{H100.card}, {100 * H100.utilisation:.0f}% of its peak, assumed",
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

    def sampling_flops(self, trial: Trial, level: int) -> float:
        """Return the FLOPs of one video up to a level, with the row's own tiles."""
        recipe = trial.recipe.with_fields("sampling", trial.row.sampling)
        rows = describe_sampling(recipe, build_sampling(recipe))[: level + 1]
        blocks = self.of(recipe)["levels"]
        return sum(
            row["tiles"] * row["evaluations"] * blocks[k]["flops_forward"]
            for k, row in enumerate(rows)
        )


def _timed_flops(table: Table, scale: Scale, trial: Trial, counted: _Counted) -> float:
    """Return the FLOPs of a trial's timed steps."""
    total = 0.0
    for column in table.columns:
        if column.measure.kind == "step":
            of, recipe = column.measure.of, trial.recipes[column.key]
            flops = counted.of(recipe)["flops_per_video_training"]
            if of == "memory":
                total += flops
            elif of == "videos_per_second":
                total += sum(scale.batches) * (scale.rounds + 1) * flops
            else:
                flops += counted.of(trial.baselines[column.key])["flops_per_video_training"]
                total += max(scale.batches) * (scale.rounds + 1) * flops
    return total


def _smallest(trials: Sequence[Trial], counted: _Counted) -> Recipe:
    """Return the recipe with the shortest step."""
    recipes = [recipe for trial in trials for recipe in trial.recipes.values()]
    return min(recipes, key=lambda recipe: counted.of(recipe)["flops_per_video_training"])


def _gpu_rate(recipe: Recipe) -> float:
    """Return the operations per second that a card is assumed to sustain."""
    return H100.utilisation * H100.peak[recipe.train.precision]


def _hours(flops: float, rate: float) -> float:
    return round(flops / rate / 3600, 2)


def _fakes(table: Table, scale: Scale, trial: Trial) -> dict[int, int]:
    """Return how many videos of each level are made: columns of one level share them."""
    finest = len(trial.recipe.pyramid.levels) - 1
    if trial.row.level is not None:
        finest = trial.row.level
    numbers: dict[int, int] = {}
    for column in table.columns:
        if column.measure.kind == "score":
            protocol = parse_protocol(protocol_of(scale, column))
            level = finest if protocol.level is None else protocol.level
            numbers[level] = max(numbers.get(level, 0), protocol.num_fakes or 0)
        elif column.measure.kind == "sampler":
            numbers[finest] = scale.sampled
    return numbers


def _steps_left(trial: Trial) -> int:
    done = list_checkpoints(trial.folder / "checkpoints") if trial.folder else []
    return trial.recipe.train.steps - (step_of(done[-1]) if done else 0)


def _kept(trial: Trial) -> int:
    train = trial.recipe.train
    return max(1, min(train.keep_checkpoints, train.steps // train.checkpoint_every))
