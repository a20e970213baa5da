"""The largest micro-batch that fits into a device's memory.

Counted per device: weights, gradients, optimiser state and EMA weights; buffers of parallel
training; and the larger of one micro-batch's activations and the optimiser's temporary tensors.
Tests compare the sum with the peak of real passes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hpdm_core.build import activation_bytes_per_video
from hpdm_core.errors import DeviceError
from hpdm_core.files import gigabytes
from hpdm_core.recipe.schema import Recipe

# Bytes per parameter, all float32: weights, gradients, two moments, EMA weights.
BYTES_PER_PARAMETER = 20
FLOAT, HALF = 4, 2
# Share of the free memory that an automatic micro-batch may fill: the rest is for fragments of the
# allocator, workspaces of the libraries, and the estimate's error.
FILL = 0.85
# GPU memory sizes listed in plans, in GB.
CARDS = (24, 40, 80)


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Quantities that the memory of a training step depends on.

    Args:
        parameters: of the whole network.
        block_parameters: of one block: what FSDP2 gathers at a time.
        num_blocks: number of blocks.
        activations: bytes that one video's pyramid keeps for the backward pass.
        rows: videos of a step on one device.
        devices: number of devices.
        replicas: under FSDP2, copies of the sharded model.
        parallel: mode of parallelism; no effect on a single device.
        bf16: whether matrix products are in bfloat16.
        lamb: whether the optimiser is LAMB.
    """

    parameters: int
    block_parameters: int
    num_blocks: int
    activations: int
    rows: int
    devices: int
    replicas: int
    parallel: str
    bf16: bool
    lamb: bool

    def needed(self, micro_batch: int) -> dict[str, int]:
        """Return the bytes on each device by purpose, and their total.

        Args:
            micro_batch: rows per pass, at most `rows`.
        """
        share = self.devices // self.replicas if self.parallel == "fsdp" else 1
        # Autocast keeps a bfloat16 copy of each weight until the backward pass.
        copies = HALF * self.parameters if self.bf16 else 0
        # LAMB's update and its denominator, after activations are freed.
        update = 2 * FLOAT * self.parameters // share if self.lamb else 0
        parts = {
            "weights_and_optimizer": BYTES_PER_PARAMETER * self.parameters // share,
            "several_devices": self._several(accumulates=micro_batch < self.rows),
            "activations": micro_batch * self.activations + copies,
            "optimizer_step": update,
        }
        total = parts["weights_and_optimizer"] + parts["several_devices"]
        return parts | {"total": total + max(parts["activations"], update)}

    def largest(self, room: float) -> int:
        """Return the most rows per pass that fit in `room` bytes; 0 where not even one does."""
        sizes = range(self.rows, 0, -1)
        return next((size for size in sizes if self.needed(size)["total"] <= room), 0)

    def _several(self, *, accumulates: bool) -> int:
        if self.devices == 1:
            return 0
        if self.parallel == "ddp":
            return FLOAT * self.parameters  # gradient buckets of DDP
        rest = self.parameters - self.num_blocks * self.block_parameters
        # Gathered: the weights outside the blocks, a block's and the next one's, and the gradients
        # of two blocks in flight. Between the passes of a step gradients are not sharded.
        gathered = rest + 4 * self.block_parameters
        return FLOAT * (gathered + (self.parameters if accumulates else 0))


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A micro-batch compared with free memory.

    Args:
        micro_batch: rows per pass and device.
        needed: bytes on each device by purpose (estimate).
        free: bytes that each device has free; None where that is unknown.
        remedy: what to change if it does not fit; else empty.
    """

    micro_batch: int
    needed: Mapping[str, int]
    free: int | None
    remedy: str

    @property
    def verdict(self) -> str:
        """Whether it fits, in words."""
        if self.free is None:
            return f"needs {gigabytes(self.needed['total'])}; free memory is unknown"
        if self.remedy:
            return f"does not fit: {self.remedy}"
        return f"fits: {gigabytes(self.needed['total'])} of {gigabytes(self.free)} free"

    def check(self, device: str) -> None:
        """Raise if it does not fit.

        Args:
            device: its name in the message.

        Raises:
            DeviceError: with the change that makes it fit.
        """
        if not self.remedy:
            return
        needed = {purpose: gigabytes(size) for purpose, size in self.needed.items()}
        raise DeviceError(
            f"training with micro-batches of {self.micro_batch} does not fit into the memory that "
            f"{device} has free (estimate)",
            got=f"{gigabytes(self.free)} free",
            expected=f"{needed['total']}: {needed['weights_and_optimizer']} for weights, "
            f"gradients, optimiser and EMA weights, {needed['several_devices']} to work with "
            f"other devices, {needed['activations']} for activations",
            remedy=self.remedy,
        )


def training_memory(
    recipe: Recipe, parameters: Mapping[str, int], *, devices: int
) -> TrainingMemory:
    """Collect the quantities that determine a recipe's training memory.

    Args:
        recipe: resolved, with its number of classes.
        parameters: by part, as `describe` counts them.
        devices: number of processes, one device each.
    """
    blocks = len(recipe.model.levels_per_block)
    return TrainingMemory(
        parameters=parameters["total"],
        block_parameters=parameters["blocks"] // blocks,
        num_blocks=blocks,
        activations=activation_bytes_per_video(recipe),
        rows=-(-recipe.train.batch_size // devices),
        devices=devices,
        replicas=min(recipe.train.replicas, devices),
        parallel=recipe.train.parallel,
        bf16=recipe.train.precision == "bf16",
        lamb=recipe.optim.name == "lamb",
    )


def fit_micro_batch(
    recipe: Recipe, parameters: Mapping[str, int], *, devices: int, free: int | None
) -> Fit:
    """Choose the micro-batch, or check the recipe's own.

    Args:
        recipe: resolved, with its number of classes. `train.micro_batch` left out means automatic:
            the most rows that fill at most 85% of the free memory, in passes of equal size where
            that costs less than half of them.
        parameters: by part, as `describe` counts them.
        devices: number of processes, one device each.
        free: bytes that each device has free; None where that is unknown: all rows at once.
    """
    memory = training_memory(recipe, parameters, devices=devices)
    automatic = memory.rows if free is None else memory.largest(FILL * free)
    automatic = equal_passes(memory.rows, automatic)
    size = min(recipe.train.micro_batch or max(1, automatic), memory.rows)
    needed = memory.needed(size)
    remedy = ""
    if free is not None and needed["total"] > free:
        remedy = (
            f"set train.micro_batch={automatic}" if automatic else _remedy(recipe, memory, free)
        )
    return Fit(micro_batch=size, needed=needed, free=free, remedy=remedy)


def fit_on_cards(recipe: Recipe, parameters: Mapping[str, int], *, devices: int) -> list[dict]:
    """Return the fit on GPUs of common memory sizes, smallest first."""
    rows = []
    for size in CARDS:
        fit = fit_micro_batch(recipe, parameters, devices=devices, free=size * 10**9)
        row = {"card": f"{size} GB", "micro_batch": fit.micro_batch}
        rows.append(row | {"bytes": fit.needed["total"], "verdict": fit.verdict})
    return rows


def equal_passes(rows: int, most: int) -> int:
    """Return how many rows a pass should have: at most `most`, and all passes equal if possible.

    The largest divisor of `rows`, or where that is not more than half of `most` (rows may be
    prime), passes as equal as can be. Grows with `most`; 0 where `most` is 0.
    """
    divisor = max((size for size in range(1, most + 1) if rows % size == 0), default=0)
    if 2 * divisor > most or most == 0:
        return divisor
    passes = -(-rows // most)
    return -(-rows // passes)


def _remedy(recipe: Recipe, memory: TrainingMemory, free: int) -> str:
    """Return what would make one row fit."""
    if not recipe.train.activation_checkpointing:
        saving = recipe.with_fields("train", {"activation_checkpointing": True})
        lighter = replace(memory, activations=activation_bytes_per_video(saving))
        if lighter.largest(free):
            return "set train.activation_checkpointing=true"
    if memory.devices > 1 and memory.parallel == "fsdp":
        return "use more devices, larger ones, or a smaller model"
    return "use a smaller model, or several devices with train.parallel=fsdp"
