"""Ten CPU steps of a fixed tiny recipe, from the network to the optimiser.

`python -m tests.golden.ten_steps` writes the values anew, where a change of them is meant.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hpdm_core.build import build_diffusion, build_network, build_optimizer
from hpdm_core.geometry.pyramid import Pyramid, sample_offsets
from hpdm_core.model.hpdm import HPDM, TABLE_STD
from hpdm_core.recipe.load import recipe_from_yaml
from hpdm_core.recipe.schema import Recipe
from hpdm_core.records import Condition, PatchBatch
from hpdm_core.runs.train.run import plan_from
from hpdm_core.training.ema import Ema
from hpdm_core.training.loop import train_step
from hpdm_core.training.parallel import start_parallel
from hpdm_core.training.stopping import StopRequest
from hpdm_core.training.store import TrainState

VALUES = Path(__file__).with_name("ten_steps.json")
BATCH, STEPS = 4, 10

RECIPE = """
name: golden
data: {name: none}
pyramid: {patch: [2, 8, 8], levels: [[2, 8, 8], [4, 16, 16], [4, 32, 32]]}
model:
  token: [1, 4, 4]
  data_width: 24
  latent_width: 32
  num_latents: 8
  layers_per_block: 2
  latent_heads: 2
  latent_head_width: 8
  cross_heads: 2
  cross_head_width: 8
  levels_per_block: [1, 2, 3]
  conditioning: class
  num_classes: 3
  condition_width: 16
  self_conditioning: 0.5
  dropout: 0.1
diffusion:
  sigma_in: [1.0, 2.0, 4.0]
  noise_mean: [-1.2, -1.2, -1.2]
  noise_std: [1.2, 1.2, 1.2]
  level_weights: [1.0, 1.0, 2.0]
  clean_context: 0.3
optim: {name: OPTIMIZER, lr: 0.01, warmup_steps: 3, schedule: cosine}
train: {steps: 10, batch_size: 4, micro_batch: 2, checkpoint_every: 10}
sampling: {steps: [2, 1, 1]}
"""


def ten_steps(optimizer: str) -> dict[str, list[float]]:
    """Return the loss and the gradients' norm of each step, and the norm of the average."""
    recipe = recipe_from_yaml(RECIPE.replace("OPTIMIZER", optimizer), "golden")
    torch.manual_seed(0)
    network = build_network(recipe)
    _draw_tables_anew(network)
    state = TrainState(
        network=network,
        module=network,
        optimizer=build_optimizer(network, recipe),
        ema=Ema(network, half_life=5.0, ramp=0.5),
    )
    step = partial(
        train_step,
        loss=build_diffusion(recipe).loss,
        plan=plan_from(recipe),
        parallel=start_parallel("cpu", mode="ddp"),
        stop=StopRequest(),
    )
    reports = [step(state, make_batch(recipe, number)) for number in range(STEPS)]
    return {
        "loss": [report.loss for report in reports],
        "grad_norm": [report.grad_norm for report in reports],
        "average_norm": [float(torch.stack(
            [tensor.norm() for tensor in state.ema.tensors().values()]
        ).norm())],
    }  # fmt: skip


def _draw_tables_anew(network: HPDM) -> None:
    """Torch's truncated normal gives other values from version to version; `randn` does not."""
    tables = [module.weight for module in network.modules() if isinstance(module, nn.Embedding)]
    with torch.no_grad():
        for table in (*tables, network.latents, *network.tokenizer.positions.tables):
            table.copy_(TABLE_STD * torch.randn(table.shape))


def make_batch(recipe: Recipe, step: int) -> PatchBatch:
    """Return patches of smooth random waves: no video file, no codec."""
    pyramid = recipe.pyramid.build()
    rng = np.random.default_rng((7, step))
    offsets = np.stack([sample_offsets(pyramid, rng) for _ in range(BATCH)])
    waves = [rng.uniform(0.5, 3.0, size=(3, 3)) for _ in range(BATCH)]
    return PatchBatch(
        patches=tuple(
            torch.stack([wave(pyramid, level, offsets[i, level], waves[i]) for i in range(BATCH)])
            for level in range(pyramid.num_levels)
        ),
        offsets=torch.from_numpy(offsets),
        condition=Condition(labels=torch.from_numpy(rng.integers(0, 3, size=BATCH))),
        indices=torch.arange(BATCH),
        keys=tuple(f"wave-{step}-{i}" for i in range(BATCH)),
    )


def wave(pyramid: Pyramid, level: int, offset: np.ndarray, speeds: np.ndarray) -> torch.Tensor:
    """Return (c, t, h, w): per colour a sine of the place in the full video."""
    axes = [
        (start + np.arange(size) + 0.5) / whole
        for start, size, whole in zip(offset, pyramid.patch, pyramid.levels[level], strict=True)
    ]
    t, h, w = np.meshgrid(*axes, indexing="ij")
    colours = [np.sin(2 * np.pi * (s[0] * t + s[1] * h + s[2] * w)) for s in speeds]
    return torch.from_numpy(np.stack(colours)).float()


if __name__ == "__main__":
    torch.set_num_threads(1)
    values = {name: ten_steps(name) for name in ("adamw", "lamb", "muon")}
    VALUES.write_text(json.dumps(values, indent=1) + "\n")
