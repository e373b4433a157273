"""The training worker, run in this process with real child processes: limits, reports, publications
and the disk.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import redis
import sqlalchemy as sa

from core.catalog.cards import Metric, is_better, metrics_from_json
from core.catalog.families import load_families
from core.catalog.recipes import resolve_recipe
from core.catalog.validation import InvalidOptionsError
from core.catalog.versions import Versions
from core.jobs.records import TRAINING, Event, IdempotencyKey, Job, ResultChunk
from core.jobs.store import JobStore
from core.resources import ResourceStore
from core.settings import Settings
from core.storage import ObjectStoreError
from tests.deferred_jobs import claimable_from, waits_s
from tests.training_jobs import claimed_job, process_id
from workers.training.context import ClaimLostError, JobFailedError, WorkerStoppingError
from workers.training.limits import anonymous_bytes
from workers.training.publication import Measurement
from workers.training.run_folder import last_error, read_json_lines
from workers.training.training_run import TrainingRun
from workers.training.worker import TrainingWorker


def row(name: str = "m", kind: str = TRAINING, **request: Any) -> Job:
    """Return a job for the training worker."""
    body = {"family": "vae", "dataset": "digits", "name": name, **request}
    return Job(kind=kind, model=name, method=kind, request=body)


def recipe(**training: Any) -> dict[str, Any]:
    """Return a resolved recipe, as the API stores it."""
    words = {"family": "vae", "name": "m", "summary": "for tests", "data": "digits", "seed": 0}
    options = {"epochs": 100_000, "batch_size": 50, "save_every_s": 0.1, **training}
    return {**words, "config": {"hidden": [512], "latents": 4, "height": 14, "width": 14}, "training": options}


def new_run(trainer: TrainingWorker, job: Job) -> TrainingRun:
    """Return the run of a training, as the worker creates it."""
    return TrainingRun(trainer.context, trainer.children, job, 1)


@pytest.mark.parametrize(
    ("limit", "title", "message"),
    [
        ({"training_timeout_s": 1.0}, "Training too long", "the limit is 1 s"),
        ({"training_memory_bytes": 1 << 20}, "Training too large", "the limit is 1 MiB"),
        pytest.param(
            {"training_disk_bytes": 1 << 20}, "Run too large", "the limit is 1048576 bytes", marks=pytest.mark.slow
        ),
        ({"training_min_free_disk_bytes": 1 << 60}, "Disk full", "MiB free"),
    ],
)
def test_a_training_is_held_to_its_limits(
    trainer: TrainingWorker, limit: dict[str, Any], title: str, message: str
) -> None:
    """A training that exceeds a limit is stopped, fails with the limit, and keeps its last
    checkpoint.
    """
    trainer.context.settings = trainer.context.settings.model_copy(update=limit)
    job = claimed_job(trainer, row(recipe=recipe()))
    with pytest.raises(JobFailedError, match=message) as failed:
        trainer.train(job)
    assert failed.value.problem["title"] == title
    folder = trainer.context.paths.run(job.id)
    if title != "Disk full":
        assert trainer_is_gone(folder)
        assert ("is kept" in failed.value.problem["detail"]) == (folder / "state.pt").exists()


def trainer_is_gone(folder: Path) -> bool:
    """Return whether no process works in a run folder."""
    pid = process_id(folder)
    return pid is None or not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param("cancel", ClaimLostError, marks=pytest.mark.slow),
        ("pause", ClaimLostError),
        ("stop", WorkerStoppingError),
    ],
    ids=str,
)
def test_a_cancelled_or_paused_training_stops_with_a_checkpoint(
    trainer: TrainingWorker, change: str, error: type[Exception]
) -> None:
    """If a training is cancelled or paused, or its worker stops, its process exits with a
    checkpoint of its last step.
    """
    job = claimed_job(trainer, row(recipe=recipe(save_every_s=1000.0)))
    check_process = TrainingRun.check_process

    def changing(run: TrainingRun, process: Any) -> None:
        if (run.folder / "progress.json").exists():
            if change == "stop":
                trainer.stop()
            else:
                getattr(trainer.context.job_store, change)(job.id)
        check_process(run, process)

    with patch.object(TrainingRun, "check_process", changing), pytest.raises(error):
        trainer.train(job)
    folder = trainer.context.paths.run(job.id)
    place = json.loads((folder / "progress.json").read_text())
    assert place["checkpoint"]["steps"] == place["steps"] > 0
    assert trainer_is_gone(folder)


def test_a_process_that_dies_over_and_over_is_given_up(trainer: TrainingWorker) -> None:
    """A training process that is killed three times before a checkpoint fails its training."""
    job = claimed_job(trainer, row(recipe=recipe()))
    trainer.children.command = lambda *_words: ["sh", "-c", "kill -9 $$"]  # type: ignore[method-assign]
    with pytest.raises(
        JobFailedError, match=r"killed 3 times \(SIGKILL\) without a new checkpoint; it left no checkpoint"
    ):
        trainer.train(job)
    events = [str(event.data) for event in trainer.context.job_store.events(job.id) if event.name == "message"]
    assert sum("started again" in one for one in events) == 2


def test_a_recipe_that_the_training_rejects_is_the_clients_fault(trainer: TrainingWorker) -> None:
    """The error of the training process is the problem's detail, with status 422."""
    with pytest.raises(JobFailedError, match=r"validation = 61, but only 60 images are held back") as failed:
        trainer.train(claimed_job(trainer, row(recipe=recipe(validation=61))))
    assert (failed.value.title, failed.value.status) == ("Training failed", 422)


