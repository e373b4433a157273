"""The Python client, on a real service and over bad lines to it."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import json
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
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
    GoneError,
    InternalServerError,
    InvalidError,
    JobFailedError,
    NotFoundError,
    ServiceUnavailableError,
    StillRunningError,
    UnauthorizedError,
    UnexpectedContentError,
    UnreachableError,
)
from reverie.methods import ApiMethods
from reverie.methods.base import ClientMethod
from reverie.records import Event
from tests.api.telling import ENLARGE, FAULTY, MODEL, TINY, opened
from tests.reverie.rough import Rough
from tests.stack import ROOT, Stack, free_port

SLOW: dict[str, Any] = {"steps": 20, "seconds": 0.05}


@pytest.fixture
def reverie(stack: Stack) -> Iterator[Client]:
    """A client of the shared service."""
    with Client(stack.url) as opened:
        yield opened


@pytest.fixture
def rough(stack: Stack) -> Iterator[Rough]:
    """A bad line to the shared service."""
    with Rough(stack.url).open() as line:
        yield line


@pytest.fixture
def patient(rough: Rough) -> Iterator[Client]:
    """A client on the bad line."""
    with Client(rough.url) as opened:
        yield opened


def picture(side: int = 28) -> bytes:
    """A bar on black."""
    pixels = np.zeros((1, side, side), np.uint8)
    pixels[0, 2 : side - 2, side // 2 :] = 255
    return png(pixels)


# --- operations ---


def test_samples_are_pngs_and_the_seed_gives_them_again(reverie: Client) -> None:
    """The answer has model, version, seed and pictures; without a seed one was drawn and said."""
    first = reverie.samples(MODEL, 3)
    again = reverie.samples(MODEL, 3, seed=first.seed)
    assert (first.model, first.version) == (MODEL, "1")
    assert opened(first.images[0]).shape == (28, 28)
    assert first.images == again.images
    assert len(set(first.images)) == 3


def test_every_operation_of_a_card_can_be_asked_for(reverie: Client, tmp_path: Path) -> None:
    """By a method of its name, with pictures as bytes or paths; and by its name alone."""
    path = tmp_path / "bar.png"
    path.write_bytes(picture())
    bar = picture()
    assert len(reverie.manifold(MODEL, size=3).images) == 9
    assert np.shape(reverie.encodings(MODEL, [bar, path, str(path)])["mean"]) == (3, 2)
    assert len(reverie.reconstructions(MODEL, [bar]).images) == 1
    assert len(reverie.interpolations(MODEL, bar, path, steps=5).images) == 5
    assert reverie.energies(MODEL, [path], seed=1)["unit"] == "nats"
    assert reverie.likelihoods(MODEL, [bar], k=10)["k"] == 10
    small, mask = picture(8), picture(8)
    assert len(reverie.inpaintings(TINY, [small, small], mask, 3).images) == 6
    assert reverie.run("energies", MODEL, [bar], seed=1).body == reverie.energies(MODEL, [bar], seed=1).body
    methods = {name for name in dir(ApiMethods) if isinstance(getattr(ApiMethods, name), ClientMethod)}
    for model in reverie.models():
        assert model.operations.keys() <= methods


def test_both_clients_have_the_same_calls(stack: Stack) -> None:
    """What the one answers, the other answers an awaitable of; both say what they take."""

    async def asked() -> None:
        async with AsyncClient(stack.url) as reverie:
            one, two = await asyncio.gather(reverie.samples(MODEL, 2, seed=3), reverie.model(MODEL))
            assert len(one.images) == 2
            assert (two.name, two.family, two.versions[0]) == (MODEL, "vae", "1")
            job = await reverie.submit("samples", TINY, seed=1, **SLOW)
            kinds = [event.kind async for event in reverie.events(job.id)]
            assert kinds[-1] == "status"
            assert "progress" in kinds
            with pytest.raises(NotFoundError):
                await reverie.model("gan")
            assert "count" in inspect.signature(reverie.samples).parameters
            assert reverie.samples.__doc__ == "Draw `count` pictures."

    asyncio.run(asked())


def test_an_answer_is_saved_in_the_form_that_its_name_asks_for(reverie: Client, tmp_path: Path) -> None:
    """PNG, NPZ or JSON of the same request; another name is refused before anything is asked."""
    saved = reverie.save(tmp_path / "a.png", "samples", MODEL, count=4, seed=3)
    assert (saved.media, saved.made_by, saved.seed) == ("image/png", f"{MODEL}@1", 3)
    assert saved.size_bytes == saved.path.stat().st_size
    sheet = opened(saved.path.read_bytes())
    assert sheet.shape == (56, 56)
    reverie.save(tmp_path / "a.npz", "samples", MODEL, count=4, seed=3)
    reverie.save(tmp_path / "a.json", "samples", MODEL, count=4, seed=3)
    with np.load(tmp_path / "a.npz") as kept:
        assert (kept["images"][3, 0] == sheet[28:, 28:]).all()
    assert json.loads((tmp_path / "a.json").read_text())["seed"] == 3
    with pytest.raises(ValueError, match=r"\.png, .*\.npz, \.json"):
        reverie.save(tmp_path / "a.gif", "samples", MODEL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.npz", "a.png"]


# --- jobs ---


def test_what_takes_long_is_waited_for(patient: Client, rough: Rough, tmp_path: Path) -> None:
    """A request that becomes a job is followed to its end and answered as if it had not, watched if one likes."""
    seen: list[float] = []
    rough.adds = {"prefer": "wait=0"}
    answer = patient.run("samples", TINY, seed=5, on_progress=lambda job: seen.append(job.progress), **SLOW)
    saved = patient.save(tmp_path / "a.png", "samples", TINY, seed=5, **SLOW)
    assert saved.path.read_bytes() == answer.images[0]
    assert saved.seed == 5
    assert seen[-1] == 1.0
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    with pytest.raises(JobFailedError, match="bad luck") as failed:
        patient.samples(FAULTY, seed=13)
    assert failed.value.job.status == "failed"


def test_a_job_is_started_watched_and_fetched(reverie: Client, tmp_path: Path) -> None:
    """Start, events, wait, result, list, forget; the result is the same bytes as a direct answer's."""
    job = reverie.submit("samples", TINY, seed=4, **SLOW)
    assert job.status in {"queued", "running"}
    with pytest.raises(StillRunningError) as early:
        reverie.wait(job.id, 0.01)
    assert early.value.job.id == job.id
    with pytest.raises(ConflictError):
        reverie.result(job.id)
    events = list(reverie.events(job.id))
    assert events[-1].data == {"status": "succeeded"}
    progress = [event.data["progress"] for event in events if event.kind == "progress"]
    assert progress == sorted(progress)
    assert list(reverie.events(job.id, after=events[-1].id or 0)) == []
    assert reverie.wait(job.id).status == "succeeded"
    assert reverie.result(job.id).images == reverie.samples(TINY, seed=4, **SLOW).images
    assert reverie.save_result(job.id, tmp_path / "a.png").seed == 4
    assert job.id in [one.id for one in reverie.jobs(kind="samples", model=TINY, limit=None)]
    reverie.delete_job(job.id)
    with pytest.raises(NotFoundError):
        reverie.job(job.id)


