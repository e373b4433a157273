"""Webhooks, deliveries, and images and datasets by URL in the Python client and the command
line.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.imaging.pictures import png
from reverie import AsyncClient, Client
from reverie.cli import main
from reverie.errors import UnreachableError
from tests.api.helpers import ENLARGE, MODEL, TINY, encode_image
from tests.reverie.faulty_proxy import FaultyProxy
from tests.reverie.interrupts import interrupt_waiting
from tests.stack import Stack
from tests.waiting import wait_until
from tests.webhooks.pictures import FileServer, endless
from tests.webhooks.receiver import Receiver
from tests.webhooks.test_jobs import verified

SHORT = {"config": {"hidden": [16], "latents": 2}, "training": {"epochs": 2, "batch_size": 10}}


@pytest.fixture
def client(hooked: Stack) -> Iterator[Client]:
    """A client of the service that may connect to this machine."""
    with Client(hooked.url) as connected:
        yield connected


@pytest.fixture
def proxy(hooked: Stack) -> Iterator[FaultyProxy]:
    """A faulty proxy in front of that service."""
    with FaultyProxy(hooked.url).open() as line:
        yield line


def npz() -> bytes:
    """Return an NPZ of pictures."""
    buffer = io.BytesIO()
    np.savez(buffer, images=np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8))
    return buffer.getvalue()


def test_operations_take_a_webhook_and_list_its_deliveries(hooked: Stack, client: Client, receiver: Receiver) -> None:
    """A webhook is given as a URL or with events; the method returns the result, and deliveries can
    be listed.
    """
    assert len(client.samples(MODEL, 2, seed=1, webhook=receiver.url).images) == 2
    webhook = {"url": receiver.url, "events": ["job.running", "job.succeeded"]}
    job = client.submit("samples", MODEL, seed=2, count=1, webhook=webhook)
    client.wait(job.id)
    found = wait_until(lambda: [one for one in client.deliveries(job.id) if one.status == "delivered"][1:], "both")
    assert found
    deliveries = client.deliveries(job.id)
    assert {one.event for one in deliveries} == set(webhook["events"])
    assert [(one.attempts, one.error, one.url) for one in deliveries] == [(1, None, receiver.url)] * 2
    wait_until(lambda: len(receiver.requests) == 3, "all have arrived")
    for request in receiver.requests:
        verified(hooked, request)

    async def listed() -> int:
        async with AsyncClient(hooked.url) as connected:
            return len(await connected.deliveries(job.id, limit=1))

    assert asyncio.run(listed()) == 1


def test_pictures_may_be_urls(
    client: Client, files: FileServer, receiver: Receiver, digit: bytes, tmp_path: Path
) -> None:
    """Images of all operations may be URLs; URLs and files are not mixed, because their order would
    be lost.
    """
    half = np.zeros((1, 8, 8), np.uint8)
    half[:, 4:] = 255
    small = png(np.full((1, 8, 8), 100, np.uint8))
    large = encode_image(Image.fromarray(np.full((20, 30, 3), 90, np.uint8)))
    files.files = {"/digit.png": digit, "/small.png": small, "/mask.png": png(half), "/large.png": large}
    by_url = client.encodings(MODEL, [f"{files.url}/digit.png"], seed=1)
    assert by_url.body == client.encodings(MODEL, [digit], seed=1).body
    by_url = client.inpaintings(TINY, [f"{files.url}/small.png"], f"{files.url}/mask.png", seed=1)
    assert by_url.images == client.inpaintings(TINY, [small], png(half), seed=1).images
    (tmp_path / "large.png").write_bytes(large)
    pictures: tuple[bytes | str | Path, ...] = (f"{files.url}/large.png", tmp_path / "large.png", large)
    saved = [
        client.upscales(picture, tmp_path / f"{number}.png", model=ENLARGE, scale=2, seed=1, webhook=receiver.url)
        for number, picture in enumerate(pictures)
    ]
    assert len({one.path.read_bytes() for one in saved}) == 1
    with pytest.raises(ValueError, match="by URL, or none"):
        client.encodings(MODEL, [digit, f"{files.url}/digit.png"])
    wait_until(lambda: len(receiver.requests) == 3, "the webhooks of the upscales have arrived")


def test_a_request_that_always_makes_a_job_makes_one(
    client: Client, proxy: FaultyProxy, files: FileServer, receiver: Receiver, digit: bytes, tmp_path: Path
) -> None:
    """If the 202 is lost, the retry of a request with a webhook or URLs finds the job by its key."""
    half = np.zeros((1, 8, 8), np.uint8)
    half[:, 4:] = 255
    small = png(np.full((1, 8, 8), 100, np.uint8))
    large = encode_image(Image.fromarray(np.full((20, 30, 3), 90, np.uint8)))
    files.files = {"/digit.png": digit, "/mask.png": png(half), "/large.png": large}
    np.savez(tmp_path / "codes.npz", codes=np.zeros((1, 2)))
    (tmp_path / "large.png").write_bytes(large)
    url, out, hook = files.url, tmp_path / "out.png", receiver.url
    with Client(proxy.url) as proxied:
        calls: list[Callable[[], object]] = [
            lambda: proxied.run("samples", MODEL, webhook=hook),
            lambda: proxied.save(out, "samples", MODEL, webhook=hook),
            lambda: proxied.decodings(MODEL, tmp_path / "codes.npz", webhook=hook),
            lambda: proxied.encodings(MODEL, [f"{url}/digit.png"]),
            lambda: proxied.inpaintings(TINY, [small], f"{url}/mask.png"),
            lambda: proxied.upscales(f"{url}/large.png", out, model=ENLARGE),
            lambda: proxied.upscales(tmp_path / "large.png", out, model=ENLARGE, webhook=hook),
        ]
        for call in calls:
            before, proxy.faults = {job.id for job in client.jobs(limit=None)}, ["lose"]
            proxy.seen.clear()
            call()
            posts = [seen.headers for seen in proxy.seen if seen.method == "POST"]
            assert len(posts) == 2
            assert len({headers["idempotency-key"] for headers in posts}) == 1
            assert len({job.id for job in client.jobs(limit=None)} - before) == 1
        proxy.seen.clear()
        proxied.samples(MODEL, webhook=None)
        assert "idempotency-key" not in proxy.seen[-1].headers
    wait_until(lambda: len(receiver.requests) == 4, "one webhook for each job")


def test_a_request_for_a_job_without_a_key_is_not_retried(
    client: Client, proxy: FaultyProxy, files: FileServer, receiver: Receiver
) -> None:
    """Fetched datasets and dry runs take no key; if their response is lost, the client raises."""
    files.files = {"/some.npz": npz()}
    with Client(proxy.url) as proxied:
        proxy.faults = ["lose"]
        with pytest.raises(UnreachableError):
            proxied.fetch_dataset(f"{files.url}/some.npz", "once", webhook=receiver.url)
        assert len(proxy.seen) == 1
        (job,) = client.jobs(kind="dataset", limit=1)
        assert client.wait(job.id).status == "succeeded"
        proxy.seen.clear()
        proxy.faults = ["lose"]
        with pytest.raises(UnreachableError):
            proxied.estimate("vae", "once", "once", recipe=SHORT)
        assert len(proxy.seen) == 1
        estimate = proxied.estimate("vae", "once", "once", recipe=SHORT, webhook=receiver.url, deadline_s=60)
    assert estimate["parameters"] > 0
    wait_until(lambda: len(receiver.requests) == 2, "the webhooks of the dataset and of the dry run")
    assert json.loads(receiver.requests[-1]["body"])["data"]["kind"] == "estimate"
    client.delete_dataset("once")


def test_a_dataset_by_url_and_its_webhook(client: Client, files: FileServer, receiver: Receiver) -> None:
    """The client waits for the job and returns the dataset."""
    files.files = {"/some.npz": npz()}
    dataset = client.fetch_dataset(f"{files.url}/some.npz", "by-url", test=0.2, webhook=receiver.url)
    assert (dataset.name, dataset.shape, dataset.counts["test"]) == ("by-url", (1, 8, 8), 12)
    wait_until(lambda: receiver.requests, "the webhook has arrived")
    body = json.loads(receiver.requests[0]["body"])
    assert (body["type"], body["data"]["kind"]) == ("job.succeeded", "dataset")
    client.delete_dataset("by-url")


def test_the_command_line_has_them_too(
    hooked: Stack,
    client: Client,
    files: FileServer,
    receiver: Receiver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command line has `--webhook`, `jobs deliveries`, and images and datasets by URL."""
    monkeypatch.setenv("REVERIE_URL", hooked.url)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            main(words)
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out + captured.err

    files.files = {"/large.png": encode_image(Image.fromarray(np.full((20, 30, 3), 90, np.uint8))), "/d.npz": npz()}
    hook = ("--webhook", receiver.url, "--webhook-event", "job.succeeded")
    assert run("sample", MODEL, "-n", "4", "-o", "digits.png", *hook)[0] == 0
    (job,) = client.jobs(kind="samples", limit=1)
    wait_until(lambda: receiver.requests, "the webhook has arrived")
    wait_until(lambda: client.deliveries(job.id)[0].status == "delivered", "its outcome is written")
    status, output = run("jobs", "deliveries", job.id)
    assert status == 0
    assert "job.succeeded" in output
    assert "delivered" in output
    assert run("upscale", f"{files.url}/large.png", "--model", ENLARGE, "--scale", "2")[0] == 0
    assert (tmp_path / "large-large.png").exists()
    assert run("datasets", "add", f"{files.url}/d.npz")[0] == 0
    assert client.dataset("d").kind == "pictures"
    client.delete_dataset("d")
    assert run("upscale", "nowhere.png")[0] == 2
    assert run("sample", MODEL, "--webhook-event", "job.failed")[0] == 2
    assert run("sample", MODEL, "--webhook", "ftp://example.com")[0] == 1


