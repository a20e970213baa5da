"""Timed training steps on random videos: speed and memory of a recipe (Tables 1 and 3).

A step is the loss, its gradients and the optimiser's update, with the extra pass of latent
self-conditioning where the recipe has it. No data is read.

Axis legend: `b` batch, `c` channels, `t h w` video.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hpdm_core.build import (
    COUNTED_TEXT_TOKENS,
    activation_bytes_per_video,
    build_diffusion,
    build_network,
    build_optimizer,
    describe,
)
from hpdm_core.device import autocast, available_memory, set_precision
from hpdm_core.geometry.patches import draw_offsets
from hpdm_core.recipe.schema import Recipe
from hpdm_core.records import Condition, PatchBatch
from hpdm_core.runs.train.fit import BYTES_PER_PARAMETER, fit_micro_batch
from hpdm_core.training.batches import keep_levels, levels_chances

MATRIX = 1024
# Seconds; a step that would take longer is not measured.
MAX_PLAN_SECONDS = 20.0
TOO_LARGE = "does not fit"


class Stepper:
    """A network, its optimiser, and batches of random patches.

    Args:
        recipe: its sizes; a recipe without a number of classes gets one.
        device: where it trains.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self._recipe, self._device = with_some_classes(recipe), device
        set_precision(recipe.train.precision, device=device)
        torch.manual_seed(recipe.train.seed)
        self._network = build_network(self._recipe).to(device)
        self._optimizer = build_optimizer(self._network, recipe)
        self._diffusion = build_diffusion(self._recipe)
        self._step = 0

    def seconds(self, batch: int, *, rounds: int) -> float:
        """Return the seconds of the fastest of some steps, after one to warm up."""
        rows = random_batch(self._recipe, batch).to(self._device)
        return min(self._timed(rows) for _ in range(rounds + 1))

    def expected_seconds(self, rows: PatchBatch) -> float:
        """Return the seconds of a step, with level dropout those that are to be expected."""
        chances = levels_chances(
            levels=len(self._recipe.pyramid.levels), drop_prob=self._recipe.train.level_drop_prob
        )
        return sum(
            chance * self._timed(keep_levels(rows, levels)) for levels, chance in chances.items()
        )

    def memory(self) -> int:
        """Return the bytes of a step with one video.

        On CUDA the peak that torch allocates; on a CPU what autograd keeps, by storage, and
        weights, gradients, two moments and the EMA weights.
        """
        rows = random_batch(self._recipe, 1).to(self._device)
        if self._device.type == "cuda":
            self._timed(rows)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._timed(rows)
            return torch.cuda.max_memory_allocated(self._device)
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self._run(rows)
        parameters = {p.untyped_storage().data_ptr() for p in self._network.parameters()}
        activations = sum(size for place, size in kept.items() if place not in parameters)
        count = sum(parameter.numel() for parameter in self._network.parameters())
        return activations + count * BYTES_PER_PARAMETER

    def _timed(self, rows: PatchBatch) -> float:
        self._wait()
        began = time.perf_counter()
        self._run(rows)
        self._wait()
        return time.perf_counter() - began

    def _run(self, rows: PatchBatch) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        with autocast(self._recipe.train.precision, device=self._device):
            loss = self._diffusion.loss(self._network, rows, seed=0, step=self._step).total
        loss.backward()
        self._optimizer.step()
        self._step += 1

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def measure_speed(
    recipe: Recipe, device: torch.device, *, batches: Sequence[int], rounds: int
) -> dict:
    """Return videos per second at the fastest batch size that fits, as a figure."""

    def work() -> dict:
        stepper, best = Stepper(recipe, device), {}
        for batch in batches:
            try:
                seconds = stepper.seconds(batch, rounds=rounds)
            except torch.cuda.OutOfMemoryError:
                if not best:
                    raise
                break
            if batch / seconds > best.get("value", 0.0):
                best = {"value": batch / seconds, "batch": batch}
        return best | {"name": "videos/s"}

    return _where_it_fits(recipe, device, work)


