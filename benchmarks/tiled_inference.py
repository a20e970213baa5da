"""Sampling with and without the activation cache, and its overhead over the matrix products.

HPDM-L's proportions at a quarter of its widths: six blocks with loads 1/1/2/2/3/3, three levels,
full overlap (1, 27 and 343 tiles). All runs happen in one process, on the same seeds, and are
measured in processor time. Reported:

- speedup: the time of the run without the cache over the time with it, end to end;
  speedup_by_block_passes: the speedup predicted from block passes, including the cache's own;
  max_abs_diff: between the videos of both runs.
- speedup_with_features_alone: with a cache that holds the ancestors' features and no context.
- where_cached, where_uncached: fractions of the time.
- overhead_over_matmul: one evaluation of the last level, including tiling and averaging, over the
  linear layers and attention products of its blocks on the same shapes, less one.

    python benchmarks/tiled_inference.py --json [--threads 2] [--steps 8,4,2] [--width 256]
"""

import argparse
import json
import math
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpdm_core.build import build_denoiser, build_network, build_sampling
from hpdm_core.diffusion.denoiser import LevelDenoiser
from hpdm_core.geometry.boxes import Box
from hpdm_core.geometry.pyramid import Pyramid
from hpdm_core.geometry.tiles import make_ancestry
from hpdm_core.inference.activation_cache import ActivationCache
from hpdm_core.inference.generate import ExecutionOptions, generate
from hpdm_core.inference.tiled_inference import TiledLevel
from hpdm_core.model.adaptive_computation import block_passes
from hpdm_core.model.hpdm import HPDM
from hpdm_core.model.layers import CrossAttention, FeedForward, SelfAttention
from hpdm_core.model.rin import RINBlock
from hpdm_core.recipe.load import load_recipe
from hpdm_core.recipe.schema import Recipe
from hpdm_core.records import Condition, LevelOutput

PATCH, TOKEN = [4, 16, 16], [1, 2, 2]
LEVELS = [PATCH, [8, 32, 32], [16, 64, 64]]
UNLIMITED = 1 << 50
CPU = torch.device("cpu")


def make_recipe(width: int, steps: str) -> Recipe:
    """Return HPDM-L with smaller numbers: widths, tokens and latents in its proportions."""
    tokens = PATCH[0] * PATCH[1] * PATCH[2] // (TOKEN[0] * TOKEN[1] * TOKEN[2])
    overrides = {
        "pyramid.patch": PATCH,
        "pyramid.levels": LEVELS,
        "model.token": TOKEN,
        "model.data_width": width,
        "model.latent_width": width,
        "model.condition_width": width,
        "model.num_latents": tokens * 768 // 4096,
        "model.latent_heads": 6,
        "model.latent_head_width": width // 2,
        "model.cross_heads": 2,
        "model.cross_head_width": width // 4,
        "sampling.steps": [int(count) for count in steps.split(",")],
        "sampling.overlap": "fhw",
    }
    return load_recipe("hpdm_l", [f"{name}={value}" for name, value in overrides.items()])


class BareProducts:
    """The matrix products of one block on given shapes, and nothing else.

    Linear layers with their biases and fused attention, as the network calls them; on values that
    are ready, so that norms, GELUs, residuals and changes of layout are left out.

    Args:
        block: whose products.
        tiles: rows of a batch.
        n: data tokens of a tile.
        m: latents of a tile.
        k: conditioning tokens of a tile.
    """

    def __init__(self, block: RINBlock, *, tiles: int, n: int, m: int, k: int) -> None:
        self.tiles = tiles
        self.products: list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = []
        self._cross(block.read_condition, m, k)
        self._mlp(block.read_condition_mlp, m)
        self._cross(block.read_data, m, n)
        self._mlp(block.read_data_mlp, m)
        for attention, mlp in block.compute:
            self._self(attention, m)
            self._mlp(mlp, m)
        self._cross(block.write, n, m)
        self._mlp(block.write_mlp, n)

    def __call__(self) -> None:
        """Do all products once."""
        for product, values in self.products:
            product(*values)

    def _linear(self, layer: nn.Linear, rows: int) -> None:
        values = torch.randn(self.tiles, rows, layer.in_features)
        self.products.append((F.linear, (values, layer.weight, layer.bias)))

    def _attention(self, layer: CrossAttention | SelfAttention, rows: int, sources: int) -> None:
        width = layer.to_out.in_features // layer.heads
        q = torch.randn(self.tiles, layer.heads, rows, width)
        k, v = (torch.randn(self.tiles, layer.heads, sources, width) for _ in range(2))
        self.products.append((F.scaled_dot_product_attention, (q, k, v)))

    def _self(self, layer: SelfAttention, rows: int) -> None:
        self._linear(layer.to_qkv, rows)
        self._attention(layer, rows, rows)
        self._linear(layer.to_out, rows)

    def _cross(self, layer: CrossAttention, rows: int, sources: int) -> None:
        self._linear(layer.to_q, rows)
        self._linear(layer.to_kv, sources)
        self._attention(layer, rows, sources)
        self._linear(layer.to_out, rows)

    def _mlp(self, layer: FeedForward, rows: int) -> None:
        self._linear(layer.up, rows)
        self._linear(layer.down, rows)


