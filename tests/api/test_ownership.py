"""Owners of datasets and models: private, shared and unowned resources."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from api import permissions
from core.jobs.schema import resources
from core.jobs.store import JobStore
from core.resources import UNOWNED, NameOwnedError, ResourceStore
from core.settings import Settings
from tests.api.callers import app_settings, application, key_file, key_line, state_of
from tests.api.helpers import MODEL, problem
from tests.uploads import packed, zipped
from tests.version_files import SHIPPED, with_card

Visit = Callable[..., Coroutine[Any, Any, None]]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with keys of two owners, an administrator, and one key that may only read."""
    lines = [key_line("ann"), key_line("bob"), key_line("root", "admin"), key_line("eve", "read")]
    return app_settings(tmp_path, api_keys=key_file(tmp_path, *lines))


def visit(settings: Settings, act: Visit) -> None:
    """Run `act` with clients of ann, bob and the administrator."""

    async def run() -> None:
        async with application(settings, "ann", "bob", "root") as clients:
            for client in clients:
                client.timeout = httpx.Timeout(120)
            await act(*clients)

    asyncio.run(run())


async def upload(client: httpx.AsyncClient, name: str, data: bytes = b"", **fields: str) -> httpx.Response:
    """Return the response to the upload of a dataset."""
    files = {"file": ("upload", data or packed(zipped()))}
    return await client.post("/v1/datasets", files=files, data={"name": name, **fields})


def training(dataset: str, name: str, **more: Any) -> dict[str, Any]:
    """Return the body of a training."""
    recipe = {"config": {"hidden": [8], "latents": 2}, "training": {"epochs": 1, "batch_size": 5}}
    return {"family": "vae", "dataset": dataset, "name": name, "recipe": recipe, **more}


def publish(settings: Settings, name: str, version: str = "1") -> Path:
    """Write a version where a training worker would; return its path."""
    path = settings.state / "checkpoints" / name / version / "model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(with_card(SHIPPED.read_bytes(), name=name))
    return path


async def model_of(client: httpx.AsyncClient, settings: Settings, name: str, **more: Any) -> None:
    """Create a model of the client's key: a training reserves the name, a version is published, the
    training is cancelled.
    """
    if (await client.get("/v1/datasets/training-data")).status_code == 404:
        assert (await upload(client, "training-data", shared="true")).status_code == 201
    created = await client.post("/v1/trainings", json=training("training-data", name, **more))
    assert created.status_code == 202, created.text
    publish(settings, name)
    await client.post(f"/v1/jobs/{created.json()['id']}/cancel")
    await asyncio.sleep(1.1)  # registries look for new versions once a second


# --- datasets ---


def test_a_dataset_is_visible_to_its_owner_only(settings: Settings) -> None:
    """A private dataset is 404 for other owners on every route, and its name is taken (409)."""

    async def act(ann: httpx.AsyncClient, bob: httpx.AsyncClient, root: httpx.AsyncClient) -> None:
        made = await upload(ann, "mine")
        assert made.status_code == 201, made.text
        assert (made.json()["owner"], made.json()["shared"]) == ("ann", False)
        for method, path in (
            ("GET", ""),
            ("GET", "/preview"),
            ("GET", "/images"),
            ("GET", "/images/0"),
            ("DELETE", ""),
        ):
            problem(await bob.request(method, f"/v1/datasets/mine{path}"), 404, "no dataset 'mine'")
        problem(await bob.patch("/v1/datasets/mine", json={"shared": True}), 404)
        problem(await bob.post("/v1/trainings", json=training("mine", "bobs")), 404, "no dataset 'mine'")
        problem(await bob.post("/v1/trainings", json=training("mine", "bobs", dry_run=True)), 404, "no dataset 'mine'")
        assert (await bob.get("/v1/datasets")).json()["data"] == []
        for data in (b"", packed(zipped()[:-1])):  # equal and different content
            problem(await upload(bob, "mine", data), 409, "is taken")
        assert [one["name"] for one in (await ann.get("/v1/datasets")).json()["data"]] == ["mine"]
        assert (await root.get("/v1/datasets/mine")).json()["owner"] == "ann"
        assert (await ann.get("/v1/datasets/mine/preview")).status_code == 200
        assert (await ann.get("/v1/datasets/mine/images/0")).status_code == 200
        assert (await ann.delete("/v1/datasets/mine")).status_code == 204
        assert (await upload(bob, "mine")).json()["owner"] == "bob"
        assert (await root.delete("/v1/datasets/mine")).status_code == 204

    visit(settings, act)


