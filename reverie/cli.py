"""The command `reverie`: everything over HTTP, by the same client that programs use."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from reverie.client import URL, Client
from reverie.errors import JobFailedError, ReverieError
from reverie.records import Dataset, Event, Job, Model, Saved, Version
from reverie.screen import Bar, Screen, metrics, number, size

FAILED, INTERRUPTED = 1, 130
PARTS = ("train", "validation", "test")
PICTURE_KINDS = {"samples", "manifold", "reconstructions", "interpolations", "inpaintings", "upscales"}
"""Jobs whose results can be had as a picture."""

app = typer.Typer(
    name="reverie",
    help="Samples, upscaled pictures and trained models from a Reverie service.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models = typer.Typer(help="Models and their versions; alone, a list.", invoke_without_command=True)
jobs = typer.Typer(help="Jobs, trainings among them; alone, a list, newest first.", invoke_without_command=True)
datasets = typer.Typer(help="What can be trained on; alone, a list.", invoke_without_command=True)
app.add_typer(models, name="models")
app.add_typer(datasets, name="datasets")
app.add_typer(jobs, name="jobs")


@dataclass(frozen=True)
class House:
    """What every command stands on."""

    client: Client
    screen: Screen


Out = Annotated[Path | None, typer.Option("--out", "-o", help="Where to; - is standard output.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An option of the model; may be repeated.")
]
Shared = Annotated[
    bool | None, typer.Option("--shared/--private", help="For everybody, or its owner alone. [default: private if new]")
]
Private = Annotated[bool, typer.Option("--private", help="For its owner alone.")]
Seed = Annotated[int | None, typer.Option(min=0, help="The same seed gives the same bytes. [default: drawn and told]")]


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; its exit status is 0, 1 where it was refused or failed, 2 where it made no sense."""
    try:
        app(args=argv, prog_name="reverie")
    except (ReverieError, OSError, ValueError) as error:
        Screen(as_json=False).note(f"reverie: {error}")
        sys.exit(FAILED)


@app.callback()
def _opened(
    context: typer.Context,
    url: Annotated[str, typer.Option(envvar="REVERIE_URL", help="Address of the service.")] = URL,
    key: Annotated[str | None, typer.Option(envvar="REVERIE_KEY", help="The key, where it wants one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answers as JSON, as the service gives them.")] = False,
) -> None:
    context.obj = House(context.with_resource(Client(url, key, retries=3)), Screen(as_json=as_json))


# --- asking ---


@app.command()
def sample(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A model, or model@version.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many.")] = 64,
    seed: Seed = None,
    out: Out = None,
    options: Set = None,
) -> None:
    """Draw samples: a PNG with a grid of them, or an NPZ or JSON file, as the name says.

    reverie sample vae-mnist -n 64 --seed 3 -o digits.png
    """
    house: House = context.obj
    given = out or Path(f"{model.partition('@')[0]}.png")
    asked = {**changed(options), "count": count}
    with _written(given) as path, Bar(house.screen, model) as bar:
        saved = house.client.save(path, "samples", model, seed=seed, watch=bar.watch, **asked)
    _told(house, given, saved, f"{count} of ")


@app.command()
def upscale(
    context: typer.Context,
    picture: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A PNG, JPEG or WebP of any size.")],
    out: Out = None,
    model: Annotated[str | None, typer.Option(help="A model that enlarges pictures.")] = None,
    scale: Annotated[int | None, typer.Option(min=1, help="Times the width and the height.")] = None,
    method: Annotated[str | None, typer.Option(help="One of the model's: bicubic, tv, mse, statistics.")] = None,
    seed: Seed = None,
    options: Set = None,
) -> None:
    """Enlarge a picture: a PNG, JPEG or WebP, as the name says.

    reverie upscale photo.jpg --scale 4 -o large.png
    """
    house: House = context.obj
    given = out or picture.with_name(f"{picture.stem}-large.png")
    asked = changed(options) | {name: value for name, value in {"scale": scale, "method": method}.items() if value}
    with _written(given) as path, Bar(house.screen, picture.name) as bar:
        saved = house.client.upscales(picture, path, model=model, seed=seed, watch=bar.watch, **asked)
    _told(house, given, saved, "by ")


@contextmanager
def _written(out: Path) -> Iterator[Path]:
    """Where to write what is meant for `out`; what is meant for standard output passes through a file."""
    if str(out) != "-":
        yield out
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "answer.png")
        yield path
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)


