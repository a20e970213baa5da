"""`hpdm train` and `hpdm finetune`: build, check, train, summarise.

Run again, the same command resumes from the newest intact checkpoint.
"""

import json
import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from hpdm_core import __version__
from hpdm_core.build import (
    build_loader,
    build_network,
    build_optimizer,
    build_schedule,
    describe,
)
from hpdm_core.data.dataset import VideoDataset, open_dataset
from hpdm_core.data.loader import PatchLoader
from hpdm_core.device import device_name, set_precision
from hpdm_core.errors import DeviceError
from hpdm_core.files import write_text
from hpdm_core.locks import lock_folder
from hpdm_core.progress import NoProgress, Progress
from hpdm_core.recipe.load import recipe_to_yaml
from hpdm_core.recipe.schema import Recipe
from hpdm_core.runs.train import preflight
from hpdm_core.runs.train.distill import build_loss, check_teacher
from hpdm_core.runs.train.fit import fit_micro_batch
from hpdm_core.runs.train.loss_plot import PICTURE, plot_losses
from hpdm_core.runs.train.preview import make_preview
from hpdm_core.runs.train.warm_start import WarmStart, plan_warm_start
from hpdm_core.seeds import derive_seed
from hpdm_core.training.batches import BatchStream
from hpdm_core.training.checkpoint import RECIPE, list_checkpoints
from hpdm_core.training.ema import Ema
from hpdm_core.training.loop import Plan, train
from hpdm_core.training.parallel import Parallel, start_parallel
from hpdm_core.training.store import CheckpointStore, TrainState
from hpdm_core.training.telemetry import Telemetry, open_sinks, trim_metrics

logger = logging.getLogger("hpdm.runs")

SAMPLES = "samples"  # folder of previews in a run


def run_train(
    recipe: Recipe,
    *,
    out: Path | None,
    device: str,
    dry_run: bool,
    progress: Progress,
    init_from: str | Path | None = None,
    devices: int | None = None,
) -> dict:
    """Train a recipe into the folder `out`, or plan it.

    Args:
        recipe: resolved.
        out: the run's folder; None: runs/<recipe name>.
        device: "auto", "cpu" or "cuda".
        dry_run: count and estimate only.
        progress: progress bar, shown by the main process.
        init_from: model whose weights a new run starts from: a run, checkpoint, weights file,
            'shipped' or hf://owner/name.
        devices: with `dry_run`, simulate a cluster of that many cards.

    Returns:
        A summary of the run, or with `dry_run` the plan.

    Raises:
        HpdmError: it cannot be done, with the remedy.
        KeyboardInterrupt: the run was interrupted and has saved a checkpoint.
    """
    out = out or Path("runs") / recipe.name
    check_teacher(recipe, init_from)
    if dry_run:
        return preflight.plan_of_run(
            recipe, out, device=device, init_from=init_from, devices=devices
        )
    dataset = open_dataset(recipe.data.root, recipe.data.name)
    recipe = preflight.with_classes(recipe, dataset)
    parallel = start_parallel(device, mode=recipe.train.parallel, replicas=recipe.train.replicas)
    progress = progress if parallel.is_main else NoProgress()
    try:
        preflight.check_data(recipe, dataset)
        preflight.check_processes(recipe, parallel.world_size)
        start = None
        if init_from is not None:  # checked before the run's folder is created
            preflight.check_base(out, init_from)
            if not list_checkpoints(out / "checkpoints"):
                start = plan_warm_start(init_from, recipe, classes=dataset.classes)
        remedy = "wait for it, stop it, or give another --out"
        lock = lock_folder(out, doing="training into", remedy=remedy)
        run = Run(
            recipe=recipe, dataset=dataset, out=out, parallel=parallel, progress=progress,
            init_from=init_from,
        )  # fmt: skip
        with lock if parallel.is_main else nullcontext():
            return run.train(start)
    except torch.cuda.OutOfMemoryError as error:
        raise DeviceError(
            "the device ran out of memory",
            got=str(error).split(". ")[0],
            remedy="lower train.micro_batch, set train.activation_checkpointing=true, or use "
            "several devices with train.parallel=fsdp",
        ) from error
    finally:
        parallel.close()