def test_a_training_process_that_crashes_is_an_internal_error(trainer: TrainingWorker) -> None:
    """A crash of the training process fails the training with 500 and without a traceback."""
    crashing = recipe()
    crashing["config"]["height"] = 28
    with pytest.raises(JobFailedError, match=r"exited with code 1, an internal error") as failed:
        trainer.train(claimed_job(trainer, row(recipe=crashing)))
    assert (failed.value.title, failed.value.status) == ("Training failed", 500)


def test_metrics_are_reported_once(trainer: TrainingWorker) -> None:
    """Each epoch's metrics are reported once, although a resumed run writes them again."""
    job = claimed_job(trainer, row(recipe=recipe()))
    folder = trainer.context.paths.run(job.id)
    folder.mkdir(parents=True)
    file = folder / "metrics.jsonl"
    file.write_text('{"epoch": 1, "train_loss": 2.0}\n{"epoch": 2, "train_loss": 1.0}\n{"epo')
    new_run(trainer, job).report()
    file.write_text(
        '{"epoch": 1, "train_loss": 2.0}\n{"epoch": 2, "train_loss": 1.0}\n{"epoch": 3, "train_loss": 0.5}\n'
    )
    resumed = new_run(trainer, job)
    resumed.restore_reported()
    resumed.report()
    events = [one.data["epoch"] for one in trainer.context.job_store.events(job.id) if one.name == "metrics"]
    assert events == [1, 2, 3]
    trainer.context.job_store.cancel(job.id)
    file.write_text('{"epoch": 4, "train_loss": 0.1}\n')
    with pytest.raises(ClaimLostError):
        new_run(trainer, job).report()


@pytest.mark.parametrize("written", [False, True], ids=["before", "after"])
def test_a_job_store_that_fails_costs_no_event_and_doubles_none(trainer: TrainingWorker, written: bool) -> None:
    """Whether the connection broke before the events were committed or after it, each epoch becomes
    one event.
    """
    job = claimed_job(trainer, row(recipe=recipe()))
    folder = trainer.context.paths.run(job.id)
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "train_loss": 2.0}\n')
    run, append = new_run(trainer, job), JobStore.append_events

    def fail(store: JobStore, *arguments: Any, **more: Any) -> bool:
        if written:
            append(store, *arguments, **more)
        raise sa.exc.OperationalError("COMMIT", {}, sqlite3.OperationalError("disk I/O error"))

    with patch.object(JobStore, "append_events", fail), pytest.raises(sa.exc.OperationalError):
        run.report()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "train_loss": 1.0}\n')
    run.report()
    run.report()
    events = [one.data["epoch"] for one in trainer.context.job_store.events(job.id) if one.name == "metrics"]
    assert events == [1, 2]


def test_a_publication_is_made_once(trainer: TrainingWorker, tmp_path: Path) -> None:
    """A run keeps the version number that was reserved for it."""
    folder = tmp_path / "run"
    folder.mkdir()
    first = trainer.publisher.reserve_number("m", folder)
    assert (first, trainer.publisher.reserve_number("m", folder)) == ("1", "1")
    (tmp_path / "other").mkdir()
    assert trainer.publisher.reserve_number("m", tmp_path / "other") == "2"


