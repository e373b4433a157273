"""Define the commands `reverie datasets …`, which list, add, show, share and delete datasets."""

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from reverie.cli.context import (
    CommandContext,
    OutputPath,
    Private,
    Shared,
    WebhookEvents,
    WebhookUrl,
    output_path,
    webhook_option,
)
from reverie.cli.jobs import cancelling_bar
from reverie.cli.output import ProgressBar
from reverie.methods.base import is_url
from reverie.methods.datasets import NAMED_DATASETS
from reverie.records import Dataset
from reverie.requests import printable_url

SPLITS = ("train", "validation", "test")

app = typer.Typer(help="List datasets; with a command, manage them.", invoke_without_command=True)

DatasetName = Annotated[str, typer.Argument(metavar="NAME", help="A dataset.")]


@app.callback()
def _list_datasets(context: CommandContext) -> None:
    if context.invoked_subcommand is not None:
        return
    datasets = context.obj.client.datasets()
    rows = [[one.name, one.kind, _format_shape(one), *_split_sizes(one), one.sha256[:12]] for one in datasets]
    headings = ["DATASET", "KIND", "SHAPE", *(split.upper() for split in SPLITS), "SHA256"]
    context.obj.print_records(datasets, headings, rows)


@app.command("add")
def _add_dataset(
    context: CommandContext,
    source: Annotated[str, typer.Argument(help="An IDX, NPZ or ZIP file or its URL, or mnist or fashion-mnist.")],
    name: Annotated[str | None, typer.Option(help="[default: the file's name]")] = None,
    labels: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Labels as an IDX file.")] = None,
    kind: Annotated[str | None, typer.Option(help="pictures, or photographs of any size.")] = None,
    resize: Annotated[str | None, typer.Option(metavar="HxW", help="Scale and crop pictures to this size.")] = None,
    validation: Annotated[float | None, typer.Option(min=0, max=0.5, help="Share of the validation split.")] = None,
    test: Annotated[float | None, typer.Option(min=0, max=0.5, help="Share of the test split.")] = None,
    shared: Shared = None,
    webhook: WebhookUrl = None,
    webhook_events: WebhookEvents = None,
) -> None:
    """Upload a dataset, or add one that the service fetches by URL or by name.

    A file can have --labels. A dataset that the service fetches is a job, so it can have --webhook.

    reverie datasets add digits.zip
    """
    cli = context.obj
    path = Path(source)
    fetched = is_url(source) or (source in NAMED_DATASETS and not path.is_file())
    _check_source(source, path, fetched=fetched)
    if not fetched:
        if webhook or webhook_events:
            detail = "an upload is no job; it works for a URL, and for " + " and ".join(NAMED_DATASETS)
            raise typer.BadParameter(detail, param_hint="--webhook")
        total = path.stat().st_size or 1
        with ProgressBar(cli.output, f"{path.name}: uploading") as bar:
            dataset = cli.client.upload_dataset(
                name or path.name.partition(".")[0],
                path,
                labels,
                kind=kind,
                resize=resize,
                validation=validation,
                test=test,
                shared=shared,
                on_progress=lambda sent: bar.set_progress(
                    sent / total, f"{path.name}: " + ("converting" if sent >= total else "uploading")
                ),
            )
    else:
        if labels is not None:
            detail = "it works for an uploaded file; to use labels, download the pictures and add the file"
            raise typer.BadParameter(detail, param_hint="--labels")
        if is_url(source) and name is None:
            name = Path(urlsplit(source).path).name.partition(".")[0]
        with cancelling_bar(cli, f"{printable_url(source)}: fetching") as on_progress:
            dataset = cli.client.fetch_dataset(
                source,
                name,
                kind=kind,
                resize=resize,
                validation=validation,
                test=test,
                shared=shared,
                on_progress=on_progress,
                **webhook_option(webhook, webhook_events),
            )
    splits = ", ".join(f"{size} {split}" for split, size in zip(SPLITS, _split_sizes(dataset), strict=True))
    cli.print_record(dataset, f"{dataset.name}: {dataset.kind} of {_format_shape(dataset)}; {splits}")


def _check_source(source: str, path: Path, *, fetched: bool) -> None:
    """Raise typer.BadParameter if a source is neither a file nor `fetched` by the service.

    `path` is the source as a path.
    """
    if fetched or (path.exists() and not path.is_dir()):
        return
    if path.is_dir():
        detail = f"{source} is a folder; pack its pictures in a ZIP file"
    else:
        known = ", ".join(NAMED_DATASETS)
        detail = f"{printable_url(source)}: there is no such file; other sources are an http or https URL, {known}"
    raise typer.BadParameter(detail, param_hint="SOURCE")


def _format_shape(dataset: Dataset) -> str:
    return "×".join(map(str, dataset.shape))


def _split_sizes(dataset: Dataset) -> list[int]:
    return [dataset.counts.get(split, 0) for split in SPLITS]


@app.command("show")
def _show_dataset(context: CommandContext, name: DatasetName) -> None:
    """Print the description of a dataset as JSON."""
    context.obj.output.print_json(context.obj.client.dataset(name).body)


@app.command("preview")
def _save_preview(
    context: CommandContext,
    name: DatasetName,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of pictures.")] = 64,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    out: OutputPath = None,
) -> None:
    """Save pictures of a dataset as a grid in one PNG."""
    path = out or Path(f"{name}.png")
    with output_path(path) as target:
        saved = context.obj.client.save_dataset_preview(name, target, split=split, count=count)
    context.obj.print_saved(path, saved, f"pictures of {name}")


@app.command("images")
def _save_images(
    context: CommandContext,
    name: DatasetName,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    after: Annotated[int | None, typer.Option(min=0, help="Index of the image before the first one.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Number of images.")] = 100,
    columns: Annotated[int | None, typer.Option(min=1, max=1000, help="Images per line of a PNG.")] = None,
    out: OutputPath = None,
) -> None:
    """Save images of a split, in their order; the suffix of the file chooses PNG, NPZ or JSON.

    reverie datasets images digits --split test --after 99 -o page-2.png
    """
    path = out or Path(f"{name}-{split}.png")
    with output_path(path) as target:
        saved = context.obj.client.save_dataset_images(
            name, target, split=split, after=after, limit=limit, columns=columns
        )
    context.obj.print_saved(path, saved, f"images of {name}")


@app.command("share")
def _share_dataset(context: CommandContext, name: DatasetName, private: Private = False) -> None:
    """Let everybody use a dataset, or, with --private, only its owner."""
    context.obj.print_sharing(name, context.obj.client.share_dataset(name, not private))


@app.command("delete")
def _delete_dataset(context: CommandContext, name: DatasetName) -> None:
    """Delete a dataset. It must not be in use by an unfinished training."""
    context.obj.client.delete_dataset(name)
