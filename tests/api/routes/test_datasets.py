"""Datasets over HTTP: what is made of an upload, what is refused, and what is left behind."""

import asyncio
import gzip
import resource
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from api import streaming_upload as spool
from api.app import create_app
from core.datasets.store import Datasets
from core.settings import Settings
from tests.api.helpers import decode_image, encode_image, finished_job, problem
from tests.stack import Stack, free_port
from tests.uploads import DIGITS, end_of, idx, npz, packed, pictures, png, tar, zip_end, zipped
from tests.waiting import wait_until

PATH = "/v1/datasets"
ZIP = {"Content-Type": "application/zip"}


def sent(client: httpx.Client, file: bytes, labels: bytes | None = None, **fields: Any) -> httpx.Response:
    """Return the response to a form with this file."""
    files = {"file": ("upload", file)} | ({} if labels is None else {"labels": ("labels", labels)})
    return client.post(PATH, files=files, data=fields)


@pytest.fixture
def datasets(stack: Stack) -> Iterator[Datasets]:
    """The folder of the shared service, empty before and after the test."""
    folder = Datasets(Path(stack.environment["REVERIE_STATE"]) / "datasets")
    _delete_all(folder)
    yield folder
    _delete_all(folder)


def _delete_all(datasets: Datasets) -> None:
    for about in datasets.listing(limit=100):
        datasets.delete(about["name"])


def at_work(datasets: Datasets) -> list[Path]:
    """Folders that something is being made in."""
    return [path.parent for path in datasets.folder.glob(".*/lock")]


# --- what is there ---


def test_an_upload_is_a_dataset(client: httpx.Client, datasets: Datasets) -> None:
    """With its shape, counts and fingerprint; to be had, listed, looked at and deleted by its name."""
    response = sent(client, DIGITS.read_bytes(), name="digits", validation=0.05)
    assert response.status_code == 201, response.text
    assert response.headers["location"] == "/v1/datasets/digits"
    body = response.json()
    assert body["counts"] == {"train": 1700, "validation": 100, "test": 200}
    assert (body["kind"], body["channels"], body["height"], body["width"]) == ("pictures", 1, 28, 28)
    assert len(body["sha256"]) == 64
    assert client.get(body["links"]["self"]).json() == body
    assert client.get(PATH).json()["data"] == [body]
    picture = client.get(body["links"]["preview"])
    assert picture.headers["content-type"] == "image/png"
    assert decode_image(picture.content).shape == (224, 224)
    assert decode_image(client.get(f"{PATH}/digits/preview?split=test&count=4").content).shape == (56, 56)
    assert at_work(datasets) == []
    assert client.delete(f"{PATH}/digits").status_code == 204
    for gone in (client.get(f"{PATH}/digits"), client.delete(f"{PATH}/digits"), client.get(f"{PATH}/digits/preview")):
        problem(gone, 404, "digits", "GET /v1/datasets")


def test_a_raw_body_is_the_same_as_a_form(client: httpx.Client, datasets: Datasets) -> None:
    """The same content under its name again is 200, under another name another dataset, other content 409."""
    file = packed(zipped())
    raw = client.post(f"{PATH}?name=raw&test=0.2", content=file, headers=ZIP)
    assert raw.status_code == 201, raw.text
    form = sent(client, file, name="form", test=0.2)
    assert form.status_code == 201
    assert form.json()["sha256"] == raw.json()["sha256"]
    again = sent(client, file, name="raw", test=0.2, format="zip")
    assert again.status_code == 200
    assert again.json() == raw.json()
    problem(sent(client, file, name="raw", test=0.3), 409, "raw", "other content", "another name")
    assert client.get(f"{PATH}/raw").json() == raw.json()
    assert at_work(datasets) == []


def test_lists_are_paginated(client: httpx.Client, datasets: Datasets) -> None:
    """By name, a page at a time."""
    assert client.get(PATH).json() == {
        "object": "list",
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }
    for name in ("b", "a", "c"):
        assert sent(client, idx(pictures(12)), name=name).status_code == 201
    first = client.get(PATH, params={"limit": 2}).json()
    assert ([one["name"] for one in first["data"]], first["has_more"]) == (["a", "b"], True)
    rest = client.get(PATH, params={"limit": 2, "after": first["last_id"]}).json()
    assert ([one["name"] for one in rest["data"]], rest["has_more"]) == (["c"], False)