def test_a_stored_version_makes_attempts_count_anew(trainer: TrainingWorker, tmp_path: Path) -> None:
    """When a publication has stored its version and waits for inference workers, hosts that died
    before do not count any more.
    """
    job = claimed_job(trainer, row(recipe=recipe()))
    (tmp_path / job.id).mkdir()
    (tmp_path / job.id / "version").write_text("1")
    (tmp_path / job.id / "measured.json").write_text("{}")
    for _ in range(2):
        trainer.context.append_events(job, [], 0.99, charge_attempt=True)
    attempts: list[int] = []

    def wait(*_arguments: Any) -> None:
        attempts.append(getattr(trainer.context.job_store.get(job.id), "attempts", -1))

    publisher = trainer.publisher
    with (
        patch.object(type(publisher), "apply_policy", side_effect=wait),
        patch.object(Versions, "exists", lambda *_: True),
    ):
        publisher.publish(job, {}, tmp_path)
    assert attempts == [0]


@pytest.mark.parametrize(
    ("how", "new", "old", "switched", "message"),
    [
        ("if better", 1.0, 2.0, True, "version 2 is published and active"),
        ("if better", 2.0, 1.0, False, "version 1 stays active: the new figure is no better"),
        ("if better", 1.0, None, False, "version 1 stays active: the figures cannot be compared"),
        ("always", 2.0, 1.0, True, "and active"),
        ("never", 1.0, 2.0, False, "version 1 stays active"),
    ],
)
def test_the_active_version_follows_the_policy_and_the_figures(
    trainer: TrainingWorker,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    new: float,
    old: float | None,
    switched: bool,
    message: str,
) -> None:
    """The new version becomes active if it is better, always, or never; the job's message says
    which and why.
    """
    job = claimed_job(trainer, row())
    seen: list[str] = []

    def activate(_job: Job, version: str, _active: str | None) -> str:
        seen.append(version)
        return ""

    monkeypatch.setattr(trainer.publisher, "activate", activate)
    figures = [[] if one is None else [{"name": "nll", "value": one, "better": "lower"}] for one in (new, old)]
    trainer.publisher.apply_policy(job, how, "2", Measurement(*figures), "1")
    assert seen == (["2"] if switched else [])
    events = [one.data for one in trainer.context.job_store.events(job.id) if one.name == "message"]
    assert message in events[-1]["message"]
    trainer.publisher.apply_policy(job, "never", "1", Measurement(), None)
    assert seen[-1:] == ["1"]  # there is no other version


@pytest.mark.parametrize("dead", [False, True], ids=["nobody", "a dead worker's heartbeat"])
def test_a_version_does_not_serve_before_a_worker_has_loaded_it(
    trainer: TrainingWorker, monkeypatch: pytest.MonkeyPatch, dead: bool
) -> None:
    """Without a worker that loads the new version, the old one stays active, and messages say
    why.
    """
    monkeypatch.setattr(trainer.publisher, "timeout_s", 3.0)
    beats = [{"state": "ready", "capacity": {"m@1": {}}, "refused": {}, "at": 0.0}] if dead else []
    trainer.context.inference_workers = lambda: {"dead": beats.pop()} if beats else {}  # type: ignore[method-assign]
    job = claimed_job(trainer, row())
    trainer.publisher.apply_policy(job, "always", "2", Measurement(), "1")
    events = [one.data for one in trainer.context.job_store.events(job.id) if one.name == "message"]
    texts = [one["message"] for one in events]
    waits = "waiting, at most 3 s, for version 2 to be loaded: "
    assert ([f"{waits}1 of 1 inference workers have not loaded m@2 yet"] if dead else []) == texts[:-2]
    assert texts[-2] == f"{waits}no inference worker is running"
    assert "not active: no inference worker is running; version 1 stays active" in texts[-1]
    assert trainer.context.versions.pointers().get("m", {}) == {}