def test_lists_are_read_page_by_page(reverie: Client) -> None:
    """As many as asked for, newest first, each once."""
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda seed: reverie.submit("samples", FAULTY, seed=seed).id, range(200, 305)))
    found = reverie.jobs(model=FAULTY, limit=105)
    assert {job.id for job in found} == ids
    since = [datetime.fromisoformat(job["created_at"]) for job in found]
    apart = timedelta(seconds=0.1)  # what is asked for at once may be written down in another order
    assert all(later > earlier - apart for later, earlier in pairwise(since))
    assert [job.id for job in reverie.jobs(model=FAULTY, limit=3)] == [job.id for job in found[:3]]


def test_a_job_may_be_cancelled(reverie: Client) -> None:
    """It ends without a result, and the result's call says so."""
    job = reverie.submit("samples", TINY, seed=4, steps=400, seconds=0.05)
    assert reverie.cancel(job.id).status == "cancelled"
    assert reverie.wait(job.id, 5).ended
    with pytest.raises(ConflictError, match="cancelled"):
        reverie.result(job.id)


# --- versions ---


def test_a_version_goes_out_and_comes_in(patient: Client, rough: Rough, stack: Stack, tmp_path: Path) -> None:
    """The file that was made, over a line that breaks; the same file again is no new version, another is refused."""
    made = stack.state / "checkpoints" / TINY / "1" / "model.safetensors"
    rough.faults += ["drop", 300]
    saved = patient.export_version(TINY, tmp_path / "tiny.safetensors", "1")
    assert saved.path.read_bytes() == made.read_bytes()
    back = patient.import_version(TINY, saved.path)
    assert (back.model, back.version, back.card.family) == (TINY, "1", TINY)
    assert "1" in [one.version for one in patient.versions(TINY)]
    saved.path.write_bytes(b"not a model")
    with pytest.raises(InvalidError, match="imported"):
        patient.import_version(TINY, saved.path)
    with pytest.raises(NotFoundError):
        patient.activate_version(TINY, "99")