@dataclass(frozen=True, kw_only=True)
class Run:
    """One process's part of a training run.

    Args:
        recipe: resolved, with the data set's number of classes.
        dataset: training data.
        out: the run's folder.
        parallel: this process's rank and device.
        progress: progress bar; silent on all processes but one.
        init_from: the base model; a student's teacher.
    """

    recipe: Recipe
    dataset: VideoDataset
    out: Path
    parallel: Parallel
    progress: Progress
    init_from: str | Path | None = None

    def train(self, warm_start: WarmStart | None) -> dict:
        """Build, resume or warm-start, train; return the summary."""
        begun = time.perf_counter()
        self._check_recipe()
        set_precision(self.recipe.train.precision, device=self.parallel.device, training=True)
        micro_batch = self._check_room()
        state = self._state()
        store = self._store(warm_start)
        resumed = store.resume(state)
        if resumed is not None:
            logger.info("resuming from %s", resumed)
        start = state.step
        preflight.check_steps(self.recipe, self.out, done=start)
        taken = None
        if resumed is None and warm_start is not None:
            taken = self._take_over(warm_start, state)
        if self.parallel.is_main:
            if resumed is None and warm_start is None:  # left by a run that saved nothing
                (self.out / preflight.INITIALISED).unlink(missing_ok=True)
            write_text(self.out / RECIPE, recipe_to_yaml(self.recipe))
        telemetry = self._telemetry(start)
        loader = build_loader(
            self.recipe,
            self.dataset,
            batch_size=self.recipe.train.batch_size,
            workers=self.recipe.data.workers,
            rank=self.parallel.rank,
            world_size=self.parallel.world_size,
        )
        try:
            last = self._loop(state, loader, store, telemetry, micro_batch=micro_batch)
        finally:
            self.progress.stop()
            telemetry.close()
            loader.close()
        summary = {
            "run": str(self.out),
            "checkpoint": str(last),
            "preview": _existing(self.out / SAMPLES / f"step-{state.step:08d}.png"),
            "loss_plot": _existing(self.out / PICTURE),
            "steps": state.step,
            "micro_batch": micro_batch,
            "resumed_from_step": start if resumed is not None else None,
            "parameters": sum(param.numel() for param in state.network.parameters()),
            "skipped_steps": state.skipped,
            "replaced_videos": loader.replaced,
            "last": telemetry.last,
            "seconds_training": round(state.seconds, 1),
            "seconds": round(time.perf_counter() - begun, 1),
        }
        return summary if taken is None else {**summary, "initialised": taken}

    def _take_over(self, warm_start: WarmStart, state: TrainState) -> dict:
        """Load a base model into network and EMA; save the table of weights in the run."""
        warm_start.apply(state.network)
        state.ema.reset()
        for line in warm_start.lines():
            logger.info(line)
        summary = warm_start.summary()
        if self.parallel.is_main:
            write_text(self.out / preflight.INITIALISED, json.dumps(summary, indent=1))
        return summary

    def _loop(
        self,
        state: TrainState,
        loader: PatchLoader,
        store: CheckpointStore,
        telemetry: Telemetry,
        *,
        micro_batch: int,
    ) -> Path:
        recipe = self.recipe.with_fields("train", {"micro_batch": micro_batch})
        self._start_bar(state.step)
        return train(
            state,
            BatchStream(loader.batches, state.step),
            loss=build_loss(recipe, self.init_from, out=self.out, parallel=self.parallel),
            plan=plan_from(recipe),
            parallel=self.parallel,
            store=store,
            telemetry=telemetry,
            preview=self._pictures(state, telemetry),
        )

    def _pictures(self, state: TrainState, telemetry: Telemetry) -> Callable[[int], None]:
        """Return the function that draws the losses and the previews of a step."""
        preview = make_preview(
            self.recipe,
            state.network,
            dataset=self.dataset,
            folder=self.out / SAMPLES,
            parallel=self.parallel,
            progress=self.progress,
            show=telemetry.show,
        )

        def draw(step: int) -> None:
            if self.parallel.is_main:
                plot_losses(self.out)
            if self.recipe.train.preview_every != 0:
                preview(step)
                if step < self.recipe.train.steps:  # previews had a bar of their own
                    self._start_bar(step)

        return draw

    def _start_bar(self, done: int) -> None:
        self.progress.start(f"training {self.recipe.name}", self.recipe.train.steps, done=done)

    def _state(self) -> TrainState:
        settings = self.recipe.train
        with torch.device("meta"):
            network, counted = build_network(self.recipe), build_network(self.recipe)
        network.set_activation_checkpointing(settings.activation_checkpointing)
        if settings.compile:
            for block in network.blocks:
                block.compile()
        torch.manual_seed(derive_seed(settings.seed, "weights"))
        module = self.parallel.place(
            network, counted.initial_weights(), some_unused=settings.level_drop_prob > 0
        )
        return TrainState(
            network=network,
            module=module,
            optimizer=build_optimizer(network, self.recipe),
            ema=Ema(network, half_life=settings.ema_half_life, ramp=settings.ema_rampup_ratio),
        )

    def _check_room(self) -> int:
        """Refuse what does not fit into memory or on disk, before anything is built.

        Returns:
            rows per pass and device, the same in all processes.
        """
        parameters, world_size = describe(self.recipe)["parameters"], self.parallel.world_size
        free = self.parallel.free_memory()
        fit = fit_micro_batch(self.recipe, parameters, devices=world_size, free=free)
        fit.check(str(self.parallel.device))
        preflight.check_disk(self.recipe, self.out, parameters=parameters["total"])
        if fit.micro_batch < self.recipe.train.batch_size // world_size:
            logger.info("%d videos per pass and device; %s", fit.micro_batch, fit.verdict)
        return fit.micro_batch

    def _store(self, warm_start: WarmStart | None) -> CheckpointStore:
        text = recipe_to_yaml(self.recipe)
        several = self.parallel.world_size > 1 and self.parallel.device.type == "cuda"
        devices = f"{self.parallel.world_size} x " if several else ""
        return CheckpointStore(
            folder=self.out / "checkpoints",
            keep=self.recipe.train.keep_checkpoints,
            every=self.recipe.train.checkpoint_every,
            recipe=text,
            metadata={
                "recipe": text,
                "classes": json.dumps(self.dataset.classes),
                "hpdm_version": __version__,
                "machine": devices + device_name(self.parallel.device),
                **self._base(warm_start),
            },
            parallel=self.parallel,
            asynchronous=self.recipe.train.async_checkpoints,
        )

    def _base(self, warm_start: WarmStart | None) -> dict[str, str]:
        """Return the base model's name for weights' headers, also after a resume."""
        if warm_start is not None:
            return {"base": warm_start.base.recipe.name}
        base = preflight.base_of(self.out) if list_checkpoints(self.out / "checkpoints") else None
        return {} if base is None else {"base": base}

    def _check_recipe(self) -> None:
        """Refuse to resume a run that was started with another recipe."""
        path = self.out / RECIPE
        if list_checkpoints(self.out / "checkpoints") and path.is_file():
            preflight.check_same_recipe(self.recipe, path)

    def _telemetry(self, start: int) -> Telemetry:
        settings, main = self.recipe.train, self.parallel.is_main
        sinks = ()
        if main:
            trim_metrics(self.out, start)
            sinks = open_sinks(
                self.out, start_step=start, tensorboard=settings.tensorboard, wandb=settings.wandb
            )
        return Telemetry(
            self.out if main else None,
            self.progress,
            log_every=settings.log_every,
            steps=settings.steps,
            sinks=sinks,
        )


def _existing(path: Path) -> str | None:
    return str(path) if path.is_file() else None


def plan_from(recipe: Recipe) -> Plan:
    """Build the loop's settings from a recipe."""
    settings = recipe.train
    return Plan(
        steps=settings.steps,
        seed=settings.seed,
        lr=build_schedule(recipe),
        grad_clip=recipe.optim.grad_clip,
        micro_batch=settings.micro_batch,
        precision=settings.precision,
        level_drop_prob=settings.level_drop_prob,
        checkpoint_every=settings.checkpoint_every,
        preview_every=settings.preview_every or 0,
    )