def _told(house: House, out: Path, saved: Saved, what: str) -> None:
    """What was written, where it was not written to standard output."""
    seed = "" if saved.seed is None else f", seed {saved.seed}"
    if str(out) == "-":
        return
    if house.screen.as_json:
        house.screen.json({**vars(saved), "path": str(out)})
    else:
        house.screen.line(f"{out}: {what}{saved.made_by}{seed}, {size(saved.size_bytes)}")


def changed(settings: Sequence[str] | None, values: dict[str, Any] | None = None) -> dict[str, Any]:
    """`values` with each `a.b=c` at its place, c being JSON or else a word. Raises typer.BadParameter."""
    values = {} if values is None else values
    for setting in settings or ():
        path, equals, text = setting.partition("=")
        if not equals:
            raise typer.BadParameter(f"{setting}: write NAME=VALUE", param_hint="--set")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        inner = values
        *parents, name = path.split(".")
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = value
    return values


@app.command()
def me(context: typer.Context) -> None:
    """Whose key this is, its roles, its limits and what it uses."""
    house: House = context.obj
    caller = house.client.me()
    if house.screen.as_json:
        house.screen.json(dict(caller.body))
        return
    house.screen.line(f"{caller.name or 'no key'}: {', '.join(caller.roles)}")
    rows = [
        [name, caller.usage.get(name, ""), "none" if limit is None else limit] for name, limit in caller.limits.items()
    ]
    house.screen.table(["LIMIT", "USED", "MOST"], rows)


# --- models ---


@models.callback()
def _models(context: typer.Context) -> None:
    if context.invoked_subcommand is not None:
        return
    house: House = context.obj
    found = house.client.models()
    if house.screen.as_json:
        house.screen.json([dict(model.body) for model in found])
        return
    rows = [[one.name, one.version, len(one.versions), one.family, one["summary"]] for one in found]
    house.screen.table(["MODEL", "SERVES", "VERSIONS", "FAMILY", "WHAT IT IS"], rows)


@models.command("show")
def _model(context: typer.Context, name: Annotated[str, typer.Argument(help="A model, or model@version.")]) -> None:
    """A model's card: what it can do, how good it is, where it came from."""
    house: House = context.obj
    model = house.client.model(name)
    if house.screen.as_json:
        house.screen.json(dict(model.body))
        return
    _card(house.screen, model)


def _card(screen: Screen, model: Model) -> None:
    versions = ", ".join(model.versions)
    screen.line(f"{model.name}@{model.version}  {model.family}  {model['summary']}  (versions {versions})")
    screen.line("")
    rows = [
        [path, name, _brief(rule.get("default")), rule.get("description", "")]
        for path, operation in model.operations.items()
        for name, rule in (operation["options"].get("properties") or {"": {}}).items()
    ]
    screen.table(["OPERATION", "OPTION", "DEFAULT", "WHAT IT IS"], rows)
    screen.line("")
    _figures(screen, model)


@models.command("versions")
def _versions(context: typer.Context, name: Annotated[str, typer.Argument(help="A model.")]) -> None:
    """A model's versions, with the first figure of each."""
    house: House = context.obj
    found = house.client.versions(name)
    if house.screen.as_json:
        house.screen.json([dict(version.body) for version in found])
        return
    rows = [
        [one.version, "yes" if one.serves else "", _first(one.card), one.card["created_at"], one.card["summary"]]
        for one in found
    ]
    house.screen.table(["VERSION", "SERVES", "FIGURE", "MADE", "WHAT IT IS"], rows)


def _first(model: Model) -> str:
    return " ".join(f"{one['name']} {number(one['value'])} {one.get('unit', '')}" for one in model.figures[:1])


@models.command("use")
def _use(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A model.")],
    version: Annotated[str, typer.Argument(help="The version that is to serve.")],
) -> None:
    """Have a version serve, without a dropped request; back is the same."""
    house: House = context.obj
    model = house.client.serve(name, version)
    if house.screen.as_json:
        house.screen.json(dict(model.body))
    else:
        house.screen.line(f"{model.name}@{model.version} serves")


@models.command("delete")
def _delete_model(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A model with all its versions, or model@version.")],
) -> None:
    """Delete a model, or one version that does not serve."""
    house: House = context.obj
    model, _, version = name.partition("@")
    if version:
        house.client.delete_version(model, version)
    else:
        house.client.delete_model(model)