# --- datasets ---


def digits(count: int) -> np.ndarray:
    """Pictures of the fixture."""
    with gzip.open(ROOT / "tests" / "fixtures" / "digits-images-idx3-ubyte.gz") as file:
        return np.frombuffer(file.read()[16:], np.uint8).reshape(-1, 1, 28, 28)[:count]


def zipped(path: Path, pictures: np.ndarray) -> Path:
    """A ZIP of PNGs."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, pixels in enumerate(pictures):
            archive.writestr(f"{number:04}.png", png(pixels))
    return path


def test_a_dataset_is_uploaded_looked_at_and_deleted(reverie: Client, tmp_path: Path) -> None:
    """A file as it is, or with its labels; the same again is the same, other content under the name is refused."""
    file = zipped(tmp_path / "digits.zip", digits(40))
    gone: list[int] = []
    made = reverie.upload_dataset("client-digits", file, validation=0.2, test=0.1, on_progress=gone.append)
    assert (made.name, made.kind, made.shape) == ("client-digits", "pictures", (1, 28, 28))
    assert made.counts == {"train": 28, "validation": 8, "test": 4}
    assert gone[-1] == file.stat().st_size
    assert reverie.upload_dataset("client-digits", file, validation=0.2, test=0.1).sha256 == made.sha256
    with pytest.raises(ConflictError):
        reverie.upload_dataset("client-digits", zipped(tmp_path / "other.zip", digits(30)))
    idx, labels = tmp_path / 'the "images"', tmp_path / "labels"
    idx.write_bytes(struct.pack(">HBBIII", 0, 8, 3, 40, 28, 28) + digits(40).tobytes())
    labels.write_bytes(struct.pack(">HBBI", 0, 8, 1, 40) + bytes(40))
    assert sum(reverie.upload_dataset("client-labelled", idx, labels).counts.values()) == 40
    assert reverie.share_dataset("client-digits")["shared"] is True
    with pytest.raises(InvalidError, match="without API keys"):
        reverie.share_dataset("client-digits", shared=False)
    assert (reverie.me().name, reverie.me().roles) == (None, ["read", "run", "train", "admin"])
    names = [dataset.name for dataset in reverie.datasets()]
    assert {"client-digits", "client-labelled"} <= set(names)
    assert reverie.dataset("client-digits").sha256 == made.sha256
    saved = reverie.save_dataset_preview("client-digits", tmp_path / "a.png", split="test", count=4)
    assert opened(saved.path.read_bytes()).shape == (56, 56)
    for name in ("client-digits", "client-labelled"):
        reverie.delete_dataset(name)
    with pytest.raises(NotFoundError):
        reverie.dataset("client-digits")


def test_an_asynchronous_client_uploads_files(stack: Stack, tmp_path: Path) -> None:
    """As the blocking one does, with progress."""
    file = zipped(tmp_path / "digits.zip", digits(40))
    sent: list[int] = []

    async def upload() -> None:
        async with AsyncClient(stack.url) as client:
            dataset = await client.upload_dataset("client-async", file, on_progress=sent.append)
            assert sum(dataset.counts.values()) == 40
            await client.delete_dataset("client-async")

    asyncio.run(upload())
    assert sent[-1] == file.stat().st_size


def test_an_upload_that_broke_off_is_sent_again(patient: Client, rough: Rough, tmp_path: Path) -> None:
    """All of it; and what is wrong with a file is said with the name of the part."""
    file = zipped(tmp_path / "digits.zip", digits(40))
    rough.faults += ["drop", "lose"]
    assert sum(patient.upload_dataset("client-again", file).counts.values()) == 40
    assert [file.read_bytes() in seen.body for seen in rough.seen] == [True] * 3
    patient.delete_dataset("client-again")
    bad = zipped(tmp_path / "bad.zip", digits(3))
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr("broken.png", b"not a picture")
    with pytest.raises(InvalidError, match=r"broken\.png"):
        patient.upload_dataset("client-bad", bad)


# --- trainings ---

TINY_VAE = {"config": {"hidden": [16], "latents": 2}, "training": {"epochs": 100_000, "batch_size": 10}, "seed": 5}


def test_a_training_is_begun_steered_and_cancelled(patient: Client, rough: Rough, tmp_path: Path) -> None:
    """Begun once however often it is sent; paused, resumed and cancelled; refused where its recipe cannot be."""
    patient.upload_dataset("client-train", zipped(tmp_path / "digits.zip", digits(40)))
    rough.seen.clear()
    rough.faults += ["lose"]
    training = patient.train("vae", "client-train", "client-vae", recipe=TINY_VAE, serve="never", summary="Small")
    assert len({seen.headers["idempotency-key"] for seen in rough.seen}) == 1
    assert (training.kind, training.family, training.dataset) == ("training", "vae", "client-train")
    assert (training["recipe"]["seed"], training["summary"], training.version) == (5, "Small", None)
    assert [one.id for one in patient.trainings(model="client-vae")] == [training.id]
    with pytest.raises(ConflictError):
        patient.train("vae", "client-train", "client-vae", recipe=TINY_VAE)
    assert patient.pause(training.id).status == "paused"
    assert patient.resume(training.id).status == "queued"
    with pytest.raises(ConflictError, match=training.id):
        patient.delete_dataset("client-train")
    assert patient.cancel(training.id).status == "cancelled"
    assert patient.training(training.id).ended
    with pytest.raises(ConflictError, match="no checkpoint"):
        patient.publish(training.id)
    assert isinstance(patient.metrics(training.id), list)
    assert isinstance(patient.checkpoints(training.id), list)
    assert patient.save_curves(training.id, tmp_path / "curves.png").media == "image/png"
    with pytest.raises(InvalidError, match=r"recipe\.training\.epochs"):
        patient.train("vae", "client-train", "client-vae", recipe={"training": {"epochs": 0}})


def test_families_say_what_can_be_chosen(reverie: Client) -> None:
    """Each with the schemas of its options and the recipe in force without any."""
    families = {family["name"]: family for family in reverie.families()}
    assert {"vae", "bihm", "ebgan", "superres"} <= families.keys()
    assert families["vae"]["training"]["properties"]["epochs"]["minimum"] == 1
    assert families["vae"]["recipe"]["training"]["epochs"] > 1


# --- refusals ---


def test_a_refusal_is_an_exception_of_its_kind(reverie: Client) -> None:
    """It carries the problem: status, title, detail, the fields and the request's id."""
    with pytest.raises(InvalidError) as wrong:
        reverie.samples(MODEL, temperature="hot")
    assert (wrong.value.code, wrong.value.title) == (422, "Invalid request")
    assert "temperature" in wrong.value.detail
    assert wrong.value.errors[0]["field"].endswith("temperature")
    assert len(wrong.value.request_id) == 32
    with pytest.raises(NotFoundError, match="vae-mnist-2d"):
        reverie.samples("gan")
    with pytest.raises(InternalServerError, match="bad luck"):
        reverie.samples(FAULTY, seed=13)


