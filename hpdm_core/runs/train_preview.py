"""Preview videos during training, from the averaged weights at fixed seeds."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from hpdm_core.recipe.schema import Recipe
from hpdm_core.training.parallel import Parallel


def make_preview(
    recipe: Recipe,
    network: nn.Module,
    *,
    classes: tuple[str, ...],
    folder: Path,
    parallel: Parallel,
    say: Callable[[str], None],
) -> Callable[[int], None]:
    """Return the function that draws the previews of a step."""

    def preview(step: int) -> None:
        say(f"step {step}: no preview yet")

    return preview
