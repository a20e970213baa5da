"""`hpdm ablate`: reproduce a table of the paper."""

from typing import Annotated, Literal

import typer

from hpdm_cli.console import session
from hpdm_cli.options import Device, DryRun, Json, Out, examples, words

NAME = "ablate"
EXAMPLES = examples(
    "hpdm ablate table4 --scale tiny --rows none,hw,fhw",
    "hpdm ablate table8",
    "hpdm ablate table3 --scale paper --dry-run",
)


def command(
    table: Annotated[
        str,
        typer.Argument(
            metavar="TABLE", help="One of table1 to table8, or fig8.", show_default=False
        ),
    ],
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
    out: Out = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option("--seed", help="Seed of all rows.")] = 0,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Run a table of the paper and show it beside the paper's figures.

    Rows run one after the other; run again, the same command resumes. Writes
    rows.jsonl, table.md, table.tex and report.html to results/TABLE-SCALE, or below --out.
    """
    with session(as_json=json) as current:
        from hpdm_core.runs.ablate.run import run_ablate

        result = run_ablate(
            table, scale=scale, rows=words(rows), out=out, device=device, seed=seed,
            dry_run=dry_run, progress=current.progress,
        )  # fmt: skip
        if json or dry_run:
            current.show(result, title=result["title"])
        else:
            current.progress.stop()
            _print_table(result)


def _print_table(result: dict) -> None:
    """Print the paper's figure, ours and the difference for every row and column."""
    import sys

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140)
    grid = Table(title=escape(f"{result['title']} ({result['scale']})"), title_justify="left")
    grid.add_column("setup")
    across, down = ("row", "column") if result["turned"] else ("column", "row")
    for cells in _by(result["cells"], across):
        grid.add_column(escape(_title(cells[0], across)), justify="right")
    for cells in _by(result["cells"], down):
        grid.add_row(escape(_title(cells[0], down)), *(escape(_in_lines(cell)) for cell in cells))
    console.print(grid)
    for notice in result["notices"]:
        console.print(escape(notice))
    for finding in result["findings"]:
        text = f"{finding['verdict']}: {finding['finding']} (here: {finding['ours']})"
        console.print(escape(text))
    console.print(escape(f"report: {result['files']['report']}"))


def _by(cells: list[dict], place: str) -> list[list[dict]]:
    """Return the cells of each row or of each column, in order."""
    keys = dict.fromkeys(cell[place] for cell in cells)
    return [[cell for cell in cells if cell[place] == key] for key in keys]


def _title(cell: dict, place: str) -> str:
    """Return the name of the cell's row or column."""
    if place == "row":
        return cell["setup"]
    if cell["ours_heading"] == cell["heading"]:
        return cell["heading"]
    return f"{cell['heading']}\nours: {cell['ours_heading']}"


def _in_lines(cell: dict) -> str:
    shown = cell["shown"]
    if shown["ours"] == shown["paper"]:
        return f"both {shown['ours']}"
    lines = [f"paper {shown['paper']}", f"ours {shown['ours']}", shown["diff"]]
    return "\n".join(line for line in lines if line)
