"""Run folders in which another process works: it is stopped if it is of this PID namespace, else the
training waits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from core.jobs.records import TRAINING, Job
from tests.deferred_jobs import claimable_from
from tests.training_jobs import claimed_job
from workers.training import run_folder
from workers.training.context import JobPostponedError
from workers.training.training_run import TrainingRun
from workers.training.worker import TrainingWorker

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.truncate(0)
file.write(sys.argv[2])
file.flush()
print(flush=True)
time.sleep(600)
"""
"""Lock the file that the first argument names, and write the second into it."""

LOCK_AS_TRAINING = """
import sys, time
from pathlib import Path
from models.kit import commands
with commands._locked(Path(sys.argv[1])):
    print(flush=True)
    time.sleep(600)
"""


@contextmanager
def running(code: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python code in a process, and wait until it has printed a line; kill it at the end."""
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield process
        finally:
            process.kill()


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process that works in no run folder, whose id is also that of a process elsewhere."""
    with running("import time; print(flush=True); time.sleep(600)") as process:
        yield process


def identity(pid: int, **changes: Any) -> dict[str, Any]:
    """Return what a process of this PID namespace writes into a lock file, with `changes`."""
    start_ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    own = {"pid": pid, "host": "h", "boot_id": boot_id, "pid_namespace": str(Path("/proc/self/ns/pid").readlink())}
    return {**own, "start_ticks": start_ticks, **changes}


@pytest.mark.parametrize("change", [{"pid_namespace": "pid:[1]"}, {"boot_id": "another"}, None], ids=str)
def test_a_training_waits_for_a_process_of_another_container(
    trainer: TrainingWorker, victim: subprocess.Popen[bytes], change: dict[str, str] | None
) -> None:
    """A process of another container is not signalled by its number there; its training waits,
    uncharged, until it has ended, and never fails for it. The same holds for one of an earlier
    release, which wrote a process id alone.
    """
    trainer.context.settings = trainer.context.settings.model_copy(update={"storage_wait_s": 0.0})
    trainer.children.command = lambda *_words: ["false"]  # type: ignore[method-assign]
    job = claimed_job(trainer, Job(kind=TRAINING, model="m", method=TRAINING, request={"recipe": {}}))
    folder = trainer.context.paths.run(job.id)
    folder.mkdir(parents=True)
    written = str(victim.pid) if change is None else json.dumps(identity(victim.pid, **change))
    with running(HOLD, str(folder / "lock"), written) as holder:
        for _ in range(2):
            trainer.run_job(job)
            waiting = trainer.context.job_store.get(job.id)
            assert waiting is not None
            assert (waiting.status, waiting.attempts, waiting.problem) == ("queued", 0, None)
            assert "until that process ends" in str(waiting.blocked_reason)
            assert (waiting.not_before or 0.0) > time.time() + 5
            claimable_from(trainer.context.job_store, job.id, time.time() - 1)
            (job,) = trainer.context.job_store.claim(trainer.id, 600, kinds=(TRAINING,))
        assert victim.poll() is None
        assert holder.poll() is None
    run_folder.kill_orphan(folder)
    events = [event.data for event in trainer.context.job_store.events(job.id)]
    assert sum("until that process ends" in str(event.get("reason")) for event in events) == 1
    assert trainer.context.job_store.append_events(job.claim, [], 0.5, unblock=True)
    assert getattr(trainer.context.job_store.get(job.id), "blocked_reason", "") is None


def test_the_orphan_of_a_worker_of_this_namespace_is_stopped(tmp_path: Path) -> None:
    """A training process whose worker has died gets SIGTERM."""
    with running(LOCK_AS_TRAINING, str(tmp_path)) as orphan:
        assert run_folder.lock_holder(tmp_path) == {**identity(orphan.pid), "host": os.uname().nodename}
        run_folder.kill_orphan(tmp_path)
        assert orphan.wait(10) == -15
    assert run_folder.lock_holder(tmp_path) is None


def test_a_process_that_got_the_number_of_another_is_not_signalled(
    tmp_path: Path, victim: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the holder's id is now that of a process with another start time, that one runs on; a lock
    that is still held after the grace period postpones the training.
    """
    monkeypatch.setattr(run_folder, "ORPHAN_STOP_S", 0.3)
    written = json.dumps(identity(victim.pid, start_ticks=1))
    with running(HOLD, str(tmp_path / "lock"), written):
        with pytest.raises(JobPostponedError, match="cannot be killed"):
            run_folder.kill_orphan(tmp_path)
        assert victim.poll() is None


def test_a_folder_that_is_locked_at_the_last_moment_postpones_its_training(trainer: TrainingWorker) -> None:
    """A training process that finds its run folder locked does not fail its training."""
    error = "error: another process works on the run x"
    trainer.children.command = lambda *_words: ["sh", "-c", f"echo '{error}' >&2; exit 1"]  # type: ignore[method-assign]
    job = claimed_job(trainer, Job(kind=TRAINING, model="m", method=TRAINING, request={"recipe": {}}))
    with pytest.raises(JobPostponedError, match="another process works on the run x; the training waits"):
        TrainingRun(trainer.context, trainer.children, job, 1).run()
