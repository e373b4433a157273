"""The Python client against a real service, directly and through a faulty proxy."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import json
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.imaging.pictures import png
from reverie.client import AsyncClient, Client
from reverie.errors import (
    ConflictError,
    InternalServerError,
    InvalidError,
    JobFailedError,
    NotFoundError,
    StillRunningError,
    UnauthorizedError,
)
from reverie.methods import ApiMethods
from reverie.methods.base import ClientMethod
from tests.api.helpers import FAULTY, MODEL, TINY, decode_image
from tests.reverie.faulty_proxy import FaultyProxy
from tests.stack import ROOT, Stack

SLOW: dict[str, Any] = {"steps": 20, "seconds": 0.05}


def picture(side: int = 28) -> bytes:
    """Return a PNG of a vertical bar on black."""
    pixels = np.zeros((1, side, side), np.uint8)
    pixels[0, 2 : side - 2, side // 2 :] = 255
    return png(pixels)


# --- operations ---


def test_samples_are_pngs_and_reproducible_by_seed(client: Client) -> None:
    """The result has model, version, seed and images; without a seed, the client draws and returns
    one.
    """
    first = client.samples(MODEL, 3)
    again = client.samples(MODEL, 3, seed=first.seed)
    assert (first.model, first.version) == (MODEL, "1")
    assert decode_image(first.images[0]).shape == (28, 28)
    assert first.images == again.images
    assert len(set(first.images)) == 3


def test_every_operation_has_a_method(client: Client, tmp_path: Path) -> None:
    """Each operation has a method; images are bytes or paths, and `run` takes the operation's
    name.
    """
    path = tmp_path / "bar.png"
    path.write_bytes(picture())
    bar = picture()
    assert len(client.manifold(MODEL, size=3).images) == 9
    sheet = client.save_model_sheet(MODEL, tmp_path / "sheet.png")
    assert (sheet.made_by, decode_image(sheet.path.read_bytes()).shape) == (f"{MODEL}@1", (252, 252))
    codes = client.encodings(MODEL, [bar, path, str(path)], seed=1, binarization="threshold")["mean"]
    assert np.shape(codes) == (3, 2)
    file = tmp_path / "codes.npz"
    np.savez(file, codes=np.array(codes))
    decoded = client.decodings(MODEL, codes, 2, seed=5, output="draws").images
    assert len(decoded) == 6
    assert client.decodings(MODEL, file, 2, seed=5, output="draws").images == decoded
    assert client.decodings(MODEL, [tuple(code) for code in codes], 2, seed=5, output="draws").images == decoded
    job = client.wait(client.submit("decodings", MODEL, seed=5, codes=str(file), count=2, output="draws").id)
    assert client.result(job.id).images == decoded
    assert len(client.reconstructions(MODEL, [bar]).images) == 1
    assert len(client.interpolations(MODEL, bar, path, steps=5).images) == 5
    assert client.energies(MODEL, [path], seed=1)["unit"] == "nats"
    assert client.likelihoods(MODEL, [bar], k=10)["k"] == 10
    small, mask = picture(8), picture(8)
    assert len(client.inpaintings(TINY, [small, small], mask, 3).images) == 6
    assert client.run("energies", MODEL, [bar], seed=1).body == client.energies(MODEL, [bar], seed=1).body
    methods = {name for name in dir(ApiMethods) if isinstance(getattr(ApiMethods, name), ClientMethod)}
    for model in client.models():
        assert model.operations.keys() <= methods


def test_both_clients_have_the_same_methods(stack: Stack) -> None:
    """AsyncClient's methods are awaited; both have the same signatures and docstrings."""

    async def use_methods() -> None:
        async with AsyncClient(stack.url) as client:
            one, two = await asyncio.gather(client.samples(MODEL, 2, seed=3), client.model(MODEL))
            assert len(one.images) == 2
            assert (two.name, two.family, two.versions[0]) == (MODEL, "vae", "1")
            job = await client.submit("samples", TINY, seed=1, **SLOW)
            kinds = [event.kind async for event in client.events(job.id)]
            assert kinds[-1] == "status"
            assert "progress" in kinds
            with pytest.raises(NotFoundError):
                await client.model("gan")
            assert "count" in inspect.signature(client.samples).parameters
            assert client.samples.__doc__ == "Draw `count` samples; the result has `images`."

    asyncio.run(use_methods())


