"""The training loop, for one process or several (Sec. 4.6).

All randomness of a step is a function of (seed, step), so that a resumed run continues exactly as
an uninterrupted one would have.

Axis legend: `b` batch, `l` level.
"""

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from hpdm_core.device import Precision, autocast
from hpdm_core.diffusion.patch_diffusion import LevelLosses, mean_by_level
from hpdm_core.errors import CheckpointError, DivergedError
from hpdm_core.records import Network, PatchBatch
from hpdm_core.seeds import derive_seed
from hpdm_core.training.batches import BatchStream, keep_levels, levels_of_step, split_batch
from hpdm_core.training.checkpoint import checkpoint_name
from hpdm_core.training.parallel import Parallel, clip_gradients
from hpdm_core.training.previews import PreviewBudget
from hpdm_core.training.stopping import Interrupted, StopRequest
from hpdm_core.training.store import CheckpointStore, TrainState
from hpdm_core.training.telemetry import StepReport, Telemetry

logger = logging.getLogger("hpdm.training")

MAX_SKIPPED_IN_A_ROW = 10


class Loss(Protocol):
    """The training loss: `PatchDiffusion.loss`, or a stand-in."""

    def __call__(
        self, network: Network, batch: PatchBatch, *, seed: int, step: int
    ) -> LevelLosses: ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings of the loop.

    Args:
        steps: updates in all.
        seed: of data order, noise and dropout.
        lr: learning rate of the update after `step` updates.
        grad_clip: largest norm of all gradients together.
        micro_batch: rows per pass and device; None: all.
        precision: of matrix products.
        level_drop_prob: probability that a step drops the finest levels.
        checkpoint_every: steps between checkpoints.
        preview_every: steps between previews; 0: none.
    """

    steps: int
    seed: int
    lr: Callable[[int], float]
    grad_clip: float
    micro_batch: int | None
    precision: Precision
    level_drop_prob: float
    checkpoint_every: int
    preview_every: int


def train(
    state: TrainState,
    batches: BatchStream,
    *,
    loss: Loss,
    plan: Plan,
    parallel: Parallel,
    store: CheckpointStore,
    telemetry: Telemetry,
    preview: Callable[[int], None],
) -> Path:
    """Train up to `plan.steps`, with checkpoints as planned and on a stop request.

    Args:
        state: training state, changed in place.
        batches: from `state.step` on.
        loss: what is minimised.
        plan: settings of the loop.
        parallel: this process's rank and device.
        store: checkpoints.
        telemetry: metrics.
        preview: called with the step while the network holds EMA weights: as planned, at the end,
            and on a stop. Planned ones take at most 2% of the time, and a minute.

    Returns:
        The last checkpoint.

    Raises:
        Interrupted: SIGINT or SIGTERM came; progress is saved.
        DivergedError: ten steps in a row were not finite.
        CheckpointError: the last checkpoint cannot be written.
    """
    state.module.train()
    skipped_in_a_row = 0
    start, before = state.step, state.seconds
    budget = PreviewBudget(parallel=parallel)
    saved = store.folder / checkpoint_name(start)
    alone, pictured = parallel.world_size == 1, start
    with StopRequest() as stop:
        while state.step < plan.steps:
            begun = time.perf_counter()
            try:
                with stop.at_once(alone=alone):
                    batch = batches.next()
            except KeyboardInterrupt:
                saved = _saved_now(state, store, saved)
                if state.step > pictured:
                    _preview(state, preview, stop=stop, alone=alone)
                raise Interrupted(_stopped(state, saved)) from None
            report = train_step(state, batch, loss=loss, plan=plan, parallel=parallel, stop=stop)
            state.seconds += time.perf_counter() - begun
            skipped_in_a_row = 0 if report.finite else skipped_in_a_row + 1
            telemetry.record(report, wait_seconds=batches.wait_seconds, seconds=state.seconds)
            if not report.finite:
                _report_skipped(state, batch, report, skipped_in_a_row)
            must = report.stop or state.step == plan.steps
            if must or state.step % plan.checkpoint_every == 0:
                saved = _save(state, store, must=must) or saved
            planned = plan.preview_every and state.step % plan.preview_every == 0
            if must:
                _preview(state, preview, stop=stop, alone=alone)
            elif planned and budget.allows(state.step, trained=state.seconds - before):
                pictured = state.step
                with budget.spending():
                    _preview(state, preview, stop=stop, alone=alone)
            if report.stop and state.step < plan.steps:
                raise Interrupted(_stopped(state, saved))
    return saved


def train_step(
    state: TrainState,
    batch: PatchBatch,
    *,
    loss: Loss,
    plan: Plan,
    parallel: Parallel,
    stop: StopRequest,
) -> StepReport:
    """Do one update, or skip it where the loss or a gradient is not finite.

    Args:
        state: changed in place.
        batch: this process's rows of the step's batch.
        loss: what is minimised.
        plan: learning rate, clipping, micro-batches.
        parallel: this process's rank and device.
        stop: stop request of this process; the report has that of any process.
    """
    lr = plan.lr(state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    levels = levels_of_step(
        state.step, seed=plan.seed, levels=len(batch.patches), drop_prob=plan.level_drop_prob
    )
    state.optimizer.zero_grad(set_to_none=True)
    losses = _accumulate(state, keep_levels(batch, levels), loss, plan, parallel)
    norm = clip_gradients(list(state.network.parameters()), plan.grad_clip)
    # One device-to-host transfer and one all-reduce for all metrics.
    figures = torch.cat([losses, norm.reshape(1), norm.new_full((1,), float(stop.requested))])
    figures = parallel.mean(figures)
    sums, counts = figures[1:-2].chunk(2)
    per_level = mean_by_level(sums, counts)
    total, *per_level, norm, stopping = torch.cat(
        [figures[:1], per_level, figures[-2:]]
    ).tolist()
    finite = math.isfinite(total) and math.isfinite(norm)
    if finite:
        state.optimizer.step()
        state.ema.update(state.step + 1)
    else:
        state.skipped += 1
    state.step += 1
    return StepReport(
        step=state.step,
        loss=total,
        per_level=tuple(per_level),
        grad_norm=norm,
        lr=lr,
        videos=len(batch.indices) * parallel.world_size,
        finite=finite,
        skipped=state.skipped,
        stop=stopping > 0,
    )


def _accumulate(
    state: TrainState, batch: PatchBatch, loss: Loss, plan: Plan, parallel: Parallel
) -> Tensor:
    """Add up the gradients of all micro-batches.

    Returns:
        (1 + 2 l,) the total loss, then each level's sum over samples and the number of these: a
        level's mean is over all samples of the step, whatever process or micro-batch has them.
    """
    device, rows = parallel.device, len(batch.indices)
    figures = torch.zeros(1 + 2 * len(batch.patches), device=device)
    parts = split_batch(batch, plan.micro_batch)
    for number, part in enumerate(parts):
        torch.manual_seed(derive_seed(plan.seed, "dropout", state.step, parallel.rank, number))
        share = len(part.indices) / rows
        with parallel.pass_of(state.module, last=number == len(parts) - 1):
            with autocast(plan.precision, device=device):
                losses = loss(state.module, part.to(device), seed=plan.seed, step=state.step)
            (losses.total * share).backward()
        total = losses.total.detach().reshape(1) * share
        figures += torch.cat([total, losses.sums, losses.counts])
    return figures


def _saved_now(state: TrainState, store: CheckpointStore, saved: Path) -> Path:
    """Save the current step unless that was done."""
    if saved.name == checkpoint_name(state.step) and store.wait():
        return saved
    return _save(state, store, must=True)


def _stopped(state: TrainState, saved: Path) -> str:
    if state.step == 0:
        return "stopped before the first step; run the same command again"
    return f"stopped at step {state.step}, saved in {saved}; run the same command again to resume"


def _save(state: TrainState, store: CheckpointStore, *, must: bool) -> Path | None:
    saved = store.save(state, wait=must)
    if saved is None and must:
        raise CheckpointError(
            f"the last checkpoint (step {state.step}) could not be written",
            remedy="free space and run the same command again; it resumes from the one before",
        )
    return saved


def _preview(
    state: TrainState, preview: Callable[[int], None], *, stop: StopRequest, alone: bool
) -> None:
    """Draw previews; a signal that comes meanwhile skips them, as nothing is lost.

    Args:
        state: its network holds EMA weights meanwhile.
        preview: called with the step.
        stop: a signal before asked for the stop, and does not skip them.
        alone: whether this is the only process; several draw to the end, unless asked twice.
    """
    state.network.eval()
    try:
        heard = nullcontext() if stop.requested else stop.at_once(alone=alone)
        with state.ema.swapped_in(), torch.no_grad(), heard:
            preview(state.step)
    except KeyboardInterrupt:
        logger.info("step %d: no previews, interrupted", state.step)
    state.network.train()


def _report_skipped(
    state: TrainState, batch: PatchBatch, report: StepReport, in_a_row: int
) -> None:
    logger.warning(
        "step %d: loss %s and gradient norm %s; skipped; videos: %s",
        state.step, report.loss, report.grad_norm, ", ".join(batch.keys),
    )  # fmt: skip
    if in_a_row >= MAX_SKIPPED_IN_A_ROW:
        raise DivergedError(
            f"{in_a_row} steps in a row gave a loss or gradient that is not finite",
            got=f"loss {report.loss}, gradient norm {report.grad_norm} at step {state.step}",
            remedy="train with a lower optim.lr, a longer optim.warmup_steps, or "
            "train.precision=fp32, into another --out; the checkpoints so far are sound",
        )
