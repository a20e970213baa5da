"""`hpdm train`: train a recipe from scratch, or resume its run."""

from typing import Annotated

import typer

from hpdm_cli.console import session
from hpdm_cli.options import (
    Device,
    DryRun,
    Json,
    Out,
    Overrides,
    RecipeRef,
    examples,
    read_recipe,
)

NAME = "train"
EXAMPLES = examples(
    "hpdm train quickstart",
    "hpdm train recipes/hpdm_m.yaml optim.lr=1e-3 data.root=/big",
    "hpdm train hpdm_l --dry-run",
    "torchrun --nproc-per-node 8 -m hpdm_cli train hpdm_s",
)

TrainSeed = Annotated[
    int | None,
    typer.Option("--seed", help="The same as train.seed=N.", show_default="the recipe's"),
]


def command(
    recipe: RecipeRef,
    overrides: Overrides = None,
    out: Out = None,
    device: Device = "auto",
    seed: TrainSeed = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train a recipe from scratch. Run again, the same command resumes.

    Writes to runs/NAME, after the recipe's name, unless --out is given.
    """
    with session(as_json=json) as current:
        resolved = read_recipe(recipe, overrides, seed=seed)
        from hpdm_core.runs.train.run import run_train

        result = run_train(
            resolved, out=out, device=device, dry_run=dry_run, progress=current.progress
        )
        current.show(result, title=f"Training of {resolved.name}")