def test_every_kind_of_upload(client: httpx.Client, datasets: Datasets) -> None:
    """Labels, vectors with their own split, pictures made one size, photographs of any size."""
    labelled = sent(client, idx(pictures(20)), idx(np.arange(20, dtype=np.uint8)), name="labelled")
    assert labelled.json()["labels"] is True
    bits = np.random.default_rng(0).integers(0, 2, (60, 112), dtype=np.uint8)
    vectors = sent(client, npz(train=bits[:40], valid=bits[40:50], test=bits[50:]), name="vectors").json()
    assert (vectors["kind"], vectors["counts"]) == ("vectors", {"train": 40, "validation": 10, "test": 10})
    mixed = packed([*zipped(), ("wide.jpg", encode_image(Image.new("RGB", (200, 100), "red"), "JPEG"))])
    resized = sent(client, mixed, name="resized", resize="8x16").json()
    assert (resized["channels"], resized["height"], resized["width"], resized["resized"]) == (3, 8, 16, 13)
    photographs = [(f"{n}.png", png(pictures(1, 100 + n, 200, n)[0])) for n in range(4)]
    patches = sent(client, packed(photographs), name="patches", kind="photographs").json()
    assert (patches["kind"], patches["photographs"], patches["channels"]) == ("photographs", 4, 3)
    assert sum(patches["counts"].values()) == 8


def test_a_dataset_in_use_is_not_deleted(client: httpx.Client, datasets: Datasets) -> None:
    """409 says who uses it."""
    sent(client, idx(pictures(12)), name="used")
    datasets.use("used", "job_7")
    problem(client.delete(f"{PATH}/used"), 409, "used", "job_7", "cancel")
    assert client.get(f"{PATH}/used").status_code == 200
    datasets.release("used", "job_7")
    assert client.delete(f"{PATH}/used").status_code == 204


# --- what is refused ---


def _contradicting() -> bytes:
    """A ZIP whose ZIP64 record says that it has a million million members."""
    body, count, length, offset = end_of(packed(zipped()))
    return body + zip_end(count, length, offset, (10**12, length, offset))