def test_a_shared_dataset_is_for_all_to_use(settings: Settings) -> None:
    """Other owners can see a shared dataset and train on it, but not change it or see its owner;
    once unshared it is 404 for them.
    """

    async def act(ann: httpx.AsyncClient, bob: httpx.AsyncClient, _root: httpx.AsyncClient) -> None:
        made = await upload(ann, "ours", shared="true")
        assert made.json()["shared"] is True
        seen = (await bob.get("/v1/datasets/ours")).json()
        assert (seen["owner"], seen["shared"]) == (None, True)
        assert len((await bob.get("/v1/datasets")).json()["data"]) == 1
        created = await bob.post("/v1/trainings", json=training("ours", "bobs"))
        assert created.status_code == 202, created.text
        problem(await bob.delete("/v1/datasets/ours"), 403, "only its owner")
        problem(await bob.patch("/v1/datasets/ours", json={"shared": False}), 403, "only its owner")
        assert (await upload(bob, "ours")).status_code == 200  # equal content returns the existing dataset
        problem(await upload(bob, "ours", shared="false"), 403)
        assert (await ann.patch("/v1/datasets/ours", json={"shared": False})).json()["shared"] is False
        problem(await bob.get("/v1/datasets/ours"), 404)
        problem(await ann.patch("/v1/datasets/ours", json={}), 422)
        problem(await ann.patch("/v1/datasets/ours", json={"shared": "yes"}), 422)

    visit(settings, act)


def test_pages_of_the_list_are_full(settings: Settings) -> None:
    """Datasets of other owners neither appear on a page nor shorten it."""

    async def act(ann: httpx.AsyncClient, bob: httpx.AsyncClient, _root: httpx.AsyncClient) -> None:
        for number in range(4):
            await upload((ann, bob)[number % 2], f"set-{number}")
        page = (await bob.get("/v1/datasets?limit=1")).json()
        assert ([one["name"] for one in page["data"]], page["has_more"]) == (["set-1"], True)
        page = (await bob.get("/v1/datasets?limit=1&after=set-1")).json()
        assert ([one["name"] for one in page["data"]], page["has_more"]) == (["set-3"], False)

    visit(settings, act)


def test_resources_made_without_keys_are_shared(settings: Settings) -> None:
    """Resources made without API keys have no owner: all may use them, and only an administrator
    may change them.
    """

    async def before() -> None:
        async with application(settings.model_copy(update={"api_keys": None}), "") as (client,):
            client.timeout = httpx.Timeout(120)
            made = (await upload(client, "old")).json()
            assert (made["owner"], made["shared"]) == (None, True)
            problem(await upload(client, "other", shared="false"), 422, "without API keys")
            problem(await client.patch("/v1/datasets/old", json={"shared": False}), 422, "without API keys")
            publish(settings, "elder")

    async def act(ann: httpx.AsyncClient, _bob: httpx.AsyncClient, root: httpx.AsyncClient) -> None:
        assert (await ann.get("/v1/datasets/old")).json()["shared"] is True
        problem(await ann.delete("/v1/datasets/old"), 403, "role `admin`")
        problem(await ann.patch("/v1/models/elder", json={"shared": False}), 403, "role `admin`")
        problem(await ann.delete("/v1/models/elder"), 403, "role `admin`")
        problem(await root.patch("/v1/datasets/old", json={"shared": False}), 422, "belongs to nobody")
        assert (await root.delete("/v1/datasets/old")).status_code == 204
        assert (await root.delete("/v1/models/elder")).status_code == 204

    asyncio.run(before())
    visit(settings, act)


