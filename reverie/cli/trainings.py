"""Commands that start a training: `reverie train` and `reverie families`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from reverie.cli.context import CliContext, Shared, compact_json, parse_options
from reverie.cli.jobs import follow_job, print_job
from reverie.cli.output import Output, format_size

app = typer.Typer()


@app.command()
def families(context: typer.Context) -> None:
    """List the families that can be trained, with the options of `reverie train --set`."""
    cli: CliContext = context.obj
    descriptions = cli.client.families()
    if cli.output.as_json:
        cli.output.print_json(descriptions)
        return
    rows = [
        [
            family["name"],
            f"{section}.{option}",
            compact_json(family["recipe"][section].get(option, schema.get("default"))),
            _describe_option(schema),
        ]
        for family in descriptions
        for section in ("config", "training")
        for option, schema in family[section]["properties"].items()
    ]
    cli.output.print_table(["FAMILY", "OPTION", "DEFAULT", "DESCRIPTION"], rows)


def _describe_option(schema: dict[str, Any]) -> str:
    description = schema.get("description", "")
    return f"{description} ({', '.join(map(str, schema['enum']))})".strip() if "enum" in schema else description


@app.command()
def train(
    context: typer.Context,
    family: Annotated[str, typer.Argument(help="vae, bihm, ebgan, superres, …; see `reverie families`.")],
    dataset: Annotated[str, typer.Argument(help="The training data; see `reverie datasets`.")],
    name: Annotated[str | None, typer.Option(help="Name of the model. [default: FAMILY-DATASET]")] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="training.epochs=5, config.latents=2; may be repeated."),
    ] = None,
    recipe: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A JSON file of options.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the training. [default: 0]")] = None,
    serve: Annotated[
        str, typer.Option(help='When to activate the new version: "if better", always or never.')
    ] = "if better",
    shared: Shared = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate memory and time from a few steps; do not train.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show the progress until the training ends.")] = False,
) -> None:
    """Train a model. When the training succeeds, the model NAME has a new version.

    reverie train vae digits --name my-digits --set training.epochs=5 --follow
    """
    cli: CliContext = context.obj
    model = name or f"{family}-{dataset}"
    changes = parse_options(options, json.loads(recipe.read_bytes()) if recipe else {})
    if seed is not None:
        changes["seed"] = seed
    if dry_run:
        _print_estimate(cli.output, cli.client.estimate(family, dataset, model, recipe=changes))
        return
    training = cli.client.train(family, dataset, model, recipe=changes, serve=serve, shared=shared)
    if not follow:
        print_job(cli, training)
        return
    cli.output.print_message(f"{training.id}: Ctrl-C stops watching; the training continues")
    print_job(cli, follow_job(cli, training))


def _print_estimate(output: Output, estimate: Mapping[str, Any]) -> None:
    if output.as_json:
        output.print_json(dict(estimate))
        return
    output.print_line(f"parameters  {estimate['parameters']}")
    output.print_line(f"memory      {format_size(estimate['memory_bytes'])}")
    output.print_line(f"time        {estimate['seconds']:.0f} s")
