"""Define the commands `reverie models …` for models and their versions."""

from pathlib import Path
from typing import Annotated

import typer

from reverie.cli.context import CommandContext, OutputPath, Private, Shared, output_path
from reverie.cli.output import ProgressBar, compact_json, format_number
from reverie.records import Version

app = typer.Typer(help="List models; with a command, manage them and their versions.", invoke_without_command=True)

ModelName = Annotated[str, typer.Argument(metavar="NAME", help="A model.")]
ModelReference = Annotated[str, typer.Argument(metavar="NAME", help="A model, or model@version.")]


@app.callback()
def _list_models(context: CommandContext) -> None:
    if context.invoked_subcommand is not None:
        return
    models = context.obj.client.models()
    rows = [[model.name, model.version, len(model.versions), model.family, model["summary"]] for model in models]
    context.obj.print_records(models, ["MODEL", "ACTIVE", "VERSIONS", "FAMILY", "SUMMARY"], rows)


@app.command("show")
def _show_model(context: CommandContext, name: ModelReference) -> None:
    """Show a model card: the model's operations, their options, and its metrics."""
    output, model = context.obj.output, context.obj.client.model(name)
    if output.as_json:
        output.print_json(model.body)
        return
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


@app.command("sheet")
def _save_sheet(context: CommandContext, name: ModelReference, out: OutputPath = None) -> None:
    """Save samples of a model as one PNG."""
    path = out or Path(f"{name.partition('@')[0]}.png")
    with output_path(path) as target:
        saved = context.obj.client.save_model_sheet(name, target)
    context.obj.print_saved(path, saved, "samples of ")


@app.command("versions")
def _list_versions(context: CommandContext, name: ModelName) -> None:
    """List a model's versions, with the first metric of each."""
    versions = context.obj.client.versions(name)
    rows = []
    for version in versions:
        card, active = version.card, "yes" if version.serves else ""
        figures = (f"{one['name']} {format_number(one['value'])} {one.get('unit', '')}" for one in card.figures[:1])
        rows.append([version.version, active, "".join(figures), card["created_at"], card["summary"]])
    context.obj.print_records(versions, ["VERSION", "ACTIVE", "FIGURE", "CREATED", "SUMMARY"], rows)


@app.command("use")
def _activate_version(
    context: CommandContext, name: ModelName, version: Annotated[str, typer.Argument(help="The version to activate.")]
) -> None:
    """Activate a version without failed requests. To roll back, activate the previous version."""
    model = context.obj.client.activate_version(name, version)
    context.obj.print_record(model, f"{model.name}@{model.version} is active")


@app.command("delete")
def _delete_model(
    context: CommandContext,
    name: Annotated[str, typer.Argument(help="A model with all its versions, or model@version.")],
) -> None:
    """Delete a model with all its versions, or one version that is not active."""
    model, _, version = name.partition("@")
    if version:
        context.obj.client.delete_version(model, version)
    else:
        context.obj.client.delete_model(model)


@app.command("share")
def _share_model(context: CommandContext, name: ModelName, private: Private = False) -> None:
    """Let everybody use a model, or, with --private, only its owner."""
    context.obj.print_sharing(name, context.obj.client.share_model(name, not private))


@app.command("export")
def _export_version(context: CommandContext, name: ModelReference, out: OutputPath = None) -> None:
    """Save a version as a safetensors file with the model card in its header."""
    model = context.obj.client.model(name)
    path = out or Path(f"{model.name}-{model.version}.safetensors")
    with output_path(path) as target:
        saved = context.obj.client.export_version(model.name, target, model.version)
    context.obj.print_saved(path, saved, f"{model.name}@{model.version}")


@app.command("import")
def _import_version(
    context: CommandContext,
    name: Annotated[str, typer.Argument(help="The model; the file's card must name the same one.")],
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="An exported file.")],
    shared: Shared = None,
) -> None:
    """Import an exported file as a version. `reverie models use` activates it."""
    cli = context.obj
    with ProgressBar(cli.output, file.name) as bar:
        total = file.stat().st_size or 1
        version = cli.client.import_version(
            name, file, shared=shared, on_progress=lambda sent: bar.set_progress(sent / total)
        )
    cli.print_record(version, format_version(version))


def format_version(version: Version) -> str:
    """Return a sentence with the name of a version, which says whether it is active."""
    return f"{version.model}@{version.version} {'is active' if version.serves else 'is not active'}"