BAD = {
    "nothing": (b"", None, {}, 422, "file", "empty"),
    "neither": (b"hello world", None, {}, 422, "file", "neither IDX nor ZIP"),
    "empty ZIP": (packed([]), None, {}, 422, "file", "holds no picture"),
    "one bad picture": (packed([*zipped(), ("7/bad.png", b"\x89PNG")]), None, {}, 422, "file", "'7/bad.png'"),
    "mixed sizes": (packed([*zipped(), ("x.png", png(pictures(1, 9, 9)[0]))]), None, {}, 422, "resize", "1 of 9×9"),
    "labels missing": (idx(pictures(12)), b"", {}, 422, "labels", "empty"),
    "labels mismatched": (idx(pictures(12)), idx(np.zeros(9, np.uint8)), {}, 422, "labels", "9 labels for 12"),
    "only labels": (idx(np.zeros(12, np.uint8)), None, {}, 422, "file", "labels, as it seems"),
    "wrong magic": (b"\0\0\7\3" + bytes(99), None, {}, 422, "file", "00000703"),
    "truncated IDX": (idx(pictures(12))[:-1], None, {}, 422, "file", "truncated"),
    "pickled": (npz(train=np.array([{}] * 12)), None, {}, 422, "file", "pickled"),
    "bomb": (gzip.compress(b"\0\0\x08\3" + b"\xff" * 12), None, {}, 413, "file", "more than"),
    "traversal": (packed([*zipped(), ("../x.png", b"")]), None, {}, 422, "file", "'../x.png'"),
    "out of range": (npz(train=np.full((12, 4, 4), 256)), None, {}, 422, "file", "256"),
    "too few": (idx(pictures(2)), None, {}, 422, "file", "10 or more"),
    "all the same": (idx(np.zeros((20, 4, 4), np.uint8)), None, {}, 422, "file", "different"),
    "name": (idx(pictures(12)), None, {"name": "../x"}, 422, "name", "pattern"),
    "hidden name": (idx(pictures(12)), None, {"name": ".x"}, 422, "name", "pattern"),
    "long name": (idx(pictures(12)), None, {"name": "x" * 65}, 422, "name", "pattern"),
    "share": (idx(pictures(12)), None, {"test": "0.6"}, 422, "test", "0.5"),
    "kind": (idx(pictures(12)), None, {"kind": "films"}, 422, "kind", "photographs"),
    "resize": (idx(pictures(12)), None, {"resize": "big"}, 422, "resize", "pattern"),
    "resize to nothing": (packed(zipped()), None, {"resize": "0x9"}, 422, "resize", "1 to 4096"),
    "format": (idx(pictures(12)), None, {"format": "zip"}, 422, "format", "begins as IDX"),
    "gzipped ZIP": (gzip.compress(packed(zipped())), None, {}, 422, "file", "gzipped ZIP"),
    "tar": (tar("w"), None, {}, 422, "file", "tar archive"),
    "gzipped tar": (tar("w:gz"), None, {}, 422, "file", "gzipped tar archive"),
    "ZIP64": (_contradicting(), None, {}, 422, "file", "contradicts its end record"),
    "two names": (npz(x_train=pictures(12), trainImages=pictures(12)), None, {}, 422, "file", "'trainImages'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_uploads_are_rejected_with_the_reason(client: httpx.Client, datasets: Datasets, case: str) -> None:
    """At their field, with what would work; nothing is left behind."""
    file, labels, fields, status, field, word = BAD[case]
    body = problem(sent(client, file, labels, **{"name": "bad", **fields}), status, word)
    assert [error["field"] for error in body["errors"]] == [field]
    assert at_work(datasets) == []
    assert datasets.listing() == []


def _form(*parts: tuple[str, bytes], end: bytes = b"--b--\r\n") -> dict[str, Any]:
    """The content and headers of a form made by hand, of headers and data."""
    body = b"".join(b"--b\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n" for head, data in parts)
    return {"content": body + end, "headers": {"Content-Type": "multipart/form-data; boundary=b"}}


FILE = ('Content-Disposition: form-data; name="file"; filename="x"', idx(pictures(12)))
NAME = ('Content-Disposition: form-data; name="name"', b"x")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ({"content": b"x"}, 415, ["a body without a Content-Type", "multipart/form-data"]),
        ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, ["text/plain"]),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, ["boundary"]),
        ({"content": b"nonsense", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 400, ["multipart"]),
        (_form(NAME, FILE, end=b""), 400, ["before its last boundary"]),
        (_form(NAME, FILE, FILE), 422, ["file: sent twice"]),
        (_form(NAME, NAME, FILE), 422, ["name: given more than once"]),
        (_form(NAME), 422, ["file: missing"]),
        (_form(FILE), 422, ["name: Field required"]),
        (_form(NAME, FILE, ("Content-Type: text/plain", b"x")), 400, ["no name"]),
        (_form(NAME, FILE, ('Content-Disposition: form-data; name="nome"', b"x")), 422, ["'nome'", "validation"]),
        (_form(NAME, FILE, ('Content-Disposition: form-data; name="a"; filename="b"', b"")), 422, ["'a'", "`labels`"]),
        (_form(("Content-Disposition: form-data; name=name", b"x" * 201), FILE), 422, ["longer than 200"]),
        ({"json": {"source": "imagenet"}}, 422, ["source", "'mnist'"]),
        ({"json": {"source": "mnist", "seed": 3}}, 422, ["seed"]),
        ({"json": []}, 422, ["dict"]),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, ["not JSON", "source"]),
        ({"content": b" " * 70_000, "headers": {"Content-Type": "application/json"}}, 413, ["65536"]),
    ],
)
def test_bad_bodies_are_rejected_with_the_reason(
    client: httpx.Client, datasets: Datasets, arguments: dict[str, Any], status: int, words: list[str]
) -> None:
    """Whatever of them cannot be read."""
    problem(client.post(PATH, **arguments), status, *words)
    assert at_work(datasets) == []


def test_bad_queries_are_rejected_with_the_reason(client: httpx.Client, datasets: Datasets) -> None:
    """Of lists and previews."""
    sent(client, idx(pictures(12)), name="small", test=0)
    problem(client.get(f"{PATH}/small/preview?split=test"), 404, "no pictures in its test split")
    problem(client.get(f"{PATH}/small/preview?split=other"), 422, "split")
    problem(client.get(f"{PATH}/small/preview?count=0"), 422, "count")
    problem(client.get(f"{PATH}?limit=0"), 422, "limit")
    problem(client.get(f"{PATH}/..%2Fledger"), 404)
    problem(client.put(f"{PATH}/small"), 405)


# --- uploads that end early ---


def _opened(stack: Stack, head: bytes) -> socket.socket:
    """Return a connection on which an upload has started."""
    connection = socket.create_connection(("127.0.0.1", stack.port), 30)
    connection.sendall(b"POST /v1/datasets?name=early HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Request-Id: early\r\n" + head)
    return connection


