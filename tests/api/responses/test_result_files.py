"""Large results are rendered once, sent in pieces, and not kept in memory for clients that do not
read.
"""

import asyncio
import contextlib
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import orjson
import pytest
from starlette.requests import Request

from api.errors import GoneError
from api.responses.large_responses import LARGE_BYTES, SENDING_BYTES, LargeResponses
from api.responses.result_files import LINKED_BYTES, STORED_BYTES, Rendering, ResultFiles
from core.blobs import open_blobs
from tests.api.attack import MIB, BareApi, connect, cpu_seconds, rss_bytes, status_of
from tests.api.helpers import MODEL, create_job, finished_job, post_samples
from tests.object_store import CREDENTIALS, new_store
from tests.stack import Stack
from tests.waiting import wait_until

LARGE_MODEL = "ebgan-mnist"


def _request(**headers: str) -> Request:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "GET", "headers": pairs})


async def _body(response: Any) -> bytes:
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    async def receive() -> Any:
        await asyncio.sleep(60)

    await response({"type": "http", "asgi": {"spec_version": "2.4"}, "method": "GET"}, receive, send)
    return b"".join(message.get("body", b"") for message in messages)


class _Job:
    """A job with a result, which counts how often it is rendered."""

    def __init__(self, folder: Path, data: bytes) -> None:
        self.blobs = open_blobs(f"file://{folder / 'blobs'}")
        self.unfinished = folder / "unfinished"
        self.responses = LargeResponses(64 * MIB, self.unfinished)
        self.data = data
        self.renders = 0
        self.there = True
        self.files = self.anew()

    def anew(self) -> ResultFiles:
        return ResultFiles(self.blobs, self.unfinished, self.responses, self.exists)

    async def exists(self, _job_id: str) -> bool:
        return self.there

    async def render(self) -> Rendering:
        self.renders += 1
        await asyncio.sleep(0.01)
        return Rendering(self.write, len(self.data), {"Reverie-Seed": "1"})

    def write(self, out: BinaryIO) -> None:
        out.write(self.data)

    async def respond(self, **headers: str) -> Any:
        return await self.files.respond(_request(**headers), "job", "json", "application/json", self.render)


def test_a_large_result_is_rendered_once(tmp_path: Path) -> None:
    """One rendering serves concurrent requests, ranges, 304 responses, and a new API process."""
    data = bytes(range(256)) * 20_000

    async def run() -> None:
        job = _Job(tmp_path, data)
        for one in await asyncio.gather(*(job.respond() for _ in range(10))):
            assert await _body(one) == data
            assert one.headers["reverie-seed"] == "1"
        tag = one.headers["etag"]
        job.files = job.anew()
        assert (await job.respond(if_none_match=tag)).status_code == 304
        for part, expected in (("0-0", data[:1]), ("1000000-", data[1_000_000:]), ("-5", data[-5:])):
            response = await job.respond(range=f"bytes={part}")
            assert response.status_code == 206
            assert await _body(response) == expected
        assert job.renders == 1

    asyncio.run(run())