def test_the_name_of_a_queued_dataset_is_reserved(settings: Settings) -> None:
    """A job that fetches a dataset reserves the name for its owner as long as it is unfinished; the
    name of a cancelled one becomes free after a while.
    """

    async def act(ann: httpx.AsyncClient, bob: httpx.AsyncClient, _root: httpx.AsyncClient) -> None:
        payload = {"source": "mnist", "name": "later", "shared": False}
        created = await ann.post("/v1/datasets", json=payload)
        assert created.status_code == 202, created.text
        with JobStore(settings.database).engine.begin() as connection:
            connection.execute(resources.update().values(created_at=time.time() - 1000))
        problem(await upload(bob, "later"), 409, "is taken")
        problem(await bob.post("/v1/datasets", json=payload), 409, "is taken")
        await ann.post(f"/v1/jobs/{created.json()['id']}/cancel")
        assert (await upload(bob, "later")).json()["owner"] == "bob"

    visit(settings, act)


def test_a_dataset_that_replaces_a_deleted_one_has_an_owner(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload becomes private even if the old dataset of its name is deleted after its checks; it
    is rejected if the name then belongs to another owner.
    """

    async def act(ann: httpx.AsyncClient, bob: httpx.AsyncClient, _root: httpx.AsyncClient) -> None:
        state = state_of(ann)
        add, store = state.datasets.add, ResourceStore(JobStore(settings.database).engine)
        assert (await upload(ann, "mine", shared="true")).status_code == 201

        def delete_then_add(*arguments: Any) -> Any:
            state.datasets.delete("mine")
            store.release("dataset", "mine")
            if claimed:
                store.claim("dataset", "mine", "bob", shared=False)
            return add(*arguments)

        monkeypatch.setattr(state.datasets, "add", delete_then_add)
        claimed = False
        made = await upload(ann, "mine", packed(zipped()[:-1]))
        assert (made.status_code, made.json()["owner"], made.json()["shared"]) == (201, "ann", False)
        problem(await bob.get("/v1/datasets/mine"), 404)
        claimed = True
        problem(await upload(ann, "mine"), 409, "taken by another dataset", "choose another name")
        assert state.datasets.get("mine") is None

    visit(settings, act)


def test_a_dataset_that_is_stored_during_a_deletion_keeps_its_owner(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deletion does not remove the owner of a dataset that is uploaded before it ends."""

    async def act(ann: httpx.AsyncClient, bob: httpx.AsyncClient, _root: httpx.AsyncClient) -> None:
        state, loop = state_of(ann), asyncio.get_running_loop()
        delete = state.datasets.delete
        assert (await upload(ann, "mine")).status_code == 201

        def delete_then_upload(*arguments: Any) -> bool:
            deleted = delete(*arguments)
            made = asyncio.run_coroutine_threadsafe(upload(ann, "mine"), loop).result(60)
            assert made.status_code == 201
            return deleted

        monkeypatch.setattr(state.datasets, "delete", delete_then_upload)
        assert (await ann.delete("/v1/datasets/mine")).status_code == 204
        problem(await bob.get("/v1/datasets/mine"), 404)
        assert (await ann.get("/v1/datasets/mine")).json()["owner"] == "ann"

    visit(settings, act)


def test_a_change_does_not_reach_the_next_owner(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset of another owner that replaces the deleted one meanwhile is neither shared nor
    deleted.
    """

    async def act(ann: httpx.AsyncClient, bob: httpx.AsyncClient, _root: httpx.AsyncClient) -> None:
        state, loop = state_of(ann), asyncio.get_running_loop()
        store = ResourceStore(JobStore(settings.database).engine)
        assert (await upload(ann, "mine")).status_code == 201

        def replaced(method: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **more: Any) -> Any:
                monkeypatch.undo()
                state.datasets.delete("mine")
                store.release("dataset", "mine")
                made = asyncio.run_coroutine_threadsafe(upload(bob, "mine"), loop).result(60)
                assert made.status_code == 201
                return method(*arguments, **more)

            return call

        monkeypatch.setattr(state.permissions._store, "share", replaced(state.permissions._store.share))
        problem(await ann.patch("/v1/datasets/mine", json={"shared": True}), 404)
        assert (await bob.get("/v1/datasets/mine")).json()["shared"] is False
        assert (await bob.delete("/v1/datasets/mine")).status_code == 204
        await upload(ann, "mine")
        monkeypatch.setattr(state.datasets, "delete", replaced(state.datasets.delete))
        await ann.delete("/v1/datasets/mine")
        assert (await bob.get("/v1/datasets/mine")).status_code == 200

    visit(settings, act)


def test_without_keys_all_is_open(settings: Settings) -> None:
    """Without API keys everybody may use and delete every resource, and new ones have no owner."""

    async def keyed(ann: httpx.AsyncClient, _bob: httpx.AsyncClient, _root: httpx.AsyncClient) -> None:
        await upload(ann, "mine")
        await upload(ann, "other")

    async def unkeyed() -> None:
        async with application(settings.model_copy(update={"api_keys": None}), "") as (client,):
            client.timeout = httpx.Timeout(120)
            assert len((await client.get("/v1/datasets")).json()["data"]) == 2
            assert (await client.delete("/v1/datasets/mine")).status_code == 204
            assert (await upload(client, "mine")).json()["shared"] is True
            me = (await client.get("/v1/me")).json()
            assert (me["name"], me["roles"]) == (None, ["read", "run", "train", "admin"])
            assert set(me["limits"].values()) == {None}

    visit(settings, keyed)
    asyncio.run(unkeyed())


# --- models ---


def test_a_model_is_visible_to_its_owner_only(settings: Settings) -> None:
    """A private model is 404 for other owners on every route, is in no list or message of theirs,
    and its name is taken.
    """

    async def act(ann: httpx.AsyncClient, bob: httpx.AsyncClient, root: httpx.AsyncClient) -> None:
        await model_of(ann, settings, "secret")
        for client in (ann, root):
            body = (await client.get("/v1/models/secret")).json()
            assert (body["owner"], body["shared"]) == ("ann", False)
        later = {"Prefer": "respond-async"}
        for path in ("samples", "manifold"):
            for ref in ("secret", "secret@1"):
                payload = {"model": ref, "seed": 1}
                refused = problem(await bob.post(f"/v1/{path}", json=payload, headers=later), 404)
                assert "secret" not in refused["detail"].partition("there are")[2]
                assert (await ann.post(f"/v1/{path}", json=payload, headers=later)).status_code == 202
        for method, path in (
            ("GET", ""),
            ("DELETE", ""),
            ("GET", "/versions"),
            ("GET", "/versions/1"),
            ("GET", "/versions/1/file"),
            ("GET", "/versions/1/preview"),
            ("GET", "/sheet"),
            ("DELETE", "/versions/1"),
        ):
            problem(await bob.request(method, f"/v1/models/secret{path}"), 404)
        problem(await bob.patch("/v1/models/secret", json={"version": "1"}), 404)
        problem(await bob.patch("/v1/models/secret", json={"shared": True}), 404)
        raw = {"Content-Type": "application/octet-stream"}
        problem(await bob.post("/v1/models/secret/versions", content=b"x", headers=raw), 409, "is taken")
        problem(await bob.post("/v1/trainings", json=training("training-data", "secret")), 409, "is taken")
        assert "secret" not in (await bob.get("/v1/models")).text
        assert "secret" in (await ann.get("/v1/models")).text
        assert "secret" not in (await bob.get("/openapi.json")).text

    visit(settings, act)


def test_a_shared_model_is_for_all_to_use(settings: Settings) -> None:
    """Other owners can sample and export a shared model, but not change, extend, delete or unshare
    it (403).
    """

    async def act(ann: httpx.AsyncClient, bob: httpx.AsyncClient, _root: httpx.AsyncClient) -> None:
        await model_of(ann, settings, "common", shared=True)
        payload = {"model": "common", "seed": 1}
        made = await bob.post("/v1/samples", json=payload, headers={"Prefer": "respond-async"})
        assert made.status_code == 202
        assert (await bob.get("/v1/models/common")).json()["owner"] is None
        assert (await bob.get("/v1/models/common/versions/1/file")).status_code == 200
        raw = {"Content-Type": "application/octet-stream"}
        for response in (
            await bob.patch("/v1/models/common", json={"version": "1"}),
            await bob.patch("/v1/models/common", json={"shared": False}),
            await bob.delete("/v1/models/common"),
            await bob.delete("/v1/models/common/versions/1"),
            await bob.post("/v1/models/common/versions", content=b"x", headers=raw),
            await bob.post("/v1/trainings", json=training("training-data", "common")),
        ):
            problem(response, 403, "only its owner")
        assert (await ann.patch("/v1/models/common", json={"shared": False})).json()["shared"] is False
        problem(await bob.post("/v1/samples", json=payload), 404)

    visit(settings, act)


def test_shipped_models_are_the_administrators(settings: Settings) -> None:
    """All may use the shipped models; only an administrator may import, activate or train versions
    of them.
    """

    async def act(ann: httpx.AsyncClient, _bob: httpx.AsyncClient, root: httpx.AsyncClient) -> None:
        await upload(ann, "training-data")
        body = (await ann.get(f"/v1/models/{MODEL}")).json()
        assert (body["owner"], body["shared"]) == (None, True)
        raw = {"Content-Type": "application/octet-stream"}
        for response in (
            await ann.patch(f"/v1/models/{MODEL}", json={"version": "1"}),
            await ann.post(f"/v1/models/{MODEL}/versions", content=b"x", headers=raw),
            await ann.post("/v1/trainings", json=training("training-data", MODEL)),
            await ann.delete(f"/v1/models/{MODEL}"),
        ):
            problem(response, 403, "role `admin`")
        problem(await root.delete(f"/v1/models/{MODEL}"), 409, "comes with the service")
        problem(await root.delete(f"/v1/models/{MODEL}/versions/1"), 409, "comes with the service")
        problem(await root.post(f"/v1/models/{MODEL}/versions", content=b"x", headers=raw), 422)

    visit(settings, act)


def test_the_name_of_a_queued_training_is_reserved(settings: Settings) -> None:
    """A queued training reserves its model's name; the name of a cancelled one becomes free after a
    while.
    """

    async def act(ann: httpx.AsyncClient, bob: httpx.AsyncClient, _root: httpx.AsyncClient) -> None:
        await upload(ann, "training-data", shared="true")
        created = await ann.post("/v1/trainings", json=training("training-data", "new"))
        problem(await bob.post("/v1/trainings", json=training("training-data", "new")), 409, "is taken")
        await ann.post(f"/v1/jobs/{created.json()['id']}/cancel")
        problem(await bob.post("/v1/trainings", json=training("training-data", "new")), 409, "is taken")
        with JobStore(settings.database).engine.begin() as connection:
            connection.execute(resources.update().values(created_at=time.time() - 1000))
        again = await bob.post("/v1/trainings", json=training("training-data", "new"))
        assert again.status_code == 202, again.text

    visit(settings, act)


def test_a_training_that_begins_during_a_deletion_keeps_its_owner(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletion of a model does not remove the owner of the name if a training claims it before
    the deletion ends.
    """

    async def act(ann: httpx.AsyncClient, bob: httpx.AsyncClient, _root: httpx.AsyncClient) -> None:
        await model_of(ann, settings, "again")
        state, loop = state_of(ann), asyncio.get_running_loop()
        discard = state.versions.discard

        def discard_then_train(*arguments: Any) -> None:
            discard(*arguments)
            posted = ann.post("/v1/trainings", json=training("training-data", "again"))
            assert asyncio.run_coroutine_threadsafe(posted, loop).result(60).status_code == 202

        monkeypatch.setattr(state.versions, "discard", discard_then_train)
        assert (await ann.delete("/v1/models/again")).status_code == 204
        store = ResourceStore(JobStore(settings.database).engine)
        assert store.all()["model", "again"].owner == "ann"
        store.release("model", "again")  # even then nobody else can use the name
        body = with_card(SHIPPED.read_bytes(), name="again")
        raw = {"Content-Type": "application/octet-stream"}
        problem(await bob.post("/v1/models/again/versions", content=body, headers=raw), 409, "is taken")

    visit(settings, act)


def test_another_process_sees_a_change_within_a_second(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of ownership reaches other API processes within two refresh intervals."""
    publish(settings, "moving")

    async def act() -> None:
        async with application(settings, "ann") as (one,), application(settings, "bob") as (other,):
            store = ResourceStore(JobStore(settings.database).engine)
            payload = {"model": "moving", "seed": 1}
            later = {"Prefer": "respond-async"}
            assert (await other.post("/v1/samples", json=payload, headers=later)).status_code == 202
            store.claim("model", "moving", "ann", shared=False)
            await asyncio.sleep(2 * permissions.REFRESH_S)
            problem(await other.post("/v1/samples", json=payload, headers=later), 404)
            assert (await one.post("/v1/samples", json=payload, headers=later)).status_code == 202
            assert (await one.patch("/v1/models/moving", json={"shared": True})).status_code == 200
            await asyncio.sleep(2 * permissions.REFRESH_S)
            assert (await other.post("/v1/samples", json=payload, headers=later)).status_code == 202

    asyncio.run(act())


def test_the_hot_path_asks_no_database(settings: Settings) -> None:
    """Permissions are read from memory: thirty requests cause no query but the periodic refresh."""

    async def act() -> None:
        async with application(settings, "ann") as (ann,):
            engine = JobStore(settings.database).engine
            statements: list[str] = []
            sa.event.listen(sa.engine.Engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
            await asyncio.sleep(0.05)
            statements.clear()
            await asyncio.gather(*(ann.post("/v1/samples", json={"model": "nothing", "seed": n}) for n in range(30)))
            assert len([one for one in statements if "FROM resource" in one]) <= 2  # by the periodic refresh
            engine.dispose()

    asyncio.run(act())


# --- the store ---


def test_a_name_has_one_owner(tmp_path: Path) -> None:
    """The first claim of a name keeps it, until the name is released or has been vacant for
    long.
    """
    store = ResourceStore(JobStore(f"sqlite:///{tmp_path / 'jobs.sqlite3'}").engine)
    assert store.all() == {}
    assert store.claim("model", "m", "ann", shared=None).owner == "ann"
    count = store.change_count()
    again = store.claim("model", "m", "ann", shared=None)
    assert (again.owner, again.shared, store.change_count()) == ("ann", False, count)
    assert store.claim("model", "m", "ann", shared=True).shared
    assert store.claim("model", "m", "bob", shared=False).owner == "ann"
    assert store.claim("model", "m", "bob", shared=False, vacant_after_s=10).owner == "ann"
    assert store.claim("dataset", "m", "bob", shared=False).owner == "bob"
    assert store.change_count() > count
    assert store.claim("model", "m", "bob", shared=None, vacant_after_s=-1).owner == "bob"
    seen = store.get("model", "m")
    time.sleep(0.002)
    store.claim("model", "m", "bob", shared=None)
    store.release("model", "m", seen)  # it was claimed again since
    assert store.get("model", "m").owner == "bob"
    store.release("model", "m", store.get("model", "m"))
    assert store.get("model", "m") == UNOWNED
    assert set(store.all()) == {("dataset", "m")}
    assert store.share("dataset", "m", shared=True)
    assert not store.share("dataset", "nothing", shared=True)
    assert not store.share("dataset", "m", shared=False, owner="ann")
    assert UNOWNED.shared
    shutil.rmtree(tmp_path)


def test_an_owner_is_confirmed_before_a_resource_is_stored(tmp_path: Path) -> None:
    """A confirmation stores a missing owner, keeps what is shared, and fails for another owner."""
    store = ResourceStore(JobStore(f"sqlite:///{tmp_path / 'jobs.sqlite3'}").engine)
    store.confirm("dataset", "d", "", shared=None)
    assert store.all() == {}
    store.confirm("dataset", "d", "ann", shared=None)
    first = store.get("dataset", "d")
    time.sleep(0.002)
    store.confirm("dataset", "d", "ann", shared=True)
    again = store.get("dataset", "d")
    assert (again.owner, again.shared) == ("ann", False)
    assert again.created_at > first.created_at
    for owner in ("bob", ""):
        with pytest.raises(NameOwnedError):
            store.confirm("dataset", "d", owner, shared=None)
    assert store.get("dataset", "d") == again
    shutil.rmtree(tmp_path)