def test_the_suffix_chooses_the_format(client: Client, tmp_path: Path) -> None:
    """PNG, NPZ and JSON of one request agree; another suffix is rejected before a request is
    sent.
    """
    saved = client.save(tmp_path / "a.png", "samples", MODEL, count=4, seed=3)
    assert (saved.media, saved.made_by, saved.seed) == ("image/png", f"{MODEL}@1", 3)
    assert saved.size_bytes == saved.path.stat().st_size
    sheet = decode_image(saved.path.read_bytes())
    assert sheet.shape == (56, 56)
    client.save(tmp_path / "a.npz", "samples", MODEL, count=4, seed=3)
    client.save(tmp_path / "a.json", "samples", MODEL, count=4, seed=3)
    with np.load(tmp_path / "a.npz") as kept:
        assert (kept["images"][3, 0] == sheet[28:, 28:]).all()
    assert json.loads((tmp_path / "a.json").read_text())["seed"] == 3
    with pytest.raises(ValueError, match=r"\.png, .*\.npz, \.json"):
        client.save(tmp_path / "a.gif", "samples", MODEL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.npz", "a.png"]


# --- jobs ---


def test_a_request_that_becomes_a_job_is_waited_for(proxied: Client, proxy: FaultyProxy, tmp_path: Path) -> None:
    """The method returns the job's result and reports its progress; a failed job raises."""
    seen: list[float] = []
    proxy.adds = {"prefer": "wait=0"}
    response = proxied.run("samples", TINY, seed=5, on_progress=lambda job: seen.append(job.progress), **SLOW)
    saved = proxied.save(tmp_path / "a.png", "samples", TINY, seed=5, **SLOW)
    assert saved.path.read_bytes() == response.images[0]
    assert saved.seed == 5
    assert seen[-1] == 1.0
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    with pytest.raises(JobFailedError, match="bad luck") as failed:
        proxied.samples(FAULTY, seed=13)
    assert failed.value.job.status == "failed"


def test_a_job_from_start_to_deletion(client: Client, tmp_path: Path) -> None:
    """A job is submitted, watched, waited for, listed and deleted; its result equals the
    synchronous one.
    """
    job = client.submit("samples", TINY, seed=4, **SLOW)
    assert job.status in {"queued", "running"}
    with pytest.raises(StillRunningError) as early:
        client.wait(job.id, 0.01)
    assert early.value.job.id == job.id
    with pytest.raises(ConflictError):
        client.result(job.id)
    events = list(client.events(job.id))
    assert events[-1].data == {"status": "succeeded"}
    progress = [event.data["progress"] for event in events if event.kind == "progress"]
    assert progress == sorted(progress)
    assert list(client.events(job.id, after=events[-1].id or 0)) == []
    assert client.wait(job.id).status == "succeeded"
    assert client.result(job.id).images == client.samples(TINY, seed=4, **SLOW).images
    assert client.save_result(job.id, tmp_path / "a.png").seed == 4
    assert job.id in [one.id for one in client.jobs(kind="samples", model=TINY, limit=None)]
    client.delete_job(job.id)
    with pytest.raises(NotFoundError):
        client.job(job.id)


def test_lists_are_read_page_by_page(client: Client) -> None:
    """A list has at most `limit` entries, newest first, each once."""
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda seed: client.submit("samples", FAULTY, seed=seed).id, range(200, 305)))
    jobs = client.jobs(model=FAULTY, limit=105)
    assert {job.id for job in jobs} == ids
    created = [datetime.fromisoformat(job["created_at"]) for job in jobs]
    tolerance = timedelta(seconds=0.1)  # concurrent requests may be stored in another order
    assert all(later > earlier - tolerance for later, earlier in pairwise(created))
    assert [job.id for job in client.jobs(model=FAULTY, limit=3)] == [job.id for job in jobs[:3]]


def test_a_job_can_be_cancelled(client: Client) -> None:
    """A cancelled job has no result, and requesting it raises."""
    job = client.submit("samples", TINY, seed=4, steps=400, seconds=0.05)
    assert client.cancel(job.id).status == "cancelled"
    assert client.wait(job.id, 5).ended
    with pytest.raises(ConflictError, match="cancelled"):
        client.result(job.id)


# --- versions ---


def test_a_version_is_exported_and_imported(proxied: Client, proxy: FaultyProxy, stack: Stack, tmp_path: Path) -> None:
    """An export equals the original, over a broken connection; importing it again adds no version;
    invalid files are rejected.
    """
    made = stack.state / "checkpoints" / TINY / "1" / "model.safetensors"
    proxy.faults += ["drop", 300]
    saved = proxied.export_version(TINY, tmp_path / "tiny.safetensors", "1")
    assert saved.path.read_bytes() == made.read_bytes()
    back = proxied.import_version(TINY, saved.path)
    assert (back.model, back.version, back.card.family) == (TINY, "1", TINY)
    assert "1" in [one.version for one in proxied.versions(TINY)]
    saved.path.write_bytes(b"not a model")
    with pytest.raises(InvalidError, match="imported"):
        proxied.import_version(TINY, saved.path)
    with pytest.raises(NotFoundError):
        proxied.activate_version(TINY, "99")