@models.command("share")
def _share_model(
    context: typer.Context, name: Annotated[str, typer.Argument(help="A model.")], private: Private = False
) -> None:
    """Let everybody use a model, or its owner alone."""
    house: House = context.obj
    model = house.client.share(name, not private)
    _told_shared(house, model.name, model.body)


def _told_shared(house: House, name: str, body: Mapping[str, Any]) -> None:
    if house.screen.as_json:
        house.screen.json(dict(body))
    else:
        house.screen.line(f"{name} is {'for everybody' if body['shared'] else 'its owner’s alone'}")


@models.command("export")
def _export(
    context: typer.Context, name: Annotated[str, typer.Argument(help="A model, or model@version.")], out: Out = None
) -> None:
    """Save a version as one safetensors file, its card in the header."""
    house: House = context.obj
    model = house.client.model(name)
    given = out or Path(f"{model.name}-{model.version}.safetensors")
    with _written(given) as path:
        saved = house.client.export(model.name, path, model.version)
    _told(house, given, saved, f"{model.name}@{model.version}")


@models.command("import")
def _import(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The model that its card names.")],
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A file that was exported.")],
    shared: Shared = None,
) -> None:
    """Make a file a version; `reverie models use` has it serve."""
    house: House = context.obj
    with Bar(house.screen, file.name) as bar:
        total = file.stat().st_size or 1
        version = house.client.bring(name, file, shared=shared, watch=lambda gone: bar.reach(gone / total))
    if house.screen.as_json:
        house.screen.json(dict(version.body))
    else:
        house.screen.line(f"{version.model}@{version.version} {_serving(version)}")


def _serving(version: Version) -> str:
    return "serves" if version.serves else "is kept and does not serve"


# --- datasets ---


DatasetName = Annotated[str, typer.Argument(metavar="NAME", help="A dataset.")]


@datasets.callback()
def _datasets(context: typer.Context) -> None:
    if context.invoked_subcommand is not None:
        return
    house: House = context.obj
    found = house.client.datasets()
    if house.screen.as_json:
        house.screen.json([dict(dataset.body) for dataset in found])
        return
    rows = [[one.name, one.kind, _shape(one), *_counts(one), one.sha256[:12]] for one in found]
    house.screen.table(["DATASET", "KIND", "SHAPE", *(part.upper() for part in PARTS), "SHA256"], rows)


@datasets.command("add")
def _add(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="An IDX, NPZ or ZIP file, or a set by name: mnist, fashion-mnist.")],
    name: Annotated[str | None, typer.Option(help="[default: the file's]")] = None,
    labels: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Labels as an IDX file.")] = None,
    kind: Annotated[str | None, typer.Option(help="pictures, or photographs of any size.")] = None,
    resize: Annotated[str | None, typer.Option(metavar="HxW", help="Scale and cut each picture to this size.")] = None,
    validation: Annotated[float | None, typer.Option(min=0, max=0.5, help="Share held back for choices.")] = None,
    test: Annotated[float | None, typer.Option(min=0, max=0.5, help="Share held back for the measurement.")] = None,
    shared: Shared = None,
) -> None:
    """Upload a dataset, or have the service fetch one that it knows.

    reverie datasets add digits.zip
    """
    house: House = context.obj
    path = Path(source)
    if not path.exists():
        _made(house, house.client.fetch(source, name, shared=shared))
        return
    called = name or path.name.partition(".")[0]
    with Bar(house.screen, f"{path.name} on its way") as bar:
        total = path.stat().st_size or 1
        made = house.client.upload(
            called,
            path,
            labels,
            kind=kind,
            resize=resize,
            validation=validation,
            test=test,
            shared=shared,
            watch=lambda gone: bar.reach(gone / total, f"{path.name} " + ("read" if gone >= total else "on its way")),
        )
    _made(house, made)


def _shape(dataset: Dataset) -> str:
    return "×".join(map(str, dataset.shape))


def _counts(dataset: Dataset) -> list[int]:
    return [dataset.counts.get(part, 0) for part in PARTS]


def _made(house: House, dataset: Dataset) -> None:
    if house.screen.as_json:
        house.screen.json(dict(dataset.body))
        return
    parts = ", ".join(f"{count} {part}" for part, count in zip(PARTS, _counts(dataset), strict=True))
    house.screen.line(f"{dataset.name}: {dataset.kind} of {_shape(dataset)}; {parts}")


