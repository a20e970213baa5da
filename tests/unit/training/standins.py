"""A small network, loss and loader that follow the seams, so that training is tested alone."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from hpdm_core.diffusion.patch_diffusion import LevelLosses
from hpdm_core.progress import NoProgress
from hpdm_core.records import Condition, PatchBatch
from hpdm_core.seeds import derive_seed
from hpdm_core.training.batches import BatchStream
from hpdm_core.training.ema import Ema
from hpdm_core.training.lamb import Lamb, parameter_groups
from hpdm_core.training.loop import Plan, train
from hpdm_core.training.lr import learning_rate
from hpdm_core.training.muon import Muon, muon_groups
from hpdm_core.training.parallel import Parallel, start_parallel
from hpdm_core.training.store import CheckpointStore, TrainState
from hpdm_core.training.telemetry import Telemetry

WIDTH, LEVELS, PATCH = 12, 2, (2, 2, 2)


class Block(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(torch.tanh(self.linear(self.norm(x))))


class TinyNetwork(nn.Module):
    """Predicts each level's patch from its noisy self; level 1 has weights of its own."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        size = 3 * PATCH[0] * PATCH[1] * PATCH[2]
        self.table = nn.Parameter(torch.randn(3, WIDTH) * 0.02)
        self.read = nn.Linear(size, WIDTH)
        self.fine = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([Block(dropout) for _ in range(2)])
        self.write = nn.Linear(WIDTH, size)

    def forward(self, inputs, c_noise, boxes, condition, latents=None, *, latents_only=False):
        outputs = []
        for level, patch in enumerate(inputs):
            x = self.read(patch.flatten(1)) + self.table[condition.labels]
            if level:
                x = self.fine(x)
            for block in self.blocks:
                x = block(x)
            outputs.append(self.write(x).reshape(patch.shape))
        return tuple(outputs), ()


def tiny_loss(network: nn.Module, batch: PatchBatch, *, seed: int, step: int) -> LevelLosses:
    """Mean squared error of denoising, noise drawn per (seed, step, place in the batch)."""
    noisy = []
    for patch in batch.patches:
        noise = [
            torch.randn(
                patch.shape[1:],
                generator=torch.Generator().manual_seed(derive_seed(seed, step, index)),
            )
            for index in batch.indices.tolist()
        ]
        noisy.append(patch + torch.stack(noise).to(patch.device))
    outputs, _ = network(tuple(noisy), batch.offsets[..., 0], (), batch.condition, None)
    errors = torch.stack(
        [(o - p).square().mean() for o, p in zip(outputs, batch.patches, strict=True)]
    )
    counts = torch.full_like(errors.detach(), len(batch.indices))
    return LevelLosses(total=errors.mean(), sums=errors.detach() * counts, counts=counts)


def make_batch(step: int, *, rows: range, seed: int = 0) -> PatchBatch:
    """Return some rows of the global batch of a step."""
    patches, labels = [], []
    for row in rows:
        generator = torch.Generator().manual_seed(derive_seed(seed, "data", step, row))
        label = int(torch.randint(0, 3, (), generator=generator))
        labels.append(label)
        patches.append(torch.rand(LEVELS, 3, *PATCH, generator=generator) * 0.2 + label - 1)
    return PatchBatch(
        patches=tuple(torch.stack(patches, dim=1)),
        offsets=torch.zeros(len(rows), LEVELS, 3, dtype=torch.int64),
        condition=Condition(labels=torch.tensor(labels)),
        indices=torch.tensor(list(rows)),
        keys=tuple(f"video-{step}-{row}" for row in rows),
    )


def make_batches(
    start_step: int, *, batch_size: int = 8, rank: int = 0, world_size: int = 1
) -> Iterator[PatchBatch]:
    share = batch_size // world_size
    step = start_step
    while True:
        yield make_batch(step, rows=range(rank * share, (rank + 1) * share))
        step += 1


def make_plan(**changes: object) -> Plan:
    """Return a plan of 12 steps with the given fields changed."""
    steps = changes.get("steps", 12)
    plan = {
        "steps": steps,
        "seed": 0,
        "lr": partial(
            learning_rate,
            peak=0.02,
            steps=steps,
            warmup_steps=2,
            schedule="constant",
            final_share=0.0,
        ),
        "grad_clip": 1.0,
        "micro_batch": None,
        "precision": "fp32",
        "level_drop_prob": 0.0,
        "checkpoint_every": 4,
        "preview_every": 0,
    }
    return Plan(**{**plan, **changes})


def make_state(parallel: Parallel, *, dropout: float = 0.1, optimizer: str = "lamb") -> TrainState:
    torch.manual_seed(0)
    network = TinyNetwork(dropout)
    module = parallel.wrap(network, some_unused=True)
    groups = parameter_groups(network, weight_decay=0.01)
    if optimizer == "lamb":
        chosen = Lamb(groups, 0.02)
    elif optimizer == "muon":
        chosen = Muon(muon_groups(network, weight_decay=0.01), 0.02)
    else:
        chosen = torch.optim.AdamW(groups, lr=0.02, fused=True)
    return TrainState(
        network=network,
        module=module,
        optimizer=chosen,
        ema=Ema(network, half_life=5.0, ramp=0.5),
    )


def make_store(
    folder: Path,
    parallel: Parallel,
    *,
    keep: int = 2,
    every: int = 4,
    asynchronous: bool = False,
) -> CheckpointStore:
    return CheckpointStore(
        folder=folder / "checkpoints",
        keep=keep,
        every=every,
        recipe="name: tiny\n",
        metadata={"recipe": "name: tiny\n", "classes": "[]", "hpdm_version": "0"},
        parallel=parallel,
        asynchronous=asynchronous,
    )


def run(
    folder: Path,
    *,
    plan: Plan | None = None,
    loss=tiny_loss,
    batches=make_batches,
    parallel: Parallel | None = None,
    optimizer: str = "lamb",
    dropout: float = 0.1,
    keep: int = 2,
    asynchronous: bool = False,
    preview: Callable[[int], None] = lambda step: None,
    progress=None,
) -> TrainState:
    """Train the stand-in as `hpdm train` would: resume where possible, then on to the end."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = plan or make_plan()
    parallel = parallel or start_parallel("cpu", mode="ddp")
    state = make_state(parallel, dropout=dropout, optimizer=optimizer)
    store = make_store(
        folder, parallel, keep=keep, every=plan.checkpoint_every, asynchronous=asynchronous
    )
    store.resume(state)
    progress = progress or NoProgress()
    train(
        state,
        BatchStream(batches, state.step),
        loss=loss,
        plan=plan,
        parallel=parallel,
        store=store,
        telemetry=Telemetry(
            folder if parallel.is_main else None, progress, log_every=2, steps=plan.steps
        ),
        preview=preview,
    )
    return state


def contents(state: TrainState) -> dict[str, Tensor]:
    """Return all tensors of a state: weights, averages, moments."""
    tensors = {f"model/{n}": p.detach() for n, p in state.network.named_parameters()}
    tensors |= {f"ema/{n}": t for n, t in state.ema.tensors().items()}
    for name, param in state.network.named_parameters():
        for slot, value in state.optimizer.state[param].items():
            tensors[f"{slot}/{name}"] = value
    return tensors


def assert_equal(one: TrainState, other: TrainState) -> None:
    """Two states are the same, bit for bit."""
    left, right = contents(one), contents(other)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name
    assert (one.step, one.skipped) == (other.step, other.skipped)
