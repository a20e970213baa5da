"""The `hpdm` program. Commands import torch when they run, never for `--help`."""

import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, NoReturn

import typer
from typer.core import TyperGroup

from hpdm_cli import ablate, eval_fvd, finetune, prep, sample, train
from hpdm_cli.console import usage_failure
from hpdm_cli.options import examples
from hpdm_cli.streams import complain, finish_stdout, give_up_stdout, prepare_streams
from hpdm_core import __version__
from hpdm_core.errors import did_you_mean

# Of Typer's own copy of click, or click's, by Typer's version.
_UsageError = typer.BadParameter.__mro__[1]


class _Program(TyperGroup):
    """Lists the commands as a user meets them, and ends as the exit codes say."""

    def list_commands(self, ctx: typer.Context) -> list[str]:
        return ["prep", *(module.NAME for module in _COMMANDS)]

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None) -> NoReturn:
        """Run the program and exit."""
        args = sys.argv[1:] if args is None else list(args)
        try:
            # The words as they were given, for commands that repeat them (same_command).
            code = super().main(args=args, prog_name=prog_name, standalone_mode=False, obj=args)
        except _UsageError as error:
            code = _refuse(error, as_json="--json" in args)
        except KeyboardInterrupt:
            complain("interrupted")
            code = 130
        except OSError as error:  # of stdout, while help was printed
            if error.filename is not None:
                raise
            complain(f"Error: {give_up_stdout(error) or 'stdout is closed'}")
            code = 2
        problem = finish_stdout()
        if problem is not None:
            complain(f"Error: {problem}")
            code = code or 2
        sys.exit(code or 0)


def _refuse(error: Exception, *, as_json: bool) -> int:
    """Print a usage error, with the nearest right word, and return its exit code."""
    error.message = error.message.replace("Value error, ", "") + _hint(error)  # pydantic's words
    with suppress(OSError):  # of a full stderr: the exit code has to do
        error.show()
    if as_json:
        print(usage_failure(error.format_message(), error.exit_code))
    return error.exit_code


def _hint(error: Exception) -> str:
    """Return the nearest word for a value of a closed set; Typer does so for options."""
    words = re.findall(r"'([^']*)'", error.message)
    near = did_you_mean(words[0], words[1:]) if "is not one of" in error.message else None
    return f" D{near[1:]}" if near else ""


_COMMANDS = (train, finetune, sample, eval_fvd, ablate)
app = typer.Typer(
    cls=_Program,
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
    add_completion=True,
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
    """Run the program."""
    prepare_streams()
    app(prog_name="hpdm")
