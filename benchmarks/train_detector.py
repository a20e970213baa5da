"""Train the bundled detector: `python benchmarks/train_detector.py [--walks FOLDER] [--steps N]`.

It learns the classes of the shapes, rendered during training at many sizes and lengths, and of
the walks of a prepared data set (`hpdm prep vizdoom ./data --num 2400`), of which the last
tenth is held out. Videos are recoloured, moved, degraded (benchmarks/degrade.py) and
compressed, so that classes are found in generated videos, and a second head estimates the strength
of each degradation, which makes the features respond to it. Run again with the same `--state
FOLDER`, an interrupted training goes on from its last 25 steps, or from the kept videos.

Axis legend: `b` batch, `c` channels, `t h w` video, `d` feature width.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import degrade
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpdm_core.data.dataset import open_dataset
from hpdm_core.data.shapes import SHAPE_CLASSES, render
from hpdm_core.data.video_io import decode_sequential
from hpdm_core.data.walk_scenes import WALK_CLASSES
from hpdm_core.files import atomic_path, sha256_of
from hpdm_core.metrics.bundled import (
    FEATURE_WIDTHS,
    STRENGTHS,
    WEIGHTS,
    BundledNetwork,
    early_pool,
    statistics,
    to_network_input,
)

CLASSES = (*SHAPE_CLASSES, *WALK_CLASSES)
SIZES = (32, 48, 64, 64, 96)
LENGTHS = (4, 8, 12, 16, 16, 24)
# Training and held-out seeds are in disjoint ranges.
TRAIN_SEEDS, TEST_SEEDS = 1 << 40, 1 << 41
NUM_SHAPES_TEST = 360
# Other videos than those of `train`.
KEPT_SEED = TRAIN_SEEDS + (1 << 36)
# Standard deviations on the scale [-1, 1] that count as strength 1.
FULL = {"noise": 0.3, "block_noise": 0.3, "seams": 0.3, "colour": 0.5}
STRENGTH_WEIGHT = 3.0
# Steps between lines of the log, and between states that a training goes on from.
REPORT_EVERY = 25
# How much each kind of feature counts in a distance: its deviation over real videos at most.
STAGE_SCALE, STATISTIC_SCALE, STRENGTH_SCALE = 0.2, 0.5, 1.0


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training sample.

    Args:
        video: (3, 16, 64, 64) float32 in [-1, 1].
        label: index into `CLASSES`.
        named: whether the class can still be seen (not in videos out of order or at rest).
        strengths: (7,) of `STRENGTHS`.
    """

    video: Tensor
    label: int
    named: bool
    strengths: Tensor