@datasets.command("show")
def _dataset(context: typer.Context, name: DatasetName) -> None:
    """Everything about a dataset."""
    house: House = context.obj
    house.screen.json(dict(house.client.dataset(name).body))


@datasets.command("preview")
def _preview(
    context: typer.Context,
    name: DatasetName,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many.")] = 64,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    out: Out = None,
) -> None:
    """Some of a dataset's pictures as a PNG."""
    house: House = context.obj
    given = out or Path(f"{name}.png")
    with _written(given) as path:
        saved = house.client.save_preview(name, path, split=split, count=count)
    _told(house, given, saved, f"some of {name}")


@datasets.command("share")
def _share_dataset(context: typer.Context, name: DatasetName, private: Private = False) -> None:
    """Let everybody use a dataset, or its owner alone."""
    house: House = context.obj
    dataset = house.client.share_dataset(name, not private)
    _told_shared(house, dataset.name, dataset.body)


@datasets.command("delete")
def _drop(context: typer.Context, name: DatasetName) -> None:
    """Delete a dataset that no training uses."""
    house: House = context.obj
    house.client.delete_dataset(name)


# --- training ---


@app.command()
def families(context: typer.Context) -> None:
    """What can be trained, and the options that `reverie train --set` takes."""
    house: House = context.obj
    found = house.client.families()
    if house.screen.as_json:
        house.screen.json(found)
        return
    rows = [
        [
            family["name"],
            f"{part}.{name}",
            _brief(family["recipe"][part].get(name, rule.get("default"))),
            _told_of(rule),
        ]
        for family in found
        for part in ("config", "training")
        for name, rule in family[part]["properties"].items()
    ]
    house.screen.table(["FAMILY", "OPTION", "DEFAULT", "WHAT IT IS"], rows)


def _brief(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _told_of(rule: dict[str, Any]) -> str:
    said = rule.get("description", "")
    return f"{said} ({', '.join(map(str, rule['enum']))})".strip() if "enum" in rule else said


@app.command()
def train(
    context: typer.Context,
    family: Annotated[str, typer.Argument(help="vae, bihm, ebgan, superres, …: `reverie families` lists them.")],
    dataset: Annotated[str, typer.Argument(help="What to learn from: `reverie datasets` lists them.")],
    name: Annotated[str | None, typer.Option(help="The model that it becomes. [default: FAMILY-DATASET]")] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="training.epochs=5, config.latents=2; may be repeated."),
    ] = None,
    recipe: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A JSON file of options.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything random. [default: 0]")] = None,
    serve: Annotated[str, typer.Option(help="Whether it serves: if better, always, never.")] = "if better",
    shared: Shared = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, from a few steps.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Watch it to its end.")] = False,
) -> None:
    """Train a model; it is a new version of NAME at the end.

    reverie train vae digits --name my-digits --set training.epochs=5 --follow
    """
    house: House = context.obj
    called = name or f"{family}-{dataset}"
    asked = changed(options, json.loads(recipe.read_bytes()) if recipe else {})
    if seed is not None:
        asked["seed"] = seed
    if dry_run:
        _estimated(house.screen, house.client.estimate(family, dataset, called, recipe=asked))
        return
    training = house.client.train(family, dataset, called, recipe=asked, serve=serve, shared=shared)
    if not follow:
        _ended(house, training)
        return
    house.screen.note(f"{training.id}: Ctrl-C leaves it running")
    _ended(house, followed(house, training))


def _estimated(screen: Screen, estimate: Mapping[str, Any]) -> None:
    if screen.as_json:
        screen.json(dict(estimate))
        return
    screen.line(f"parameters  {estimate['parameters']}")
    screen.line(f"memory      {size(estimate['memory_bytes'])}")
    screen.line(f"time        {estimate['seconds']:.0f} s")


# --- jobs ---


JobId = Annotated[str, typer.Argument(metavar="JOB", help="Its id, job_….")]


