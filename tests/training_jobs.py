"""Jobs of a training worker that runs in the process of a test."""

from __future__ import annotations

from core.jobs.records import Job
from workers.training.worker import TrainingWorker


def claimed_job(trainer: TrainingWorker, job: Job) -> Job:
    """Insert a job and claim it; return it."""
    trainer.context.job_store.insert(job)
    (held,) = trainer.context.job_store.claim(trainer.id, 600, kinds=(job.kind,))
    return held
