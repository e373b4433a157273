"""The Python client over broken connections, with a busy service, and without one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.imaging.pictures import png
from reverie.client import Client
from reverie.errors import (
    GoneError,
    ServiceUnavailableError,
    UnexpectedContentError,
    UnreachableError,
)
from reverie.records import Event
from tests.api.helpers import ENLARGE, FAULTY, MODEL, TINY
from tests.reverie.faulty_proxy import FaultyProxy
from tests.stack import free_port

SLOW: dict[str, Any] = {"steps": 20, "seconds": 0.05}


def test_lost_requests_and_responses_are_retried(proxied: Client, proxy: FaultyProxy) -> None:
    """Retries send the same body, because the seed is drawn before the first attempt."""
    proxy.faults += ["drop", "lose", 100]
    assert len(proxied.samples(MODEL).images) == 1
    assert len(proxy.seen) == 4
    assert len({seen.body for seen in proxy.seen}) == 1


def test_a_busy_service_is_retried_after_retry_after(proxied: Client, proxy: FaultyProxy) -> None:
    """A busy service is retried after `Retry-After`; after all retries the client raises
    ServiceUnavailableError.
    """
    proxy.faults += [(503, {"Retry-After": "1"}), (429, {"Retry-After": "0"})]
    started = time.monotonic()
    assert proxied.models()
    assert time.monotonic() - started >= 1.0
    proxy.faults += [(503, {"Retry-After": "0"})] * 6
    with pytest.raises(ServiceUnavailableError):
        proxied.models()
    assert proxy.faults == []


def test_a_retried_submission_makes_one_job(proxied: Client, proxy: FaultyProxy, client: Client) -> None:
    """Attempts have the same idempotency key and return the same job, even if it has ended."""
    before = {job.id for job in client.jobs(model=FAULTY, limit=None)}
    proxy.faults += ["lose", "lose"]
    job = proxied.submit("samples", FAULTY, seed=77)
    assert [job.id] == [one.id for one in client.jobs(model=FAULTY, limit=None) if one.id not in before]
    assert len({seen.headers["idempotency-key"] for seen in proxy.seen if seen.method == "POST"}) == 1
    assert proxied.wait(job.id, 10).status == "succeeded"


def test_a_deletion_is_not_retried_after_a_lost_response(proxied: Client, proxy: FaultyProxy, client: Client) -> None:
    """A deletion whose response is lost raises UnreachableError, because a retry would raise
    NotFoundError.
    """
    job = client.wait(client.submit("samples", FAULTY, seed=1).id)
    proxy.faults += ["lose"]
    with pytest.raises(UnreachableError):
        proxied.delete_job(job.id)
    assert len(proxy.seen) == 1


def test_events_resume_after_a_broken_connection(proxied: Client, proxy: FaultyProxy) -> None:
    """Each numbered event comes once and in order, over dropped connections and short outages."""
    job = proxied.submit("samples", TINY, seed=8, **SLOW)
    proxy.seen.clear()
    proxy.faults += [60, "drop", 90, (503, {"Retry-After": "0"}), 150]
    events = list(proxied.events(job.id))
    numbers = [event.id for event in events if event.id is not None]
    assert numbers == list(range(1, len(numbers) + 1))
    assert events[-1] == Event("status", {"status": "succeeded"}, numbers[-1])
    last_ids = [int(seen.headers["last-event-id"]) for seen in proxy.seen]
    assert len(last_ids) == 6
    assert last_ids == sorted(last_ids)
    assert last_ids[-1] > 0


def test_another_content_type_than_an_event_stream_raises(proxied: Client, proxy: FaultyProxy) -> None:
    """A response that is not an event stream, such as a proxy's page, raises without a retry."""
    proxy.faults += [(200, {"Content-Type": "text/html"})]
    with pytest.raises(UnreachableError, match="text/html"):
        next(proxied.events("job_0"))


