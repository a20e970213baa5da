"""The `hpdm` program. Commands import torch when they run, never for `--help`."""

from typing import Annotated

import typer
from typer.core import TyperGroup

from hpdm_cli import ablate, eval_fvd, finetune, prep, sample, train
from hpdm_cli.options import examples
from hpdm_core import __version__


class _InOrderOfUse(TyperGroup):
    """Lists the commands as a user meets them."""

    def list_commands(self, ctx: typer.Context) -> list[str]:
        return ["prep", *(module.NAME for module in _COMMANDS)]


_COMMANDS = (train, finetune, sample, eval_fvd, ablate)
app = typer.Typer(
    cls=_InOrderOfUse,
    name="hpdm",
    help="Hierarchical Patch Diffusion Models: train them on videos, generate videos, score them.",
    epilog=examples(
        "hpdm sample --overlap fhw       # videos from the model shipped with hpdm",
        "hpdm prep shapes ./data         # a generated data set",
        "hpdm train quickstart           # a few minutes on two cores",
        title="First steps",
    )
    + "\n\nExit codes: 0 success; 2 usage or input error; 1 a bug in hpdm; 130 interrupted, "
    "run the same command again to resume.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: half the time of rich's, and lines can be copied
    pretty_exceptions_enable=False,  # a bug shows Python's own traceback, complete
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(prep.app, name="prep")
for _module in _COMMANDS:
    app.command(name=_module.NAME, epilog=_module.EXAMPLES)(_module.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hpdm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Options of the program itself."""


def main() -> None:
    """Run the program; entry point of `hpdm` and `python -m hpdm_cli`."""
    app(prog_name="hpdm")
