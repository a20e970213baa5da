"""A checkpoint as `hpdm eval-fvd` sees it: what it was trained on, and a function that samples.

Axis legend: `b` batch, `c` channels, `t h w` video.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from hpdm_core.build import build_network, build_sampling
from hpdm_core.diffusion.denoiser import LevelDenoiser
from hpdm_core.errors import MetricError
from hpdm_core.inference.activation_cache import ActivationCache
from hpdm_core.inference.generate import SamplingSettings, Work, generate
from hpdm_core.recipe.load import recipe_from_yaml
from hpdm_core.recipe.schema import Recipe
from hpdm_core.records import Condition
from hpdm_core.runs.eval_fakes import FakeModel, Make
from hpdm_core.training.checkpoint import find_weights, read_weights

CPU_CACHE_BYTES = 2 << 30


def open_model(ref: Path, device: torch.device) -> FakeModel:
    """Return the model of a run folder, checkpoint folder or weights file, with its EMA weights.

    Raises:
        CheckpointError: there is none.
        MetricError: it is conditioned on text, so that the protocol cannot say what to draw.
    """
    weights = read_weights(find_weights(ref))
    recipe = recipe_from_yaml(weights.metadata["recipe"], str(weights.path))
    if recipe.model.conditioning == "text":
        raise MetricError(
            f"{ref} draws what a text says, and no protocol names the texts",
            remedy="draw videos with `hpdm sample --prompt` and give them as --samples",
        )
    network = build_network(recipe)
    network.load_state_dict(weights.tensors)
    settings = build_sampling(recipe)
    by_class = recipe.model.conditioning == "class"
    return FakeModel(
        sha256=weights.sha256,
        settings=asdict(settings),
        pyramid=recipe.pyramid.build(),
        classes=tuple(json.loads(weights.metadata["classes"])) if by_class else (),
        data=str(Path(recipe.data.root) / recipe.data.name),
        frame_stride=recipe.data.frame_stride,
        make=_sampler(recipe, network.eval().requires_grad_(False).to(device), settings, device),
    )


def _sampler(
    recipe: Recipe, network: torch.nn.Module, settings: SamplingSettings, device: torch.device
) -> Make:
    pyramid = recipe.pyramid.build()
    denoiser = LevelDenoiser(network=network, sigma_in=recipe.diffusion.sigma_in)
    on_cuda = device.type == "cuda"

    def make_cache() -> ActivationCache:
        room = torch.cuda.mem_get_info(device)[0] // 2 if on_cuda else CPU_CACHE_BYTES
        return ActivationCache(device=device, device_budget=room, host_budget=CPU_CACHE_BYTES)

    def make(seeds: tuple[int, ...], labels: tuple[int, ...], level: int) -> Tensor:
        condition = Condition(labels=torch.tensor(labels))
        videos = generate(
            denoiser,
            pyramid,
            replace(settings, steps=settings.steps[: level + 1]),
            seeds=seeds,
            condition=condition.to(device),
            work=Work(device=device, tile_batch=64 if on_cuda else 16, make_cache=make_cache),
        )
        return videos[level]

    return make
