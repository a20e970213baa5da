"""`hpdm ablate`: reproduce a table of the paper, or compare schedules of sampling."""

from typing import Annotated, Literal

import typer

from hpdm_cli.console import session
from hpdm_cli.endings import ablated, ablation_plan, tables
from hpdm_cli.options import Device, DryRun, Json, Out, examples, same_command, words

NAME = "ablate"
EXAMPLES = examples(
    "hpdm ablate --list",
    "hpdm ablate table4 --scale tiny --rows none,hw,fhw",
    "hpdm ablate table8",
    "hpdm ablate claims --rows default,detach,shallow",
    "hpdm ablate samplers --checkpoint runs/shapes",
    "hpdm ablate table3 --scale paper --dry-run",
)


def command(
    ctx: typer.Context,
    table: Annotated[
        str | None,
        typer.Argument(
            metavar="TABLE",
            help="One of table1 to table8, fig8, claims, or samplers.",
            show_default=False,
        ),
    ] = None,
    scale: Annotated[
        Literal["paper", "tiny", "smoke"],
        typer.Option(
            "--scale",
            help="paper: the paper's sizes; tiny: about an hour on two cores; smoke: seconds.",
        ),
    ] = "tiny",
    rows: Annotated[
        str | None,
        typer.Option(
            "--rows", metavar="LIST", help="Only these rows.", show_default="all of the table"
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            metavar="CHECKPOINT",
            help="For samplers: the model whose schedules are compared.",
            show_default="the scale's",
        ),
    ] = None,
    out: Out = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option("--seed", help="Seed of all rows.")] = 0,
    listing: Annotated[
        bool, typer.Option("--list", help="List the tables, their rows and scales.")
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Run a table of the paper and show it beside the paper's figures.

    Rows run one after the other; run again, the same command resumes. Writes
    rows.jsonl, table.md, table.tex and report.html to results/TABLE-SCALE, or below --out.
    """
    if table is None and not listing:
        ctx.fail("Missing argument 'TABLE'; hpdm ablate --list shows them.")
    with session(as_json=json) as current:
        if listing:
            from hpdm_core.runs.ablate.listing import list_tables

            found = list_tables()
            current.show({"tables": found}, tables(found))
            return
        from hpdm_core.runs.ablate.run import run_ablate

        result = run_ablate(
            table, scale=scale, rows=words(rows), out=out, device=device, seed=seed,
            dry_run=dry_run, progress=current.progress, checkpoint=checkpoint,
        )  # fmt: skip
        if dry_run:
            current.show(result, ablation_plan(result, command=same_command(ctx)))
        else:
            current.show(result, ablated(result))
