"""Small pyramids, networks and stand-ins that the paper's claims are tested on.

Axis legend: `b` batch, `c` channels, `t h w` video, `l` level, `n` tokens, `d` width.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hpdm_core.diffusion.denoiser import LevelDenoiser
from hpdm_core.diffusion.guidance import Guidance
from hpdm_core.diffusion.preconditioning import Preconditioning
from hpdm_core.diffusion.samplers import Solver
from hpdm_core.geometry.boxes import Box, pyramid_boxes
from hpdm_core.geometry.pyramid import Pyramid, sample_offsets
from hpdm_core.inference.activation_cache import ActivationCache
from hpdm_core.inference.generate import ExecutionOptions, SamplingSettings, generate
from hpdm_core.inference.given import Given
from hpdm_core.model.hpdm import HPDM
from hpdm_core.records import Condition, LevelOutput, PatchBatch

PATCH = (2, 4, 4)
LOADS = {1: (1, 1), 2: (1, 2, 2), 3: (1, 1, 2, 2, 3, 3), 4: (1, 1, 2, 2, 3, 4)}
NUM_CLASSES, TEXT_WIDTH = 5, 6
UNLIMITED = 1 << 40
BLOCKS = ("rin", "transformer")
OVERLAPS = ("", "f", "h", "w", "fh", "fw", "hw", "fhw")


def make_pyramid(levels: int, *, time_grows: bool = True) -> Pyramid:
    """Return a pyramid that doubles with each level, in time too unless told otherwise."""
    t, h, w = PATCH
    sizes = [(t * 2**k if time_grows else t, h * 2**k, w * 2**k) for k in range(levels)]
    return Pyramid(patch=PATCH, levels=tuple(sizes))


def make_network(
    levels: int,
    *,
    block: str = "rin",
    loads: tuple[int, ...] | None = None,
    context: str = "deep",
    detach_context: bool = False,
    coordinates: bool = True,
    positions: str = "learned",
    conditioning: str = "class",
    self_conditioning: bool = False,
    dropout: float = 0.0,
    stir: bool = True,
    seed: int = 0,
) -> HPDM:
    """Return a network of a few thousand weights, all away from their initial values if stirred.

    Untrained fusion ignores its context, and so hides mistakes.
    """
    torch.manual_seed(seed)
    network = HPDM(
        patch=PATCH,
        token=(1, 2, 2),
        block=block,
        data_width=16,
        latent_width=None if block == "transformer" else 16,
        num_latents=None if block == "transformer" else 6,
        layers_per_block=1,
        latent_heads=2,
        latent_head_width=12,
        cross_heads=2,
        cross_head_width=8,
        head_width=8,
        mlp_ratio=2,
        levels_per_block=LOADS[levels] if loads is None else loads,
        context=context,
        detach_context=detach_context,
        coordinates=coordinates,
        positions=positions,
        conditioning=conditioning,
        num_classes=NUM_CLASSES,
        condition_width=TEXT_WIDTH if conditioning == "text" else 10,
        self_conditioning=self_conditioning,
        dropout=dropout,
    )
    if stir:
        stir_weights(network, seed=seed)
    return network.eval()


def stir_weights(network: torch.nn.Module, *, seed: int) -> None:
    """Add noise to every weight."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)


def make_offsets(pyramid: Pyramid, batch: int, *, seed: int = 0) -> Tensor:
    """Draw nested patches: (b, l, 3)."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([sample_offsets(pyramid, rng) for _ in range(batch)]))


def make_condition(batch: int, kind: str = "class", *, seed: int = 0) -> Condition:
    """Return one class, text or nothing per row; texts have different lengths, the first none."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "class":
        return Condition(labels=torch.randint(-1, NUM_CLASSES, (batch,), generator=generator))
    if kind == "none":
        return Condition()
    mask = torch.arange(4) < torch.arange(batch)[:, None]
    return Condition(text=torch.randn(batch, 4, TEXT_WIDTH, generator=generator), text_mask=mask)


