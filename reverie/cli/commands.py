"""Define the commands `reverie sample`, `decode`, `upscale`, `me`, `families` and `train`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from reverie.cli.context import (
    CommandContext,
    Deadline,
    Options,
    OutputPath,
    Seed,
    Shared,
    WebhookEvents,
    WebhookUrl,
    operation_options,
    output_path,
    parse_options,
    read_recipe,
    webhook_option,
)
from reverie.cli.jobs import cancelling_bar, follow_job, print_job
from reverie.cli.output import compact_json, format_size
from reverie.methods.base import is_url

app = typer.Typer()


@app.command()
def sample(
    context: CommandContext,
    model: Annotated[str, typer.Argument(help="A model, or model@version.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of samples.")] = 64,
    seed: Seed = None,
    out: OutputPath = None,
    options: Options = None,
    deadline: Deadline = None,
    webhook: WebhookUrl = None,
    webhook_events: WebhookEvents = None,
) -> None:
    """Draw samples and save them; the suffix of the file chooses PNG (a grid), NPZ or JSON.

    reverie sample vae-mnist -n 64 --seed 3 -o digits.png
    """
    fields = {**operation_options(options), "count": count, "deadline_s": deadline, "seed": seed}
    fields |= webhook_option(webhook, webhook_events)
    _save_images(context, out, "samples", model, fields, f"{count} samples of ")


@app.command(context_settings={"ignore_unknown_options": True})  # a code may begin with a minus sign
def decode(
    context: CommandContext,
    model: Annotated[str, typer.Argument(help="A model, or model@version.")],
    codes: Annotated[
        list[str], typer.Argument(metavar="CODE…", help="Codes, each its numbers as 0.5,-1.2; or an NPZ file of codes.")
    ],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of pictures for each code.")] = 1,
    seed: Seed = None,
    out: OutputPath = None,
    options: Options = None,
    deadline: Deadline = None,
    webhook: WebhookUrl = None,
    webhook_events: WebhookEvents = None,
) -> None:
    """Decode latent codes and save the images; the file's suffix chooses PNG (a grid), NPZ or JSON.

    reverie decode vae-mnist-2d 0.5,-1.2 -0.3,0.8 -o digits.png
    """
    fields = {**operation_options(options), "codes": _codes_of(codes), "count": count}
    fields |= {"deadline_s": deadline, "seed": seed}
    fields |= webhook_option(webhook, webhook_events)
    _save_images(context, out, "decodings", model, fields, "decoded by ")


def _save_images(
    context: CommandContext, out: Path | None, operation: str, model: str, fields: dict[str, Any], label: str
) -> None:
    """Run an operation and save its images in the file `out`, by default named after the model.

    `fields` are the fields of the request; `label` precedes the model in the printed line.
    """
    cli = context.obj
    path = out or Path(f"{model.partition('@')[0]}.png")
    with output_path(path) as target, cancelling_bar(cli, model) as on_progress:
        saved = cli.client.save(target, operation, model, on_progress=on_progress, **fields)
    cli.print_saved(path, saved, label)


def _codes_of(texts: Sequence[str]) -> list[list[float]] | Path:
    """Return the latent codes in the arguments of `reverie decode`, or the path of their file.

    Raises typer.BadParameter if an argument is neither.
    """
    if len(texts) == 1 and Path(texts[0]).suffix.lower() in {".npz", ".npy"}:
        file = Path(texts[0])
        if not file.is_file():
            raise typer.BadParameter(f"{file}: there is no such file", param_hint="CODE")
        return file
    try:
        return [[float(number) for number in text.split(",")] for text in texts]
    except ValueError as error:
        raise typer.BadParameter(f"{error}; write numbers as 0.5,-1.2, or one NPZ file", param_hint="CODE") from error


@app.command()
def upscale(
    context: CommandContext,
    picture: Annotated[str, typer.Argument(help="A PNG, JPEG or WebP file of any size, or its URL.")],
    out: OutputPath = None,
    model: Annotated[str | None, typer.Option(help="A model that upscales. [default: the first one]")] = None,
    scale: Annotated[int | None, typer.Option(min=1, help="How many times wider and higher.")] = None,
    method: Annotated[str | None, typer.Option(help="One of the model's: bicubic, tv, mse, statistics.")] = None,
    seed: Seed = None,
    options: Options = None,
    deadline: Deadline = None,
    webhook: WebhookUrl = None,
    webhook_events: WebhookEvents = None,
) -> None:
    """Enlarge a picture and save it; the suffix of the file chooses PNG, JPEG or WebP.

    reverie upscale photo.jpg --scale 4 -o large.png
    """
    cli = context.obj
    file = Path(urlsplit(picture).path) if is_url(picture) else Path(picture)
    if not is_url(picture) and not file.is_file():
        raise typer.BadParameter(f"{picture}: there is no such file", param_hint="PICTURE")
    large = f"{file.stem or 'picture'}-large.png"
    path = out or (Path(large) if is_url(picture) else file.with_name(large))
    fields = operation_options(options)
    fields |= {name: value for name, value in [("scale", scale), ("method", method)] if value}
    fields["deadline_s"] = deadline
    fields |= webhook_option(webhook, webhook_events)
    with output_path(path) as target, cancelling_bar(cli, file.name) as on_progress:
        saved = cli.client.upscales(picture, target, model=model, seed=seed, on_progress=on_progress, **fields)
    cli.print_saved(path, saved, "upscaled by ")


@app.command()
def me(context: CommandContext) -> None:
    """Show the name, roles, limits and usage of your API key."""
    output, caller = context.obj.output, context.obj.client.me()
    if output.as_json:
        output.print_json(caller.body)
        return
    output.print_line(f"{caller.name or 'no key'}: {', '.join(caller.roles)}")
    rows = [
        [name, caller.usage.get(name, ""), "none" if limit is None else limit] for name, limit in caller.limits.items()
    ]
    output.print_table(["LIMIT", "USED", "MAXIMUM"], rows)


@app.command()
def families(context: CommandContext) -> None:
    """List the families that can be trained, with the options of `reverie train --set`."""
    output, descriptions = context.obj.output, context.obj.client.families()
    if output.as_json:
        output.print_json(descriptions)
        return
    rows = []
    for family in descriptions:
        for section in ("config", "training"):
            for option, schema in family[section]["properties"].items():
                default = family["recipe"][section].get(option, schema.get("default"))
                choices = f" ({', '.join(map(str, schema['enum']))})" if "enum" in schema else ""
                description = (schema.get("description", "") + choices).strip()
                rows.append([family["name"], f"{section}.{option}", compact_json(default), description])
    output.print_table(["FAMILY", "OPTION", "DEFAULT", "DESCRIPTION"], rows)


@app.command()
def train(
    context: CommandContext,
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
    deadline: Deadline = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate memory and time from a few steps; do not train.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show the progress until the training ends.")] = False,
    webhook: WebhookUrl = None,
    webhook_events: WebhookEvents = None,
) -> None:
    """Train a model. When the training succeeds, the model NAME has a new version.

    reverie train vae digits --name my-digits --set training.epochs=5 --follow
    """
    cli, output = context.obj, context.obj.output
    model = name or f"{family}-{dataset}"
    changes = parse_options(options, read_recipe(recipe) if recipe else {})
    if seed is not None:
        changes["seed"] = seed
    job_fields: dict[str, Any] = {"recipe": changes, "deadline_s": deadline, **webhook_option(webhook, webhook_events)}
    if dry_run:
        with cancelling_bar(cli, f"dry run {model}") as on_progress:
            estimate = cli.client.estimate(family, dataset, model, on_progress=on_progress, **job_fields)
        if output.as_json:
            output.print_json(estimate)
            return
        output.print_line(f"parameters  {estimate['parameters']}")
        output.print_line(f"memory      {format_size(estimate['memory_bytes'])}")
        output.print_line(f"time        {estimate['seconds']:.0f} s")
        return
    job = cli.client.train(family, dataset, model, serve=serve, shared=shared, **job_fields)
    if follow:
        output.print_message(f"{job.id}: Ctrl-C stops watching; the training continues")
        follow_job(cli, job)
    else:
        print_job(cli, job)
