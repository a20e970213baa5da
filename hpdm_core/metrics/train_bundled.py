"""Train the bundled detector: `python -m hpdm_core.metrics.train_bundled [--steps N] [--out FILE]`.

It learns the shapes' classes from videos rendered during training, at many sizes and lengths, which
are recoloured, moved, blurred, noised, compressed or shuffled in time, so that it classifies
generated videos by shape and motion. Three more outputs predict the strength of noise, blur and
shuffling, which makes the features sensitive to them; they are not part of the class score.

Axis legend: `b` batch, `c` channels, `t h w` video.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor

from hpdm_core.data.shapes import SHAPE_CLASSES, render
from hpdm_core.files import atomic_path
from hpdm_core.metrics import degrade
from hpdm_core.metrics.bundled import WEIGHTS, BundledNetwork, to_network_input

SIZES = (32, 48, 64, 96)
LENGTHS = (4, 8, 12, 16, 24, 32)
# Training and held-out seeds are in disjoint ranges.
TRAIN_SEEDS, TEST_SEEDS = 1 << 40, 1 << 41
NUM_TEST = 1800
DAMAGE_WEIGHT = 0.3


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training sample.

    Args:
        video: (3, 16, 64, 64) float32 in [-1, 1].
        label: index into `SHAPE_CLASSES`.
        damage: (3,) strength of noise, blur and disorder, each from 0 to about 1.
    """

    video: Tensor
    label: int
    damage: Tensor


def make_example(seed: int, *, damaged: bool) -> Example:
    """Render the video of `seed`, whose label is seed modulo the classes, and damage it or not."""
    rng = torch.Generator().manual_seed(seed)
    label = seed % len(SHAPE_CLASSES)
    size, length = _choose(SIZES, rng), _choose(LENGTHS, rng)
    video = torch.from_numpy(render(seed, label, frames=length, size=size).frames)
    damage = torch.zeros(3)
    if damaged:
        video = _move(_recolour(video, rng), rng)
        video, damage = _damage(video, rng)
    return Example(video=to_network_input(video[None])[0], label=label, damage=damage)


def train(*, steps: int, batch_size: int = 32, lr: float = 2e-3) -> BundledNetwork:
    """Return a network trained on videos that are rendered once each."""
    torch.manual_seed(0)
    network = BundledNetwork(len(SHAPE_CLASSES) + 3).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    start = time.monotonic()
    for step in range(steps):
        first = TRAIN_SEEDS + step * batch_size
        # One in four stays clean, as most videos that are judged will be.
        batch = [make_example(first + i, damaged=i % 4 > 0) for i in range(batch_size)]
        loss = _loss(network, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            print(
                f"step {step + 1} loss {loss.item():.4f} {time.monotonic() - start:.0f} s",
                flush=True,
            )
    return network.eval()


@torch.inference_mode()
def accuracy(network: BundledNetwork, *, damaged: bool, num: int = NUM_TEST) -> float:
    """Return the accuracy on held-out videos."""
    right = 0
    for first in range(TEST_SEEDS, TEST_SEEDS + num, 50):
        batch = [make_example(seed, damaged=damaged) for seed in range(first, first + 50)]
        _, outputs = network(torch.stack([example.video for example in batch]))
        guesses = outputs[:, : len(SHAPE_CLASSES)].argmax(dim=1).tolist()
        right += sum(g == example.label for g, example in zip(guesses, batch, strict=True))
    return right / num


def main() -> None:
    """Train, evaluate on held-out videos, and write the weights with their accuracy."""
    parser = argparse.ArgumentParser(description="Train the detector that ships with the package.")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    network = train(steps=arguments.steps)
    about = {
        "classes": json.dumps(SHAPE_CLASSES),
        "accuracy": str(accuracy(network, damaged=False)),
        "accuracy_damaged": str(accuracy(network, damaged=True)),
        "num_test": str(NUM_TEST),
        "steps": str(arguments.steps),
    }
    with atomic_path(arguments.out) as partial:
        save_file(network.state_dict(), partial, metadata=about)
    print(json.dumps(about))


def _loss(network: BundledNetwork, batch: list[Example]) -> Tensor:
    _, outputs = network(torch.stack([example.video for example in batch]))
    labels = torch.tensor([example.label for example in batch])
    damage = torch.stack([example.damage for example in batch])
    classes, guesses = outputs.split([len(SHAPE_CLASSES), 3], dim=1)
    # A video out of order still slides or falls over the same places, so its class stays a fair
    # question.
    return F.cross_entropy(classes, labels) + DAMAGE_WEIGHT * F.mse_loss(guesses, damage)


def _choose(values: tuple[int, ...], rng: torch.Generator) -> int:
    return values[int(torch.randint(len(values), (), generator=rng))]


def _uniform(low: float, high: float, rng: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))


def _recolour(video: Tensor, rng: torch.Generator) -> Tensor:
    """Mix the colour channels a little and change contrast and brightness."""
    mix = torch.eye(3) + 0.25 * torch.randn(3, 3, generator=rng)
    mix = mix / mix.sum(dim=0, keepdim=True).clamp(min=0.5)
    pixels = (video / 255.0 - 0.4) * _uniform(0.5, 1.3, rng)
    return (255 * (pixels @ mix + _uniform(0.3, 0.5, rng))).clamp(0, 255).to(torch.uint8)


def _move(video: Tensor, rng: torch.Generator) -> Tensor:
    """Zoom by 0.85-1.15 and shift by up to a tenth of the frame, the border repeated outwards."""
    zoom = 1 / _uniform(0.85, 1.15, rng)
    shift = (_uniform(-0.2, 0.2, rng), _uniform(-0.2, 0.2, rng))
    affine = torch.tensor([[zoom, 0.0, shift[0]], [0.0, zoom, shift[1]]])
    planes = rearrange(video.float(), "t h w c -> 1 (t c) h w")
    grid = F.affine_grid(affine[None], list(planes.shape), align_corners=False)
    planes = F.grid_sample(planes, grid, padding_mode="border", align_corners=False)
    return rearrange(planes, "1 (t c) h w -> t h w c", c=3).round().to(torch.uint8)


def _damage(video: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blur, disorder, make noisy and compress, each by chance; return the strengths too."""
    strengths = torch.zeros(3)
    scale = video.shape[1] / 64
    if _uniform(0, 1, rng) < 0.4:
        strengths[1] = _uniform(0, 1, rng)
        video = degrade.blur(video, 0.2 + 2 * scale * float(strengths[1]))
    if _uniform(0, 1, rng) < 0.2:
        strengths[2] = _uniform(0.2, 1, rng)
        video = degrade.shuffle_frames(video, float(strengths[2]), rng)
    if _uniform(0, 1, rng) < 0.4:
        strengths[0] = _uniform(0, 1, rng)
        video = degrade.add_noise(video, 25 * float(strengths[0]), rng)
    if _uniform(0, 1, rng) < 0.3:
        video = degrade.compress_h264(video, int(_uniform(18, 40, rng)))
    return video, strengths


if __name__ == "__main__":
    main()