def test_a_key_is_sent(tmp_path: Path, rough: Rough) -> None:
    """As a bearer token; a service that does not know it is an UnauthorizedError."""
    with Client(rough.url, key="open-sesame") as reverie:
        reverie.models()
        assert rough.seen[-1].headers["authorization"] == "Bearer open-sesame"
        rough.faults += [(401, {})]
        with pytest.raises(UnauthorizedError):
            reverie.models()


def test_address_and_key_come_from_the_environment(rough: Rough, monkeypatch: pytest.MonkeyPatch) -> None:
    """`REVERIE_URL` and `REVERIE_KEY` are the defaults; arguments override them."""
    monkeypatch.setenv("REVERIE_URL", rough.url)
    monkeypatch.setenv("REVERIE_KEY", "open-sesame")
    for key, header in [(None, "Bearer open-sesame"), ("other", "Bearer other"), ("", None)]:
        with Client(key=key) as client:
            client.models()
        assert rough.seen[-1].headers.get("authorization") == header
    monkeypatch.setenv("REVERIE_URL", "")
    with Client() as client:
        assert str(client._http.base_url) == "http://127.0.0.1:8000"


# --- bad lines ---


def test_lost_requests_and_answers_are_asked_for_again(patient: Client, rough: Rough) -> None:
    """With the same body: the seed was drawn before the first attempt."""
    rough.faults += ["drop", "lose", 100]
    assert len(patient.samples(MODEL).images) == 1
    assert len(rough.seen) == 4
    assert len({seen.body for seen in rough.seen}) == 1


