"""`hpdm ablate`: a table of the paper by one command."""

from enum import Enum
from typing import Annotated

import typer

from hpdm_cli.console import session
from hpdm_cli.options import Device, DeviceOption, DryRun, Json, Out, examples
from hpdm_core.errors import HpdmError

NAME = "ablate"
EXAMPLES = examples(
    "hpdm ablate table4 --scale tiny --rows none,hw,fhw",
)


class Scale(str, Enum):
    """How large a table's rows are run."""

    paper = "paper"
    tiny = "tiny"
    smoke = "smoke"


def command(
    table: Annotated[
        str,
        typer.Argument(
            metavar="TABLE", help="One of table1 to table8, or fig8.", show_default=False
        ),
    ],
    scale: Annotated[
        Scale,
        typer.Option("--scale", help="The paper's own size, an hour on two cores, or seconds."),
    ] = Scale.tiny,
    rows: Annotated[
        str | None,
        typer.Option(
            "--rows", metavar="LIST", help="Only these rows.", show_default="all of the table"
        ),
    ] = None,
    out: Out = None,
    device: DeviceOption = Device.auto,
    seed: Annotated[int, typer.Option("--seed", help="Seed of all rows.")] = 0,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Run a table of the paper (comes with version 0.2).

    Its rows are run one after the other and shown beside the paper's figures.
    """
    with session(as_json=json):
        raise HpdmError(
            f"hpdm ablate {table} is not part of this version yet",
            remedy="it comes with version 0.2; until then, train its rows by hand with overrides: "
            "hpdm train RECIPE model.detach_context=true",
        )
