"""Limits of each key, its usage, and `GET /v1/me`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from api import quotas
from tests.api.callers import app_settings, application, key_file, key_line, state_of
from tests.api.helpers import MODEL, problem
from tests.api.test_ownership import training, upload

LATER = {"Prefer": "respond-async"}


async def inference_request(client: httpx.AsyncClient, seed: int = 1, **headers: str) -> httpx.Response:
    """Return the response to a request for a job."""
    return await client.post("/v1/samples", json={"model": MODEL, "seed": seed}, headers={**LATER, **headers})


def refused(response: httpx.Response, limit: str) -> None:
    """Check that a response is a 429 with the limit's name and `Retry-After`."""
    body = problem(response, 429, "GET /v1/me")
    assert body["type"].endswith("#quota-exceeded")
    assert body["limit"] == limit
    assert int(response.headers["retry-after"]) >= 1


def test_unfinished_jobs_are_limited(tmp_path: Path) -> None:
    """A key's unfinished jobs are limited, also concurrent ones and those with an Idempotency-Key;
    other keys are unaffected.
    """

    async def visit() -> None:
        keys = key_file(tmp_path, key_line("ann"), key_line("bob", "", "unfinished_jobs=2"))
        async with application(app_settings(tmp_path, api_keys=keys, key_unfinished_jobs=5), "ann", "bob") as (
            ann,
            bob,
        ):
            responses = await asyncio.gather(*(inference_request(ann, seed) for seed in range(12)))
            made = [response for response in responses if response.status_code == 202]
            assert len(made) == 5
            for response in responses:
                if response.status_code != 202:
                    refused(response, "unfinished_jobs")
            refused(await inference_request(ann, 99, **{"Idempotency-Key": "k"}), "unfinished_jobs")
            assert [(await inference_request(bob, seed)).status_code for seed in range(3)] == [202, 202, 429]
            await asyncio.sleep(2 * quotas.COUNT_S)
            refused(await inference_request(ann), "unfinished_jobs")
            assert (await ann.post(f"{made[0].headers['location']}/cancel")).status_code == 200
            assert (await inference_request(ann)).status_code == 202  # the place is free before the next count
            refused(await inference_request(ann), "unfinished_jobs")

    asyncio.run(visit())


def test_a_request_that_waited_too_long_is_no_way_around_it(tmp_path: Path) -> None:
    """A synchronous request that would become a job beyond the limit gets 429."""

    async def visit() -> None:
        keys = key_file(tmp_path, key_line("ann"))
        async with application(app_settings(tmp_path, api_keys=keys, key_unfinished_jobs=1), "ann") as (ann,):
            fields = {"model": MODEL, "seed": 1}
            first = await ann.post("/v1/samples", json=fields, headers={"Prefer": "wait=1"}, timeout=30)
            assert first.status_code == 202
            refused(
                await ann.post("/v1/samples", json=fields, headers={"Prefer": "wait=1"}, timeout=30), "unfinished_jobs"
            )

    asyncio.run(visit())


def test_trainings_are_limited(tmp_path: Path) -> None:
    """Trainings, also paused ones, have a limit of their own and count as unfinished jobs."""

    async def visit() -> None:
        keys = key_file(tmp_path, key_line("ann"))
        settings = app_settings(tmp_path, api_keys=keys, key_trainings=2, key_unfinished_jobs=3)
        async with application(settings, "ann") as (ann,):
            await upload(ann, "digits")
            for name in ("a", "b"):
                made = await ann.post("/v1/trainings", json=training("digits", name))
                assert made.status_code == 202, made.text
            refused(await ann.post("/v1/trainings", json=training("digits", "c")), "trainings")
            usage = (await ann.get("/v1/me")).json()["usage"]
            assert (usage["trainings"], usage["unfinished_jobs"]) == (2, 2)
            assert (await inference_request(ann)).status_code == 202
            refused(await inference_request(ann), "unfinished_jobs")
            paused = await ann.post(f"/v1/trainings/{made.json()['id']}/pause")
            assert paused.json()["status"] == "paused"  # a paused training is unfinished
            refused(await ann.post("/v1/trainings", json=training("digits", "c")), "unfinished_jobs")
            await ann.post(f"/v1/jobs/{made.json()['id']}/cancel")
            assert (await ann.post("/v1/trainings", json=training("digits", "c"))).status_code == 202

    asyncio.run(visit())


