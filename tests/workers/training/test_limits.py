"""Limits of a training worker's processes: time, memory, progress and devices; and places that slow
jobs leave to others.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from core.broker.codec import pack
from core.jobs.records import AUXILIARY_KINDS, TRAINING, Job
from tests.training_jobs import claimed_job
from tests.waiting import wait_until
from workers.training.context import ClaimLostError, JobFailedError
from workers.training.worker import TrainingWorker


def row(kind: str, owner: str = "", **request: Any) -> Job:
    """Return a job for the training worker."""
    body = {"family": "vae", "dataset": "digits", "name": "m", "recipe": {}, **request}
    return Job(kind=kind, owner=owner, model="m", method=kind, request=body)


def program(trainer: TrainingWorker, text: str) -> None:
    """Run a Python program in the place of `python -m models`."""
    trainer.children.command = lambda *_words: [sys.executable, "-c", text]  # type: ignore[method-assign]


SLOW_S = 120.0
"""The longest time that a slow job waits."""


class RunningWorker:
    """A running training worker whose slow jobs take until `go` is set."""

    def __init__(self, trainer: TrainingWorker) -> None:
        self.trainer = trainer
        self.go = threading.Event()
        trainer.run_job = self.run_job  # type: ignore[method-assign]
        self.thread = threading.Thread(target=trainer.start)
        self.thread.start()

    def run_job(self, job: Job) -> None:
        """Complete a job; a slow one waits for `go` first."""
        if job.request.get("slow"):
            self.go.wait(SLOW_S)
        self.trainer.context.job_store.finish(job.claim, result=pack({}))

    def insert(self, *jobs: Job) -> None:
        """Insert jobs, one after another."""
        for job in jobs:
            self.trainer.context.job_store.insert(job)

    def count(self, status: str, jobs: list[Job]) -> int:
        """Return how many of some jobs have a status."""
        states = self.trainer.context.job_store.states([job.id for job in jobs])
        return sum(state.status == status for state in states.values())

    def wait_until_running(self, count: int, jobs: list[Job]) -> None:
        """Wait until `count` of the jobs are running."""
        wait_until(lambda: self.count("running", jobs) == count, f"{count} jobs are running")

    def wait_until_finished(self, jobs: list[Job]) -> None:
        """Wait until the jobs have succeeded."""
        wait_until(lambda: self.count("succeeded", jobs) == len(jobs), "the jobs have finished", SLOW_S / 2)


@pytest.fixture
def running(trainer: TrainingWorker) -> Iterator[RunningWorker]:
    """A running worker."""
    worker = RunningWorker(trainer)
    yield worker
    worker.go.set()
    trainer.stop()
    worker.thread.join(20)


def test_a_slow_dry_run_holds_up_neither_dry_runs_nor_imports(running: RunningWorker) -> None:
    """While two slow dry runs run, other auxiliary jobs are completed."""
    slow = [row("estimate", slow=True) for _ in range(2)]
    running.insert(*slow)
    running.wait_until_running(2, slow)
    quick = [row("estimate"), row("import"), row("publication")]
    running.insert(*quick)
    running.wait_until_finished(quick)
    assert running.count("running", slow) == 2


def test_any_number_of_slow_dry_runs_leaves_room_for_imports(running: RunningWorker) -> None:
    """Slow dry runs never use all places: an import is completed meanwhile."""
    slow = [row("estimate", slow=True) for _ in range(8)]
    running.insert(*slow)
    running.wait_until_running(3, slow)
    job = row("import")
    running.insert(job)
    running.wait_until_finished([job])


def test_one_owner_leaves_room_for_the_dry_runs_of_another(running: RunningWorker) -> None:
    """One owner's slow dry runs never use all places for dry runs."""
    slow = [row("estimate", owner="many", slow=True) for _ in range(8)]
    running.insert(*slow)
    running.wait_until_running(2, slow)
    job = row("estimate", owner="one")
    running.insert(job)
    running.wait_until_finished([job])


def test_a_dry_run_that_takes_too_long_is_ended(trainer: TrainingWorker) -> None:
    """A dry run that exceeds its time limit is ended and fails with 422."""
    trainer.context.settings = trainer.context.settings.model_copy(update={"estimate_s": 1.0})
    program(trainer, "import time; time.sleep(100)")
    started = time.monotonic()
    with pytest.raises(JobFailedError, match="more than 1 s") as failed:
        trainer.auxiliary.estimate(claimed_job(trainer, row("estimate")))
    assert (failed.value.status, time.monotonic() - started < 10) == (422, True)


