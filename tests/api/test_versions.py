"""Deletion of models and versions, and the limit on old versions."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from api import versions as version_service
from core.catalog.versions import HIDDEN, VersionActiveError, Versions
from core.jobs.store import JobStore
from core.resources import ResourceStore
from core.settings import Settings
from tests.api.callers import app_settings, application, key_file, key_line, state_of
from tests.api.helpers import MODEL, problem
from tests.api.test_ownership import publish
from tests.stack import Stack
from tests.version_files import SHIPPED, with_card, with_other_weights

LATER = {"Prefer": "respond-async"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a service with a model of three versions, of which the second is active."""
    chosen_ = app_settings(tmp_path)
    for version in "123":
        publish(chosen_, "mine", version)
    Versions(chosen_.state / "checkpoints").activate("mine", "2")
    return chosen_


def versions(client_body: dict[str, list[str]]) -> list[str]:
    """Return the versions of a model's body."""
    return client_body["versions"]


def test_a_version_is_deleted(settings: Settings) -> None:
    """An inactive version is deleted with its file, and its number is not used again; the active
    one is 409.
    """

    async def visit() -> None:
        async with application(settings, "", "") as (client, _other):
            assert (await client.delete("/v1/models/mine/versions/1")).status_code == 204
            for path in ("", "/file", "/preview"):
                problem(await client.get(f"/v1/models/mine/versions/1{path}"), 404, "there are: 2, 3")
            problem(await client.post("/v1/samples", json={"model": "mine@1"}), 404)
            assert versions((await client.get("/v1/models/mine")).json()) == ["2", "3"]
            problem(await client.delete("/v1/models/mine/versions/1"), 404)
            problem(await client.delete("/v1/models/mine/versions/2"), 409, "serves", "PATCH")
            problem(await client.delete("/v1/models/nothing/versions/2"), 404)
            assert (await client.delete("/v1/models/mine/versions/3")).status_code == 204
            problem(await client.delete("/v1/models/mine/versions/2"), 409, "DELETE /v1/models/mine")
        store = Versions(settings.state / "checkpoints")
        assert [path.parent.name for path in store.folder.glob("mine/*/model.safetensors")] == ["2"]
        assert store.reserve("mine", ["2"]) == "4"

    asyncio.run(visit())


def test_a_model_is_deleted(settings: Settings) -> None:
    """A model is deleted with all its versions and files."""

    async def visit() -> None:
        async with application(settings, "") as (client,):
            assert (await client.delete("/v1/models/mine")).status_code == 204
            problem(await client.get("/v1/models/mine"), 404)
            problem(await client.get("/v1/models/mine/versions"), 404)
            problem(await client.delete("/v1/models/mine"), 404)
            assert "mine" not in (await client.get("/v1/models")).text
        assert not list(settings.state.glob("checkpoints/mine/*/*.safetensors"))
        assert not list(settings.state.glob(f"checkpoints/mine/*/{HIDDEN}"))
        assert "mine" not in json.loads((settings.state / "checkpoints" / "serving.json").read_bytes())

    asyncio.run(visit())


def test_versions_and_models_in_use_are_not_deleted(settings: Settings) -> None:
    """A version or model with an unfinished job is 409 and stays as it is, until the job has
    ended.
    """

    async def visit() -> None:
        async with application(settings, "") as (client,):
            fields = {"model": "mine@3", "seed": 1}
            job = (await client.post("/v1/samples", json=fields, headers=LATER)).json()
            problem(await client.delete("/v1/models/mine/versions/3"), 409, "in use")
            problem(await client.delete("/v1/models/mine"), 409, "in use")
            assert versions((await client.get("/v1/models/mine")).json()) == ["1", "2", "3"]
            assert (await client.delete("/v1/models/mine/versions/1")).status_code == 204
            await client.post(f"/v1/jobs/{job['id']}/cancel")
            assert (await client.delete("/v1/models/mine/versions/3")).status_code == 204

    asyncio.run(visit())


