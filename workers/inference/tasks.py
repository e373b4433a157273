"""Define the Celery tasks; a Celery worker imports this module (`core.broker.celery_app`)."""

from core.broker.celery_app import RUN_BATCH, RUN_JOBS, app
from workers.inference.bootsteps import current_worker
from workers.inference.inline_task import InlineTask


@app.task(name=RUN_BATCH, base=InlineTask)  # type: ignore[untyped-decorator]
def run_batch(batch: bytes) -> None:
    """Run one time slice of a packed batch that an API process waits for."""
    current_worker().batches.run(batch)


@app.task(name=RUN_JOBS, base=InlineTask)  # type: ignore[untyped-decorator]
def run_jobs() -> None:
    """Claim the next jobs from the job store and run one time slice of them, if there are any."""
    current_worker().jobs.run()
