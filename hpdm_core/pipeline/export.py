"""A model as a folder that can be shared: EMA weights, recipe and model card."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from hpdm_core.errors import HpdmError
from hpdm_core.files import atomic_path, write_text
from hpdm_core.pipeline.card import Score, model_card
from hpdm_core.recipe.load import recipe_to_yaml
from hpdm_core.recipe.schema import Recipe
from hpdm_core.training.checkpoint import EMA, RECIPE, write_tensors

CARD = "README.md"


def save_model(
    folder: Path,
    network: nn.Module,
    recipe: Recipe,
    *,
    classes: tuple[str, ...],
    step: int,
    metadata: Mapping[str, str],
    scores: Mapping[str, Score],
) -> Path:
    """Write `ema.safetensors`, `recipe.yaml` and `README.md`; each appears whole or not at all.

    Args:
        folder: made if it is absent.
        network: with the weights to write.
        recipe: that it was trained by.
        classes: class names.
        step: optimiser steps it was trained for.
        metadata: more of the weights file's header, such as `hpdm_version` and `seconds`.
        scores: figures for the model card, by name.

    Raises:
        HpdmError: it cannot be written.
    """
    text = recipe_to_yaml(recipe)
    header = {
        **metadata,
        "recipe": text,
        "classes": json.dumps(classes),
        "step": str(step),
        "kind": "ema",
    }
    card = model_card(
        recipe,
        classes=classes,
        step=step,
        parameters=sum(param.numel() for param in network.parameters()),
        metadata=header,
        scores=scores,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / EMA) as partial:
            write_tensors(partial, network.state_dict(), header)
        write_text(folder / RECIPE, text)
        write_text(folder / CARD, card)
    except (OSError, SafetensorError) as error:
        raise HpdmError(f"cannot write the model to {folder}", got=error) from error
    return folder