@pytest.mark.parametrize("path", ["/v1/models/mine/versions/3", "/v1/models/mine"])
def test_a_job_that_comes_meanwhile_keeps_it(settings: Settings, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If another API process accepts a job during a deletion, the deletion is undone with 409."""

    async def visit() -> None:
        async with application(settings, "") as (client,), application(settings, "") as (late,):
            fields = {"model": "mine@3", "seed": 1}
            deleting = asyncio.create_task(client.delete(path))
            hidden = settings.state / "checkpoints" / "mine" / "3" / HIDDEN
            while not hidden.exists():  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.001)
            late_job = await late.post("/v1/samples", json=fields, headers=LATER)
            response = await deleting
            assert late_job.status_code in {202, 404}
            if late_job.status_code == 404:  # it scanned while the version was hidden
                assert response.status_code == 204
                return
            problem(response, 409, "in use")
            body = (await client.get("/v1/models/mine")).json()
            assert (body["version"], body["versions"]) == ("2", ["1", "2", "3"])

    asyncio.run(visit())


def test_a_cancelled_deletion_is_undone(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deletion that is cancelled while it hides the versions makes them available again."""

    async def visit() -> None:
        async with application(settings, "") as (client,):
            state = state_of(client)
            hide, begun, go_on = state.versions.hide, threading.Event(), threading.Event()

            def slow_hide(*arguments: Any, **more: Any) -> dict[str, str]:
                begun.set()
                assert go_on.wait(30)
                return hide(*arguments, **more)

            monkeypatch.setattr(state.versions, "hide", slow_hide)
            task = asyncio.create_task(version_service.remove_versions(state, "mine", ["1", "2", "3"], model=True))
            await asyncio.to_thread(begun.wait, 30)
            task.cancel()
            await asyncio.sleep(0.05)
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0.2)  # without the undo, the thread hides them about now
            state.registry.scan()
            body = (await client.get("/v1/models/mine")).json()
            assert (body["version"], body["versions"]) == ("2", ["1", "2", "3"])

    asyncio.run(visit())


def test_a_version_that_is_deleted_during_a_request_is_404(settings: Settings) -> None:
    """Its preview and file are 404, and an import of the same bytes finds another version."""

    async def visit() -> None:
        async with application(settings, "") as (client,):
            path = settings.state / "checkpoints" / "mine" / "1" / "model.safetensors"
            content = path.read_bytes()
            path.unlink()  # the service does not know
            for part in ("file", "preview"):
                problem(await client.get(f"/v1/models/mine/versions/1/{part}"), 404, "mine@1 was deleted meanwhile")
            raw = {"Content-Type": "application/octet-stream"}
            same = await client.post("/v1/models/mine/versions", content=content, headers=raw)
            assert (same.status_code, same.json()["version"]) == (200, "2")

    asyncio.run(visit())


def test_candidates_are_not_deleted(settings: Settings) -> None:
    """A version that workers are loading cannot be deleted (409), nor its model."""
    store = Versions(settings.state / "checkpoints")
    store.stage("mine", "3")

    async def visit() -> None:
        async with application(settings, "") as (client,):
            problem(await client.delete("/v1/models/mine/versions/3"), 409, "being activated")
            problem(await client.delete("/v1/models/mine"), 409, "being activated")

    asyncio.run(visit())
    with pytest.raises(VersionActiveError):
        store.hide("mine", ["2"])


@pytest.mark.parametrize("ended", [False, True])
def test_the_later_of_two_activations_wins(settings: Settings, monkeypatch: pytest.MonkeyPatch, ended: bool) -> None:
    """If another version is chosen while one is loaded, the first request is 409, stops no worker
    and changes nothing.
    """
    store = Versions(settings.state / "checkpoints")
    loaded = {"state": "ready", "capacity": {"mine@3": {}}, "refused": {}, "at": 0.0}

    def live_workers() -> dict[str, object]:
        store.stage("mine", "1")
        if ended:
            store.activate("mine", "1")
        return {"w": loaded}

    async def visit() -> None:
        async with application(settings, "") as (client,):
            monkeypatch.setattr(state_of(client).batch_sender, "live_workers", live_workers)
            response = await client.patch("/v1/models/mine", json={"version": "3"})
            problem(response, 409, "another version was chosen", "GET /v1/models/mine")

    asyncio.run(visit())
    assert store.pointers()["mine"] == ({"serves": "1"} if ended else {"serves": "2", "next": "1"})


def test_shipped_versions_are_not_deleted(settings: Settings) -> None:
    """Shipped versions cannot be deleted; versions added to a shipped model can."""
    publish(settings, MODEL, "2")

    async def visit() -> None:
        async with application(settings, "") as (client,):
            problem(await client.delete(f"/v1/models/{MODEL}"), 409, "comes with the service (version 1)")
            problem(await client.delete(f"/v1/models/{MODEL}/versions/1"), 409, "comes with the service")
            Versions(settings.state / "checkpoints").activate(MODEL, "1")
            assert (await client.delete(f"/v1/models/{MODEL}/versions/2")).status_code == 204
            assert (await client.get(f"/v1/models/{MODEL}")).json()["version"] == "1"

    asyncio.run(visit())
    assert SHIPPED.exists()


