"""Hosts that share the job database, the blob store and the queue server, and have folders of their
own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.numpy import load

from tests.object_store import CREDENTIALS, new_store
from tests.stack import Stack
from tests.uploads import DIGITS
from tests.version_files import with_card
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

END_S = 200.0
TRAINING = {"epochs": 12, "batch_size": 2, "save_every_s": 0.2, "average": 0.9}
RECIPE = {"config": {"hidden": [48], "latents": 4}, "training": TRAINING, "seed": 5}


class Hosts:
    """Four hosts: `a` and `d` run an API process, `b` a training worker and `c` an inference
    worker.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = {
            "database_url": f"sqlite:///{folder / 'shared.sqlite3'}",
            "blobs_url": new_store(),
            "log_level": "warning",
            "job_lease_s": "2",
        }
        self.stacks: dict[str, Stack] = {}
        for name in ("a", "b", "c", "d", "e"):
            stack = self.stacks[name] = Stack(folder / name, **self.settings)
            stack.queue_url = stack.environment["REVERIE_QUEUE_URL"] = self.stacks["a"].queue_url
            stack.environment |= CREDENTIALS

    def up(self) -> None:
        """Start all hosts, one part each."""
        self.stacks["a"].start("queue")
        self.stacks["a"].wait_queue()
        for name, part in (("a", "api"), ("d", "api"), ("b", "training"), ("c", "inference")):
            self.stacks[name].start(part)
        for name in ("a", "d"):
            self.stacks[name].wait_ready()

    def down(self) -> None:
        """Stop all hosts."""
        for stack in reversed(self.stacks.values()):
            stack.down()

    def call(self, host: str, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request to the API process of a host; return its successful response."""
        response = httpx.request(method, f"{self.stacks[host].url}{path}", timeout=60, **options)
        assert response.status_code < 300, response.text
        return response

    def train(self, host: str, name: str) -> str:
        """Start a training of the uploaded digits; return its id."""
        body = {"family": "vae", "dataset": "digits", "name": name, "recipe": RECIPE, "serve": "always"}
        body["evaluation"] = {"count": 40, "k": 10}
        return str(self.call(host, "POST", "/v1/trainings", json=body).json()["id"])

    def wait(self, host: str, training: str) -> dict[str, Any]:
        """Wait until a training has ended; return it."""
        ended = {"succeeded", "failed", "cancelled"}

        def job() -> dict[str, Any]:
            return dict(self.call(host, "GET", f"/v1/trainings/{training}").json())

        wait_until(lambda: job()["status"] in ended, "the training ends", END_S)
        return job()

    def weights(self, host: str, name: str) -> dict[str, bytes]:
        """Return the weights of the first version of a model, as bytes."""
        file = self.call(host, "GET", f"/v1/models/{name}/versions/1/file").content
        return {key: array.tobytes() for key, array in load(file).items()}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Hosts that have trained a model of a dataset that was uploaded through host `a`."""
    running = Hosts(tmp_path_factory.mktemp("hosts"))
    try:
        running.up()
        with DIGITS.open("rb") as file:
            running.call("a", "POST", "/v1/datasets", files={"file": file}, data={"name": "digits"})
        yield running
    finally:
        running.down()


@pytest.fixture(scope="module")
def trained(hosts: Hosts) -> str:
    """The id of a training that host `d` has accepted and host `b` has run."""
    training = hosts.train("d", "first")
    ended = hosts.wait("a", training)
    assert ended["status"] == "succeeded", ended
    return training


def test_uploaded_on_one_host_trained_on_another_served_on_a_third(hosts: Hosts, trained: str) -> None:
    """Dataset, previews, checkpoints and version are there through both API processes."""
    for host in ("a", "d"):
        image = hosts.call(host, "GET", "/v1/datasets/digits/images/3").content
        assert image.startswith(b"\x89PNG")
        previews = hosts.call(host, "GET", f"/v1/trainings/{trained}/previews").json()["data"]
        assert previews
        epoch = previews[-1]["links"]["image"]
        assert hosts.call(host, "GET", epoch).content.startswith(b"\x89PNG")
        assert hosts.call(host, "GET", f"/v1/trainings/{trained}/preview").content.startswith(b"\x89PNG")
        checkpoints = hosts.call(host, "GET", f"/v1/trainings/{trained}/checkpoints").json()["data"]
        assert checkpoints[-1]["kept"]
    samples = {
        hosts.call(host, "POST", "/v1/samples", json={"model": "first", "count": 3, "seed": 7}).content
        for host in ("a", "d")
    }
    assert len(samples) == 1
    assert hosts.weights("a", "first") == hosts.weights("d", "first")
    for host in ("a", "c", "d"):
        state = hosts.folder / host / "state"
        assert not [*(state / "runs").glob("*"), *(state / "checkpoints").glob("*"), *(state / "blobs").glob("*/*")]
        assert not [path for path in (state / "datasets").glob("*") if not path.name.startswith(".")]


def test_a_version_is_imported_and_deleted_through_different_hosts(hosts: Hosts, trained: str) -> None:
    """The file that one host receives is checked on another and served on a third."""
    file = hosts.call("a", "GET", "/v1/models/first/versions/1/file").content
    same = hosts.call("d", "POST", "/v1/models/first/versions", files={"file": file})
    assert (same.status_code, same.json()["version"]) == (200, "1")
    copy = with_card(file, name="copy")
    imported = hosts.call("d", "POST", "/v1/models/copy/versions", files={"file": copy})
    assert (imported.status_code, imported.json()["serves"]) == (201, True)
    wait_until(lambda: "copy" in hosts.call("a", "GET", "/v1/models").text, "the other host knows it", 10)
    hosts.call("a", "POST", "/v1/samples", json={"model": "copy", "seed": 7})
    hosts.call("a", "DELETE", "/v1/models/copy")
    wait_until(lambda: "copy" not in hosts.call("d", "GET", "/v1/models").text, "the other host knows it", 10)


def test_a_large_result_is_read_through_another_host(hosts: Hosts, trained: str) -> None:
    """A job's rows are blobs in the object store, and any API process renders them."""
    body = {"model": "first", "count": 2000, "seed": 1}
    job = hosts.call("a", "POST", "/v1/samples", json=body, headers={"Prefer": "respond-async"}).json()
    wait_until(
        lambda: hosts.call("d", "GET", f"/v1/jobs/{job['id']}").json()["status"] == "succeeded", "the job ends", 60
    )
    path, headers = f"/v1/jobs/{job['id']}/result", {"Accept": "application/x-npz"}
    whole = hosts.call("d", "GET", path, headers=headers).content
    assert len(whole) > 1 << 20
    assert hosts.call("a", "GET", path, headers={**headers, "Range": "bytes=100-299"}).content == whole[100:300]


def test_a_training_goes_on_on_another_host(hosts: Hosts, trained: str) -> None:
    """A worker dies with its folder; another host resumes from its last checkpoint, to the same
    weights.
    """
    training = hosts.train("a", "second")

    def kept() -> bool:
        checkpoints = hosts.call("d", "GET", f"/v1/trainings/{training}/checkpoints").json()["data"]
        return bool(checkpoints and checkpoints[-1]["kept"])

    wait_until(kept, "a checkpoint is uploaded", END_S)
    hosts.stacks["b"].kill("training")
    hosts.stacks["e"].start("training")
    ended = hosts.wait("d", training)
    assert ended["status"] == "succeeded", ended
    events = hosts.call("a", "GET", f"/v1/jobs/{training}/events", headers={"Accept": "text/event-stream"}).text
    assert "training resumes from step" in events
    assert hosts.weights("a", "second") == hosts.weights("a", "first")
