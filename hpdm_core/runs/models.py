"""A trained model as sampling, scoring and previews see it: found, read, and asked for videos.

Axis legend: `b` batch, `c` channels, `t h w` video.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hpdm_core.build import build_denoiser, build_network, build_sampling
from hpdm_core.diffusion.denoiser import LevelDenoiser
from hpdm_core.errors import CheckpointError
from hpdm_core.geometry.pyramid import Pyramid
from hpdm_core.inference.activation_cache import ActivationCache
from hpdm_core.inference.generate import SamplingSettings
from hpdm_core.recipe.load import recipe_from_yaml
from hpdm_core.recipe.schema import Recipe
from hpdm_core.training.checkpoint import find_weights, list_checkpoints, read_weights

SHIPPED = "shipped"
SHIPPED_WEIGHTS = Path(__file__).resolve().parents[1] / "assets" / "shapes.safetensors"


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model with its averaged weights.

    Args:
        path: weights file.
        sha256: of that file.
        step: optimiser steps it was trained for.
        recipe: that it was trained by.
        classes: class names; empty for a model without classes.
        network: on its device, for inference.
    """

    path: Path
    sha256: str
    step: int
    recipe: Recipe
    classes: tuple[str, ...]
    network: nn.Module

    @property
    def pyramid(self) -> Pyramid:
        return self.recipe.pyramid.build()

    @property
    def settings(self) -> SamplingSettings:
        return build_sampling(self.recipe)

    @property
    def denoiser(self) -> LevelDenoiser:
        return build_denoiser(self.recipe, self.network)


def load_model(
    ref: str | None, device: torch.device, *, say: Callable[[str], None] = lambda text: None
) -> LoadedModel:
    """Read a model.

    Args:
        ref: a run folder, checkpoint folder or weights file; 'shipped' for the model that comes
            with the package; None for the newest run under runs/, else the shipped one.
        device: where the network goes.
        say: told about damaged checkpoints that were passed over.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    weights = read_weights(_weights_file(ref, say))
    recipe = recipe_from_yaml(weights.metadata["recipe"], str(weights.path))
    with torch.device("meta"):
        network = build_network(recipe)
    try:
        network.load_state_dict(weights.tensors, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{weights.path} does not fit the recipe inside it",
            got=str(error).splitlines()[1].strip(),
            expected="a file as `hpdm train` wrote it",
        ) from error
    return LoadedModel(
        path=weights.path,
        sha256=weights.sha256,
        step=int(weights.metadata["step"]),
        recipe=recipe,
        classes=tuple(json.loads(weights.metadata["classes"])),
        network=network.eval().requires_grad_(False).to(device),
    )


def newest_run(runs: Path = Path("runs")) -> Path | None:
    """Return the run folder whose newest checkpoint is the newest of all, or None."""
    newest = {
        run: checkpoints[-1].stat().st_mtime
        for run in runs.glob("*")
        if (checkpoints := list_checkpoints(run / "checkpoints"))
    }
    return max(newest, key=newest.get) if newest else None


def cache_maker(
    mode: str, device: torch.device, *, free: int | None, limit: int | None
) -> Callable[[], ActivationCache | None]:
    """Return what makes the store of activations of a level.

    Args:
        mode: 'gpu' keeps them on the device alone, 'cpu' in the computer's memory alone, 'auto'
            on the device and then in memory, 'off' nowhere.
        device: where the network is.
        free: bytes of the computer's memory that are free; None where it cannot be told.
        limit: bytes that may be kept in all; None goes by free memory.
    """
    if mode == "off":
        return lambda: None
    host_room = (free or 0) // 2 if limit is None else limit

    def make() -> ActivationCache:
        device_room = host_room
        if device.type == "cuda":
            device_room = torch.cuda.mem_get_info(device)[0] // 2 if limit is None else limit
        # On a CPU both are the same memory, so that only one of the two budgets may count.
        use_host = mode == "cpu" or (mode == "auto" and device.type == "cuda")
        return ActivationCache(
            device=device,
            device_budget=0 if mode == "cpu" else device_room,
            host_budget=host_room if use_host else 0,
        )

    return make


def to_uint8(videos: Tensor) -> Tensor:
    """Turn (b, c, t, h, w) in [-1, 1] into (b, t, h, w, c) uint8, rounding down as peers do."""
    return (videos * 127.5 + 128).clamp(0, 255).to(torch.uint8).movedim(1, -1)


def _weights_file(ref: str | None, say: Callable[[str], None]) -> Path:
    if ref is None:
        run = newest_run()
        ref = SHIPPED if run is None else str(run)
    if ref != SHIPPED:
        return find_weights(Path(ref), say=say)
    if not SHIPPED_WEIGHTS.is_file():
        raise CheckpointError(
            "this installation has no shipped model",
            expected=str(SHIPPED_WEIGHTS),
            remedy="train one: `hpdm prep shapes ./data`, then `hpdm train shapes`",
        )
    return SHIPPED_WEIGHTS
