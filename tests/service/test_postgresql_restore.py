"""A service on PostgreSQL and an object store, restored from `pg_dump` and a copy of its bucket."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.datasets import add_digits
from tests.object_store import CREDENTIALS, client, moto_endpoint, new_bucket
from tests.postgresql import PostgreSQL, programs, running_server
from tests.service.jobs import finished_jobs
from tests.stack import Stack
from tests.version_files import SHIPPED, with_card, with_other_weights

NPZ = {"Accept": "application/x-npz"}
RESTORE = ("--exit-on-error", "--no-owner", "--no-privileges")
"""The options in docs/operations.md."""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    """A database server whose databases the programs of PostgreSQL dump and restore."""
    with running_server() as running:
        yield running


def run(server: PostgreSQL, program: str, *words: str) -> None:
    """Run a program of PostgreSQL against the server."""
    folder = programs()
    assert folder is not None
    command = [str(folder / program), "--host=127.0.0.1", f"--port={server.port}", "--username=reverie", *words]
    subprocess.run(command, check=True, timeout=60)


def url(server: PostgreSQL, database: str) -> str:
    """Return the URL of a database of the server."""
    return f"postgresql://reverie@127.0.0.1:{server.port}/{database}"


def copy_bucket(source: str, target: str) -> int:
    """Copy all objects of a bucket to another one; return their number."""
    s3 = client(moto_endpoint())
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=source)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    for key in keys:
        s3.copy_object(Bucket=target, Key=key, CopySource={"Bucket": source, "Key": key})
    return len(keys)


def stack(folder: Path, database_url: str, bucket: str) -> Stack:
    """Return a service with a new state folder on a database and a bucket."""
    folder.mkdir()
    blobs_url = f"s3://{bucket}/blobs?endpoint={moto_endpoint()}"
    made = Stack(folder, ["inference"], database_url=database_url, blobs_url=blobs_url, log_level="warning")
    made.environment |= CREDENTIALS
    return made


@pytest.mark.slow
def test_a_restored_database_and_bucket_are_the_same_service(
    tmp_path: Path, server: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a new state folder and queue server, results have the same bytes, and the active version
    is the same one; datasets, versions and jobs are listed as before.
    """
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    run(server, "createdb", "original")
    buckets = [new_bucket(moto_endpoint()) for _ in range(2)]
    first = stack(tmp_path / "a", url(server, "original"), buckets[0])
    add_digits(first)
    for version, data in (("1", SHIPPED.read_bytes()), ("2", with_other_weights(SHIPPED.read_bytes()))):
        (tmp_path / "made").write_bytes(with_card(data, name="mine", version=version))
        first.versions().publish(tmp_path / "made", "mine", version)
    first.versions().pin("mine", "1")
    paths = ("/v1/datasets", "/v1/models/mine", "/v1/models/mine/versions", "/v1/jobs")
    with first, httpx.Client(base_url=first.url, timeout=60) as http:
        samples = {"model": "mine", "count": 4000, "seed": 3}
        job_id = http.post("/v1/samples", json=samples, headers={"Prefer": "respond-async"}).json()["id"]
        assert finished_jobs(first, {0: job_id})[0]["status"] == "succeeded"
        kept = http.post("/v1/samples", json={"model": "mine", "seed": 1}, headers={**NPZ, "Prefer": "wait=60"}).content
        result = http.get(f"/v1/jobs/{job_id}/result", headers=NPZ).content
        pages = {path: http.get(path).json() for path in paths}
        assert pages["/v1/models/mine"]["version"] == "1"
        assert len(pages["/v1/models/mine/versions"]["data"]) == 2
        run(server, "pg_dump", "--format=custom", f"--file={tmp_path / 'jobs.dump'}", "original")
        assert copy_bucket(*buckets) > 5
    run(server, "createdb", "restored")
    run(server, "pg_restore", *RESTORE, "--dbname=restored", str(tmp_path / "jobs.dump"))
    # what the restored service reads is the copy
    s3 = client(moto_endpoint())
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=buckets[0]):
        for entry in page.get("Contents", ()):
            s3.delete_object(Bucket=buckets[0], Key=entry["Key"])
    run(server, "dropdb", "original")
    second = stack(tmp_path / "b", url(server, "restored"), buckets[1])
    with second, httpx.Client(base_url=second.url, timeout=60) as http:
        assert {path: http.get(path).json() for path in paths} == pages
        assert http.get(f"/v1/jobs/{job_id}/result", headers=NPZ).content == result
        again = http.post("/v1/samples", json={"model": "mine", "seed": 1}, headers={**NPZ, "Prefer": "wait=60"})
        assert (again.headers["Reverie-Model"], again.content) == ("mine@1", kept)