def test_a_download_resumes_after_a_broken_connection(proxied: Client, proxy: FaultyProxy, tmp_path: Path) -> None:
    """An interrupted download requests the rest by range; the file is complete, and no partial file
    is left.
    """
    job = proxied.wait(proxied.submit("samples", MODEL, count=200, seed=3).id)
    proxy.seen.clear()
    proxy.faults += [5000, 7000]
    come: list[int] = []
    saved = proxied.save_result(job.id, tmp_path / "a.npz", on_progress=come.append)
    ranges = [seen.headers.get("range") for seen in proxy.seen]
    assert ranges[0] is None
    assert len(ranges) == 3
    assert all(0 < int((one or "").removeprefix("bytes=").removesuffix("-")) <= 12_000 for one in ranges[1:])
    with np.load(saved.path) as kept:
        assert kept["images"].shape == (200, 1, 28, 28)
    assert come == sorted(come)
    assert come[-1] == saved.path.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_failed_download_leaves_no_file(proxied: Client, proxy: FaultyProxy, tmp_path: Path) -> None:
    """A failed download leaves neither the file nor a partial one."""
    job = proxied.wait(proxied.submit("samples", MODEL, count=200, seed=3).id)
    proxy.faults += [5000, (410, {})]
    with pytest.raises(GoneError):
        proxied.save_result(job.id, tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [200, 202, 206])
def test_a_file_never_holds_another_content_type(
    proxied: Client, proxy: FaultyProxy, client: Client, tmp_path: Path, status: int
) -> None:
    """If the service sends JSON instead of the file, with any status, every method that saves
    raises and writes nothing.
    """
    done = client.wait(client.submit("samples", TINY, seed=1).id).id
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "small.png").write_bytes(png(np.full((3, 32, 32), 100, np.uint8)))
    path = tmp_path / "out" / "a.png"
    path.parent.mkdir()
    calls: list[Callable[[], object]] = [
        lambda: proxied.save_result(done, path),
        lambda: proxied.save_dataset_preview("digits", path),
        lambda: proxied.save_curves(done, path),
        lambda: proxied.export_version(MODEL, path.with_suffix(".safetensors"), "1"),
    ]
    if status != 202:  # these two methods would follow a 202 to the job's result
        calls += [
            lambda: proxied.save(path, "samples", TINY),
            lambda: proxied.upscales(tmp_path / "in" / "small.png", path, model=ENLARGE),
        ]
    for call in calls:
        proxy.faults = [(status, {"Content-Type": "application/json"})]
        with pytest.raises(UnexpectedContentError, match=rf"was not written.*application/json.*{status}"):
            call()
    proxy.faults = [5000, (status, {"Content-Type": "text/html"})]  # a partial download is removed, too
    with pytest.raises(UnexpectedContentError, match="text/html"):
        proxied.export_version(MODEL, path.with_suffix(".safetensors"), "1")
    assert list(path.parent.iterdir()) == []


def test_an_address_without_a_service_raises() -> None:
    """If no server responds, UnreachableError is raised after the retries."""
    with Client(f"http://127.0.0.1:{free_port()}", retries=2) as client, pytest.raises(UnreachableError, match="/v1"):
        client.models()


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://localhost", "http://localhost:port", "http://"])
def test_an_invalid_address_is_rejected(url: str) -> None:
    """An invalid URL raises ValueError with an example of a valid one, before a request is sent."""
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:8000"):
        Client(url)


@pytest.mark.parametrize("url", ["http://user:PASSW@localhost:port", "http://user:PAS/SW@host", "user:PASSW@host"])
def test_no_message_has_the_password_of_a_url(url: str) -> None:
    """Messages about an invalid URL leave out its user name and password."""
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:8000") as invalid:
        Client(url)
    assert "PAS" not in str(invalid.value)
    assert "user" not in str(invalid.value)
    assert invalid.value.__suppress_context__ or invalid.value.__context__ is None


def test_no_message_has_the_password_of_an_unreachable_address() -> None:
    """The message that a service is not reachable has the URL without password and query."""
    port = free_port()
    with (
        Client(f"http://user:PASSW@127.0.0.1:{port}", retries=0) as client,
        pytest.raises(UnreachableError, match=f"http://127.0.0.1:{port}/v1/jobs: ") as unreachable,
    ):
        client.jobs()
    assert "PASSW" not in str(unreachable.value)


@pytest.mark.parametrize("key", ["SECRET\n", "SECRET\r\n", " SECRET "])
def test_white_space_around_a_key_is_removed(proxy: FaultyProxy, key: str) -> None:
    """A key that was read from a file may end with a line break."""
    with Client(proxy.url, key=key) as client:
        client.models()
    assert proxy.seen[-1].headers["authorization"] == "Bearer SECRET"


@pytest.mark.parametrize("key", ["SECR\nET", "SECRÉT", "SECRET\x7f"])
def test_an_invalid_key_is_not_quoted(key: str) -> None:
    """A key that cannot be sent raises ValueError; the message does not have the key."""
    with pytest.raises(ValueError, match="not printable ASCII") as invalid:
        Client("http://localhost", key=key)
    assert "SECR" not in str(invalid.value)
