"""Models of the smallest size, untrained but not at their trivial start, as weights files."""

import json

import pytest
import torch
from safetensors.torch import save_file

from hpdm_core.build import build_network
from hpdm_core.recipe.load import recipe_from_yaml, recipe_to_yaml

RECIPE = """\
name: tiny
data: {name: shapes}
pyramid:
  patch: [2, 8, 8]
  levels: [[2, 8, 8], [4, 16, 16]]
model:
  token: [1, 4, 4]
  data_width: 16
  latent_width: 16
  num_latents: 4
  layers_per_block: 1
  latent_heads: 2
  latent_head_width: 8
  cross_heads: 2
  cross_head_width: 8
  levels_per_block: [1, 2]
  conditioning: class
  num_classes: 3
  condition_width: 8
diffusion: {sigma_in: [1, 2], noise_mean: [-1, -1], noise_std: [1, 1], level_weights: [1, 1]}
optim: {name: adamw, lr: 1e-3, warmup_steps: 2}
train: {steps: 6, batch_size: 4, checkpoint_every: 3}
sampling: {steps: [2, 2], overlap: hw, sigma_max: 10, churn: 2}
"""


@pytest.fixture
def make_weights(tmp_path):
    """Write a weights file of the recipe with some lines changed; returns its path."""

    def make(*changes: tuple[str, str], name: str = "model"):
        path = tmp_path / f"{name}.safetensors"
        if path.exists():
            return path
        text = RECIPE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        recipe = recipe_from_yaml(text, "test")
        torch.manual_seed(0)
        network = build_network(recipe)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        classes = ["circle", "square", "star"] if recipe.model.conditioning == "class" else []
        metadata = {
            "recipe": recipe_to_yaml(recipe),
            "classes": json.dumps(classes),
            "step": "6",
            "kind": "ema",
            "hpdm_version": "0",
        }
        save_file(network.state_dict(), path, metadata=metadata)
        return path

    return make