class WatchedDenoiser:
    """A denoiser that takes the time of what it does, and of the bare products if told to.

    The products of a call run right after it, so that both see the same machine.

    Args:
        denoiser: the real one.
        products: per block that runs, by number of tiles, its products; None runs none.
    """

    def __init__(
        self,
        denoiser: LevelDenoiser,
        products: Callable[[int], Sequence[BareProducts]] | None = None,
    ) -> None:
        self.denoiser, self.products = denoiser, products
        self.seconds: dict[str, float] = defaultdict(float)

    def denoise(
        self,
        noisy: Tensor,
        sigma: float,
        *,
        level: int,
        condition: Condition,
        context: tuple[Tensor, ...],
        latents: Tensor | None,
        latents_only: bool = False,
    ) -> LevelOutput:
        """As `LevelDenoiser.denoise`."""
        began = time.process_time()
        result = self.denoiser.denoise(
            noisy, sigma, level=level, condition=condition, context=context, latents=latents,
            latents_only=latents_only,
        )  # fmt: skip
        self.seconds["network"] += time.process_time() - began
        if self.products is not None:
            blocks = self.products(len(noisy))
            began = time.process_time()
            for block in blocks:
                block()
            self.seconds["bare products"] += time.process_time() - began
        return result

    def context(
        self, features: Sequence[tuple[Tensor, ...]], boxes: tuple[Box, ...]
    ) -> tuple[Tensor, ...]:
        """As `LevelDenoiser.context`."""
        began = time.process_time()
        result = self.denoiser.context(features, boxes)
        self.seconds["context"] += time.process_time() - began
        return result


@contextmanager
def watched_blocks(network: HPDM) -> Iterator[dict[str, float]]:
    """Count the blocks' passes, one for each tile, and the seconds in them."""
    found, began, handles = {"passes": 0, "seconds": 0.0}, [], []

    def before(module: nn.Module, args: tuple) -> None:
        began.append(time.process_time())

    def after(module: nn.Module, args: tuple, result: object) -> None:
        found["seconds"] += time.process_time() - began.pop()
        found["passes"] += len(args[1])

    for block in network.blocks:
        handles += [block.register_forward_pre_hook(before), block.register_forward_hook(after)]
    yield found
    for handle in handles:
        handle.remove()


@dataclass(frozen=True, kw_only=True)
class Run:
    """A whole sampling run: its videos, processor seconds, those of the clock, and their parts."""

    videos: tuple[Tensor, ...]
    seconds: float
    clock: float
    block_passes: int
    shares: dict[str, float]


def run(network: HPDM, recipe: Recipe, *, budget: int, tile_batch: int, samples: int) -> Run:
    """Generate videos and take the time; without a budget there is no cache."""
    denoiser = WatchedDenoiser(build_denoiser(recipe, network))
    with watched_blocks(network) as blocks:
        clock, seconds = time.perf_counter(), time.process_time()
        videos = generate(
            denoiser,
            recipe.pyramid.build(),
            build_sampling(recipe),
            seeds=tuple(range(samples)),
            condition=Condition(labels=torch.arange(samples)),
            work=ExecutionOptions(
                device=CPU, tile_batch=tile_batch, make_cache=lambda: make_cache(budget)
            ),
        )
        clock, seconds = time.perf_counter() - clock, time.process_time() - seconds
    network_seconds, context_seconds = denoiser.seconds["network"], denoiser.seconds["context"]
    parts = {
        "blocks": blocks["seconds"],
        "tokenizer, fusion, conditioning, detokenizer": network_seconds - blocks["seconds"],
        "contexts": context_seconds,
        "cutting, averaging, solver": seconds - network_seconds - context_seconds,
    }
    return Run(
        videos=videos,
        seconds=seconds,
        clock=clock,
        block_passes=blocks["passes"],
        shares={name: part / seconds for name, part in parts.items()},
    )


def make_cache(budget: int) -> ActivationCache | None:
    """Return a cache of so many bytes."""
    if not budget:
        return None
    return ActivationCache(device=CPU, device_budget=budget, host_budget=0)