def test_stored_bytes_are_limited(tmp_path: Path) -> None:
    """A dataset that exceeds the limit of stored bytes is rejected and removed; deleting others
    makes room.
    """

    async def visit() -> None:
        keys = key_file(
            tmp_path, key_line("ann"), key_line("bob", "", "stored_bytes=1"), key_line("eve", "", "stored_bytes=0")
        )
        settings = app_settings(tmp_path, api_keys=keys, key_stored_bytes=1000)
        async with application(settings, "ann", "bob", "eve") as (ann, bob, eve):
            first = await upload(ann, "first")
            assert first.status_code == 201
            size = first.json()["bytes"]
            assert 500 < size < 1000
            assert (await ann.get("/v1/me")).json()["usage"]["stored_bytes"] == size
            refused(await upload(ann, "second"), "stored_bytes")
            assert (await ann.get("/v1/datasets/second")).status_code == 404
            assert len(list((settings.state / "datasets").glob("*/dataset.json"))) == 1
            refused(await upload(bob, "bobs"), "stored_bytes")
            assert (await upload(eve, "eves")).status_code == 201  # 0 is no limit
            assert (await ann.delete("/v1/datasets/first")).status_code == 204
            assert (await upload(ann, "second")).status_code == 201

    asyncio.run(visit())


def test_results_count_as_stored(tmp_path: Path) -> None:
    """Results and run folders count as stored bytes: beyond the limit an owner cannot create
    jobs.
    """

    async def visit() -> None:
        keys = key_file(tmp_path, key_line("ann"), key_line("bob"))
        settings = app_settings(tmp_path, api_keys=keys, key_stored_bytes=20_000)
        async with application(settings, "ann", "bob") as (ann, bob):
            job_id = (await inference_request(ann)).json()["id"]
            for folder in (settings.state / "blobs" / "jobs" / job_id, settings.state / "runs" / job_id):
                folder.mkdir(parents=True)
                (folder / "1-0").write_bytes(bytes(11_000))
            await state_of(ann).quotas.measure()
            assert (await ann.get("/v1/me")).json()["usage"]["stored_bytes"] == 22_000
            refused(await inference_request(ann), "stored_bytes")
            assert (await inference_request(bob)).status_code == 202

    asyncio.run(visit())


def test_me_returns_name_roles_limits_and_usage(tmp_path: Path) -> None:
    """`GET /v1/me` returns name, roles, expiry, limits and usage of a key of any role."""

    async def visit() -> None:
        lines = [key_line("ann", "run", "expires=20990101T000000Z,trainings=1"), key_line("eve", "read")]
        settings = app_settings(
            tmp_path, api_keys=key_file(tmp_path, *lines), key_unfinished_jobs=7, key_stored_bytes=0
        )
        async with application(settings, "ann", "eve", "") as (ann, eve, nobody):
            await inference_request(ann)
            body = (await ann.get("/v1/me")).json()
            assert (body["name"], body["roles"]) == ("ann", ["read", "run"])
            assert body["key_expires_at"] == "2099-01-01T00:00:00+00:00"
            expected = {"unfinished_jobs": 7, "trainings": 1, "requests_per_second": 1000, "stored_bytes": None}
            assert body["limits"].items() >= expected.items()
            assert body["usage"].items() >= {"unfinished_jobs": 1, "trainings": 0, "stored_bytes": 0}.items()
            assert (await eve.get("/v1/me")).json()["roles"] == ["read"]
            problem(await nobody.get("/v1/me"), 401)

    asyncio.run(visit())