def test_a_busy_service_is_asked_again_when_it_says(patient: Client, rough: Rough) -> None:
    """`Retry-After` is obeyed; after so many times it is an ServiceUnavailableError."""
    rough.faults += [(503, {"Retry-After": "1"}), (429, {"Retry-After": "0"})]
    begun = time.monotonic()
    assert patient.models()
    assert time.monotonic() - begun >= 1.0
    rough.faults += [(503, {"Retry-After": "0"})] * 6
    with pytest.raises(ServiceUnavailableError):
        patient.models()
    assert rough.faults == []


def test_a_job_is_started_once_however_often_it_is_sent(patient: Client, rough: Rough, reverie: Client) -> None:
    """The answer was lost after the promise was made: the same key brings the same job, even if it has ended."""
    before = {job.id for job in reverie.jobs(model=FAULTY, limit=None)}
    rough.faults += ["lose", "lose"]
    job = patient.submit("samples", FAULTY, seed=77)
    assert [job.id] == [one.id for one in reverie.jobs(model=FAULTY, limit=None) if one.id not in before]
    assert len({seen.headers["idempotency-key"] for seen in rough.seen if seen.method == "POST"}) == 1
    assert patient.wait(job.id, 10).status == "succeeded"


def test_what_must_not_be_done_twice_is_not_repeated(patient: Client, rough: Rough, reverie: Client) -> None:
    """A deletion whose answer was lost is not sent again, for it would say "not found"; one that never came is."""
    job = reverie.wait(reverie.submit("samples", FAULTY, seed=1).id)
    rough.faults += ["lose"]
    with pytest.raises(UnreachableError):
        patient.delete_job(job.id)
    assert len(rough.seen) == 1