def test_a_large_result_is_a_link_where_a_setting_allows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link to the object store gives the same bytes and ranges; a small result is sent by the
    API.
    """
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    data = bytes(range(256)) * 10_000

    async def run() -> None:
        job = _Job(tmp_path, data)
        job.blobs = open_blobs(new_store())
        assert (await job.anew().respond(_request(), "job", "json", "application/json", job.render)).status_code == 200
        files = ResultFiles(job.blobs, job.unfinished, job.responses, job.exists, 60)
        response = await files.respond(_request(range="bytes=5-8"), "job", "json", "application/json", job.render)
        assert (response.status_code, response.headers["reverie-seed"]) == (307, "1")
        link = response.headers["location"]
        async with httpx.AsyncClient() as client:
            whole, part = await client.get(link), await client.get(link, headers={"Range": "bytes=5-8"})
        assert (whole.content, whole.headers["content-type"]) == (data, "application/json")
        assert (part.status_code, part.content) == (206, data[5:9])
        job.data = data[: LINKED_BYTES - 1]
        response = await files.respond(_request(), "other", "json", "application/json", job.render)
        assert response.status_code == 200

    asyncio.run(run())


def test_a_small_result_is_not_stored(tmp_path: Path) -> None:
    """A result smaller than `STORED_BYTES` is rendered for each request and not stored."""

    async def run() -> None:
        job = _Job(tmp_path, b"x" * (STORED_BYTES - 1))
        first, second = await job.respond(), await job.respond()
        assert await _body(first) == await _body(second) == job.data
        assert job.renders == 2
        assert job.blobs.keys("") == []

    asyncio.run(run())


def test_a_deleted_job_leaves_nothing(tmp_path: Path) -> None:
    """A job that was deleted, during rendering or after it, is 410 and leaves no stored
    rendering.
    """

    async def run() -> None:
        job = _Job(tmp_path, b"x" * STORED_BYTES)
        job.there = False
        with pytest.raises(GoneError):
            await job.respond()
        assert job.blobs.keys("") == []
        job.there = True
        assert (await job.respond()).status_code == 200
        job.blobs.delete("jobs/job")
        with pytest.raises(GoneError):
            await job.respond()

    asyncio.run(run())


def test_a_full_disk_stops_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a rendering cannot be stored, the result is rendered for each request."""

    async def run() -> None:
        job = _Job(tmp_path, b"x" * STORED_BYTES)

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(job.blobs, "take", full)
        assert await _body(await job.respond()) == job.data
        assert await _body(await job.respond(range="bytes=1-2")) == b"xx"
        assert job.renders == 2

    asyncio.run(run())


# --- a real service ---


@pytest.mark.parametrize("media", ["application/json", "application/x-npz", "image/png"])
def test_parts_of_a_large_result_cost_little(client: httpx.Client, stack: Stack, media: str) -> None:
    """Twenty ranges of one byte and twenty 304 responses take less than 1 s of CPU time."""
    job_id = create_job(client, "/v1/samples", model=MODEL, count=20_000, seed=3)
    assert finished_job(client, job_id)["status"] == "succeeded"
    accept = {"Accept": media}
    whole = client.get(f"/v1/jobs/{job_id}/result", headers=accept)
    assert len(whole.content) > STORED_BYTES
    pid = stack.parts["api"].pid
    cpu = cpu_seconds(pid)
    for _ in range(20):
        part = client.get(f"/v1/jobs/{job_id}/result", headers={**accept, "Range": "bytes=0-0"})
        assert (part.status_code, part.content) == (206, whole.content[:1])
        same = {**accept, "If-None-Match": whole.headers["etag"]}
        assert client.get(f"/v1/jobs/{job_id}/result", headers=same).status_code == 304
    assert cpu_seconds(pid) < cpu + 1
    assert client.get(f"/v1/jobs/{job_id}/result", headers=accept).content == whole.content
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204