def test_a_client_that_leaves_leaves_nothing(stack: Stack, client: httpx.Client, datasets: Datasets) -> None:
    """Whether half its file has come, or all of it and it is being converted."""
    large = idx(np.random.default_rng(0).integers(0, 256, (100, 1000, 1000), dtype=np.uint8))
    head = b"Content-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % len(large)
    for share in (0.5, 1.0):
        with _opened(stack, head) as connection:
            connection.sendall(large[: int(len(large) * share)])
            wait_until(lambda: at_work(datasets), "the upload has a folder")
        wait_until(lambda: not at_work(datasets), "the folder of the upload is gone")
    assert client.get(f"{PATH}/early").status_code == 404

    def statuses() -> list[int]:
        return [int(str(line["status"])) for line in stack.log("api") if line.get("request_id") == "early"]

    wait_until(lambda: len(statuses()) == 2, "both requests are logged")
    assert statuses() == [499, 499]


def test_a_wrong_content_length_is_a_truncated_file(stack: Stack, client: httpx.Client, datasets: Datasets) -> None:
    """One that is too small cuts the file; one that is too large is a client that leaves."""
    file = idx(pictures(12))
    head = b"Content-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n"
    with _opened(stack, head % (len(file) - 10)) as connection:
        connection.sendall(file[:-10])
        response = connection.recv(65_536)
    assert response.startswith(b"HTTP/1.1 422")
    with _opened(stack, head % (len(file) + 10)) as connection:
        connection.sendall(file)
        wait_until(lambda: at_work(datasets), "the upload has a folder")
    wait_until(lambda: not at_work(datasets), "the folder of the upload is gone")
    assert client.get(f"{PATH}/early").status_code == 404


# --- limits, on a service of their own ---


def _alone(folder: Path, visit: Callable[[httpx.AsyncClient], Awaitable[None]], **chosen: Any) -> None:
    """Let `visit` call an API process with these settings, without queue server or worker."""
    settings = Settings(
        state=folder,
        checkpoints=Path("checkpoints"),
        queue_url=f"redis://127.0.0.1:{free_port()}/0",
        log_level="error",
        **chosen,
    )

    async def run() -> None:
        app = create_app(settings)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x", timeout=60) as client,
        ):
            await visit(client)
        assert at_work(Datasets(folder / "datasets")) == []
        assert Datasets(folder / "datasets").listing() == []

    asyncio.run(run())


async def _uploaded(client: httpx.AsyncClient, content: bytes | AsyncIterator[bytes]) -> httpx.Response:
    """Return the response to an upload as a raw body."""
    headers = {"Content-Type": "application/octet-stream"}
    return await client.post(PATH, params={"name": "x"}, content=content, headers=headers)


