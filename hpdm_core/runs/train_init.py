"""Start a network from another's weights (`hpdm finetune`), and say which were taken."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from hpdm_core.errors import CheckpointError
from hpdm_core.training.checkpoint import find_weights, read_weights
from hpdm_core.training.sharding import copy_whole


@torch.no_grad()
def initialise_from(ref: Path, network: nn.Module, *, say: Callable[[str], None]) -> dict:
    """Copy all weights of the same name and shape; the others keep their initial values.

    Args:
        ref: run, checkpoint or weights file of the base model.
        network: changed in place.
        say: told the counts.

    Returns:
        {"from", "taken": [names], "new": [names], "other_shape": [names], "unused": [names]}.

    Raises:
        CheckpointError: nothing fits.
    """
    weights = read_weights(find_weights(ref, say=say))
    taken, new, other_shape = [], [], []
    params = dict(network.named_parameters())
    for name, param in params.items():
        source = weights.tensors.get(name)
        if source is None:
            new.append(name)
        elif source.shape != param.shape:
            other_shape.append(name)
        else:
            copy_whole(param, source)
            taken.append(name)
    unused = sorted(weights.tensors.keys() - params.keys())
    if not taken:
        raise CheckpointError(
            f"no weight of {weights.path} fits this recipe",
            remedy="use a recipe with the base model's widths, blocks and token size",
        )
    say(
        f"from {weights.path}: {len(taken)} weights taken, {len(new)} new, "
        f"{len(other_shape)} of another shape (new), {len(unused)} unused"
    )
    return {
        "from": str(weights.path),
        "taken": taken,
        "new": new,
        "other_shape": other_shape,
        "unused": unused,
    }
