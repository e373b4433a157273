"""Datasets over HTTP: uploads, rejections, limits, and what is left after a failure."""

import asyncio
import contextlib
import gzip
import io
import resource
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from api import streaming_upload as spool
from api.app import create_app
from core.datasets.store import Datasets, InUseError
from core.settings import Settings
from tests.api.helpers import decode_image, encode_image, finished_job, problem
from tests.stack import Stack, free_port
from tests.uploads import DIGITS, end_of, idx, npz, packed, pictures, png, tar, zip_end, zipped
from tests.waiting import wait_until

PATH = "/v1/datasets"
ZIP = {"Content-Type": "application/zip"}


def sent(client: httpx.Client, file: bytes, labels: bytes | None = None, **fields: Any) -> httpx.Response:
    """Return the response to an upload as a multipart form."""
    files = {"file": ("upload", file)} | ({} if labels is None else {"labels": ("labels", labels)})
    return client.post(PATH, files=files, data=fields)


@pytest.fixture
def datasets(stack: Stack, client: httpx.Client) -> Iterator[Datasets]:
    """The dataset store of the shared service, empty before and after the test."""
    folder = stack.datasets()
    _delete_all(folder, client)
    yield folder
    _delete_all(folder, client)


def _delete_all(datasets: Datasets, client: httpx.Client) -> None:
    """Delete all datasets; cancel jobs of other modules that still use one."""

    def delete(name: str) -> bool:
        for job_id in datasets.users(name):
            client.post(f"/v1/jobs/{job_id}/cancel")
        with contextlib.suppress(InUseError):
            datasets.delete(name)
            return True
        return False

    for about in datasets.listing(limit=100):
        wait_until(partial(delete, about["name"]), f"dataset {about['name']} is deleted")


def at_work(datasets: Datasets) -> list[Path]:
    """Return the scratch folders of uploads that are being received or converted."""
    return [path.parent for path in datasets.folder.glob(".*/lock")]


# --- accepted uploads ---


def test_an_upload_is_a_dataset(client: httpx.Client, datasets: Datasets) -> None:
    """An upload becomes a dataset with its shape, counts and fingerprint; it can be listed,
    previewed and deleted by its name.
    """
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


def test_images_come_page_by_page(client: httpx.Client, datasets: Datasets) -> None:
    """As a list with links and labels, as a sheet, as NPZ and one by one; unchanged ones are a 304."""
    images = pictures(30)
    body = io.BytesIO()
    np.savez(body, train=images[:20], test=images[20:], train_labels=np.arange(20), test_labels=np.arange(20, 30))
    about = sent(client, body.getvalue(), name="labelled", validation=0).json()
    path = about["links"]["images"]
    seen = []
    after = None
    while True:
        page = client.get(
            path, params={"split": "test", "limit": 4, **({} if after is None else {"after": after})}
        ).json()
        seen += page["data"]
        assert (page["first_id"], page["last_id"]) == (str(page["data"][0]["index"]), str(page["data"][-1]["index"]))
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert [(one["index"], one["label"]) for one in seen] == [(index, 20 + index) for index in range(10)]
    single = client.get(seen[3]["links"]["image"])
    assert single.headers["content-type"] == "image/png"
    assert (decode_image(single.content) == images[23]).all()
    sheet = client.get(path, params={"limit": 7, "columns": 5}, headers={"Accept": "image/png"})
    height, width = images.shape[1:]
    assert decode_image(sheet.content).shape == (2 * height, 5 * width)
    assert (decode_image(sheet.content)[height:, width : 2 * width] == images[6]).all()
    npz = client.get(path, params={"split": "test", "after": 7}, headers={"Accept": "application/x-npz"})
    with np.load(io.BytesIO(npz.content)) as arrays:
        assert (arrays["images"][:, 0] == images[28:]).all()
        assert arrays["index"].tolist() == [8, 9]
        assert arrays["labels"].tolist() == [28, 29]
    for response in (single, sheet, npz):
        again = client.get(
            response.request.url,
            headers={"If-None-Match": response.headers["etag"], "Accept": response.headers["content-type"]},
        )
        assert (again.status_code, again.content) == (304, b"")
    assert len({response.headers["etag"] for response in (single, sheet, npz)}) == 3
    empty = client.get(path, params={"split": "validation"}).json()
    assert (empty["data"], empty["has_more"], empty["last_id"]) == ([], False, None)
    assert client.delete(f"{PATH}/labelled").status_code == 204
    problem(client.get(path), 404, "GET /v1/datasets")


def test_a_raw_body_is_the_same_as_a_form(client: httpx.Client, datasets: Datasets) -> None:
    """A raw body and a form give equal datasets.

    The same content under the same name returns 200, other content under that name 409.
    """
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
    """Datasets are listed by name in pages."""
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
    """Labelled images, vectors with their own splits, resized images and photographs of several
    sizes are accepted.
    """
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
    """Deleting a dataset that a job uses is rejected with 409, which names the job."""
    sent(client, idx(pictures(12)), name="used")
    body = {
        "family": "vae",
        "dataset": "used",
        "name": "used",
        "recipe": {"training": {"epochs": 100_000, "batch_size": 5}},
    }
    training = client.post("/v1/trainings", json=body)
    assert training.status_code == 202, training.text
    job_id = training.json()["id"]
    problem(client.delete(f"{PATH}/used"), 409, "used", job_id, "cancel")
    assert client.get(f"{PATH}/used").status_code == 200
    assert client.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
    wait_until(lambda: client.delete(f"{PATH}/used").status_code == 204, "the dataset is deleted")


# --- rejections ---