def test_ctrl_c_cancels_a_job_without_a_webhook(
    client: Client, proxy: FaultyProxy, files: FileServer, receiver: Receiver
) -> None:
    """If a command is interrupted, its job with a webhook continues, and the command says how to
    get the result; any other job, such as a download of a dataset, is cancelled.
    """
    files.files = {"/endless.zip": endless}
    status, err, job_id = interrupt_waiting(proxy, "datasets", "add", f"{files.url}/endless.zip")
    assert (status, err.splitlines()[-1]) == (130, f"{job_id} was cancelled")
    assert client.job(job_id).status == "cancelled"
    proxy.seen.clear()
    slow = ["--set", "steps=40", "--set", "seconds=0.05", "-o", "-"]
    status, err, job_id = interrupt_waiting(proxy, "sample", TINY, *slow, "--webhook", receiver.url)
    assert status == 130
    assert f"{job_id} continues" in err
    assert f"reverie jobs result {job_id}" in err
    assert client.wait(job_id).status == "succeeded"


def test_a_dry_run_has_a_webhook(
    hooked: Stack, client: Client, receiver: Receiver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train --dry-run --webhook` sends the webhook when the dry run ends."""
    (tmp_path / "dry.npz").write_bytes(npz())
    client.upload_dataset("dry", tmp_path / "dry.npz")
    small = ("--set", "config.hidden=[16]", "--set", "training.epochs=2", "--set", "training.batch_size=10")
    with pytest.raises(SystemExit) as end:
        main(["--url", hooked.url, "train", "vae", "dry", *small, "--dry-run", "--webhook", receiver.url])
    assert not end.value.code
    assert capsys.readouterr().out.startswith("parameters")
    wait_until(lambda: receiver.requests, "the webhook has arrived")
    client.delete_dataset("dry")
