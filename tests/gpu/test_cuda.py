"""What runs on a card alone; skipped without one. `benchmarks/gpu.sh` runs these."""

from dataclasses import replace

import pytest
import torch

from hpdm_core.build import build_diffusion, build_network, build_optimizer, build_sampling
from hpdm_core.device import autocast, set_precision
from hpdm_core.pipeline.pipeline import Pipeline
from hpdm_core.pipeline.resources import Resources
from hpdm_core.recipe.load import recipe_from_yaml
from hpdm_core.training.background import Background
from tests.golden.ten_steps import RECIPE, make_batch

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


@pytest.fixture
def recipe():
    text = RECIPE.replace("OPTIMIZER", "lamb").replace("dropout: 0.1", "dropout: 0.0")
    return recipe_from_yaml(text, "golden")


def first_loss(recipe, device: torch.device, precision: str) -> torch.Tensor:
    torch.manual_seed(0)
    set_precision(precision, device=device)
    network = build_network(recipe).to(device)
    optimizer = build_optimizer(network, recipe)
    batch = make_batch(recipe, 0).to(device)
    with autocast(precision, device=device):
        loss = build_diffusion(recipe).loss(network, batch, seed=0, step=0)
    loss.total.backward()
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    return loss.per_level.detach().cpu()


@pytest.mark.parametrize(("precision", "rtol"), [("fp32", 1e-4), ("tf32", 1e-2), ("bf16", 5e-2)])
def test_a_training_step_equals_the_cpus(recipe, precision, rtol):
    expected = first_loss(recipe, torch.device("cpu"), "fp32")
    torch.testing.assert_close(first_loss(recipe, CUDA, precision), expected, rtol=rtol, atol=1e-3)


@pytest.mark.parametrize("cache", ["auto", "gpu", "cpu"])
def test_cached_sampling_equals_uncached(recipe, cache):
    set_precision("fp32", device=CUDA)
    torch.manual_seed(0)
    network = build_network(recipe).to(CUDA).eval().requires_grad_(False)
    pipeline = Pipeline(recipe=recipe, network=network, device=CUDA)
    settings = replace(build_sampling(recipe), overlap="hw", clip_denoised=True)
    videos = [
        pipeline.generate(
            [0], pipeline.condition_of([1]), settings=settings, tile_batch=4,
            resources=Resources(cache=mode), advance=lambda level, total: None,
        )[-1]
        for mode in (cache, "off")
    ]  # fmt: skip
    torch.testing.assert_close(*videos, rtol=0, atol=1e-4)


def test_tensors_are_copied_to_main_memory_before_they_change():
    tensor = torch.ones(1 << 20, device=CUDA)
    kept = Background().copy({"x": tensor})["x"]
    tensor.zero_()
    assert kept.device.type == "cpu"
    assert kept.sum() == 1 << 20