def _contradicting() -> bytes:
    """Return a ZIP whose ZIP64 record claims 10¹² members."""
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
    """The problem names the field and what would work; no dataset and no scratch folder is left."""
    file, labels, fields, status, field, word = BAD[case]
    body = problem(sent(client, file, labels, **{"name": "bad", **fields}), status, word)
    assert [error["field"] for error in body["errors"]] == [field]
    assert at_work(datasets) == []
    assert datasets.listing() == []


def _form(*parts: tuple[str, bytes], end: bytes = b"--b--\r\n") -> dict[str, Any]:
    """Return the content and headers of a hand-written multipart form; each part is its headers and
    its data.
    """
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
    """A body that cannot be read, as a form or as JSON, is rejected with the reason."""
    problem(client.post(PATH, **arguments), status, *words)
    assert at_work(datasets) == []


def test_bad_queries_are_rejected_with_the_reason(client: httpx.Client, datasets: Datasets) -> None:
    """Invalid query parameters of lists and previews are rejected."""
    sent(client, idx(pictures(12)), name="small", test=0)
    problem(client.get(f"{PATH}/small/preview?split=test"), 404, "no pictures in its test split")
    problem(client.get(f"{PATH}/small/preview?split=other"), 422, "split")
    problem(client.get(f"{PATH}/small/preview?count=0"), 422, "count")
    sheet = {"Accept": "image/png"}
    problem(client.get(f"{PATH}/small/images?split=test", headers=sheet), 404, "no more images in its test split")
    problem(client.get(f"{PATH}/small/images", headers={"Accept": "image/webp"}), 406, "image/png")
    for query in ("split=other", "after=-1", "after=x", "limit=0", "limit=1001", "columns=0", "page=2"):
        problem(client.get(f"{PATH}/small/images?{query}"), 422, query.partition("=")[0])
    assert problem(client.get(f"{PATH}/small/images?after=99"), 422)["errors"][0]["field"] == "query.after"
    problem(client.get(f"{PATH}/small/images/99"), 404, "images, from index 0 on")
    problem(client.get(f"{PATH}/small/images/-1"), 422)
    problem(client.get(f"{PATH}/none/images/0"), 404, "no dataset 'none'")
    problem(client.get(f"{PATH}?limit=0"), 422, "limit")
    problem(client.get(f"{PATH}/..%2Fledger"), 404)
    problem(client.put(f"{PATH}/small"), 405)


# --- uploads that end early ---


def _opened(stack: Stack, head: bytes) -> socket.socket:
    """Open a connection and send the start of an upload."""
    connection = socket.create_connection(("127.0.0.1", stack.port), 30)
    connection.sendall(b"POST /v1/datasets?name=early HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Request-Id: early\r\n" + head)
    return connection


def test_a_client_that_leaves_leaves_nothing(stack: Stack, client: httpx.Client, datasets: Datasets) -> None:
    """If the client disconnects during the upload or the conversion, the scratch folder is removed
    and status 499 is logged.
    """
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
    """A Content-Length that is too small truncates the file (422); one that is too large is a
    disconnected client.
    """
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
    """Run an API process without queue server or worker, call `visit` with its client, and check
    that no dataset is left.
    """
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
    """`max_dataset_bytes` limits uploads, with and without Content-Length, and `max_body_bytes` the
    other routes.
    """

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
    """A disk that fills up while a file is received or converted is 507, and nothing is left on
    it.
    """

    async def visit(client: httpx.AsyncClient) -> None:
        for file in (bytes(3 << 20), DIGITS.read_bytes()):
            problem(await _uploaded(client, file), 507, "no room", "delete others")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))  # writing a larger file fails
    try:
        _alone(tmp_path, visit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_reserve_is_left_on_the_disk(tmp_path: Path) -> None:
    """An upload that would leave less than `min_free_disk_bytes` free is rejected with 507."""

    async def visit(client: httpx.AsyncClient) -> None:
        problem(await _uploaded(client, DIGITS.read_bytes()), 507, "no room", "delete others")

    _alone(tmp_path, visit, min_free_disk_bytes=1 << 60)


def test_a_body_that_stops_coming_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that stops sending gets 408, and its scratch folder is removed."""
    monkeypatch.setattr(spool, "IDLE_S", 0.2)

    async def slow() -> AsyncIterator[bytes]:
        yield DIGITS.read_bytes()[:1000]
        await asyncio.sleep(30)
        yield b""

    async def visit(client: httpx.AsyncClient) -> None:
        problem(await _uploaded(client, slow()), 408, "nothing of the body came", "send it again")

    _alone(tmp_path, visit)


def test_a_conversion_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion that exceeds the time limit is killed; the response names the setting, and
    nothing is left.
    """
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
    """A named dataset is created by a job; the response waits only as long as `Prefer` says, and
    the job can be cancelled.
    """

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
    """A signal that kills the conversion is reported as a fault of the file (422), another failure
    as 500.
    """
    (tmp_path / "sitecustomize.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    async def visit(client: httpx.AsyncClient) -> None:
        problem(await _uploaded(client, DIGITS.read_bytes()), 422, "signal 11")
        (tmp_path / "sitecustomize.py").write_text("raise SystemExit(2)\n")
        problem(await _uploaded(client, DIGITS.read_bytes()), 500)

    _alone(tmp_path / "state", visit)


@pytest.mark.slow
def test_a_dataset_by_name(client: httpx.Client, datasets: Datasets) -> None:
    """MNIST is fetched by its name with its own test split; a second request returns the existing
    dataset.
    """
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
    """An upload of 150 MB, as a form or as a raw body, increases the API's memory by less than 64
    MB.
    """
    count, block = 150, bytes(range(256)) * 4096
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
    assert response.json()["counts"] == {"train": 120, "validation": 15, "test": 15}
    assert _memory_kb(stack, "VmHWM") - before < 64_000