def test_a_deleted_model_frees_its_name(tmp_path: Path) -> None:
    """After a deletion another owner may use the name; numbers of versions are not used again."""

    async def visit() -> None:
        settings = app_settings(tmp_path, api_keys=key_file(tmp_path, key_line("ann"), key_line("bob")))
        async with application(settings, "ann", "bob") as (ann, bob):
            publish(settings, "mine")
            await asyncio.sleep(1.1)  # registries look for new versions once a second
            store = Versions(settings.state / "checkpoints")
            owners = ResourceStore(JobStore(settings.database).engine)
            owners.claim("model", "mine", "ann", shared=False)
            problem(await bob.delete("/v1/models/mine"), 404)
            assert (await ann.delete("/v1/models/mine")).status_code == 204
            assert owners.all() == {}
            assert store.reserve("mine", []) == "2"

    asyncio.run(visit())


@pytest.mark.parametrize(("keep", "left"), [(1, ["2", "5"]), (2, ["2", "4", "5"]), (9, ["1", "2", "3", "4", "5"])])
def test_old_versions_are_deleted_by_rule(
    settings: Settings, keep: int, left: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the inactive versions the newest `keep_versions` are kept; the audit log lists the
    deletions.
    """
    monkeypatch.setattr(version_service, "PRUNE_S", 0.1)
    publish(settings, "mine", "4")
    publish(settings, "mine", "5")

    async def visit() -> None:
        async with application(settings.model_copy(update={"keep_versions": keep}), "") as (client,):
            logging.getLogger("api.audit").addHandler(caplog.handler)
            until = time.monotonic() + 10
            while versions((await client.get("/v1/models/mine")).json()) != left and time.monotonic() < until:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.6)
            assert versions((await client.get("/v1/models/mine")).json()) == left
            assert (await client.get(f"/v1/models/{MODEL}")).status_code == 200
            logging.getLogger("api.audit").removeHandler(caplog.handler)

    asyncio.run(visit())
    lines = [record.__dict__ for record in caplog.records if record.name == "api.audit"]
    assert len({line["resource"] for line in lines}) == 5 - len(left)


def test_the_rule_spares_what_is_used_or_about_to_serve(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions with an unfinished job and candidates are not deleted as old versions."""
    monkeypatch.setattr(version_service, "PRUNE_S", 0.1)
    publish(settings, "mine", "4")
    publish(settings, "mine", "5")
    Versions(settings.state / "checkpoints").stage("mine", "3")

    async def visit() -> None:
        async with application(settings, "") as (client,):
            fields = {"model": "mine@1", "seed": 1}
            assert (await client.post("/v1/samples", json=fields, headers=LATER)).status_code == 202
        async with application(settings.model_copy(update={"keep_versions": 1}), "") as (client,):
            await asyncio.sleep(2.5)
            assert versions((await client.get("/v1/models/mine")).json()) == ["1", "2", "3", "5"]

    asyncio.run(visit())


def test_an_interrupted_deletion_is_finished(settings: Settings) -> None:
    """The hidden file of an interrupted deletion is removed once it is old enough."""
    store = Versions(settings.state / "checkpoints")
    store.hide("mine", ["1"])
    hidden = store.folder / "mine" / "1" / HIDDEN
    store.discard_interrupted(60)
    assert hidden.exists()
    time.sleep(0.02)
    store.discard_interrupted(0.01)
    assert not hidden.exists()
    assert store.reserve("mine", ["2", "3"]) == "4"
    assert os.listdir(store.folder / "mine" / "1") == ["deleted"]  # noqa: PTH208


def test_a_model_is_imported_used_and_deleted(client: httpx.Client, stack: Stack) -> None:
    """With workers: a deleted model cannot be sampled, and a new model of its name has another
    version.
    """
    raw = {"Content-Type": "application/octet-stream", "Prefer": "wait=60"}
    data = with_card(SHIPPED.read_bytes(), name="passing")
    made = client.post("/v1/models/passing/versions", content=data, headers=raw, timeout=180)
    assert (made.status_code, made.json()["version"]) == (201, "1"), made.text
    fields = {"model": "passing", "seed": 5}
    before = client.post("/v1/samples", json=fields).json()
    assert client.delete("/v1/models/passing").status_code == 204
    problem(client.post("/v1/samples", json=fields), 404)
    other = client.post("/v1/models/passing/versions", content=with_other_weights(data), headers=raw, timeout=180)
    assert (other.status_code, other.json()["version"]) == (201, "2"), other.text
    after = client.post("/v1/samples", json=fields).json()
    assert (before["version"], after["version"]) == ("1", "2")
    assert before["images"] != after["images"]
    assert client.delete("/v1/models/passing").status_code == 204