def test_clients_that_do_not_read_take_no_memory(client: httpx.Client, stack: Stack) -> None:
    """Fifteen clients that do not read the result of a large job add less than 64 MiB to the API's
    memory.
    """
    job_id = create_job(client, "/v1/samples", model=MODEL, count=40_000, seed=3)
    assert finished_job(client, job_id)["status"] == "succeeded"
    size = len(client.get(f"/v1/jobs/{job_id}/result").content)
    assert size > 8 * MIB
    pid = stack.parts["api"].pid
    rss = rss_bytes(pid)
    held: list[socket.socket] = []
    for _ in range(15):
        connection = connect(stack.port)
        connection.sendall(f"GET /v1/jobs/{job_id}/result HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        held.append(connection)
    time.sleep(2)
    assert rss_bytes(pid) < rss + 64 * MIB
    assert post_samples(client).status_code == 200
    for connection in held:
        connection.close()


@pytest.mark.slow
def test_requests_whose_clients_do_not_read_leave_no_memory(client: httpx.Client, stack: Stack) -> None:
    """Ten clients that do not read their large synchronous results add less than 96 MiB, and less
    than 48 MiB once they have disconnected.
    """
    body = orjson.dumps({"model": MODEL, "count": 26_000, "seed": 3})
    head = (
        "POST /v1/samples HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nPrefer: wait=60\r\n"
        f"Accept: application/x-npz\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    assert post_samples(client).status_code == 200
    pid = stack.parts["api"].pid
    rss = rss_bytes(pid)
    with contextlib.ExitStack() as opened:
        held = [opened.enter_context(connect(stack.port)) for _ in range(10)]
        for connection in held:
            connection.settimeout(60)
            connection.sendall(head.encode() + body)
        assert {status_of(connection.recv(300)) for connection in held} == {200}
        assert rss_bytes(pid) < rss + 96 * MIB
        assert post_samples(client).status_code == 200
    wait_until(lambda: rss_bytes(pid) < rss + 48 * MIB, "the memory is given back", 20)


def test_rendering_a_large_result_leaves_no_memory(client: httpx.Client, stack: Stack) -> None:
    """After a large result was rendered as NPZ, JSON and PNG, the API's memory has grown by less
    than 48 MiB.
    """
    job_id = create_job(client, "/v1/samples", model=MODEL, count=60_000, seed=4)
    assert finished_job(client, job_id)["status"] == "succeeded"
    pid = stack.parts["api"].pid
    rss = rss_bytes(pid)
    for media in ("application/x-npz", "application/json", "image/png"):
        headers = {"Accept": media, "Range": "bytes=0-0"}
        assert client.get(f"/v1/jobs/{job_id}/result", headers=headers).status_code == 206
    wait_until(lambda: rss_bytes(pid) < rss + 48 * MIB, "the memory is given back", 20)


def test_downloads_beyond_the_memory_of_responses_are_refused(tmp_path: Path) -> None:
    """Downloads of model files beyond the memory limit of responses get 503, until the write
    time-out has released memory.
    """
    path = f"/v1/models/{LARGE_MODEL}/versions/1/file"
    with contextlib.ExitStack() as opened:
        api = opened.enter_context(BareApi(tmp_path, max_inflight_response_bytes=MIB, write_timeout_s=1))
        heads = []
        for _ in range(12):
            connection = opened.enter_context(connect(api.port))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            heads.append(connection.recv(600))
        statuses = Counter(status_of(head) for head in heads)
        assert statuses == {200: MIB // SENDING_BYTES, 503: 12 - MIB // SENDING_BYTES}
        assert all(b"retry-after: 2" in head for head in heads if status_of(head) == 503)

        def downloaded() -> bool:
            return httpx.get(api.url + path, timeout=30).status_code == 200

        wait_until(downloaded, "there is room again", 20)


def test_a_large_response_is_complete(client: httpx.Client) -> None:
    """A large synchronous response is complete, and equals the result of a job in each format."""
    rows = 10_000
    body = {"model": MODEL, "count": rows, "seed": 3}
    headers = {"Prefer": "wait=60"}
    answer = client.post("/v1/samples", json=body, headers=headers)
    assert answer.status_code == 200
    assert len(answer.content) > LARGE_BYTES
    assert len(orjson.loads(answer.content)["images"]) == rows
    job_id = create_job(client, "/v1/samples", **body)
    assert finished_job(client, job_id)["status"] == "succeeded"
    for media in ("application/json", "application/x-npz", "image/png"):
        accept = {"Accept": media}
        answer = client.post("/v1/samples", json=body, headers={**headers, **accept})
        assert answer.content == client.get(f"/v1/jobs/{job_id}/result", headers=accept).content