def test_the_limit_of_uploads_is_their_own(tmp_path: Path) -> None:
    """It is larger than that of other routes, and applies with and without Content-Length."""

    async def unsaid() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(1 << 16)
            await asyncio.sleep(0)

    async def visit(client: httpx.AsyncClient) -> None:
        contents: tuple[bytes | AsyncIterator[bytes], ...] = (bytes(3 << 20), unsaid())
        for content in contents:
            response = await _uploaded(client, content)
            problem(response, 413, str(2 << 20), "smaller file")
        problem(await _uploaded(client, bytes(1 << 20)), 422, "not IDX")
        problem(await client.post("/v1/samples", content=bytes(1 << 20)), 413, "4096", "fewer images")

    _alone(tmp_path, visit, max_dataset_bytes=2 << 20, max_body_bytes=4096)


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """507 while the file comes, or while it is converted, and the disk is as it was."""

    async def visit(client: httpx.AsyncClient) -> None:
        for file in (bytes(3 << 20), DIGITS.read_bytes()):
            problem(await _uploaded(client, file), 507, "no room", "delete others")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))  # a file of more is refused as by a full disk
    try:
        _alone(tmp_path, visit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_reserve_is_left_on_the_disk(tmp_path: Path) -> None:
    """Free disk space stays reserved for the job store."""

    async def visit(client: httpx.AsyncClient) -> None:
        problem(await _uploaded(client, DIGITS.read_bytes()), 507, "no room", "delete others")

    _alone(tmp_path, visit, min_free_disk_bytes=1 << 60)


def test_a_body_that_stops_coming_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """408, so that a client that hangs holds no disk."""
    monkeypatch.setattr(spool, "IDLE_S", 0.2)

    async def slow() -> AsyncIterator[bytes]:
        yield DIGITS.read_bytes()[:1000]
        await asyncio.sleep(30)
        yield b""

    async def visit(client: httpx.AsyncClient) -> None:
        problem(await _uploaded(client, slow()), 408, "nothing of the body came", "send it again")

    _alone(tmp_path, visit)


def test_a_conversion_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is killed after the time limit, the response names the setting, and nothing is left."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "while True:\n    try:\n        time.sleep(60)\n    except BaseException:\n        pass\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    processes: list[str] = []

    async def visit(client: httpx.AsyncClient) -> None:
        start = time.monotonic()
        refused = await _uploaded(client, DIGITS.read_bytes())
        body = problem(refused, 422, "longer than", "REVERIE_CONVERSION_TIMEOUT_S")
        assert body["errors"][0]["field"] == "file"
        assert 1 <= time.monotonic() - start < 20
        processes.append((tmp_path / "pid").read_text())

    _alone(tmp_path / "state", visit, conversion_timeout_s=1.0)
    assert len(processes) == 1
    assert not any(Path(f"/proc/{process}").exists() for process in processes)


def test_a_named_dataset_is_a_job_at_once(tmp_path: Path) -> None:
    """The response waits only as `Prefer` says, here without a worker that would do it; the job can be cancelled."""

    async def visit(client: httpx.AsyncClient) -> None:
        for prefer, wait_s in (("", 0), ("wait=1", 1)):
            start = time.monotonic()
            response = await client.post(PATH, json={"source": "mnist", "name": "digits"}, headers={"Prefer": prefer})
            assert wait_s <= time.monotonic() - start < wait_s + 2
            job = response.json()
            assert (response.status_code, job["kind"], job["status"]) == (202, "dataset", "queued")
            assert response.headers["location"] == job["links"]["self"]
            assert job["request"] == {"source": "mnist", "name": "digits", "validation": 0.1, "shared": None}
            assert (await client.post(job["links"]["cancel"])).json()["status"] == "cancelled"

    _alone(tmp_path, visit)


def test_a_crash_of_the_reader_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that ends it is the file's fault, another fault is ours."""
    (tmp_path / "sitecustomize.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    async def visit(client: httpx.AsyncClient) -> None:
        problem(await _uploaded(client, DIGITS.read_bytes()), 422, "signal 11")
        (tmp_path / "sitecustomize.py").write_text("raise SystemExit(2)\n")
        problem(await _uploaded(client, DIGITS.read_bytes()), 500)

    _alone(tmp_path / "state", visit)


@pytest.mark.slow
def test_a_dataset_by_name(client: httpx.Client, datasets: Datasets) -> None:
    """MNIST, with its own test part, and again the same."""
    payload = {"source": "mnist", "name": "digits"}
    job_id = client.post(PATH, json=payload).json()["id"]
    job = finished_job(client, job_id)
    assert job["status"] == "succeeded", job
    made = client.get(f"{PATH}/digits")
    assert made.json()["counts"] == {"train": 54000, "validation": 6000, "test": 10000}
    assert client.post(PATH, json=payload).status_code == 200


# --- memory ---


def _memory_kb(stack: Stack, what: str) -> int:
    status = Path(f"/proc/{stack.parts['api'].pid}/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0])


@pytest.mark.parametrize("form", [True, False])
def test_an_upload_is_never_in_memory(stack: Stack, client: httpx.Client, datasets: Datasets, form: bool) -> None:
    """The API process grows by less than 64 MB for a file of 300, sent as a form or raw."""
    count, block = 300, bytes(range(256)) * 4096
    head = b"\0\0\x08\3" + b"".join(size.to_bytes(4, "big") for size in (count, 1024, 1024))
    begin = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' if form else b""
    end = b"\r\n--b--\r\n" if form else b""

    def body() -> Iterator[bytes]:
        yield begin + head
        for number in range(count):
            yield number.to_bytes(4, "big") + block[4:]
        yield end

    Path(f"/proc/{stack.parts['api'].pid}/clear_refs").write_text("5")  # the peak counts from now
    before = _memory_kb(stack, "VmRSS")
    kind = "multipart/form-data; boundary=b" if form else "application/octet-stream"
    response = client.post(PATH, params={"name": "large"}, content=body(), headers={"Content-Type": kind})
    assert response.status_code == 201, response.text
    assert response.json()["counts"] == {"train": 240, "validation": 30, "test": 30}
    assert _memory_kb(stack, "VmHWM") - before < 64_000
