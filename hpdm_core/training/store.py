"""Training state, and its checkpoints: saved, and restored to resume.

Unsharded models are written by the main process. Under FSDP2 every process writes its own shards;
the EMA weights are also gathered, so that every checkpoint holds a complete `ema.safetensors`.
Either kind can be restored on any number of processes.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer

from hpdm_core.training import checkpoint
from hpdm_core.training.background import Background
from hpdm_core.training.ema import Ema
from hpdm_core.training.parallel import Parallel
from hpdm_core.training.sharding import copy_whole, whole

logger = logging.getLogger("hpdm.training")

SHARDED = "sharded"
_FILES = {"model": checkpoint.MODEL, "ema": checkpoint.EMA, "optimizer": checkpoint.OPTIMIZER}


@dataclass(kw_only=True)
class TrainState:
    """Training state. Data order, noise and dropout are functions of the step.

    Args:
        network: the network, sharded if it will be.
        module: what is called in training: the network, or its DDP wrapper.
        optimizer: over the network's parameters.
        ema: EMA weights.
        step: updates done or skipped.
        skipped: steps skipped because the loss or a gradient was not finite.
        seconds: time spent training, over all starts.
    """

    network: nn.Module
    module: nn.Module
    optimizer: Optimizer
    ema: Ema
    step: int = 0
    skipped: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: the run's checkpoints folder.
        keep: number of newest checkpoints to keep.
        every: steps between checkpoints; those saved by interruptions in between are pruned.
        recipe: resolved recipe as YAML.
        metadata: header of weights files: recipe, classes, hpdm_version, machine.
        parallel: this process's rank and device.
        asynchronous: write beside training where `save` need not wait.
    """

    folder: Path
    keep: int
    every: int
    recipe: str
    metadata: dict[str, str]
    parallel: Parallel
    asynchronous: bool = False
    _background: Background = field(default_factory=Background)

    def save(self, state: TrainState, *, wait: bool = True) -> Path | None:
        """Write a checkpoint of the current step and prune old ones.

        A failure (a full disk) is logged, leaves no partial files, and older checkpoints stay.

        Args:
            state: what is saved.
            wait: return when the checkpoint is complete, also of an asynchronous store.

        Returns:
            The checkpoint's folder, which may be incomplete still without `wait`; None where it
            could not be written.
        """
        self.wait()
        rest = (self._write, self._finish) if wait or not self.asynchronous else (self._start,)
        for phase in (self._begin, *rest):
            failure = _failure(lambda phase=phase: phase(state))
            if not self._agreed(failure, state.step):
                return None
        return self.folder / checkpoint.checkpoint_name(state.step)

    def wait(self) -> bool:
        """Wait for a checkpoint that is being written; return whether it is complete."""
        if not self.asynchronous or not self.parallel.any(self._background.busy):
            return True
        return self._agreed(_failure(self._background.wait), self._background.step)

    def _agreed(self, failure: str | None, step: int) -> bool:
        """Return whether no process failed; clean up after one that did."""
        if not self.parallel.any(failure is not None):
            return True
        if self.parallel.is_main:
            checkpoint.clean_up(self.folder)
        reason = failure or "another process failed"
        logger.warning("step %d: checkpoint could not be written: %s", step, reason)
        return False

    def resume(self, state: TrainState) -> Path | None:
        """Restore the newest intact checkpoint; damaged ones are set aside and logged.

        Returns:
            The checkpoint's folder; None where the run has none yet.

        Raises:
            CheckpointError: all checkpoints are damaged, or they belong to another model.
        """
        step = self.parallel.from_main(self._choose() if self.parallel.is_main else -1)
        if step < 0:
            return None
        path = self.folder / checkpoint.checkpoint_name(step)
        self._read(path, state)
        progress = checkpoint.read_progress(path)
        state.step, state.skipped = step, progress["skipped"]
        state.seconds = progress["seconds"]
        return path

    def _choose(self) -> int:
        """Return the step to resume from, -1 for the start."""
        checkpoint.clean_up(self.folder)
        newest = checkpoint.newest_intact(self.folder)
        if newest is None:
            return -1
        step = checkpoint.step_of(newest)
        for path in checkpoint.list_checkpoints(self.folder):
            if checkpoint.step_of(path) > step:
                checkpoint.set_aside(path, "damaged")
        return step

    def _begin(self, state: TrainState) -> None:
        if self.parallel.is_main:
            checkpoint.clean_up(self.folder)
            checkpoint.partial_folder(self.folder, state.step).mkdir(parents=True)

    def _write(self, state: TrainState) -> None:
        tensors = _tensors(state)
        if self.parallel.mode == "fsdp":
            from hpdm_core.training.sharded_checkpoint import write_sharded  # much of torch

            ema = self._gathered(tensors["ema"])
            partial = checkpoint.partial_folder(self.folder, state.step)
            write_sharded(partial / SHARDED, _flat(tensors))
            tensors = {"ema": ema}
        if self.parallel.is_main:
            self._write_whole(_Progress.of(state), tensors)

    def _finish(self, state: TrainState) -> None:
        if self.parallel.is_main:
            self._complete(_Progress.of(state))

    def _start(self, state: TrainState) -> None:
        """Copy the state to main memory and begin to write it."""
        tensors, progress, kept = _tensors(state), _Progress.of(state), {}
        shards_written = _nothing
        if self.parallel.mode == "fsdp":
            from hpdm_core.training.sharded_checkpoint import begin_sharded  # much of torch

            ema = self._gathered(tensors["ema"])
            partial = checkpoint.partial_folder(self.folder, state.step)
            group = self.parallel.writing_group
            shards_written = begin_sharded(partial / SHARDED, _flat(tensors), group)
            tensors = {"ema": ema}
        if self.parallel.is_main:
            copies = self._background.copy(_flat(tensors))
            kept = {
                kind: {name: copies[f"{kind}/{name}"] for name in named}
                for kind, named in tensors.items()
            }

        def write() -> None:
            if self.parallel.is_main:
                self._write_whole(progress, kept)
            shards_written()  # by all processes
            if self.parallel.is_main:
                self._complete(progress)

        self._background.begin(state.step, write)

    def _write_whole(self, progress: "_Progress", tensors: dict[str, dict[str, Tensor]]) -> None:
        partial = checkpoint.partial_folder(self.folder, progress.step)
        seconds = str(round(progress.seconds))
        header = {**self.metadata, "step": str(progress.step), "seconds": seconds}
        for kind, file in _FILES.items():
            if kind in tensors:
                metadata = {**header, "kind": kind}
                checkpoint.write_tensors(partial / file, tensors[kind], metadata)

    def _complete(self, progress: "_Progress") -> None:
        partial = checkpoint.partial_folder(self.folder, progress.step)
        figures = {"skipped": progress.skipped, "seconds": round(progress.seconds, 3)}
        checkpoint.finish(partial, recipe=self.recipe, progress=figures)
        checkpoint.prune(self.folder, keep=self.keep, every=self.every)

    def _gathered(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gather whole tensors on the main process, one after the other (collective)."""
        gathered = {}
        for name, tensor in tensors.items():
            complete = whole(tensor)
            if self.parallel.is_main:
                gathered[name] = complete.cpu()
        return gathered

    @staticmethod
    def _read(path: Path, state: TrainState) -> None:
        sharded = path / SHARDED
        if sharded.is_dir():
            from hpdm_core.training.sharded_checkpoint import read_sharded, sharded_shapes

            shapes, prefix = sharded_shapes(sharded), "optimizer/"
            slots = {k.removeprefix(prefix): s for k, s in shapes.items() if k.startswith(prefix)}
            targets = _targets(state, slots)
            read_sharded(sharded, _flat(targets))
        else:
            shapes = checkpoint.tensor_shapes(path / checkpoint.OPTIMIZER)
            targets = _targets(state, shapes)
            for kind, file in _FILES.items():
                checkpoint.read_into(path / file, targets[kind], copy_whole)
        _restore_optimizer(state, targets["optimizer"])


@dataclass(frozen=True, kw_only=True)
class _Progress:
    """A state's counters at the time of its checkpoint."""

    step: int
    skipped: int
    seconds: float

    @classmethod
    def of(cls, state: TrainState) -> "_Progress":
        return cls(step=state.step, skipped=state.skipped, seconds=state.seconds)


def _nothing() -> None:
    """Stand for shards of which there are none."""


def _failure(phase: Callable[[], None]) -> str | None:
    """Run one phase; return the reason of a failure."""
    try:
        phase()
    except (OSError, SafetensorError) as error:
        return str(error)
    return None


def _tensors(state: TrainState) -> dict[str, dict[str, Tensor]]:
    """Return all tensors of a checkpoint by kind and name; they share memory with the state."""
    return {
        "model": {name: param.detach() for name, param in state.network.named_parameters()},
        "ema": state.ema.tensors(),
        "optimizer": {
            f"{slot}/{name}": value
            for name, param in state.network.named_parameters()
            for slot, value in state.optimizer.state.get(param, {}).items()
        },
    }


def _targets(state: TrainState, slots: dict[str, tuple[int, ...]]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors a checkpoint is read into: the state's weights, new optimiser tensors."""
    params = dict(state.network.named_parameters())
    targets = _tensors(state)
    targets["optimizer"] = {
        key: torch.zeros_like(params[key.split("/", 1)[1]]) if shape else torch.zeros(())
        for key, shape in slots.items()
        if key.split("/", 1)[1] in params
    }
    return targets


def _restore_optimizer(state: TrainState, tensors: dict[str, Tensor]) -> None:
    """Load the optimiser's moments; its settings come from the recipe."""
    names = {param: name for name, param in state.network.named_parameters()}
    slots: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        slot, name = key.split("/", 1)
        slots.setdefault(name, {})[slot] = tensor.detach()
    order = [param for group in state.optimizer.param_groups for param in group["params"]]
    moments = {i: slots[names[param]] for i, param in enumerate(order) if names[param] in slots}
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _flat(tensors: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{kind}/{name}": t for kind, named in tensors.items() for name, t in named.items()}