def make_inputs(
    pyramid: Pyramid, batch: int, *, seed: int = 0
) -> tuple[tuple[Tensor, ...], Tensor, tuple[Box, ...]]:
    """Return the patches of all levels, their c_noise (b, l) and their boxes."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 3, *pyramid.patch)
    inputs = tuple(torch.randn(shape, generator=generator) for _ in pyramid.levels)
    labels = torch.randn(batch, pyramid.num_levels, generator=generator) / 4
    return inputs, labels, pyramid_boxes(pyramid, make_offsets(pyramid, batch, seed=seed))


def make_batch(pyramid: Pyramid, batch: int, *, kind: str = "class", seed: int = 0) -> PatchBatch:
    """Return a batch of random clean patches."""
    inputs, _, _ = make_inputs(pyramid, batch, seed=seed)
    return PatchBatch(
        patches=tuple(x.clamp(-1, 1) for x in inputs),
        offsets=make_offsets(pyramid, batch, seed=seed),
        condition=make_condition(batch, kind),
        indices=torch.arange(batch),
        keys=tuple(str(k) for k in range(batch)),
    )


def run_levels(
    network: HPDM,
    inputs: Sequence[Tensor],
    labels: Tensor,
    boxes: tuple[Box, ...],
    condition: Condition,
    latents: Sequence[Tensor] | None = None,
) -> Iterator[LevelOutput]:
    """Yield what each level gives, coarse to fine, run one at a time as in sampling.

    Args:
        labels: c_noise, (b, l).
        latents: per level the latents to start from, or None.
    """
    features: list[tuple[Tensor, ...]] = []
    for level, patch in enumerate(inputs):
        result = network.run_level(
            patch,
            labels[:, level],
            level=level,
            condition=condition,
            context=network.context(features, boxes[: level + 1]),
            latents=None if latents is None else latents[level],
        )
        features.append(result.features)
        yield result


class PointwiseNetwork:
    """A LevelNetwork that denoises each pixel on its own, as `ideal(y, sigma)` says.

    Args:
        ideal: the best estimate of the video x from (x + sigma eps, sigma, level).
        preconditioning: per level, what the network predicts.
    """

    def __init__(
        self,
        ideal: Callable[[Tensor, float, int], Tensor],
        preconditioning: Sequence[Preconditioning],
    ) -> None:
        self.ideal, self.preconditioning = ideal, preconditioning
        self.batches: list[int] = []

    def run_level(
        self,
        inputs: Tensor,
        c_noise: Tensor,
        *,
        level: int,
        condition: Condition,
        context: tuple[Tensor, ...],
        latents: Tensor | None,
        latents_only: bool = False,
    ) -> LevelOutput:
        self.batches.append(len(inputs))
        sigma = (4 * c_noise.double()).exp()
        if self.preconditioning[level].parametrisation == "snapvideo":
            sigma = sigma * self.preconditioning[level].sigma_in
        scales = self.preconditioning[level](sigma)
        noisy = inputs.double() / scales.c_in
        denoised = self.ideal(noisy, float(sigma[0]), level)
        output = ((denoised - scales.c_skip * noisy) / scales.c_out).float()
        return LevelOutput(output=output, latents=inputs.new_zeros(len(inputs), 1, 1), features=())

    def context(
        self, features: Sequence[tuple[Tensor, ...]], boxes: tuple[Box, ...]
    ) -> tuple[Tensor, ...]:
        return ()


def make_preconditioning(levels: int, parametrisation: str = "v") -> tuple[Preconditioning, ...]:
    """Return what a network predicts on each level, with input scales 1, 2, 4, ..."""
    return tuple(
        Preconditioning(
            parametrisation=parametrisation,
            sigma_data=0.5,
            sigma_in=2.0**level,
            x_weight_cap=400.0,
        )
        for level in range(levels)
    )


def make_settings(
    steps: Sequence[int],
    *,
    overlap: str = "fhw",
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    solver: str | None = None,
    churn: float = 0.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    clip_denoised: bool = False,
    self_conditioning: bool = False,
) -> SamplingSettings:
    """Return sampling settings, with EDM's noise levels unless told otherwise.

    Without a solver level 0 takes Heun's, stochastic by `churn`, the others Euler's (appendix A).

    Few steps over many noise levels multiply rounding: narrow the levels where videos are compared.
    """
    return SamplingSettings(
        solvers=tuple(
            Solver(
                name=solver or ("euler" if level else "heun"),
                steps=count,
                sigma_min=sigma_min,
                sigma_max=sigma_max,
                churn=0.0 if level else churn,
            )
            for level, count in enumerate(steps)
        ),
        overlap=overlap,
        guidance=Guidance(scale=guidance, interval=guidance_interval),
        clip_denoised=clip_denoised,
        context_sigma=0.002,
        self_conditioning=self_conditioning,
    )


def make_work(
    *, tile_batch: int = 64, device_budget: int | None = UNLIMITED, host_budget: int = 0
) -> ExecutionOptions:
    """Return how work is cut; without a device budget there is no cache."""
    device = torch.device("cpu")

    def make_cache() -> ActivationCache | None:
        if device_budget is None:
            return None
        return ActivationCache(device=device, device_budget=device_budget, host_budget=host_budget)

    return ExecutionOptions(device=device, tile_batch=tile_batch, make_cache=make_cache)


def draw(
    network: HPDM | PointwiseNetwork,
    pyramid: Pyramid,
    settings: SamplingSettings,
    *,
    seeds: Sequence[int] = (0,),
    condition: Condition | None = None,
    work: ExecutionOptions | None = None,
    given: Given | None = None,
) -> tuple[Tensor, ...]:
    """Generate videos; by default with v-prediction and a cache of any size."""
    preconditioning = make_preconditioning(pyramid.num_levels)
    if isinstance(network, PointwiseNetwork):
        preconditioning = tuple(network.preconditioning)
    return generate(
        LevelDenoiser(network=network, preconditioning=preconditioning),
        pyramid,
        settings,
        seeds=tuple(seeds),
        condition=make_condition(len(seeds)) if condition is None else condition,
        work=make_work() if work is None else work,
        given=given,
    )