def cache_bytes(network: HPDM, recipe: Recipe) -> tuple[int, int]:
    """Return the last level's bytes of all tiles' contexts, and of their ancestors' features."""
    pyramid, loads = recipe.pyramid.build(), network.levels_per_block
    level = pyramid.num_levels - 1
    ancestry = make_ancestry(pyramid, level, "fhw")
    counts = [len(offsets) for offsets in ancestry.offsets]
    each = 4 * math.prod(network.grid) * recipe.model.data_width
    features = sum(counts[k] * block_passes(loads, k + 1) for k in range(level))
    return each * counts[level] * block_passes(loads, level), each * features


@torch.inference_mode()
def overhead(network: HPDM, recipe: Recipe, *, tile_batch: int) -> dict[str, float]:
    """Compare an evaluation of the last level with its blocks' bare products.

    Returns:
        tiles per processor second, the seconds of both, and the first's overhead over the second.
    """
    pyramid = recipe.pyramid.build()
    level = pyramid.num_levels - 1
    n, m = math.prod(network.grid), len(network.latents)
    made: dict[int, list[BareProducts]] = {}

    def products(tiles: int) -> list[BareProducts]:
        if tiles not in made:
            made[tiles] = [
                BareProducts(block, tiles=tiles, n=n, m=m, k=2)
                for block, load in zip(network.blocks, network.levels_per_block, strict=True)
                if load > level
            ]
        return made[tiles]

    denoiser = WatchedDenoiser(build_denoiser(recipe, network))
    whole = last_level(denoiser, pyramid, tile_batch=tile_batch)
    x = torch.randn(1, 3, *pyramid.resolution)
    whole(x, 1.0)  # fills the cache
    denoiser.products = products
    denoiser.seconds.clear()
    began = time.process_time()
    whole(x, 0.9)
    bare = denoiser.seconds["bare products"]
    seconds = time.process_time() - began - bare
    return {
        "tiles_per_second": 343 / seconds,
        "seconds_of_an_evaluation": seconds,
        "seconds_of_its_matmuls": bare,
        "overhead_over_matmul": seconds / bare - 1,
    }


def last_level(denoiser: WatchedDenoiser, pyramid: Pyramid, *, tile_batch: int) -> TiledLevel:
    """Return the tiled denoiser of the last level, its lower levels random."""
    return TiledLevel(
        denoiser=denoiser,
        pyramid=pyramid,
        level=pyramid.num_levels - 1,
        overlap="fhw",
        condition=Condition(labels=torch.zeros(1, dtype=torch.int64)),
        lower=tuple(torch.randn(1, 3, *size) for size in pyramid.levels[:-1]),
        context_sigma=0.002,
        tile_batch=tile_batch,
        cache=make_cache(UNLIMITED),
        self_conditioning=True,
    )


def stir(network: HPDM) -> None:
    """Move every weight off its start, where context has no effect yet."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)


def measure(arguments: argparse.Namespace) -> dict:
    """Run everything and return the figures."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    recipe = make_recipe(arguments.width, arguments.steps)
    network = build_network(recipe).eval().requires_grad_(False)
    stir(network)
    options = {"tile_batch": arguments.tile_batch, "samples": arguments.samples}
    contexts, features = cache_bytes(network, recipe)
    cached = run(network, recipe, budget=UNLIMITED, **options)
    smaller = run(network, recipe, budget=arguments.samples * features, **options)
    uncached = run(network, recipe, budget=0, **options)
    pairs = zip(cached.videos, uncached.videos, strict=True)
    return {
        "speedup": uncached.seconds / cached.seconds,
        "speedup_by_the_clock": uncached.clock / cached.clock,
        "speedup_by_block_passes": uncached.block_passes / cached.block_passes,
        "speedup_with_features_alone": uncached.seconds / smaller.seconds,
        "max_abs_diff": max((a - b).abs().max().item() for a, b in pairs),
        "cache_bytes_per_video": contexts,
        "cache_bytes_per_video_of_features_alone": features,
        "block_passes_cached": cached.block_passes,
        "block_passes_uncached": uncached.block_passes,
        "seconds_cached": cached.seconds,
        "seconds_uncached": uncached.seconds,
        "where_cached": cached.shares,
        "where_uncached": uncached.shares,
        **overhead(network, recipe, tile_batch=arguments.tile_batch),
        "width": arguments.width,
        "steps": list(recipe.sampling.steps),
        "samples": arguments.samples,
        "tile_batch": arguments.tile_batch,
        "threads": arguments.threads,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--steps", default="8,4,2", help="solver steps per level")
    parser.add_argument("--width", type=int, default=256, help="of data tokens and latents")
    parser.add_argument("--samples", type=int, default=1, help="videos at a time")
    parser.add_argument("--tile-batch", type=int, default=8, help="tiles per call")
    arguments = parser.parse_args()
    figures = measure(arguments)
    if arguments.json:
        json.dump(figures, sys.stdout, indent=1)
        print()
        return
    for name, value in figures.items():
        print(f"{name:32} {value}")


if __name__ == "__main__":
    main()
