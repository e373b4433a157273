"""Define the Celery tasks of inference workers: one for batches and one for jobs."""

from core.broker.celery_app import RUN_BATCH, RUN_JOBS, app
from workers.inference.bootsteps import current_worker
from workers.inference.inline_task import InlineTask


@app.task(name=RUN_BATCH, base=InlineTask)  # type: ignore[untyped-decorator]
def run_batch(batch: bytes) -> None:
    """Run a packed batch for one time slice, and report to the API process that sent it.

    A time slice is the time that a worker gives to one batch before it receives the next message.
    """
    current_worker().batches.run(batch)


@app.task(name=RUN_JOBS, base=InlineTask)  # type: ignore[untyped-decorator]
def run_jobs() -> None:
    """Claim the next jobs in the job store, if any, and run them for one time slice."""
    current_worker().jobs.run()
