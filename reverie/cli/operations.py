"""The commands `reverie sample`, `reverie upscale`, and `reverie me` (the caller's key and
limits).
"""

from pathlib import Path
from typing import Annotated

import typer

from reverie.cli.context import CliContext, Options, OutputPath, Seed, output_path, parse_options
from reverie.cli.output import ProgressBar

app = typer.Typer()


@app.command()
def sample(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A model, or model@version.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of samples.")] = 64,
    seed: Seed = None,
    out: OutputPath = None,
    options: Options = None,
) -> None:
    """Draw samples and save them; the suffix of the file chooses PNG (a grid), NPZ or JSON.

    reverie sample vae-mnist -n 64 --seed 3 -o digits.png
    """
    cli: CliContext = context.obj
    path = out or Path(f"{model.partition('@')[0]}.png")
    fields = {**parse_options(options), "count": count}
    with output_path(path) as target, ProgressBar(cli.output, model) as bar:
        saved = cli.client.save(target, "samples", model, seed=seed, on_progress=bar.update_from_job, **fields)
    cli.print_saved(path, saved, f"{count} samples of ")


@app.command()
def upscale(
    context: typer.Context,
    picture: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A PNG, JPEG or WebP file of any size.")],
    out: OutputPath = None,
    model: Annotated[str | None, typer.Option(help="A model that upscales. [default: the first one]")] = None,
    scale: Annotated[int | None, typer.Option(min=1, help="How many times wider and higher.")] = None,
    method: Annotated[str | None, typer.Option(help="One of the model's: bicubic, tv, mse, statistics.")] = None,
    seed: Seed = None,
    options: Options = None,
) -> None:
    """Enlarge a picture and save it; the suffix of the file chooses PNG, JPEG or WebP.

    reverie upscale photo.jpg --scale 4 -o large.png
    """
    cli: CliContext = context.obj
    path = out or picture.with_name(f"{picture.stem}-large.png")
    fields = parse_options(options) | {name: value for name, value in [("scale", scale), ("method", method)] if value}
    with output_path(path) as target, ProgressBar(cli.output, picture.name) as bar:
        saved = cli.client.upscales(picture, target, model=model, seed=seed, on_progress=bar.update_from_job, **fields)
    cli.print_saved(path, saved, "upscaled by ")


@app.command()
def me(context: typer.Context) -> None:
    """Show the name, roles, limits and usage of your API key."""
    cli: CliContext = context.obj
    caller = cli.client.me()
    if cli.output.as_json:
        cli.output.print_json(dict(caller.body))
        return
    cli.output.print_line(f"{caller.name or 'no key'}: {', '.join(caller.roles)}")
    rows = [
        [name, caller.usage.get(name, ""), "none" if limit is None else limit] for name, limit in caller.limits.items()
    ]
    cli.output.print_table(["LIMIT", "USED", "MAXIMUM"], rows)
