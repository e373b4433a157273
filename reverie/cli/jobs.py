"""Define the commands `reverie jobs …` for jobs of every kind, trainings included."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from reverie.cli.context import CliContext, CommandContext, OutputPath, output_path
from reverie.cli.models import format_version
from reverie.cli.output import ProgressBar, format_metrics
from reverie.errors import ConflictError, GoneError, JobFailedError, NotFoundError, ReverieError, UnreachableError
from reverie.methods.base import JobProgress
from reverie.records import Event, Job

INTERRUPTED = 130
QUEUE_POLL_S = 1.0
# Jobs whose results can be saved as a picture.
PICTURE_KINDS = {"samples", "manifold", "decodings", "reconstructions", "interpolations", "inpaintings", "upscales"}
# Jobs that publish a version of a model.
VERSION_KINDS = {"training", "publication"}

app = typer.Typer(help="List jobs, newest first; with a command, manage them.", invoke_without_command=True)

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, such as job_01a2….")]


@app.callback()
def _list_jobs(
    context: CommandContext,
    status: Annotated[str | None, typer.Option(help="queued, running, paused, succeeded, failed or cancelled.")] = None,
    kind: Annotated[str | None, typer.Option(help="samples, upscales, training, ….")] = None,
    model: Annotated[str | None, typer.Option(help="The model's name.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Maximum number of jobs.")] = 20,
) -> None:
    if context.invoked_subcommand is not None:
        return
    jobs = context.obj.client.jobs(status=status, kind=kind, model=model, limit=limit)
    rows = [[job.id, job.kind, job.model, job.status, f"{job.progress:.0%}", job["created_at"] or ""] for job in jobs]
    context.obj.print_records(jobs, ["JOB", "KIND", "MODEL", "STATUS", "PROGRESS", "CREATED"], rows)


@app.command("show")
def _show_job(context: CommandContext, job_id: JobId) -> None:
    """Print a job as JSON."""
    context.obj.output.print_json(context.obj.client.job(job_id).body)


@app.command("watch")
def _watch_job(context: CommandContext, job_id: JobId) -> None:
    """Show a job's progress until it ends. Ctrl-C stops watching; the job continues.

    The exit status is 1 if the job fails or is cancelled.
    """
    follow_job(context.obj, context.obj.client.job(job_id))


@app.command("result")
def _save_result(context: CommandContext, job_id: JobId, out: OutputPath = None) -> None:
    """Save a job's result as a .png, .npz or .json file; a picture is PNG by default, else JSON."""
    cli = context.obj
    suffix = ""
    if out is None or str(out) == "-":
        suffix = ".png" if cli.client.job(job_id).kind in PICTURE_KINDS else ".json"
    path = out or Path(f"{job_id}{suffix}")
    with output_path(path, suffix) as target:
        saved = cli.client.save_result(job_id, target)
    cli.print_saved(path, saved, "")


@app.command("previews")
def _save_previews(
    context: CommandContext,
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="The training's id, such as job_01a2….")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The folder to write to. [default: JOB]")] = None,
) -> None:
    """Save the previews of a training: a file EPOCH.png for each epoch that has a preview."""
    cli = context.obj
    epochs = cli.client.training_previews(job_id)
    folder = out or Path(job_id)
    folder.mkdir(parents=True, exist_ok=True)
    for epoch in epochs:
        (folder / f"{epoch}.png").write_bytes(cli.client.training_preview(job_id, epoch))
    if cli.output.as_json:
        cli.output.print_json(epochs)
    else:
        cli.output.print_line(f"{folder}: {len(epochs)} previews")


@app.command("deliveries")
def _list_deliveries(
    context: CommandContext,
    job_id: JobId,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Maximum number of deliveries.")] = 20,
) -> None:
    """List the requests to a job's webhook, newest first."""
    found = context.obj.client.deliveries(job_id, limit)
    rows = [[one.id, one.event, one.status, one.attempts, one.error or "", one["created_at"]] for one in found]
    context.obj.print_records(found, ["DELIVERY", "EVENT", "STATUS", "ATTEMPTS", "ERROR", "CREATED"], rows)


@app.command("cancel")
def _cancel_job(context: CommandContext, job_id: JobId) -> None:
    """Cancel a job. A training keeps its last checkpoint."""
    print_job(context.obj, context.obj.client.cancel(job_id))


@app.command("pause")
def _pause_training(context: CommandContext, job_id: JobId) -> None:
    """Pause a training: write a checkpoint and stop."""
    print_job(context.obj, context.obj.client.pause(job_id))


@app.command("resume")
def _resume_training(context: CommandContext, job_id: JobId) -> None:
    """Resume a paused training from its last checkpoint."""
    print_job(context.obj, context.obj.client.resume(job_id))


@app.command("publish")
def _publish_training(context: CommandContext, job_id: JobId) -> None:
    """Publish the last checkpoint of a paused, failed or cancelled training as a version."""
    follow_job(context.obj, context.obj.client.publish(job_id))


