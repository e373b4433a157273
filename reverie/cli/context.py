"""Define what all commands share: the context with client and output, and common options."""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from reverie.cli.output import Output, format_size
from reverie.client import Client
from reverie.records import Record, SavedFile


@dataclass(frozen=True)
class CliContext:
    """The client and the output of one call of the command line; prints results of commands."""

    client: Client
    output: Output

    def print_saved(self, path: Path, saved: SavedFile, content: str) -> None:
        """Print the path, the model, the seed and the size of a file that was written.

        `content` is the text before the model, such as "images of mnist"; it may be empty. With
        `--json`, JSON is printed. If the result went to standard output (`path` is `-`), nothing is
        printed.
        """
        if str(path) == "-":
            return
        if self.output.as_json:
            self.output.print_json({**vars(saved), "path": str(path)})
            return
        seed = "" if saved.seed is None else f", seed {saved.seed}"
        self.output.print_line(f"{path}: {content}{saved.made_by}{seed}, {format_size(saved.size_bytes)}")

    def print_record(self, record: Record, line: str) -> None:
        """Print `line`, or the JSON of `record` with the option `--json`."""
        if self.output.as_json:
            self.output.print_json(record.body)
        else:
            self.output.print_line(line)

    def print_records(
        self, records: Sequence[Record], headings: Sequence[str], rows: Sequence[Sequence[object]]
    ) -> None:
        """Print a table with `headings` and `rows`, or with `--json` the JSON of `records`."""
        if self.output.as_json:
            self.output.print_json([record.body for record in records])
        else:
            self.output.print_table(headings, rows)

    def print_sharing(self, name: str, record: Record) -> None:
        """Print whether a model or dataset is shared or private.

        `record` is its description, which has a field `shared`, and `name` its name.
        """
        self.print_record(record, f"{name} is {'shared' if record['shared'] else 'private'}")


class CommandContext(typer.Context):
    """Typer's context of a command, whose `obj` is this program's `CliContext`."""

    obj: CliContext


OutputPath = Annotated[Path | None, typer.Option("--out", "-o", help="The file to write; - is standard output.")]
Options = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An option of the model; may be repeated.")
]
Shared = Annotated[
    bool | None,
    typer.Option("--shared/--private", help="Let everybody use it, or only its owner. [default: private if new]"),
]
Private = Annotated[bool, typer.Option("--private", help="Let only its owner use it.")]
Seed = Annotated[
    int | None, typer.Option(min=0, help="The same seed gives the same bytes. [default: random, and printed]")
]
WebhookUrl = Annotated[
    str | None, typer.Option("--webhook", metavar="URL", help="Send a signed request there when the job ends.")
]
WebhookEvents = Annotated[
    list[str] | None,
    typer.Option(
        "--webhook-event", metavar="EVENT", help="Send it at this event, such as job.running; may be repeated."
    ),
]


def webhook_option(url: str | None, events: Sequence[str] | None) -> dict[str, Any]:
    """Return the argument `webhook` for methods of the client, as a dictionary to unpack.

    `url` and `events` are the values of `--webhook` and `--webhook-event`. Without a URL the
    dictionary is empty. Raises typer.BadParameter for events without a URL.
    """
    if url is None:
        if events:
            raise typer.BadParameter("name the URL by --webhook too", param_hint="--webhook-event")
        return {}
    return {"webhook": {"url": url} | ({"events": list(events)} if events else {})}


Deadline = Annotated[
    float | None, typer.Option("--deadline", metavar="SECONDS", min=0.001, help="Stop the work after so many seconds.")
]


def parse_options(assignments: Sequence[str] | None, base: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a nested dictionary of the options that `assignments` such as "a.b=value" set.

    A value is JSON, or else a string. The options are added to `base`, which is changed in place;
    None stands for an empty dictionary. Raises typer.BadParameter for an assignment without "=", and
    for a part of an option that has no parts.
    """
    options = {} if base is None else base
    for assignment in assignments or ():
        path, equals, text = assignment.partition("=")
        if not equals:
            raise typer.BadParameter(f"{assignment}: write NAME=VALUE", param_hint="--set")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        *parents, name = path.split(".")
        target = options
        for depth, parent in enumerate(parents, 1):
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                detail = f"{assignment}: {'.'.join(parents[:depth])} is set to {json.dumps(target)} and has no parts"
                raise typer.BadParameter(detail, param_hint="--set")
        target[name] = value
    return options


# What commands set by arguments and options of their own, and parameters of the client's methods.
_OWN_FIELDS = {"model", "count", "seed", "deadline_s", "webhook", "codes"}
_NO_OPTIONS = {"path", "operation", "images", "image", "on_progress"}


def operation_options(assignments: Sequence[str] | None) -> dict[str, Any]:
    """Return the options of an operation that `assignments` such as "name=value" set.

    Raises typer.BadParameter for an invalid assignment, and for a name that is no option.
    """
    options = parse_options(assignments)
    for name in sorted(options.keys() & (_OWN_FIELDS | _NO_OPTIONS)):
        reason = "is set by an argument or option of the command" if name in _OWN_FIELDS else "is no option of a model"
        raise typer.BadParameter(f"{name} {reason}", param_hint="--set")
    return options


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file of `--recipe`; raise typer.BadParameter if it has none."""
    try:
        recipe = json.loads(path.read_bytes())
    except ValueError as error:
        raise typer.BadParameter(f"{path} is not JSON: {error}", param_hint="--recipe") from error
    if not isinstance(recipe, dict):
        detail = f'{path}: write a JSON object, such as {{"training": {{"epochs": 5}}}}'
        raise typer.BadParameter(detail, param_hint="--recipe")
    return recipe


@contextmanager
def output_path(path: Path, suffix: str = ".png") -> Iterator[Path]:
    """Return a context manager with the path to which a command writes its result.

    If `path` is `-`, that is a temporary file with this suffix, which is copied to standard output
    at the end of the block; otherwise it is `path`.
    """
    if str(path) != "-":
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder, f"result{suffix}")
        yield temporary
        with temporary.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