def test_a_slow_worker_is_stopped_when_a_version_becomes_active(
    trainer: TrainingWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If only some workers have loaded a version in time, the others are stopped, an event names
    them, and the version becomes active. If none has, or one reports an error, it does not become
    active.
    """
    monkeypatch.setattr(trainer.publisher, "timeout_s", 0.3)
    stopped: list[str] = []
    monkeypatch.setattr(trainer.context, "drain_workers", lambda ids, _reason: stopped.extend(ids))
    slow: dict[str, Any] = {"state": "ready", "capacity": {"m@1": {}}, "refused": {}, "at": 0.0}
    workers = {"slow": slow, "fast": {**slow, "capacity": {"m@2": {}}}}
    trainer.context.inference_workers = lambda: workers  # type: ignore[method-assign]
    job = claimed_job(trainer, row())
    workers["broken"] = {**slow, "refused": {"m@2": "ValueError: too few weights"}}
    trainer.publisher.apply_policy(job, "always", "2", Measurement(), "1")
    texts = [one.data["message"] for one in trainer.context.job_store.events(job.id) if one.name == "message"]
    assert "not active: ValueError: too few weights" in texts[-1]
    assert (stopped, trainer.context.versions.pointers().get("m", {})) == ([], {})
    del workers["broken"]
    trainer.publisher.apply_policy(job, "always", "2", Measurement(), "1")
    texts = [one.data["message"] for one in trainer.context.job_store.events(job.id) if one.name == "message"]
    assert stopped == ["slow"]
    assert "1 of 2 inference workers had not loaded m@2" in texts[-2]
    assert texts[-1] == "version 2 is published and active"
    assert trainer.context.versions.pointers()["m"] == {"serves": "2"}
    del workers["fast"]
    trainer.publisher.apply_policy(job, "always", "3", Measurement(), "2")
    assert (stopped, trainer.context.versions.pointers()["m"]) == (["slow"], {"serves": "2"})


@pytest.mark.parametrize(
    ("event", "error", "pointers"),
    [
        ("stop", WorkerStoppingError, {"serves": "1"}),
        ("cancel", ClaimLostError, {"serves": "1"}),
        ("other worker", ClaimLostError, {"serves": "1", "next": "2"}),
        ("error", RuntimeError, {"serves": "1"}),
        ("staged", None, {"serves": "1", "next": "3"}),
        ("activated", None, {"serves": "3"}),
    ],
)
def test_an_interrupted_activation_changes_nothing(
    trainer: TrainingWorker, event: str, error: type[Exception] | None, pointers: dict[str, str]
) -> None:
    """A version does not become active if its worker stops, if its claim on the job is lost, or if
    another version is chosen meanwhile. It stays a candidate only if another worker has the job.
    """
    versions, job = trainer.context.versions, claimed_job(trainer, row())
    versions.activate("m", "1")
    ready = {"w": {"state": "ready", "capacity": {"m@2": {}}, "refused": {}, "at": 0.0}}

    def workers() -> dict[str, Any]:
        if event == "stop":
            trainer.context.stopping.set()
            return {}
        if event == "cancel":
            trainer.context.job_store.cancel(job.id)
        if event == "other worker":
            trainer.context.job_store.requeue(job.claim, "for another worker")
            assert trainer.context.job_store.claim("another", 60, kinds=(TRAINING,))
        if event == "error":
            raise RuntimeError(event)
        if event in {"staged", "activated"}:
            versions.stage("m", "3")
        if event == "activated":
            versions.activate("m", "3")
        return ready

    trainer.context.inference_workers = workers  # type: ignore[method-assign]
    if error is None:
        trainer.publisher.apply_policy(job, "always", "2", Measurement(), "1")
        (*_, last) = [one.data["message"] for one in trainer.context.job_store.events(job.id) if one.name == "message"]
        assert "version 2 is published, but not active: another version was chosen meanwhile" in last
    else:
        with pytest.raises(error):
            trainer.publisher.apply_policy(job, "always", "2", Measurement(), "1")
    assert versions.pointers()["m"] == pointers


def test_the_first_version_of_a_name_serves_without_a_worker(
    trainer: TrainingWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first version of a name becomes active without a worker, because no other version could
    stay active.
    """
    monkeypatch.setattr(trainer.publisher, "timeout_s", 0.5)
    trainer.context.inference_workers = dict  # type: ignore[method-assign]
    trainer.publisher.apply_policy(claimed_job(trainer, row()), "if better", "1", Measurement(), None)
    assert trainer.context.versions.pointers()["m"] == {"serves": "1"}


def test_files_of_a_run_may_be_half_written(tmp_path: Path) -> None:
    """A partial last line is ignored, and only a line that begins with `error:` is the process's
    error.
    """
    (tmp_path / "lines").write_text('{"epoch": 1}\n{"epoch"')
    assert read_json_lines(tmp_path / "lines") == [{"epoch": 1}]
    assert read_json_lines(tmp_path / "none") == []
    (tmp_path / "log").write_text("Traceback\nValueError: secret")
    assert last_error(tmp_path / "log") == ""
    (tmp_path / "log").write_text("something\nerror: the batch is too large\n")
    assert last_error(tmp_path / "log") == "the batch is too large"
    assert anonymous_bytes(2**22 + 1) == 0


# --- the job store ---


@pytest.fixture
def job_store(tmp_path: Path) -> JobStore:
    """An empty job store."""
    return JobStore(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")


def test_inference_workers_do_not_see_trainings(job_store: JobStore) -> None:
    """Trainings and dry runs are claimed by training workers only, and are not counted for
    inference workers.
    """
    job_store.insert(row(), row(kind="estimate"))
    assert job_store.claim("worker", 3, 32) == []
    assert job_store.count_claimable(-1) == 0
    (held,) = job_store.claim("trainer", 3, kinds=("estimate",))
    assert held.kind == "estimate"
    assert job_store.claim("trainer", 3, kinds=("estimate",)) == []


def test_a_name_and_a_key_are_claimed_once(job_store: JobStore) -> None:
    """A second training of a name is rejected with the first one's id; under the same idempotency
    key it is the first one.
    """
    key = IdempotencyKey("POST /v1/trainings", "k", "print", 100)
    first = row()
    assert job_store.insert(first, exclusive=True, idempotency_key=key).conflict == ""
    again = job_store.insert(row(), exclusive=True, idempotency_key=key)
    assert (again.job_id, again.fingerprint, again.conflict) == (first.id, "print", "")
    second = job_store.insert(row(), exclusive=True)
    assert (second.job_id, second.conflict) == (first.id, "queued")
    assert job_store.unfinished_ids(kinds=(TRAINING,)) == [first.id]
    job_store.pause(first.id)
    assert job_store.insert(row(), exclusive=True).conflict == "paused"
    job_store.cancel(first.id)
    assert job_store.insert(row(), exclusive=True).conflict == ""


def test_a_worker_that_lost_its_claim_writes_nothing(job_store: JobStore) -> None:
    """After a pause and a resumption the first worker's reports are ignored."""
    job_store.insert(job := row())
    (held,) = job_store.claim("first", 3, kinds=(TRAINING,))
    assert job_store.append_events(held.claim, [Event("message", {"message": "here"})], 0.25)
    assert job_store.pause(job.id)
    assert not job_store.pause(job.id)
    assert job_store.claim("second", 3, kinds=(TRAINING,)) == []
    assert job_store.resume(job.id)
    (again,) = job_store.claim("second", 3, kinds=(TRAINING,))
    assert not job_store.is_held(held.claim)
    assert not job_store.append_events(held.claim, [Event("message", {"message": "late"})], 0.5)
    assert not job_store.finish(held.claim, result=b"late")
    job_store.requeue(held.claim, "late")
    assert job_store.finish(again.claim, result=b"good", version="3")
    done = job_store.get(job.id)
    assert done is not None
    assert (done.status, done.version, done.progress) == ("succeeded", "3", 1.0)
    assert job_store.result(job.id) == [ResultChunk(b"good", None)]
    assert job_store.kept_results(10, older_than_s=-1) == job_store.kept_results(10) == []
    assert job_store.get(job.id) is not None


def test_getting_further_makes_attempts_count_anew(job_store: JobStore) -> None:
    """Crashes of a worker are charged to its training until a new checkpoint resets the
    attempts.
    """
    job_store.insert(job := row())
    for _ in range(2):
        assert job_store.claim("dying", -1, kinds=(TRAINING,))
        assert job_store.reap(3) == [job.id]
    assert (job_store.get(job.id) or job).attempts == 2
    (held,) = job_store.claim("alive", 3, kinds=(TRAINING,))
    job_store.append_events(held.claim, [], 0.5, reset_attempts=True)
    assert (job_store.get(job.id) or job).attempts == 0


# --- recipes ---


def test_a_recipe_takes_the_shape_of_its_dataset(tmp_path: Path) -> None:
    """Image shape and number of validation images come from the dataset, everything else from the
    family's default recipe.
    """
    family = load_families(Settings(state=tmp_path))["vae"]
    dataset = {"name": "d", "kind": "vectors", "channels": 1, "height": 1, "width": 112}
    dataset |= {"counts": {"train": 2000, "validation": 500, "test": 100}}
    found = resolve_recipe("vae", family, dataset, "m", {"training": {"epochs": 3}})
    assert found["config"] == {**family.recipe["config"], "channels": 1, "height": 1, "width": 112}
    assert found["training"] == {**family.recipe["training"], "epochs": 3, "validation": 500}
    with pytest.raises(InvalidOptionsError, match="600 is more than the 500 pictures held back"):
        resolve_recipe("vae", family, dataset, "m", {"training": {"validation": 600}})
    dataset["counts"] = {"train": 2000, "validation": 0, "test": 0}
    assert resolve_recipe("vae", family, dataset, "m", {})["training"]["validation"] == 0
    assert (
        resolve_recipe("vae", family, dataset, "m", {"training": {"validation": 600}})["training"]["validation"] == 600
    )


def test_steps_become_epochs_by_the_size_of_the_dataset(tmp_path: Path) -> None:
    """A recipe with `steps` has as many epochs as that needs; `epochs` of the client counts
    instead.
    """
    family = load_families(Settings(state=tmp_path))["vae"]
    family = family.model_copy(update={"recipe": {**family.recipe, "training": {"steps": 1000, "batch_size": 20}}})
    dataset = {"name": "d", "kind": "vectors", "channels": 1, "height": 1, "width": 112}
    dataset["counts"] = {"train": 2000, "validation": 500, "test": 100}
    training = resolve_recipe("vae", family, dataset, "m", {})["training"]
    assert training == {"epochs": 10, "batch_size": 20, "validation": 500}
    dataset["counts"] = {"train": 2500, "test": 100}
    overrides = {"training": {"validation": 500, "batch_size": 10}}
    assert resolve_recipe("vae", family, dataset, "m", overrides)["training"]["epochs"] == 5
    overrides = {"training": {"epochs": 3}}
    assert resolve_recipe("vae", family, dataset, "m", overrides)["training"]["epochs"] == 3


def test_batches_grow_with_the_size_of_the_dataset(tmp_path: Path) -> None:
    """With `min_epochs`, batches are larger if `steps` were fewer epochs; the client's `batch_size`
    counts instead.
    """
    family = load_families(Settings(state=tmp_path))["vae"]
    defaults = {"steps": 1000, "batch_size": 20, "min_epochs": 40}
    family = family.model_copy(update={"recipe": {**family.recipe, "training": defaults}})
    dataset = {"name": "d", "kind": "vectors", "channels": 1, "height": 1, "width": 112}

    def resolved(images: int, **training: int) -> tuple[int, int]:
        dataset["counts"] = {"train": images, "validation": 500, "test": 100}
        found = resolve_recipe("vae", family, dataset, "m", {"training": training})["training"]
        assert not {"steps", "min_epochs"} & set(found)
        return found["batch_size"], found["epochs"]

    assert [resolved(500), resolved(2000), resolved(1000, min_epochs=20)] == [(20, 40), (80, 40), (20, 20)]
    assert resolved(2000, batch_size=10) == (10, 5)


def test_better_follows_the_figures_own_direction() -> None:
    """Figures are compared in the direction that they state; figures of different names cannot be
    compared.
    """

    def figure(value: float, name: str = "nll", way: str = "lower") -> list[Metric]:
        return metrics_from_json([{"name": name, "value": value, "better": way}])

    assert is_better(figure(1), figure(2)) is True
    assert is_better(figure(2), figure(2)) is False
    assert is_better(figure(2, way="higher"), figure(1, way="higher")) is True
    assert is_better(figure(1), figure(2, "energy")) is None
    assert is_better([], figure(1)) is None


def test_versions_made_here_stand_beside_those_that_ship(tmp_path: Path) -> None:
    """Version numbers continue after those of the shipped versions."""
    assert Versions(tmp_path).reserve("vae-mnist", ["1"]) == "2"


def test_a_queue_server_that_hangs_costs_no_lease(tmp_path: Path) -> None:
    """Leases are renewed while the queue server accepts connections but does not reply."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = Settings(
            state=tmp_path,
            checkpoints=tmp_path / "none",
            queue_url="redis://{}:{}/0".format(*listener.getsockname()),
            job_lease_s=1.5,
        )
        worker = TrainingWorker(settings)
        job_store, job = worker.context.job_store, row()
        job_store.insert(job)
        lapsed: list[Any] = []

        def run(_job: Job) -> None:
            for _ in range(30):
                time.sleep(0.1)
                lapsed.extend(job_store.touch_lapsed())
            worker.stop()

        with patch.object(TrainingWorker, "run_job", lambda _self, job: run(job)):
            worker.start()
    assert lapsed == []


def test_a_training_waits_for_room_on_the_disk(trainer: TrainingWorker) -> None:
    """A training without disk space is queued again uncharged with the reason, and fails with 507
    after `storage_wait_s`.
    """
    trainer.context.settings = trainer.context.settings.model_copy(update={"training_min_free_disk_bytes": 1 << 60})
    job = claimed_job(trainer, row(recipe=recipe()))
    trainer.run_job(job)
    waiting = trainer.context.job_store.get(job.id)
    assert waiting is not None
    assert (waiting.status, waiting.attempts) == ("queued", 0)
    assert "must leave" in str(waiting.blocked_reason)
    assert waits_s(waiting) == pytest.approx(1, abs=1e-3)
    claimable_from(trainer.context.job_store, job.id, time.time() + 60)
    assert trainer.context.job_store.claim(trainer.id, 600, kinds=(TRAINING,)) == []
    claimable_from(trainer.context.job_store, job.id, time.time() - 1)
    (again,) = trainer.context.job_store.claim(trainer.id, 600, kinds=(TRAINING,))
    trainer.context.settings = trainer.context.settings.model_copy(update={"storage_wait_s": 0.0})
    trainer.run_job(again)
    failed = trainer.context.job_store.get(job.id)
    assert failed is not None
    assert failed.status == "failed"
    assert (failed.problem or {})["status"] == 507


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_job_whose_process_finds_the_disk_full_waits(trainer: TrainingWorker, number: int) -> None:
    """If the training process fails because of a full disk, the job is queued again; on another
    error it fails.
    """
    error = f"OSError: [Errno {number}] {os.strerror(number)}"
    trainer.children.command = lambda *_words: ["sh", "-c", f"echo '{error}' >&2; exit 1"]  # type: ignore[method-assign]
    job = claimed_job(trainer, row(recipe=recipe()))
    trainer.run_job(job)
    waiting = trainer.context.job_store.get(job.id)
    assert waiting is not None
    assert waiting.status == "queued"
    assert os.strerror(number) in str(waiting.blocked_reason)
    trainer.children.command = lambda *_words: ["sh", "-c", "echo 'error: no such thing' >&2; exit 1"]  # type: ignore[method-assign]
    other = claimed_job(trainer, row("other", recipe=recipe()))
    trainer.run_job(other)
    assert trainer.context.job_store.states([other.id])[other.id].status == "failed"


def test_a_report_that_fails_does_not_fail_the_training(trainer: TrainingWorker) -> None:
    """If a report cannot be written to a full database, the training is queued again uncharged."""
    error = sa.exc.OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))
    job = claimed_job(trainer, row(recipe=recipe()))
    with patch.object(JobStore, "append_events", side_effect=error):
        trainer.run_job(job)
    waiting = trainer.context.job_store.get(job.id)
    assert waiting is not None
    assert (waiting.status, waiting.attempts) == ("queued", 0)


@pytest.mark.parametrize(
    "error",
    [
        ObjectStoreError(errno.EIO, "the object store failed (GenericError)"),
        redis.ConnectionError("Error 111 connecting to the queue server"),
    ],
)
def test_a_training_waits_for_a_store_that_is_unreachable(trainer: TrainingWorker, error: Exception) -> None:
    """If the object store or the queue server fails while a version is published, the training is
    queued again uncharged with the reason.
    """
    job = claimed_job(trainer, row(recipe=recipe()))
    with patch.object(TrainingRun, "run"), patch.object(type(trainer.publisher), "publish", side_effect=error):
        trainer.run_job(job)
    waiting = trainer.context.job_store.get(job.id)
    assert waiting is not None
    assert (waiting.status, waiting.attempts) == ("queued", 0)
    assert "could not be stored" in str(waiting.blocked_reason)


def test_an_import_keeps_its_file_until_it_has_ended(trainer: TrainingWorker) -> None:
    """An import that is queued again, for a full disk or a stopping worker, keeps its file; later
    it succeeds and its folder is removed.
    """
    trainer.children.run = lambda *_arguments, **_more: b""  # type: ignore[method-assign]
    job = row("m", "import")
    trainer.context.job_store.insert(job)
    folder = trainer.context.paths.auxiliary_job(job.id)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")

    def claimed() -> Job:
        (held,) = trainer.context.job_store.claim(trainer.id, 600, kinds=("import",))
        return held

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with patch.object(Versions, "publish", side_effect=full):
        trainer.run_job(held := claimed())
    trainer.remove_scratch(held)
    assert (folder / "model.safetensors").exists()
    claimable_from(trainer.context.job_store, job.id, time.time() - 1)
    with patch.object(trainer.children, "run", side_effect=WorkerStoppingError):
        trainer.run_job(held := claimed())
    trainer.remove_scratch(held)
    assert (folder / "model.safetensors").exists()
    trainer.run_job(held := claimed())
    trainer.remove_scratch(held)
    assert not folder.exists()
    done = trainer.context.job_store.get(job.id)
    assert done is not None
    assert (done.status, done.version) == ("succeeded", "1")
    assert [path.name for path in (trainer.context.paths.checkpoints / "m").iterdir()] == ["1"]  # reserved once


def test_the_first_version_of_a_model_belongs_to_the_owner_of_the_job(trainer: TrainingWorker) -> None:
    """An import fails (409), and publishes nothing, if the name of its model belongs to another
    owner meanwhile; if it belongs to nobody any more, the model is private.
    """
    trainer.children.run = lambda *_arguments, **_more: b""  # type: ignore[method-assign]
    store = ResourceStore(trainer.context.job_store.engine)
    store.claim("model", "m", "bob", shared=False)

    def ended() -> Job:
        job = replace(row("m", "import"), owner="ann")
        trainer.context.job_store.insert(job)
        folder = trainer.context.paths.auxiliary_job(job.id)
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        (held,) = trainer.context.job_store.claim(trainer.id, 600, kinds=("import",))
        trainer.run_job(held)
        done = trainer.context.job_store.get(job.id)
        assert done is not None
        return done

    job = ended()
    assert job.status == "failed"
    assert job.problem is not None
    assert job.problem["status"] == 409
    assert "taken by another model" in job.problem["detail"]
    assert not list(trainer.context.paths.checkpoints.glob("m/*/*.safetensors"))
    store.release("model", "m")
    assert ended().status == "succeeded"
    ownership = store.all()["model", "m"]
    assert (ownership.owner, ownership.shared) == ("ann", False)


# --- batches that are too small ---


@pytest.mark.parametrize(
    ("family", "counts", "config", "training", "gpus", "field"),
    [
        ("ebgan", {"train": 10}, {}, {"batch_size": 1}, 1, "recipe.training.batch_size"),
        ("ebgan", {"train": 10}, {"batch_norm": False}, {"batch_size": 1}, 1, ""),
        ("ebgan", {"train": 10}, {}, {"batch_size": 3}, 1, ""),
        ("ebgan", {"train": 10}, {}, {"batch_size": 3}, 2, "recipe.training.batch_size"),
        ("ebgan", {"train": 10}, {}, {"batch_size": 3, "pictures": 1}, 1, "dataset"),
        ("ebgan", {"train": 1}, {}, {"batch_size": 1}, 1, "recipe.training.batch_size"),
        ("vae", {"train": 10}, {}, {"batch_size": 1}, 1, ""),
        ("vae", {"train": 10}, {}, {"batch_size": 1}, 2, "recipe.training.batch_size"),
        ("vae", {"train": 10}, {}, {"batch_size": 5, "validation": 9}, 1, ""),
        ("vae", {"train": 10}, {}, {"batch_size": 5, "validation": 9}, 2, "dataset"),
        ("vae", {"train": 10}, {}, {"batch_size": 5, "validation": 4, "pictures": 4}, 1, "recipe.training.validation"),
        ("bihm", {"train": 10}, {}, {"batch_size": 1}, 1, ""),
    ],
)
def test_a_batch_that_no_step_could_take_is_refused_at_the_start(
    tmp_path: Path,
    family: str,
    counts: dict[str, int],
    config: dict[str, Any],
    training: dict[str, Any],
    gpus: int,
    field: str,
) -> None:
    """A batch size that the family, the devices or the dataset cannot fill is rejected with its
    field.
    """
    known = load_families(Settings(state=tmp_path))
    dataset = {"name": "d", "kind": "pictures", "counts": counts, "channels": 1, "height": 28, "width": 28}
    overrides = {"config": config, "training": training}
    if not field:
        resolve_recipe(family, known[family], dataset, "m", overrides, gpus)
        return
    with pytest.raises(InvalidOptionsError) as refused:
        resolve_recipe(family, known[family], dataset, "m", overrides, gpus)
    assert [error["field"] for error in refused.value.errors] == [field]
