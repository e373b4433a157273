"""A version that cannot be read while the object store is unreachable is tried again later; one
that a host cannot read is left to the workers of other hosts.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from core.broker.codec import Batch, BatchSlice, unpack
from core.catalog.registry import ModelVersion
from core.jobs.records import ClaimScope, Job
from core.settings import Settings
from core.storage import ObjectStoreError
from workers.inference import model_loader
from workers.inference.batches import BatchRunner
from workers.inference.context import InferenceContext
from workers.inference.jobs import JobRunner
from workers.inference.model_cache import ModelCache, NoRoomError
from workers.inference.model_loader import ModelLoader

ERROR = ObjectStoreError(errno.EIO, "the object store failed (GenericError)")
LOCAL_ERRORS = [
    OSError(number, os.strerror(number), "/hidden/model.safetensors")
    for number in (errno.ENOSPC, errno.EIO, errno.EACCES, errno.ENOENT)
]


@pytest.fixture
def context(tmp_path: Path, root: Path) -> InferenceContext:
    """The context of a worker with the shipped two-dimensional VAE, without a queue server."""
    shipped = tmp_path / "checkpoints"
    shipped.mkdir()
    (shipped / "vae-mnist-2d").symlink_to(root / "checkpoints" / "vae-mnist-2d")
    settings = Settings(checkpoints=shipped, state=tmp_path / "state", queue_url="redis://127.0.0.1:1/0")
    return InferenceContext(settings)


def run_job(context: InferenceContext, version: str = "1", error: Exception | None = None) -> Job:
    """Run a job of a version, whose model raises `error` when it is loaded; return the job."""
    job = Job(kind="samples", model="vae-mnist-2d", version=version, method="sample", seed=3)
    context.job_store.insert(job)
    with patch.object(ModelCache, "get", side_effect=error):
        JobRunner(context).run()
    stored = context.job_store.get(job.id)
    assert stored is not None
    return stored


def use_candidate(context: InferenceContext, monkeypatch: pytest.MonkeyPatch) -> ModelVersion:
    """Make the version the only one that the worker loads, as a candidate."""
    candidate = context.registry.find("vae-mnist-2d")
    assert candidate is not None
    monkeypatch.setattr(type(context.registry), "candidates", lambda _: [candidate])
    monkeypatch.setattr(type(context.registry), "active", lambda _: [])
    return candidate


def test_a_job_waits_for_its_version(context: InferenceContext) -> None:
    """A job whose version cannot be read now is queued again, without a failed attempt."""
    waiting = run_job(context, error=ERROR)
    assert (waiting.status, waiting.attempts, waiting.problem) == ("queued", 0, None)
    assert "the object store failed" in str(waiting.blocked_reason)


def test_a_job_waits_for_a_worker_that_has_its_version(context: InferenceContext) -> None:
    """A job whose version its worker lacks is queued again; its event has no internal reason."""
    waiting = run_job(context, "99")
    assert (waiting.status, waiting.attempts) == ("queued", 0)
    reasons = [event.data.get("reason", "") for event in context.job_store.events(waiting.id)]
    assert "the job waits for a worker that can" in reasons[-1]
    assert not any("checkpoint" in reason for reason in reasons)


def test_a_job_that_has_not_begun_is_left_to_any_device_kind(context: InferenceContext) -> None:
    """A job that its worker has no room for can be claimed by a worker of another device kind."""
    waiting = run_job(context, error=NoRoomError("no room"))
    assert (waiting.status, waiting.device_kind) == ("queued", None)
    other = context.job_store.claim("other", 30.0, 1, scope=ClaimScope("other kind"))
    assert [one.id for one in other] == [waiting.id]


def test_a_job_that_has_begun_stays_on_its_device_kind(context: InferenceContext) -> None:
    """A job with results that its worker has no room for waits for a worker of its device kind."""
    kind = context.device_kind
    job = Job(kind="samples", model="vae-mnist-2d", version="1", method="sample", rows=2, next_row=1, device_kind=kind)
    context.job_store.insert(job)
    with patch.object(ModelCache, "get", side_effect=NoRoomError("no room")):
        JobRunner(context).run()
    waiting = context.job_store.get(job.id)
    assert waiting is not None
    assert (waiting.status, waiting.device_kind, waiting.next_row) == ("queued", kind, 1)
    assert context.job_store.claim("other", 30.0, 1, scope=ClaimScope("other kind")) == []


@pytest.mark.parametrize("error", LOCAL_ERRORS, ids=lambda error: errno.errorcode[error.errno])
def test_a_job_waits_for_a_host_that_can_read_its_version(context: InferenceContext, error: OSError) -> None:
    """A job whose version this host cannot read is queued again, without a failed attempt, and its
    worker does not claim it again for a while; its event has no internal reason.
    """
    job = Job(kind="samples", model="vae-mnist-2d", version="1", method="sample", seed=3)
    context.job_store.insert(job)
    runner = JobRunner(context)
    with patch.object(ModelCache, "get", side_effect=error) as get:
        runner.run()
        runner.run()
    assert get.call_count == 1
    waiting = context.job_store.get(job.id)
    assert waiting is not None
    assert (waiting.status, waiting.attempts, waiting.problem) == ("queued", 0, None)
    reasons = [event.data.get("reason", "") for event in context.job_store.events(job.id)]
    assert reasons[-1] == "its worker cannot run vae-mnist-2d@1 now; the job waits for a worker that can"
    other = context.job_store.claim("other", 30.0, 1, scope=ClaimScope(context.device_kind))
    assert [one.id for one in other] == [job.id]


@pytest.mark.parametrize("error", [ERROR, *LOCAL_ERRORS], ids=lambda error: type(error).__name__)
def test_a_batch_goes_to_another_worker(context: InferenceContext, error: OSError) -> None:
    """A batch whose version cannot be read here or now is rejected with the reason, which has no
    path of the host.
    """
    sent: list[Any] = []
    context.commands = SimpleNamespace(send=lambda *words: sent.append(words))  # type: ignore[assignment]
    batch = Batch("b1", "replies", "vae-mnist-2d", "1", "sample", {}, [BatchSlice("r1", 3, 0, 1)])
    with patch.object(ModelCache, "get", side_effect=error):
        BatchRunner(context).run(batch.pack())
    completion = unpack(sent[-1][-1])
    assert (completion["kind"], completion["lacks"]) == ("rejected", True)
    assert str(error.strerror) in completion["reason"]
    assert "hidden" not in completion["reason"]


def test_a_candidate_is_tried_again(context: InferenceContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that cannot be read now is not refused, and is loaded later."""
    monkeypatch.setattr(model_loader, "_RETRY_S", 0.0)
    candidate = use_candidate(context, monkeypatch)
    real, failures = ModelCache.loading, [ERROR]

    def loading(cache: ModelCache, *arguments: Any, **more: Any) -> Iterator[None]:
        if failures:
            raise failures.pop()
        yield from real(cache, *arguments, **more)

    monkeypatch.setattr(ModelCache, "loading", loading)
    loader = ModelLoader(context, lambda: None)
    while not context.model_cache.holds(candidate):
        loader.run(0)
        assert loader.refused == {}
    assert not failures


def test_the_reason_has_no_path_of_the_host(context: InferenceContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate is refused with the system's message but not the file's path."""
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "/hidden/model.safetensors")
    use_candidate(context, monkeypatch)

    def unreadable(*_arguments: Any, **_more: Any) -> Iterator[None]:
        yield
        raise error

    monkeypatch.setattr(ModelCache, "loading", unreadable)
    loader = ModelLoader(context, lambda: None)
    while not loader.refused:
        loader.run(0)
    assert loader.refused["vae-mnist-2d@1"] == "No such file or directory"
