"""`hpdm train`: train a recipe from scratch, or resume its run."""

from typing import Annotated

import typer

from hpdm_cli.console import session
from hpdm_cli.endings import copied, recipes, trained, training_plan
from hpdm_cli.options import (
    Device,
    DryRun,
    Json,
    Out,
    Overrides,
    RecipeRef,
    examples,
    read_recipe,
    same_command,
)

NAME = "train"
EXAMPLES = examples(
    "hpdm train --list",
    "hpdm train --copy hpdm_m       # to ./hpdm_m.yaml",
    "hpdm train quickstart",
    "hpdm train recipes/hpdm_m.yaml optim.lr=1e-3 data.root=/big",
    "hpdm train hpdm_l --dry-run",
    "hpdm train hpdm_t2v --dry-run --devices 64",
    "torchrun --nproc-per-node 8 -m hpdm_cli train hpdm_s",
)

TrainSeed = Annotated[
    int | None,
    typer.Option("--seed", help="The same as train.seed=N.", show_default="the recipe's"),
]


def command(
    ctx: typer.Context,
    recipe: RecipeRef = None,
    overrides: Overrides = None,
    out: Out = None,
    device: Device = "auto",
    seed: TrainSeed = None,
    listing: Annotated[bool, typer.Option("--list", help="List the shipped recipes.")] = False,
    copy: Annotated[
        str | None,
        typer.Option(
            "--copy",
            metavar="NAME",
            help="Write a shipped recipe to ./NAME.yaml, to be edited.",
            show_default=False,
        ),
    ] = None,
    dry_run: DryRun = False,
    devices: Annotated[
        int | None,
        typer.Option(
            "--devices",
            min=1,
            max=1 << 20,
            help="With --dry-run: step time, memory and network on that many H100s, computed.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Train a recipe from scratch. Run again, the same command resumes.

    Writes to runs/NAME, after the recipe's name, unless --out is given.
    """
    if recipe is None and not listing and copy is None:
        ctx.fail("Missing argument 'RECIPE'; hpdm train --list shows the shipped ones.")
    if devices is not None and not dry_run:
        ctx.fail("--devices simulates a cluster and needs --dry-run.")
    with session(as_json=json) as current:
        if listing:
            from hpdm_core.recipe.listing import list_recipes

            found = list_recipes()
            current.show({"recipes": found}, recipes(found))
            return
        if copy is not None:
            from hpdm_core.recipe.listing import copy_recipe

            written = copy_recipe(copy)
            current.show({"recipe": str(written)}, copied(written))
            return
        resolved = read_recipe(recipe, overrides, seed=seed)
        from hpdm_core.runs.train.run import run_train

        result = run_train(
            resolved, out=out, device=device, dry_run=dry_run, progress=current.progress,
            devices=devices,
        )  # fmt: skip
        if dry_run:
            plan = training_plan(result, name=resolved.name, command=same_command(ctx))
            current.show(result, plan)
        else:
            current.show(result, trained(result, name=resolved.name))