def measure_relative_speed(
    recipe: Recipe,
    baseline: Recipe,
    device: torch.device,
    *,
    batches: Sequence[int],
    rounds: int,
) -> dict:
    """Return the speed of a recipe's training over a baseline's, as a figure.

    Steps of both alternate in one process, so that other load slows both; the figure is the median
    of the rounds' ratios, at the largest batch size that fits.
    """

    def work() -> dict:
        for batch in sorted(batches, reverse=True):
            if all(_fits(each, device, batch=batch) for each in (recipe, baseline)):
                ratios = _alternated(recipe, baseline, device, batch=batch, rounds=rounds)
                return {
                    "value": statistics.median(ratios),
                    "batch": batch,
                    "name": "speed over the baseline's",
                    "of": f"{rounds} rounds of alternating steps",
                }
        return {"value": None, "text": TOO_LARGE}

    return _where_it_fits(recipe, device, work)


def _alternated(
    recipe: Recipe, baseline: Recipe, device: torch.device, *, batch: int, rounds: int
) -> list[float]:
    """Return by round the seconds of the baseline over those of the recipe."""
    steppers = [Stepper(each, device) for each in (recipe, baseline)]
    rows = [random_batch(each, batch).to(device) for each in (recipe, baseline)]
    ratios = []
    for number in range(rounds + 1):
        order = (0, 1) if number % 2 else (1, 0)
        seconds = {which: steppers[which].expected_seconds(rows[which]) for which in order}
        ratios.append(seconds[1] / seconds[0])
    return ratios[1:]  # the first round warms up


def measure_memory(recipe: Recipe, device: torch.device) -> dict:
    """Return the bytes of a step with one video, as a figure."""
    return _where_it_fits(
        recipe,
        device,
        lambda: {"value": Stepper(recipe, device).memory(), "batch": 1, "name": "bytes"},
    )


def measured_rate(recipe: Recipe, device: torch.device) -> tuple[float, str]:
    """Return FLOP/s in training, and how it was measured.

    A step of the recipe's own batch is timed where it takes seconds, or of one video; for a recipe
    far too large for the machine, a matrix product is timed.
    """
    counted, free = describe(with_some_classes(recipe)), available_memory(device)
    flops = counted["flops_per_video_training"]
    product = _matrix_rate(device)
    own = fit_micro_batch(recipe, counted["parameters"], devices=1, free=free)
    for batch in (own.micro_batch, 1):
        if batch * flops / product < MAX_PLAN_SECONDS and _fits(recipe, device, batch=batch):
            seconds = Stepper(recipe, device).seconds(batch, rounds=1)
            how = f"a training step with batch {batch}, {seconds:.3g} s"
            return batch * flops / seconds, how
    return product, "a matrix product; a step of one video is too large to try here"


def with_some_classes(recipe: Recipe) -> Recipe:
    """Return the recipe with one class if it takes their number from the data."""
    model = recipe.model
    if model.conditioning != "class" or model.num_classes is not None:
        return recipe
    return recipe.with_fields("model", {"num_classes": 1})


def random_batch(recipe: Recipe, size: int) -> PatchBatch:
    """Return a batch of random patches at random nested places."""
    pyramid, kind = recipe.pyramid.build(), recipe.model.conditioning
    width = recipe.model.condition_width
    text = torch.randn(size, COUNTED_TEXT_TOKENS, width) if kind == "text" else None
    mask = torch.ones(size, COUNTED_TEXT_TOKENS, dtype=torch.bool) if kind == "text" else None
    labels = torch.zeros(size, dtype=torch.int64) if kind == "class" else None
    return PatchBatch(
        patches=tuple(torch.rand(size, 3, *pyramid.patch) * 2 - 1 for _ in pyramid.levels),
        offsets=draw_offsets(pyramid, size),
        condition=Condition(labels=labels, text=text, text_mask=mask),
    )


def _where_it_fits(recipe: Recipe, device: torch.device, work: Callable[[], dict]) -> dict:
    needed = activation_bytes_per_video(recipe)
    refused = {"value": None, "text": f"{TOO_LARGE} (about {needed / 1e9:.0f} GB)"}
    if not _fits(recipe, device):
        return refused
    try:
        return work()
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return refused


def _fits(recipe: Recipe, device: torch.device, *, batch: int = 1) -> bool:
    """Judge one video by the estimate on a CPU alone, where a lack of memory ends the command."""
    if device.type == "cuda" and batch == 1:
        return True
    free = available_memory(device)
    return free is None or 1.25 * batch * activation_bytes_per_video(recipe) < free


def _matrix_rate(device: torch.device) -> float:
    a, b = (torch.randn(MATRIX, MATRIX, device=device) for _ in range(2))
    times = []
    for _ in range(3):
        began = time.perf_counter()
        float((a @ b)[0, 0])
        times.append(time.perf_counter() - began)
    return 2 * MATRIX**3 / min(times)
