"""Speed of a training step: `python benchmarks/train_step.py --json`.

(a) patches with adaptive computation, patches without, and the same backbone on the full resolution
    (Table 1: the paper has 5.4x the speed and 0.22x the memory for 64x256x256 by 16x64x64 patches);
(b) our block beside the block of the package rin-pytorch at equal widths, tokens and layers
    (`pip install --no-deps -r benchmarks/requirements.txt`; left out where it is absent);
(c) arithmetic per second, as a share of what a large matrix product reaches on the same device.

The ratios are HPDM-S's at any `--scale`: widths and the sides of the patch are divided by it,
tokens and latents by its square. Rounds of all contenders take turns and the fastest round of
each counts, so that other work on the machine disturbs the figures little.

Axis legend: `b` batch, `n` data tokens, `m` latents.
"""

import argparse
import importlib
import json
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hpdm_core.build import build_diffusion, build_network, describe
from hpdm_core.device import autocast, resolve_device, set_precision
from hpdm_core.geometry.patches import draw_offsets
from hpdm_core.model.rin import RINBlock
from hpdm_core.recipe.load import load_recipe
from hpdm_core.recipe.schema import Recipe
from hpdm_core.records import Condition, PatchBatch

Run = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What everything is measured on.

    Args:
        scale: HPDM-S's sizes are divided by it.
        batch: videos, or sequences, per step.
        rounds: rounds of which the fastest counts.
        device: where.
        precision: fp32, tf32 or bf16.
    """

    scale: int
    batch: int
    rounds: int
    device: torch.device
    precision: str


def main() -> None:
    setting, as_json = _arguments()
    set_precision(setting.precision, device=setting.device)
    rate = matmul_rate(setting)
    result = {**_where(setting), "matmul_tflops": rate / 1e12}
    result |= training_figures(setting, rate)
    result |= block_figures(replace(setting, rounds=5 * setting.rounds))
    if as_json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:28s} {value:.4g}" if isinstance(value, float) else f"{name:28s} {value}")


def training_figures(setting: Setting, rate: float) -> dict:
    """Compare training steps of the three ways to train on the same videos."""
    side = 64 // setting.scale
    patch = [16, side, side]
    levels = [[n * 2**k for n in patch] for k in range(3)]
    patches = {"pyramid.patch": patch, "pyramid.levels": levels}
    one = {f"diffusion.{name}": [1] for name in ("sigma_in", "noise_std", "level_weights")}
    whole = {
        "pyramid.patch": levels[-1],
        "pyramid.levels": [levels[-1]],
        "model.levels_per_block": [1] * 6,
        "sampling.steps": [1],
        "sampling.solver": "euler",
        "sampling.churn": 0,
        "diffusion.noise_mean": [0],
        **one,
    }
    recipes = {
        "adaptive": _recipe(setting, patches),
        "all_blocks": _recipe(setting, {**patches, "model.levels_per_block": [3] * 6}),
        "full_resolution": _recipe(setting, whole),
    }
    runs = {name: training_step(recipe, setting) for name, recipe in recipes.items()}
    memory = {name: peak_memory(run, setting.device) for name, run in runs.items()}
    seconds = fastest(runs, setting)
    flops = setting.batch * describe(recipes["adaptive"])["flops_per_video_training"]
    return {
        **{f"videos_per_second_{name}": setting.batch / s for name, s in seconds.items()},
        **{f"memory_bytes_{name}": size for name, size in memory.items()},
        "patch_speedup": seconds["full_resolution"] / seconds["adaptive"],
        "patch_memory_ratio": memory["adaptive"] / memory["full_resolution"],
        "adaptive_speedup": seconds["all_blocks"] / seconds["adaptive"],
        "tflops_per_step": flops / 1e12,
        "share_of_matmul_rate": flops / seconds["adaptive"] / rate,
    }


def block_figures(setting: Setting) -> dict:
    """Compare one block, forward and backward, with rin-pytorch's; None where it is absent.

    Theirs does not read the conditioning, so the comparison is of what both have: reading the data,
    four layers of self-attention, writing. The figure of our whole block stands beside it.
    """
    width, latent = 1024 // setting.scale, 512 // setting.scale
    tokens, latents = 4096 // setting.scale**2, 768 // setting.scale**2
    heads, head_width, layers = 8, 64, 4
    size = {
        "data_width": width,
        "latent_width": latent,
        "layers_per_block": layers,
        "latent_heads": heads,
        "latent_head_width": head_width,
        "cross_heads": heads,
        "cross_head_width": head_width,
        "mlp_ratio": 4,
        "dropout": 0.0,
    }
    theirs = rin_pytorch_block(width, latent, layers, heads, head_width)
    if theirs is None:
        return {"versus_rin_pytorch": None}
    whole, same = (RINBlock(**size).to(setting.device) for _ in range(2))
    same.read_condition, same.read_condition_mlp = Unchanged(), Unchanged()
    theirs = theirs.to(setting.device)
    # Their position convolution wants a square number of tokens.
    tokens = int(tokens**0.5) ** 2
    x = torch.randn(setting.batch, tokens, width, device=setting.device)
    z = torch.randn(setting.batch, latents, latent, device=setting.device)
    condition = torch.randn(setting.batch, 2, latent, device=setting.device)
    runs = {
        "whole": _backward_of(whole, lambda: sum_of(whole(z, x, condition, None)), setting),
        "same": _backward_of(same, lambda: sum_of(same(z, x, condition, None)), setting),
        "theirs": _backward_of(theirs, lambda: sum_of(theirs(x, z, None)), setting),
    }
    seconds = fastest(runs, setting)
    return {
        "block_seconds": seconds["whole"],
        "block_seconds_same_layers": seconds["same"],
        "block_seconds_rin_pytorch": seconds["theirs"],
        "versus_rin_pytorch": seconds["theirs"] / seconds["same"],
        "versus_rin_pytorch_with_conditioning": seconds["theirs"] / seconds["whole"],
    }


class Unchanged(nn.Module):
    """Stands in for a layer that is left out."""

    def forward(self, x: Tensor, *others: Tensor | None) -> Tensor:
        return x


def training_step(recipe: Recipe, setting: Setting) -> Run:
    """Return a forward and backward pass of the training loss on random patches."""
    network = build_network(recipe).to(setting.device)
    diffusion, batch = build_diffusion(recipe), _batch(recipe, setting)
    return _backward_of(
        network, lambda: diffusion.loss(network, batch, seed=0, step=0).total, setting
    )


def matmul_rate(setting: Setting, size: int = 2048) -> float:
    """Return multiply-adds times two per second of a square matrix product."""
    dtype = torch.bfloat16 if setting.precision == "bf16" else torch.float32
    size = size if setting.device.type == "cpu" else 4 * size
    a, b = (torch.randn(size, size, device=setting.device, dtype=dtype) for _ in range(2))
    seconds = fastest({"product": lambda: a @ b}, setting)["product"]
    return 2 * size**3 / seconds


def fastest(runs: dict[str, Run], setting: Setting) -> dict[str, float]:
    """Return the seconds of the fastest round of each, after one round to warm up."""
    best = dict.fromkeys(runs, float("inf"))
    for number in range(setting.rounds + 1):
        for name, run in runs.items():
            seconds = timed(run, setting.device)
            if number:
                best[name] = min(best[name], seconds)
    return best


def timed(run: Run, device: torch.device) -> float:
    """Return seconds; with one CPU thread its own, which other processes hardly disturb."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    _synchronise(device)
    begun = clock()
    run()
    _synchronise(device)
    return clock() - begun