def test_events_go_on_where_the_line_broke(patient: Client, rough: Rough) -> None:
    """Each numbered event comes once and in order, over dropped connections and refusals for a moment."""
    job = patient.submit("samples", TINY, seed=8, **SLOW)
    rough.seen.clear()
    rough.faults += [60, "drop", 90, (503, {"Retry-After": "0"}), 150]
    events = list(patient.events(job.id))
    numbers = [event.id for event in events if event.id is not None]
    assert numbers == list(range(1, len(numbers) + 1))
    assert events[-1] == Event("status", {"status": "succeeded"}, numbers[-1])
    asked = [int(seen.headers["last-event-id"]) for seen in rough.seen]
    assert len(asked) == 6
    assert asked == sorted(asked)
    assert asked[-1] > 0


def test_events_that_are_no_event_stream_are_an_error(patient: Client, rough: Rough) -> None:
    """A page of a proxy, say, is not waited for."""
    rough.faults += [(200, {"Content-Type": "text/html"})]
    with pytest.raises(UnreachableError, match="text/html"):
        next(patient.events("job_0"))


def test_a_download_goes_on_where_it_broke(patient: Client, rough: Rough, tmp_path: Path) -> None:
    """The rest is asked for by range; the file is whole, and nothing half done is left beside it."""
    job = patient.wait(patient.submit("samples", MODEL, count=200, seed=3).id)
    rough.seen.clear()
    rough.faults += [5000, 7000]
    come: list[int] = []
    saved = patient.save_result(job.id, tmp_path / "a.npz", on_progress=come.append)
    ranges = [seen.headers.get("range") for seen in rough.seen]
    assert ranges[0] is None
    assert len(ranges) == 3
    assert all(0 < int((one or "").removeprefix("bytes=").removesuffix("-")) <= 12_000 for one in ranges[1:])
    with np.load(saved.path) as kept:
        assert kept["images"].shape == (200, 1, 28, 28)
    assert come == sorted(come)
    assert come[-1] == saved.path.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_download_that_fails_leaves_no_file(patient: Client, rough: Rough, tmp_path: Path) -> None:
    """Neither the file nor a part of it."""
    job = patient.wait(patient.submit("samples", MODEL, count=200, seed=3).id)
    rough.faults += [5000, (410, {})]
    with pytest.raises(GoneError):
        patient.save_result(job.id, tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [200, 202, 206])
def test_a_picture_file_never_holds_something_else(
    patient: Client, rough: Rough, reverie: Client, tmp_path: Path, status: int
) -> None:
    """Where JSON comes instead of the file, whatever its status, each call that saves raises and writes nothing."""
    done = reverie.wait(reverie.submit("samples", TINY, seed=1).id).id
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "small.png").write_bytes(png(np.full((3, 32, 32), 100, np.uint8)))
    path = tmp_path / "out" / "a.png"
    path.parent.mkdir()
    calls: list[Callable[[], object]] = [
        lambda: patient.save_result(done, path),
        lambda: patient.save_dataset_preview("digits", path),
        lambda: patient.save_curves(done, path),
        lambda: patient.export_version(MODEL, path.with_suffix(".safetensors"), "1"),
    ]
    if status != 202:  # which these two follow to the job's result
        calls += [
            lambda: patient.save(path, "samples", TINY),
            lambda: patient.upscales(tmp_path / "in" / "small.png", path, model=ENLARGE),
        ]
    for call in calls:
        rough.faults = [(status, {"Content-Type": "application/json"})]
        with pytest.raises(UnexpectedContentError, match=rf"was not written.*application/json.*{status}"):
            call()
    rough.faults = [5000, (status, {"Content-Type": "text/html"})]  # what came before is no file either
    with pytest.raises(UnexpectedContentError, match="text/html"):
        patient.export_version(MODEL, path.with_suffix(".safetensors"), "1")
    assert list(path.parent.iterdir()) == []


def test_nobody_there_is_said_soon() -> None:
    """An address where nothing listens is an UnreachableError, after a few attempts."""
    with Client(f"http://127.0.0.1:{free_port()}", retries=2) as reverie, pytest.raises(UnreachableError, match="/v1"):
        reverie.models()


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://localhost", "http://localhost:port", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """Before anything is sent, with an example of one."""
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:8000"):
        Client(url)
