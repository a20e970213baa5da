"""`hpdm finetune`: train a recipe from the weights of another model."""

from typing import Annotated

import typer

from hpdm_cli.console import session
from hpdm_cli.endings import trained, training_plan
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
    whole_numbers,
)
from hpdm_cli.train import TrainSeed
from hpdm_core.errors import HpdmError

NAME = "finetune"
EXAMPLES = examples(
    "hpdm finetune recipes/hpdm_t2v.yaml --from runs/hpdm_t2v_base",
    "hpdm finetune hpdm_t2v --from base.safetensors train.steps=5000 --dry-run",
    "hpdm finetune shapes --from shipped --distill 8,4,4 --out runs/student",
)


def command(
    ctx: typer.Context,
    recipe: RecipeRef,
    base: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="CHECKPOINT",
            help="Run folder, checkpoint folder, weights file, hf://owner/name or the name of a "
            "model in the package to start from; hpdm sample --list shows what is here.",
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    distill: Annotated[
        str | None,
        typer.Option(
            "--distill",
            metavar="N,N,...",
            help="Distil the model of --from: evaluations per level of the student, coarsest "
            "first: 8,4,4.",
            show_default=False,
        ),
    ] = None,
    out: Out = None,
    device: Device = "auto",
    seed: TrainSeed = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train a recipe from the weights of a base model.

    The base may have fewer levels, another patch size or another kind of conditioning.
    With --distill it is the teacher of a student that samples in few evaluations.
    Reports which weights were loaded, which are missing in the base (newly initialised), and which
    of its weights were unexpected (not used).
    Run again, the same command resumes.
    """
    with session(as_json=json) as current:
        resolved = read_recipe(recipe, overrides, seed=seed)
        evaluations = whole_numbers(distill, option="--distill")
        if evaluations is not None:
            from hpdm_core.recipe.sampling import student_overrides

            if min(evaluations, default=0) < 1:
                raise HpdmError("--distill counts evaluations", got=distill, expected="1 or more")
            changes = student_overrides(resolved.sampling, evaluations)
            resolved = read_recipe(recipe, [*(overrides or ()), *changes], seed=seed)
        from hpdm_core.runs.train.run import run_train

        result = run_train(
            resolved,
            out=out,
            device=device,
            dry_run=dry_run,
            progress=current.progress,
            init_from=base,
        )
        if dry_run:
            plan = training_plan(result, name=resolved.name, command=same_command(ctx))
            current.show(result, plan)
        else:
            current.show(result, trained(result, name=resolved.name))