def peak_memory(run: Run, device: torch.device) -> int:
    """Return the peak bytes of a step; on a CPU what autograd keeps, counted by storage."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


def rin_pytorch_block(
    width: int, latent: int, layers: int, heads: int, head_width: int
) -> nn.Module | None:
    """Build rin-pytorch's block, or return None where the package is absent."""
    # Its one module also holds a trainer; what that imports is not needed, so blanks stand in.
    blanks = {
        "torchvision": ("transforms", "utils"),
        "accelerate": ("Accelerator", "DistributedDataParallelKwargs"),
        "ema_pytorch": ("EMA",),
        "beartype": ("beartype",),
    }
    for name, attributes in blanks.items():
        if name not in sys.modules:
            blank = types.ModuleType(name)
            for attribute in attributes:
                setattr(blank, attribute, lambda anything: anything)
            sys.modules[name] = blank
    try:
        module = importlib.import_module("rin_pytorch.rin_pytorch")
    except ModuleNotFoundError:
        return None
    return module.RINBlock(
        width,
        latent_self_attn_depth=layers,
        dim_latent=latent,
        patches_self_attn=False,
        heads=heads,
        dim_head=head_width,
    )


def sum_of(outputs: tuple[Tensor, Tensor]) -> Tensor:
    return outputs[0].sum() + outputs[1].sum()


def _backward_of(module: nn.Module, loss: Callable[[], Tensor], setting: Setting) -> Run:
    def run() -> None:
        module.zero_grad(set_to_none=True)
        with autocast(setting.precision, device=setting.device):
            value = loss()
        value.backward()

    return run


def _recipe(setting: Setting, changes: dict[str, object]) -> Recipe:
    scale = setting.scale
    common = {
        "model.data_width": 1024 // scale,
        "model.latent_width": 256 // scale,
        "model.num_latents": 768 // scale**2,
        "model.latent_heads": max(1, 24 // scale),
        "model.cross_heads": max(1, 8 // scale),
        "model.condition_width": 64,
        "model.num_classes": 10,
    }
    values = {**common, **changes}
    return load_recipe("hpdm_s", [f"{name}={json.dumps(value)}" for name, value in values.items()])


def _batch(recipe: Recipe, setting: Setting) -> PatchBatch:
    pyramid, size = recipe.pyramid.build(), setting.batch
    return PatchBatch(
        patches=tuple(torch.rand(size, 3, *pyramid.patch) * 2 - 1 for _ in pyramid.levels),
        offsets=draw_offsets(pyramid, size),
        condition=Condition(labels=torch.zeros(size, dtype=torch.int64)),
    ).to(setting.device)


def _where(setting: Setting) -> dict:
    cuda = setting.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(setting.device) if cuda else "cpu",
        "cpu_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": setting.precision,
        "scale": setting.scale,
        "batch": setting.batch,
    }


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _arguments() -> tuple[Setting, bool]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "bf16"])
    parser.add_argument("--scale", type=int, help="divide HPDM-S's sizes by it (CPU 4, GPU 1)")
    parser.add_argument("--batch", type=int, default=1, help="videos per step")
    parser.add_argument("--rounds", type=int, default=5, help="the fastest counts")
    given = parser.parse_args()
    device = resolve_device(given.device)
    setting = Setting(
        scale=given.scale or (1 if device.type == "cuda" else 4),
        batch=given.batch,
        rounds=given.rounds,
        device=device,
        precision=given.precision,
    )
    return setting, given.json


if __name__ == "__main__":
    main()