@app.command("curves")
def _save_curves(context: CommandContext, job_id: JobId, out: OutputPath = None) -> None:
    """Save a plot of a training's losses as a PNG."""
    path = out or Path(f"{job_id}.png")
    with output_path(path) as target:
        saved = context.obj.client.save_curves(job_id, target)
    context.obj.print_saved(path, saved, f"losses of {job_id}")


@app.command("delete")
def _delete_job(context: CommandContext, job_id: JobId) -> None:
    """Delete a job that has ended, and its result."""
    context.obj.client.delete_job(job_id)


@contextmanager
def cancelling_bar(cli: CliContext, title: str) -> Iterator[JobProgress]:
    """Return a context manager that shows the progress of a request in a bar with a title.

    Its value is the function to call with the job, if the request becomes one. Ctrl-C in the block
    ends the program with exit status 130 and cancels the job, as the service cancels a synchronous
    request whose client disconnects. A job with a webhook continues.
    """
    job: Job | None = None
    with ProgressBar(cli.output, title) as bar:

        def update(current: Job) -> None:
            nonlocal job
            if job is not None:  # the first one is new; its place in the queue is not known yet
                bar.update_from_job(current)
            job = current

        try:
            yield update
        except KeyboardInterrupt:
            if job is not None:
                _stop_waiting(cli, bar, job)
            raise typer.Exit(INTERRUPTED) from None
        except UnreachableError:
            if job is not None:
                bar.print_message(_continues(job))
            raise


def _stop_waiting(cli: CliContext, bar: ProgressBar, job: Job) -> None:
    """Cancel a job for whose result the program waited, unless it has a webhook; print what becomes
    of it.
    """
    if job.body.get("webhook"):
        bar.print_message(_continues(job))
        return
    try:
        cli.client.cancel(job.id)
    except ConflictError:
        bar.print_message(f"{job.id} has ended; its result, if it has one: reverie jobs result {job.id}")
    except ReverieError as error:
        bar.print_message(f"{job.id} was not cancelled ({error}); cancel it with: reverie jobs cancel {job.id}")
    else:
        bar.print_message(f"{job.id} was cancelled")


def _continues(job: Job) -> str:
    """Return a sentence that says how to watch a job, and how to save its result."""
    watch = f"{job.id} continues; watch it with: reverie jobs watch {job.id}"
    return watch if job.kind in VERSION_KINDS else f"{watch}, and save its result with: reverie jobs result {job.id}"


def follow_job(cli: CliContext, job: Job) -> None:
    """Show the events of a job until it ends, and print the ended job.

    Ctrl-C ends the program with exit status 130; the job continues. Raises JobFailedError if the
    job failed or was cancelled.
    """
    title = f"{job.kind} {job.model}"
    with ProgressBar(cli.output, f"{title} {job.status}") as bar:
        try:
            _show_queue(cli, bar, job)
            for event in cli.client.events(job.id):
                _show_event(bar, title, event)
            job = cli.client.wait(job.id)
        except KeyboardInterrupt:
            bar.print_message(_continues(job))
            raise typer.Exit(INTERRUPTED) from None
    if job.status != "succeeded":
        raise JobFailedError(job)
    print_job(cli, job)
    if job.kind in VERSION_KINDS and not cli.output.as_json:
        _print_version(cli, job)


def _show_queue(cli: CliContext, bar: ProgressBar, job: Job) -> None:
    """Show the position and expected start of a job until it is no longer queued."""
    while job.status == "queued":
        job = cli.client.job(job.id)
        bar.update_from_job(job)
        if job.status == "queued":
            time.sleep(QUEUE_POLL_S)


def _show_event(bar: ProgressBar, title: str, event: Event) -> None:
    """Show an event of a job in the bar, in the status line below the bar, or as a message above
    it.
    """
    if event.kind == "progress":
        bar.set_progress(float(event.data["progress"]))
    elif event.kind == "status":
        status = str(event.data["status"])
        bar.set_progress(1.0 if status == "succeeded" else None, f"{title} {status}")
    elif event.kind == "metrics":
        bar.set_status_line(format_metrics(event.data))
    elif event.kind == "message":
        bar.print_message(str(event.data.get("message", "")))


def print_job(cli: CliContext, job: Job) -> None:
    """Print the status of a job."""
    cli.print_record(job, f"{job.id} {job.status}")


def _print_version(cli: CliContext, job: Job) -> None:
    """Print the version that a training or publication has published, and its metrics.

    If the job's result has expired, or the version was deleted, that is printed instead.
    """
    try:
        number = cli.client.result(job.id)["version"]
    except GoneError:
        cli.output.print_line(f"the result has expired; see: reverie models versions {job.model}")
        return
    try:
        version = next((one for one in cli.client.versions(job.model) if one.version == number), None)
    except NotFoundError:
        version = None
    if version is None:
        cli.output.print_line(f"{job.model}@{number} was deleted")
        return
    cli.output.print_line(format_version(version))
    cli.output.print_figures(version.card)
