"""Define the command line `reverie`, whose commands send HTTP requests by `reverie.Client`."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from reverie import __version__
from reverie.cli import commands, datasets, jobs, models
from reverie.cli.context import CliContext, CommandContext
from reverie.cli.output import Output
from reverie.client import DEFAULT_URL, Client
from reverie.errors import ReverieError

app = typer.Typer(
    name="reverie",
    help="Draw samples, enlarge pictures and train models with a Reverie service.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(commands.app)
app.add_typer(models.app, name="models")
app.add_typer(datasets.app, name="datasets")
app.add_typer(jobs.app, name="jobs")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv`, by default that of the process.

    The exit status is 0 for success; 1 if the command was rejected or failed, or the job that it
    follows failed or was cancelled; 2 for wrong arguments; 130 after Ctrl-C.
    """
    try:
        app(args=argv, prog_name="reverie")
    except (ReverieError, OSError, ValueError) as error:
        Output(as_json=False).print_message(f"reverie: {error}")
        sys.exit(1)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"reverie {__version__}")
        raise typer.Exit


@app.callback()
def _create_context(
    context: CommandContext,
    url: Annotated[str, typer.Option(envvar="REVERIE_URL", help="Address of the service.")] = DEFAULT_URL,
    key: Annotated[str | None, typer.Option(envvar="REVERIE_KEY", help="API key, if the service uses keys.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON that the service returns.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    context.obj = CliContext(context.with_resource(Client(url, key, retries=3)), Output(as_json=as_json))