@jobs.callback()
def _jobs(
    context: typer.Context,
    status: Annotated[str | None, typer.Option(help="queued, running, paused, succeeded, failed or cancelled.")] = None,
    kind: Annotated[str | None, typer.Option(help="samples, upscales, training, ….")] = None,
    model: Annotated[str | None, typer.Option(help="Of this model.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 20,
) -> None:
    if context.invoked_subcommand is not None:
        return
    house: House = context.obj
    found = house.client.jobs(status=status, kind=kind, model=model, limit=limit)
    if house.screen.as_json:
        house.screen.json([dict(job.body) for job in found])
        return
    rows = [[job.id, job.kind, job.model, job.status, f"{job.progress:.0%}", job["created_at"] or ""] for job in found]
    house.screen.table(["JOB", "KIND", "MODEL", "STATUS", "DONE", "SINCE"], rows)


@jobs.command("show")
def _show(context: typer.Context, job_id: JobId) -> None:
    """Everything about a job."""
    house: House = context.obj
    house.screen.json(dict(house.client.job(job_id).body))


@jobs.command("watch")
def _watch(context: typer.Context, job_id: JobId) -> None:
    """Follow a job to its end; Ctrl-C leaves it running."""
    house: House = context.obj
    _ended(house, followed(house, house.client.job(job_id)))


@jobs.command("result")
def _result(context: typer.Context, job_id: JobId, out: Out = None) -> None:
    """Save what a job computed: a .png, .npz or .json file."""
    house: House = context.obj
    suffix = ".png" if out is None and house.client.job(job_id).kind in PICTURE_KINDS else ".json"
    given = out or Path(f"{job_id}{suffix}")
    with _written(given) as path:
        saved = house.client.save_result(job_id, path)
    _told(house, given, saved, "")


@jobs.command("cancel")
def _cancel(context: typer.Context, job_id: JobId) -> None:
    """End a job; a training leaves its last checkpoint."""
    house: House = context.obj
    _ended(house, house.client.cancel(job_id))


@jobs.command("pause")
def _pause(context: typer.Context, job_id: JobId) -> None:
    """Stop a training with a checkpoint, to be resumed."""
    house: House = context.obj
    _ended(house, house.client.pause(job_id))


@jobs.command("resume")
def _resume(context: typer.Context, job_id: JobId) -> None:
    """Go on with a paused training."""
    house: House = context.obj
    _ended(house, house.client.resume(job_id))


@jobs.command("publish")
def _publish(context: typer.Context, job_id: JobId) -> None:
    """Make the last checkpoint of a paused, failed or cancelled training a version."""
    house: House = context.obj
    _ended(house, followed(house, house.client.publish(job_id)))


@jobs.command("curves")
def _curves(context: typer.Context, job_id: JobId, out: Out = None) -> None:
    """A training's losses as a PNG."""
    house: House = context.obj
    given = out or Path(f"{job_id}.png")
    with _written(given) as path:
        saved = house.client.save_curves(job_id, path)
    _told(house, given, saved, f"the losses of {job_id}")


@jobs.command("delete")
def _delete(context: typer.Context, job_id: JobId) -> None:
    """Forget an ended job and its result."""
    house: House = context.obj
    house.client.forget(job_id)


def followed(house: House, job: Job) -> Job:
    """The job once it has ended, shown on the way."""
    title = f"{job.kind} {job.model}"
    with Bar(house.screen, f"{title} {job.status}") as bar:
        try:
            for event in house.client.events(job.id):
                _shown(bar, title, event)
        except KeyboardInterrupt:
            bar.say(f"{job.id} goes on; reverie jobs watch {job.id}")
            raise typer.Exit(INTERRUPTED) from None
    return house.client.wait(job.id)


def _shown(bar: Bar, title: str, event: Event) -> None:
    if event.kind == "progress":
        bar.reach(float(event.data["progress"]))
    elif event.kind == "status":
        status = str(event.data["status"])
        bar.reach(1.0 if status == "succeeded" else None, f"{title} {status}")
    elif event.kind == "metrics":
        bar.below(metrics(event.data))
    elif event.kind == "message":
        bar.say(str(event.data.get("message", "")))


def _ended(house: House, job: Job) -> None:
    """Say how a job stands, and what a training made. Raises JobFailedError where it failed."""
    if job.status == "failed":
        raise JobFailedError(job)
    if house.screen.as_json:
        house.screen.json(dict(job.body))
        return
    house.screen.line(f"{job.id} {job.status}")
    if job.kind in {"training", "publication"} and job.status == "succeeded":
        version = house.client.result(job.id)["version"]
        made = next(one for one in house.client.versions(job.model) if one.version == version)
        house.screen.line(f"{made.model}@{made.version} {_serving(made)}")
        _figures(house.screen, made.card)


def _figures(screen: Screen, model: Model) -> None:
    screen.table(
        ["FIGURE", "VALUE", "UNIT", "WHAT IT IS"],
        [[one["name"], number(one["value"]), one.get("unit", ""), one.get("detail", "")] for one in model.figures],
    )
