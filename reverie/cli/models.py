"""Commands for models and their versions: `reverie models …`."""

from pathlib import Path
from typing import Annotated

import typer

from reverie.cli.context import CliContext, OutputPath, Private, Shared, compact_json, first_figure, output_path
from reverie.cli.output import Output, ProgressBar
from reverie.records import Model, Version

app = typer.Typer(help="List models; with a command, manage them and their versions.", invoke_without_command=True)

ModelName = Annotated[str, typer.Argument(metavar="NAME", help="A model.")]
ModelReference = Annotated[str, typer.Argument(metavar="NAME", help="A model, or model@version.")]


@app.callback()
def _list_models(context: typer.Context) -> None:
    if context.invoked_subcommand is not None:
        return
    cli: CliContext = context.obj
    models = cli.client.models()
    rows = [[model.name, model.version, len(model.versions), model.family, model["summary"]] for model in models]
    cli.print_records(models, ["MODEL", "ACTIVE", "VERSIONS", "FAMILY", "SUMMARY"], rows)


@app.command("show")
def _show_model(context: typer.Context, name: ModelReference) -> None:
    """Show a model's card: its operations and options, and how good it is."""
    cli: CliContext = context.obj
    model = cli.client.model(name)
    if cli.output.as_json:
        cli.output.print_json(dict(model.body))
    else:
        _print_card(cli.output, model)


def _print_card(output: Output, model: Model) -> None:
    versions = ", ".join(model.versions)
    output.print_line(f"{model.name}@{model.version}  {model.family}  {model['summary']}  (versions {versions})")
    output.print_line("")
    rows = [
        [operation, option, compact_json(schema.get("default")), schema.get("description", "")]
        for operation, description in model.operations.items()
        for option, schema in (description["options"].get("properties") or {"": {}}).items()
    ]
    output.print_table(["OPERATION", "OPTION", "DEFAULT", "DESCRIPTION"], rows)
    output.print_line("")
    output.print_figures(model)


@app.command("versions")
def _list_versions(context: typer.Context, name: ModelName) -> None:
    """List a model's versions, with the first metric of each."""
    cli: CliContext = context.obj
    versions = cli.client.versions(name)
    rows = [
        [
            version.version,
            "yes" if version.serves else "",
            first_figure(version.card),
            version.card["created_at"],
            version.card["summary"],
        ]
        for version in versions
    ]
    cli.print_records(versions, ["VERSION", "ACTIVE", "FIGURE", "CREATED", "SUMMARY"], rows)


@app.command("use")
def _activate_version(
    context: typer.Context, name: ModelName, version: Annotated[str, typer.Argument(help="The version to activate.")]
) -> None:
    """Activate a version. No request fails; to roll back, activate the version before."""
    cli: CliContext = context.obj
    model = cli.client.activate_version(name, version)
    cli.print_record(model, f"{model.name}@{model.version} is active")


@app.command("delete")
def _delete_model(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A model with all its versions, or model@version.")],
) -> None:
    """Delete a model with all its versions, or one version that is not active."""
    cli: CliContext = context.obj
    model, _, version = name.partition("@")
    if version:
        cli.client.delete_version(model, version)
    else:
        cli.client.delete_model(model)


@app.command("share")
def _share_model(context: typer.Context, name: ModelName, private: Private = False) -> None:
    """Let everybody use a model, or, with --private, only its owner."""
    cli: CliContext = context.obj
    model = cli.client.share_model(name, not private)
    cli.print_sharing(model.name, model)


@app.command("export")
def _export_version(context: typer.Context, name: ModelReference, out: OutputPath = None) -> None:
    """Save a version as a safetensors file with the card in its header."""
    cli: CliContext = context.obj
    model = cli.client.model(name)
    path = out or Path(f"{model.name}-{model.version}.safetensors")
    with output_path(path) as target:
        saved = cli.client.export_version(model.name, target, model.version)
    cli.print_saved(path, saved, f"{model.name}@{model.version}")


@app.command("import")
def _import_version(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The model; the file's card must name the same one.")],
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="An exported file.")],
    shared: Shared = None,
) -> None:
    """Import an exported file as a version. `reverie models use` activates it."""
    cli: CliContext = context.obj
    with ProgressBar(cli.output, file.name) as bar:
        total = file.stat().st_size or 1
        version = cli.client.import_version(
            name, file, shared=shared, on_progress=lambda sent: bar.update(sent / total)
        )
    cli.print_record(version, format_version(version))


def format_version(version: Version) -> str:
    """Return a sentence that says whether a version is active."""
    return f"{version.model}@{version.version} {'is active' if version.serves else 'is not active'}"