# --- datasets ---


def digits(count: int) -> np.ndarray:
    """Return the first `count` images of the fixture."""
    with gzip.open(ROOT / "tests" / "fixtures" / "digits-images-idx3-ubyte.gz") as file:
        return np.frombuffer(file.read()[16:], np.uint8).reshape(-1, 1, 28, 28)[:count]


def zipped(path: Path, pictures: np.ndarray) -> Path:
    """Write the pictures as a ZIP of PNGs."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, pixels in enumerate(pictures):
            archive.writestr(f"{number:04}.png", png(pixels))
    return path


def test_a_dataset_is_uploaded_shown_and_deleted(client: Client, tmp_path: Path) -> None:
    """A dataset is uploaded with or without labels; equal content returns the same dataset, other
    content under the name is rejected.
    """
    file = zipped(tmp_path / "digits.zip", digits(40))
    gone: list[int] = []
    made = client.upload_dataset("client-digits", file, validation=0.2, test=0.1, on_progress=gone.append)
    assert (made.name, made.kind, made.shape) == ("client-digits", "pictures", (1, 28, 28))
    assert made.counts == {"train": 28, "validation": 8, "test": 4}
    assert gone[-1] == file.stat().st_size
    assert client.upload_dataset("client-digits", file, validation=0.2, test=0.1).sha256 == made.sha256
    with pytest.raises(ConflictError):
        client.upload_dataset("client-digits", zipped(tmp_path / "other.zip", digits(30)))
    idx, labels = tmp_path / 'the "images"', tmp_path / "labels"
    idx.write_bytes(struct.pack(">HBBIII", 0, 8, 3, 40, 28, 28) + digits(40).tobytes())
    labels.write_bytes(struct.pack(">HBBI", 0, 8, 1, 40) + bytes(40))
    assert sum(client.upload_dataset("client-labelled", idx, labels).counts.values()) == 40
    assert client.share_dataset("client-digits")["shared"] is True
    with pytest.raises(InvalidError, match="without API keys"):
        client.share_dataset("client-digits", shared=False)
    assert (client.me().name, client.me().roles) == (None, ["read", "run", "train", "admin"])
    names = [dataset.name for dataset in client.datasets()]
    assert {"client-digits", "client-labelled"} <= set(names)
    assert client.dataset("client-digits").sha256 == made.sha256
    saved = client.save_dataset_preview("client-digits", tmp_path / "a.png", split="test", count=4)
    assert decode_image(saved.path.read_bytes()).shape == (56, 56)
    listed = client.dataset_images("client-labelled", after=4, limit=3)
    assert [(image.index, image.label) for image in listed] == [(5, 0), (6, 0), (7, 0)]
    assert client.dataset_images("client-digits", split="test", limit=1)[0].label is None
    sheet = client.save_dataset_images("client-digits", tmp_path / "b.png", split="test", limit=2, columns=2)
    assert decode_image(sheet.path.read_bytes()).shape == (28, 56)
    with np.load(client.save_dataset_images("client-labelled", tmp_path / "b.npz", limit=3).path) as arrays:
        assert arrays["images"].shape == (3, 1, 28, 28)
    for name in ("client-digits", "client-labelled"):
        client.delete_dataset(name)
    with pytest.raises(NotFoundError):
        client.dataset("client-digits")


def test_an_asynchronous_client_uploads_files(stack: Stack, tmp_path: Path) -> None:
    """AsyncClient uploads files with progress, as Client does."""
    file = zipped(tmp_path / "digits.zip", digits(40))
    sent: list[int] = []

    async def upload() -> None:
        async with AsyncClient(stack.url) as client:
            dataset = await client.upload_dataset("client-async", file, on_progress=sent.append)
            assert sum(dataset.counts.values()) == 40
            await client.delete_dataset("client-async")

    asyncio.run(upload())
    assert sent[-1] == file.stat().st_size


def test_an_interrupted_upload_is_sent_again(proxied: Client, proxy: FaultyProxy, tmp_path: Path) -> None:
    """An interrupted upload is sent again as a whole; an error names the bad file in the
    archive.
    """
    file = zipped(tmp_path / "digits.zip", digits(40))
    proxy.faults += ["drop", "lose"]
    assert sum(proxied.upload_dataset("client-again", file).counts.values()) == 40
    assert [file.read_bytes() in seen.body for seen in proxy.seen] == [True] * 3
    proxied.delete_dataset("client-again")
    bad = zipped(tmp_path / "bad.zip", digits(3))
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr("broken.png", b"not a picture")
    with pytest.raises(InvalidError, match=r"broken\.png"):
        proxied.upload_dataset("client-bad", bad)


# --- trainings ---

TINY_VAE = {"config": {"hidden": [16], "latents": 2}, "training": {"epochs": 100_000, "batch_size": 10}, "seed": 5}


def test_a_training_is_started_paused_resumed_and_cancelled(
    proxied: Client, proxy: FaultyProxy, tmp_path: Path
) -> None:
    """A retried start makes one training; an invalid recipe is rejected."""
    proxied.upload_dataset("client-train", zipped(tmp_path / "digits.zip", digits(40)))
    proxy.seen.clear()
    proxy.faults += ["lose"]
    training = proxied.train("vae", "client-train", "client-vae", recipe=TINY_VAE, serve="never", summary="Small")
    assert len({seen.headers["idempotency-key"] for seen in proxy.seen}) == 1
    assert (training.kind, training.family, training.dataset) == ("training", "vae", "client-train")
    assert (training["recipe"]["seed"], training["summary"], training.version) == (5, "Small", None)
    assert [one.id for one in proxied.trainings(model="client-vae")] == [training.id]
    with pytest.raises(ConflictError):
        proxied.train("vae", "client-train", "client-vae", recipe=TINY_VAE)
    assert proxied.pause(training.id).status == "paused"
    assert proxied.resume(training.id).status in {"queued", "running"}
    with pytest.raises(ConflictError, match=training.id):
        proxied.delete_dataset("client-train")
    assert proxied.cancel(training.id).status == "cancelled"
    assert proxied.training(training.id).ended
    with pytest.raises(ConflictError, match="no checkpoint"):
        proxied.publish(training.id)
    assert isinstance(proxied.metrics(training.id), list)
    assert isinstance(proxied.checkpoints(training.id), list)
    assert isinstance(proxied.training_previews(training.id), list)
    with pytest.raises(NotFoundError, match="no preview of epoch 99"):
        proxied.training_preview(training.id, 99)
    assert proxied.save_curves(training.id, tmp_path / "curves.png").media == "image/png"
    with pytest.raises(InvalidError, match=r"recipe\.training\.epochs"):
        proxied.train("vae", "client-train", "client-vae", recipe={"training": {"epochs": 0}})


def test_families_list_their_options(client: Client) -> None:
    """Each family has the schemas of its options and its default recipe."""
    families = {family["name"]: family for family in client.families()}
    assert {"vae", "bihm", "ebgan", "superres"} <= families.keys()
    assert families["vae"]["training"]["properties"]["epochs"]["minimum"] == 1
    assert families["vae"]["recipe"]["training"]["epochs"] > 1


# --- errors ---


def test_an_error_response_raises_the_class_of_its_status(client: Client) -> None:
    """The exception has status, title, detail, fields and request id."""
    with pytest.raises(InvalidError) as wrong:
        client.samples(MODEL, temperature="hot")
    assert (wrong.value.code, wrong.value.title) == (422, "Invalid request")
    assert "temperature" in wrong.value.detail
    assert wrong.value.errors[0]["field"].endswith("temperature")
    assert len(wrong.value.request_id) == 32
    with pytest.raises(NotFoundError, match="vae-mnist-2d"):
        client.samples("gan")
    with pytest.raises(InternalServerError, match="bad luck"):
        client.samples(FAULTY, seed=13)


def test_a_key_is_sent(tmp_path: Path, proxy: FaultyProxy) -> None:
    """The key is sent as a bearer token; an unknown one raises UnauthorizedError."""
    with Client(proxy.url, key="open-sesame") as client:
        client.models()
        assert proxy.seen[-1].headers["authorization"] == "Bearer open-sesame"
        proxy.faults += [(401, {})]
        with pytest.raises(UnauthorizedError):
            client.models()


def test_address_and_key_come_from_the_environment(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """`REVERIE_URL` and `REVERIE_KEY` are the defaults; arguments override them."""
    monkeypatch.setenv("REVERIE_URL", proxy.url)
    monkeypatch.setenv("REVERIE_KEY", "open-sesame")
    for key, header in [(None, "Bearer open-sesame"), ("other", "Bearer other"), ("", None)]:
        with Client(key=key) as client:
            client.models()
        assert proxy.seen[-1].headers.get("authorization") == header
    monkeypatch.setenv("REVERIE_URL", "")
    with Client() as client:
        assert str(client._http.base_url) == "http://127.0.0.1:8000"