class Walks:
    """Decoded walks, (n, t, h, w, 3) uint8, with their labels.

    Args:
        folder: a data set of `hpdm prep vizdoom`.
        held_out: the last tenth, or all before it.

    Raises:
        DataError: there is none.
    """

    def __init__(self, folder: Path, *, held_out: bool) -> None:
        entries = open_dataset(folder.parent, folder.name).entries
        parted = len(entries) - len(entries) // 10
        chosen = entries[parted:] if held_out else entries[:parted]
        videos = [np.stack(list(decode_sequential(folder / e.path))) for e in chosen]
        self.videos = torch.from_numpy(np.stack(videos))
        self.labels = [CLASSES.index(entry.class_name) for entry in chosen]

    def clip(self, index: int, rng: torch.Generator) -> tuple[Tensor, int]:
        """Return a clip of random length, stride and start, and its label."""
        video = self.videos[index]
        length = min(_choose(LENGTHS, rng), len(video))
        stride = 1 + int(torch.randint(len(video) // length, (), generator=rng))
        start = int(torch.randint(len(video) - (length - 1) * stride, (), generator=rng))
        return video[start::stride][:length], self.labels[index]


def shape_clip(seed: int, rng: torch.Generator) -> tuple[Tensor, int]:
    """Render the shapes of `seed`, whose label is seed modulo the classes."""
    label = seed % len(SHAPE_CLASSES)
    size, length = _choose(SIZES, rng), _choose(LENGTHS, rng)
    return torch.from_numpy(render(seed, label, frames=length, size=size).frames), label


def make_example(clip: Tensor, label: int, rng: torch.Generator, *, damaged: bool) -> Example:
    """Bring a clip to the network's size, and damage it before or not."""
    strengths = torch.zeros(len(STRENGTHS))
    if damaged:
        if _uniform(0, 1, rng) < 0.6:
            clip = _move(_recolour(clip, rng), rng)
        clip, strengths = _degrade(clip, rng)
    still = float(strengths[STRENGTHS.index("shuffled")] + strengths[STRENGTHS.index("frozen")])
    return Example(
        video=to_network_input(clip[None])[0],
        label=label,
        named=still < 0.3,
        strengths=strengths,
    )


def train(
    walks: Walks, *, steps: int, batch_size: int, state: Path | None = None, lr: float = 3e-3
) -> BundledNetwork:
    """Return a trained network; two of five videos are walks, the others rendered once each.

    Args:
        state: file that the training is kept in every 25 steps, and goes on from.
    """
    torch.manual_seed(0)
    network = BundledNetwork(len(CLASSES)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    parts = {"network": network, "optimizer": optimizer, "schedule": schedule}
    done = 0
    if state is not None and state.is_file():
        saved = torch.load(state, weights_only=True)
        done = saved["step"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    start = time.monotonic()
    for step in range(done, steps):
        first = TRAIN_SEEDS + step * batch_size
        batch = [example for i in range(batch_size) for example in _draw(walks, first + i)]
        loss = _loss(network, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % REPORT_EVERY == 0:
            took = time.monotonic() - start
            print(f"step {step + 1} loss {loss.item():.4f} {took:.0f} s", flush=True)
            if state is not None:
                with atomic_path(state) as partial:
                    states = {name: part.state_dict() for name, part in parts.items()}
                    torch.save(states | {"step": step + 1}, partial)
    return network.eval()


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What the first three stages give for a set of videos, computed once.

    Args:
        third: (n, c, t, h, w) float16 outputs of the third stage.
        early: (n, s) of `early_pool`.
        labels, named, strengths: as in `Example`, (n,), (n,), (n, 7).
    """

    third: Tensor
    early: Tensor
    labels: Tensor
    named: Tensor
    strengths: Tensor


@torch.no_grad()
def keep(network: BundledNetwork, walks: Walks, *, num: int) -> Kept:
    """Draw `num` videos, each as it is and degraded, and run the first three stages on them."""
    parts = []
    start = time.monotonic()
    for first in range(0, num, 10):
        drawn = [_draw(walks, KEPT_SEED + first + i, pair=True) for i in range(10)]
        batch = [example for pair in drawn for example in pair]
        video = torch.stack([example.video for example in batch])
        one, two, three, _ = network.activations(video)
        parts.append((
            three.half(),
            early_pool(statistics(video), one, two),
            torch.tensor([example.label for example in batch]),
            torch.tensor([example.named for example in batch]),
            torch.stack([example.strengths for example in batch]),
        ))  # fmt: skip
        if first % 200 == 0:
            print(f"kept {first} {time.monotonic() - start:.0f} s", flush=True)
    third, early, labels, named, strengths = (torch.cat(part) for part in zip(*parts, strict=True))
    return Kept(third=third, early=early, labels=labels, named=named, strengths=strengths)


def fit_late(network: BundledNetwork, kept: Kept, *, epochs: int) -> None:
    """Train the last stage, the head and the strengths; the other stages stay as they are."""
    network.stages[3].train()
    network.strengths.train()
    parts = (network.stages[3], network.head, network.strengths)
    parameters = [parameter for part in parts for parameter in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.05)
    num = len(kept.labels)
    total = epochs * (num // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=total)
    start = time.monotonic()
    for epoch in range(epochs):
        order = torch.randperm(num, generator=torch.Generator().manual_seed(epoch))
        right = error = 0.0
        for rows in order[: num // 64 * 64].split(64):
            logits = network.head(network.stages[3](kept.third[rows].float()).mean(dim=(2, 3, 4)))
            strengths = network.strengths(kept.early[rows])
            named, labels = kept.named[rows], kept.labels[rows]
            wrong = F.mse_loss(strengths, kept.strengths[rows])
            loss = F.cross_entropy(logits[named], labels[named], label_smoothing=0.02)
            loss = loss + STRENGTH_WEIGHT * wrong
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            right += float((logits.argmax(dim=1) == labels)[named].float().mean()) * 64 / num
            error += float(wrong.detach()) * 64 / num
        took = time.monotonic() - start
        print(f"epoch {epoch} right {right:.3f} error {error:.4f} {took:.0f} s", flush=True)
    network.eval()


@torch.inference_mode()
def set_scales(network: BundledNetwork, walks: Walks, *, num: int = 600) -> None:
    """Bring each feature to mean 0 and the deviation of its kind over undamaged videos.

    Every kind's floor keeps features that hardly vary over real videos from counting without bound.
    """
    rng = torch.Generator().manual_seed(1)
    clips = [shape_clip(TRAIN_SEEDS - 1 - i, rng) for i in range(num // 2)]
    clips += [walks.clip(i * 7 % len(walks.labels), rng) for i in range(num // 2)]
    rows = [network(to_network_input(clip[None])).features for clip, _ in clips]
    features = torch.cat(rows) / network.feature_scale + network.feature_mean
    kinds = (STAGE_SCALE, STAGE_SCALE, STATISTIC_SCALE, STRENGTH_SCALE)
    least = (1e-2, 1e-2, 0.1, 0.05)
    scales = [torch.full((n,), scale) for n, scale in zip(FEATURE_WIDTHS, kinds, strict=True)]
    floors = [torch.full((n,), floor) for n, floor in zip(FEATURE_WIDTHS, least, strict=True)]
    deviation = torch.maximum(features.std(dim=0), torch.cat(floors))
    network.feature_mean.copy_(features.mean(dim=0))
    network.feature_scale.copy_(torch.cat(scales) / deviation)


@torch.inference_mode()
def accuracy(network: BundledNetwork, walks: Walks, *, damaged: bool) -> dict[str, float]:
    """Return the accuracy on held-out shapes and walks."""
    rng = torch.Generator().manual_seed(2)
    shapes = [shape_clip(TEST_SEEDS + i, rng) for i in range(NUM_SHAPES_TEST)]
    others = [walks.clip(i, rng) for i in range(len(walks.labels))]
    right = {}
    for name, clips in (("shapes", shapes), ("walks", others)):
        drawn = [make_example(clip, label, rng, damaged=damaged) for clip, label in clips]
        kept = [example for example in drawn if example.named]
        hits = 0
        for first in range(0, len(kept), 50):
            part = kept[first : first + 50]
            guesses = network(torch.stack([e.video for e in part])).classes.argmax(dim=1)
            hits += int((guesses == torch.tensor([e.label for e in part])).sum())
        right[name] = hits / len(kept)
    return right


def main() -> None:
    """Train, evaluate on held-out videos, and write the weights with their accuracy."""
    parser = argparse.ArgumentParser(description="Train the detector that ships with the package.")
    parser.add_argument("--walks", type=Path, default=Path("data/vizdoom"), metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--start", type=Path, help="first stages of these weights; no --steps")
    parser.add_argument("--kept", type=int, default=3000, help="videos for the last stage")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument(
        "--state", type=Path, help="folder to go on from, one for each set of options"
    )
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    walks = Walks(arguments.walks, held_out=False)
    early = kept_file = None
    if arguments.state is not None:
        arguments.state.mkdir(parents=True, exist_ok=True)
        early, kept_file = (arguments.state / name for name in ("early.pt", "kept.safetensors"))
    if arguments.start is None:
        network = train(walks, steps=arguments.steps, batch_size=arguments.batch_size, state=early)
    else:
        network = BundledNetwork(len(CLASSES)).eval()
        state = load_file(arguments.start)
        stages = {key: value for key, value in state.items() if key.startswith("stages.")}
        network.load_state_dict(stages, strict=False)
    if kept_file is not None and kept_file.is_file():
        kept = Kept(**load_file(kept_file))
    else:
        kept = keep(network, walks, num=arguments.kept)
        if kept_file is not None:
            with atomic_path(kept_file) as partial:
                save_file(vars(kept), partial)
    fit_late(network, kept, epochs=arguments.epochs)
    set_scales(network, walks)
    held_out = Walks(arguments.walks, held_out=True)
    about = {
        "classes": json.dumps(CLASSES),
        "accuracy": json.dumps(accuracy(network, held_out, damaged=False)),
        "accuracy_damaged": json.dumps(accuracy(network, held_out, damaged=True)),
        "start": "none" if arguments.start is None else sha256_of(arguments.start),
    }
    with atomic_path(arguments.out) as partial:
        save_file(network.state_dict(), partial, metadata=about)
    print(json.dumps(about))


def _draw(walks: Walks, seed: int, *, pair: bool = False) -> list[Example]:
    """Return the clip of a seed, degraded or in one of four cases clean, or as a pair of both."""
    rng = torch.Generator().manual_seed(seed)
    if seed % 5 < 2:
        clip, label = walks.clip(int(torch.randint(len(walks.labels), (), generator=rng)), rng)
    else:
        clip, label = shape_clip(seed, rng)
    # Most videos that are judged are clean.
    ways = (False, True) if pair else (_uniform(0, 1, rng) < 0.75,)
    return [make_example(clip, label, rng, damaged=damaged) for damaged in ways]


def _loss(network: BundledNetwork, batch: list[Example]) -> Tensor:
    outputs = network(torch.stack([example.video for example in batch]))
    named = torch.tensor([example.named for example in batch])
    labels = torch.tensor([example.label for example in batch])
    strengths = torch.stack([example.strengths for example in batch])
    return F.cross_entropy(
        outputs.classes[named], labels[named], label_smoothing=0.02
    ) + STRENGTH_WEIGHT * F.mse_loss(outputs.strengths, strengths)


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


def _degrade(video: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Degrade by each kind by chance and compress; return the strengths (7,) too."""
    strengths = dict.fromkeys(STRENGTHS, 0.0)
    frames, side = video.shape[:2]

    def drawn(name: str, chance: float) -> bool:
        if _uniform(0, 1, rng) < chance:
            strengths[name] = _uniform(0.05, 1, rng)
        return strengths[name] > 0

    def grey_levels(name: str) -> float:
        # Strengths are roots, so that weak degradations are told apart too.
        return 127.5 * FULL[name] * strengths[name] ** 2

    if drawn("blur", 0.25):
        video = degrade.blur(video, 0.2 + 2 * side / 64 * strengths["blur"])
    if drawn("shuffled", 0.12):
        video = degrade.shuffle_frames(video, strengths["shuffled"], rng)
    elif drawn("frozen", 0.12):
        video = degrade.freeze_frames(video, strengths["frozen"])
    if drawn("colour", 0.15):
        video = degrade.shift_colour(video, grey_levels("colour"))
    if drawn("seams", 0.25):
        tile = (math.ceil(frames / _choose((1, 2, 4), rng)), *[side // _choose((4, 8), rng)] * 2)
        video = degrade.add_seams(video, grey_levels("seams"), rng, tile=tile)
    if drawn("block_noise", 0.25):
        block = _choose((2, 4), rng)
        video = degrade.add_block_noise(video, grey_levels("block_noise"), rng, block=block)
    if drawn("noise", 0.25):
        video = degrade.add_noise(video, grey_levels("noise"), rng)
    if _uniform(0, 1, rng) < 0.15:
        video = degrade.compress_h264(video, int(_uniform(18, 40, rng)))
    return video, torch.tensor([strengths[name] for name in STRENGTHS])


if __name__ == "__main__":
    main()