def test_a_dry_run_that_is_cancelled_is_ended(trainer: TrainingWorker) -> None:
    """The process of a cancelled dry run is ended."""
    program(trainer, "import time; time.sleep(100)")
    job = claimed_job(trainer, row("estimate"))
    threading.Timer(1.0, lambda: trainer.context.job_store.cancel(job.id)).start()
    started = time.monotonic()
    with pytest.raises(ClaimLostError):
        trainer.auxiliary.estimate(job)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("kind", ["estimate", "import"])
def test_a_short_job_is_held_to_its_memory(trainer: TrainingWorker, kind: str) -> None:
    """An auxiliary job whose process exceeds the memory limit fails with 422, even if the process
    sets no limit itself.
    """
    trainer.context.settings = trainer.context.settings.model_copy(update={"training_memory_bytes": 200 << 20})
    program(trainer, "import time; kept = bytearray(b'x') * (400 << 20); time.sleep(100)")
    job = claimed_job(trainer, row(kind))
    with pytest.raises(JobFailedError, match="the limit is 200 MiB") as failed:
        {"estimate": trainer.auxiliary.estimate, "import": trainer.auxiliary.import_file}[kind](job)
    assert failed.value.status == 422


def test_a_short_job_whose_process_is_killed_can_be_tried_again(trainer: TrainingWorker) -> None:
    """An auxiliary job whose process is killed by a signal fails with 503."""
    program(trainer, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(JobFailedError, match="SIGKILL") as failed:
        trainer.auxiliary.estimate(claimed_job(trainer, row("estimate")))
    assert failed.value.status == 503


def test_a_training_that_hangs_is_ended_and_charged(trainer: TrainingWorker) -> None:
    """A training process without progress is killed, also if it ignores SIGTERM; after three
    attempts the training fails.
    """
    trainer.context.settings = trainer.context.settings.model_copy(update={"training_stall_s": 1.0})
    program(trainer, "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)")
    job = claimed_job(trainer, row(TRAINING))
    started = time.monotonic()
    with pytest.raises(JobFailedError, match=r"killed 3 times \(SIGKILL\) without a new checkpoint"):
        trainer.train(job)
    assert time.monotonic() - started < 30
    stored = trainer.context.job_store.get(job.id)
    assert stored is not None
    assert stored.attempts == 3
    events = [str(one.data) for one in trainer.context.job_store.events(job.id) if one.name == "message"]
    assert sum("no progress for 1 s" in one for one in events) == 3


def test_a_training_that_advances_is_left_alone(trainer: TrainingWorker) -> None:
    """A training process that writes its progress is not ended."""
    trainer.context.settings = trainer.context.settings.model_copy(update={"training_stall_s": 1.5})
    text = (
        "import pathlib, sys, time\n"
        "for _ in range(8):\n"
        "    pathlib.Path(sys.argv[1], 'progress.json').touch()\n"
        "    time.sleep(0.5)\n"
        "sys.exit(4)\n"
    )
    job = claimed_job(trainer, row(TRAINING))
    folder = trainer.context.paths.run(job.id)
    trainer.children.command = lambda *_words: [sys.executable, "-c", text, str(folder)]  # type: ignore[method-assign]
    with pytest.raises(JobFailedError) as failed:
        trainer.train(job)
    assert failed.value.title == "Training diverged"


def test_a_training_uses_no_more_devices_than_there_are(
    trainer: TrainingWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training uses at most the devices of the worker that runs it, even if it requested more."""
    program(trainer, "import sys; sys.exit(4)")
    words: list[str] = []
    start = trainer.children.start

    def watching(command: list[str], *more: Any) -> Any:
        words.extend(command)
        return start(command, *more)

    monkeypatch.setattr(trainer.children, "start", watching)
    for devices, expected in ((1, []), (3, ["--gpus", "3"])):
        words.clear()
        trainer.devices = devices
        with pytest.raises(JobFailedError):
            trainer.train(claimed_job(trainer, replace(row(TRAINING, gpus=56), model=f"m-{devices}")))
        assert words[words.index("--gpus") :] == expected if expected else "--gpus" not in words


def test_a_worker_without_a_gpu_has_one_device(trainer: TrainingWorker) -> None:
    """A worker without a GPU counts one device."""
    trainer.discover_devices()
    assert trainer.devices == 1
    assert AUXILIARY_KINDS == ("estimate", "import", "publication", "dataset")
