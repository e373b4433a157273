"""Jobs of a training worker that runs in the process of a test, and processes of run folders."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from core.jobs.records import Job
from workers.training.worker import TrainingWorker


def claimed_job(trainer: TrainingWorker, job: Job) -> Job:
    """Insert a job and claim it; return it."""
    trainer.context.job_store.insert(job)
    (held,) = trainer.context.job_store.claim(trainer.id, 600, kinds=(job.kind,))
    return held


def process_id(folder: Path) -> int | None:
    """Return the id of the process that has written the lock file of a run folder; None if there is
    no such file, or nothing in it.
    """
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        return int(json.loads((folder / "lock").read_text())["pid"])
    return None
