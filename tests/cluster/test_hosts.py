"""A dataset is uploaded on one host, trained on another, served on a third and shown by a fourth."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.jobs import Client
from tests.cluster.members import Cluster
from tests.uploads import DIGITS

PNG = b"\x89PNG"
RECIPE = {
    "config": {"hidden": [48], "latents": 4},
    "training": {"epochs": 8, "batch_size": 2, "save_every_s": 0.5},
    "seed": 5,
}


@pytest.mark.timeout(900)
def test_hosts_share_datasets_trainings_and_versions(cluster: Cluster) -> None:
    """A dataset comes through host A (`api-1`), is trained on B and served on C, and its pictures,
    previews and checkpoints are read through D (`api-2`). No host sees the folder of another. A
    damaged file in the cache of D is found by its digest and downloaded again.
    """
    with Client(cluster, "api-1") as a, Client(cluster, "api-2") as d:
        with DIGITS.open("rb") as file:
            response = a.send("POST", "/v1/datasets", files={"file": file}, data={"name": "shared-digits"})
        assert response.status_code == 201, response.text
        body = {"family": "vae", "dataset": "shared-digits", "name": "shared", "recipe": RECIPE, "serve": "always"}
        response = d.send("POST", "/v1/trainings", json={**body, "evaluation": {"count": 40, "k": 10}})
        assert response.status_code == 202, response.text
        training = response.json()["id"]
        assert a.ended(training)["status"] == "succeeded"
        samples = [
            client.send("POST", "/v1/samples", json={"model": "shared", "count": 3, "seed": 7}).json()["images"]
            for client in (a, d)
        ]
        assert samples[0] == samples[1]
        image, trained = "/v1/datasets/shared-digits/images/3", f"/v1/trainings/{training}"
        previews = d.send("GET", f"{trained}/previews").json()["data"]
        for path in (image, f"{trained}/preview", previews[-1]["links"]["image"]):
            assert d.send("GET", path).content.startswith(PNG), path
        assert d.send("GET", f"{trained}/checkpoints").json()["data"][-1]["kept"]
        first, cache = d.send("GET", image).content, cluster.folder / "api-2" / "state" / "cache"
        damaged = damage(cache)
        cluster.restart("api-2")
        cluster.wait_ready()
        assert d.send("GET", image).content == first
        assert d.send("GET", "/v1/models/shared/versions/1/file").content == (
            a.send("GET", "/v1/models/shared/versions/1/file").content
        )
        assert all(file.read_bytes() != content for file, content in damaged.items() if file.exists())
    for name in ("api-1", "api-2", "inference-1", "inference-2", "inference-3"):
        state = cluster.folder / name / "state"
        assert not [*(state / "runs").glob("*"), *(state / "checkpoints").glob("*"), *(state / "blobs").glob("*/*")]
        assert not [path for path in (state / "datasets").glob("*") if not path.name.startswith(".")]


def damage(cache: Path) -> dict[Path, bytes]:
    """Change one byte in the middle of each file of a cache; return their contents now."""
    contents = {}
    for file in cache.iterdir():
        if not file.name.startswith("."):
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 0xFF
            file.write_bytes(content)
            contents[file] = bytes(content)
    assert contents
    return contents
