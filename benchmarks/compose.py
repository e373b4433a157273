"""Run docker-compose.yml on a real engine: start, the README's command, a training, three workers,
kills, restarts.

    python benchmarks/compose.py [--no-build] [--cluster] [--write]

Needs a Docker engine (`DOCKER_HOST`) with the base images, or access to their registry. Uses a
project name and a port of its own, and removes what it started, volumes included. `--cluster` runs
the profile of that name, with PostgreSQL and an object store (after `deploy/compose/prepare`).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "deploy" / "compose" / "cluster.env"
sys.path.insert(0, str(ROOT))

from tests.stack import free_port  # noqa: E402

PROJECT = "reverie-check"
PAGE = ROOT / "docs" / "results" / "compose.md"
REQUESTS, CLIENTS = 300, 8
"""Requests that are sent while a worker is killed, and connections that send them."""
JOBS = 20
"""Jobs that are accepted while a server of the profile `cluster` restarts."""


class Project:
    """The containers of one compose project."""

    def __init__(self, *, cluster: bool) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        # what a file .env has does not count: with an empty value, compose takes the default
        settings = dict(line.split("=", 1) for line in CLUSTER.read_text().splitlines() if not line.startswith("#"))
        chosen = settings if cluster else dict.fromkeys(settings, "")
        self._environment = {**os.environ, **chosen, "REVERIE_PORT": self.url.rpartition(":")[2]}

    def compose(self, *words: str) -> str:
        """Run `docker compose`; return its output. Raises CalledProcessError if it fails."""
        command = [str(Path(sys.executable).with_name("docker-compose")), "--project-name", PROJECT, *words]
        done = subprocess.run(command, cwd=ROOT, env=self._environment, check=False, capture_output=True, text=True)
        if done.returncode:
            sys.stderr.write(done.stderr[-4000:])
            done.check_returncode()
        return done.stdout

    def up(self, *words: str) -> None:
        """Start all services of the profile, and wait until they are healthy."""
        self.compose("up", "--detach", "--wait", "--wait-timeout", "300", *words)

    def containers(self, service: str) -> list[str]:
        """Return the ids of the running containers of a service."""
        return self.compose("ps", "--quiet", service).split()


def docker(*words: str) -> str:
    """Run `docker`; return its output."""
    return subprocess.run(["docker", *words], check=True, capture_output=True, text=True).stdout


class Report:
    """Steps and their durations and remarks, in the order in which they ran."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float, str]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a block; what the block appends to the list is its remark."""
        remark: list[str] = []
        began = time.monotonic()
        yield remark
        self.rows.append((name, time.monotonic() - began, "; ".join(remark)))
        print(f"{name}: {self.rows[-1][1]:.1f} s  {self.rows[-1][2]}", flush=True)

    def write(self, heading: str, note: str) -> None:
        """Write the section `heading` of the page of results, with a paragraph about this run."""
        paragraph = f"{textwrap.fill(note, 100)}\n\n" if note else ""
        lines = [f"## {heading}\n\n", paragraph, "| step | seconds | |\n| --- | --- | --- |\n"]
        lines += [f"| {name} | {seconds:.1f} | {remark} |\n" for name, seconds, remark in self.rows]
        text = PAGE.read_text() if PAGE.exists() else _INTRODUCTION
        before, _, rest = text.partition(f"## {heading}\n")
        after = re.search(r"(?m)^## ", rest)
        PAGE.write_text(before.rstrip() + "\n\n" + "".join(lines) + (f"\n{rest[after.start() :]}" if after else ""))


_INTRODUCTION = """# docker compose on a real engine

Written by `python benchmarks/compose.py --write`. Seconds are of a machine with two cores that other
programs used, too; each step fails the run if a request fails. No run so far had access to an image
registry: the images that docker-compose.yml names for the profile `cluster`, postgres and
chrislusf/seaweedfs, and the others of the registry were not run, but stand-ins of the same names.
"""


def samples(client: httpx.Client, seed: int, model: str = "vae-mnist-2d") -> bytes:
    """Return eight samples as PNG. Raises HTTPStatusError if the status is no success."""
    body = {"model": model, "count": 8, "seed": seed}
    headers = {"Accept": "image/png", "Prefer": "wait=60"}
    return client.post("/v1/samples", json=body, headers=headers).raise_for_status().content


def pictures() -> bytes:
    """Return a ZIP of 200 pictures in two classes: bars on black, upright and lying."""
    rng, packed = np.random.default_rng(0), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(200):
            pixels = np.zeros((28, 28), np.uint8)
            pixels[4:24, 8 + rng.integers(12) :][:, :4] = 200 + rng.integers(55)
            with archive.open(f"{number % 2}/{number}.png", "w") as file:
                Image.fromarray(pixels.T if number % 2 else pixels).save(file, "PNG")
    return packed.getvalue()


def ended(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """Wait for the end of a job; return it."""
    while True:
        job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").raise_for_status().json()
        if job["status"] in {"succeeded", "failed", "cancelled"}:
            return job
        time.sleep(0.5)


def train(client: httpx.Client) -> str:
    """Upload a dataset and train a model on it; return the model's name."""
    form = {"name": "bars"}  # the response comes when it is converted
    response = client.post("/v1/datasets", data=form, files={"file": ("bars.zip", pictures(), "application/zip")})
    response.raise_for_status()
    recipe = {"config": {"hidden": [32], "latents": 4}, "training": {"epochs": 2, "batch_size": 20}}
    body = {"family": "vae", "dataset": "bars", "name": "bars", "recipe": recipe, "evaluation": {"count": 20, "k": 10}}
    response = client.post("/v1/trainings", json=body)
    response.raise_for_status()
    job = ended(client, response.json()["id"])
    assert job["status"] == "succeeded", job
    return "bars"


def until_true(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    """Wait until `condition` is true; errors of HTTP count as false."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise TimeoutError


def under_load(client: httpx.Client, act: Callable[[], object]) -> tuple[int, float]:
    """Send requests while `act` runs; return how many had another result than before, and the
    slowest.
    """
    expected = {seed: samples(client, seed) for seed in range(10)}

    def request(number: int) -> tuple[bool, float]:
        began = time.monotonic()
        return samples(client, number % 10) == expected[number % 10], time.monotonic() - began

    with ThreadPoolExecutor(CLIENTS) as pool:
        pending = [pool.submit(request, number) for number in range(REQUESTS)]
        act()
        results = [one.result() for one in pending]
    return sum(not same for same, _ in results), max(seconds for _, seconds in results)


def jobs_during(client: httpx.Client, act: Callable[[], object]) -> int:
    """Send requests for jobs while `act` runs, wait for their ends, and compare their results with
    those of synchronous requests; return how many requests were repeated after a 503.
    """
    expected, keys = {seed: samples(client, seed) for seed in range(JOBS)}, uuid4()

    def submit(seed: int) -> tuple[httpx.Response, int]:
        headers = {"Accept": "image/png", "Prefer": "respond-async", "Idempotency-Key": f"{keys}-{seed}"}
        body = {"model": "vae-mnist-2d", "count": 8, "seed": seed}
        for repeated in range(120):
            response = client.post("/v1/samples", json=body, headers=headers)
            # 200 if the request before had made the job although its response was a 503
            if response.status_code in {httpx.codes.ACCEPTED, httpx.codes.OK}:
                return response, repeated
            assert response.status_code == httpx.codes.SERVICE_UNAVAILABLE, response.text
            time.sleep(min(2, int(response.headers.get("Retry-After", "1"))))
        raise TimeoutError(response.text)

    with ThreadPoolExecutor(CLIENTS) as pool:
        running = pool.submit(act)
        responses = list(pool.map(submit, range(JOBS)))
        running.result()
    for seed, (response, _) in enumerate(responses):
        if response.status_code == httpx.codes.ACCEPTED:
            job_id = response.json()["id"]
            until_true(lambda: ended(client, job_id)["status"] == "succeeded")  # noqa: B023 - called here
            response = client.get(f"/v1/jobs/{job_id}/result", headers={"Accept": "image/png"})  # noqa: PLW2901
        assert response.raise_for_status().content == expected[seed], seed
    return sum(repeated for _, repeated in responses)


def check(project: Project, report: Report, *, build: bool, cluster: bool) -> None:
    """Run all steps. Raises an error if a step fails."""
    if build:
        with report.step("build both images"):
            project.compose("build")
    with report.step("up --wait"):
        project.up()
    client = httpx.Client(base_url=project.url, timeout=120)
    with report.step("the README's command") as remark:
        (command,) = re.findall(r"```sh\n(curl .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[:1]
        words = command.replace("http://127.0.0.1:8000", project.url).replace("digits.png", os.devnull)
        done = subprocess.run(["bash", "-c", words], check=True, capture_output=True, text=True)
        remark.append(done.stdout.strip())
        assert remark == ["200 image/png"]
    with report.step("dataset, training, a sample of the new model"):
        model = train(client)
        kept = samples(client, 1, model)
    with report.step("up --scale inference=3"):
        project.up("--scale", "inference=3", "--no-recreate")
        until_true(lambda: client.get("/readyz").json()["workers"] == 3)
    for name, act in {
        "SIGKILL to an inference worker, which its engine restarts": lambda: _crash(project.containers("inference")[0]),
        "docker pause of an inference worker for 5 s": lambda: _pause(project.containers("inference")[0]),
        "restart of the queue server": lambda: project.compose("restart", "queue"),
    }.items():
        with report.step(f"{REQUESTS} requests and {name}") as remark:
            other, slowest_s = under_load(client, act)
            assert not other
            remark.append(f"0 failed, all with the same bytes; the slowest {slowest_s:.1f} s")
            until_true(lambda: client.get("/readyz").json()["workers"] == 3)
    with report.step("health check of a busy worker") as remark:
        worker = project.containers("inference")[0]
        words = "import time, subprocess as s; t = time.time(); "
        words += "s.run(['python', '-I', '-S', 'docker/alive.py'], check=True); print(time.time() - t)"
        took: list[float] = []
        under_load(client, lambda: took.extend(float(docker("exec", worker, "python", "-c", words)) for _ in range(5)))
        remark.append(f"at most {1000 * max(took):.0f} ms")
    if cluster:
        for server in ("postgresql", "s3"):
            with report.step(f"{JOBS} jobs and restart of {server}") as remark:
                repeated = jobs_during(client, lambda server=server: project.compose("restart", server))  # type: ignore[misc]
                remark.append(f"all succeeded, with the same bytes; {repeated} requests were repeated after a 503")
    with report.step("down, up: the new model and its bytes are still there"):
        project.compose("down")
        if cluster:  # what hosts have in folders of their own may be lost
            docker("volume", "rm", f"{PROJECT}_state")
        project.up()
        assert samples(client, 1, model) == kept
    sizes = [int(docker("inspect", "--format", "{{.Size}}", name)) for name in ("reverie-api", "python:3.11-slim")]
    report.rows.append(("layers of the image reverie-api above its base", 0.0, f"{(sizes[0] - sizes[1]) / 1e6:.0f} MB"))


def _crash(container: str) -> None:
    """Kill all processes of a container; unlike `docker kill`, that is a reason to restart it."""
    kill = ["python", "-c", "import os; os.kill(-1, 9)"]
    subprocess.run(["docker", "exec", container, *kill], check=False, capture_output=True)


def _pause(container: str) -> None:
    docker("pause", container)
    time.sleep(5)
    docker("unpause", container)


def main() -> None:
    """Run the steps, then remove all containers and volumes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--no-build", action="store_true", help="use the images reverie-api and reverie-worker as they are"
    )
    parser.add_argument("--cluster", action="store_true", help="with PostgreSQL and an object store")
    parser.add_argument("--write", action="store_true", help="write docs/results/compose.md")
    parser.add_argument("--note", default="", help="what the page says about this run, e.g. about its base images")
    arguments = parser.parse_args()
    if subprocess.run(["docker", "version"], check=False, capture_output=True).returncode:
        sys.exit("NOT TESTED: no Docker engine replies; set DOCKER_HOST or start one")
    if arguments.cluster and not (CLUSTER.parent / "secrets").is_dir():
        sys.exit("the profile needs passwords: run deploy/compose/prepare first")
    project, report = Project(cluster=arguments.cluster), Report()
    try:
        check(project, report, build=not arguments.no_build, cluster=arguments.cluster)
    except BaseException:
        print(project.compose("logs", "--no-color", "--tail", "15"))
        print(json.dumps(report.rows))
        raise
    finally:
        project.compose("down", "--volumes", "--remove-orphans")
    if arguments.write:
        heading = "With PostgreSQL and an object store" if arguments.cluster else "With SQLite and folders"
        report.write(heading, arguments.note)


if __name__ == "__main__":
    main()
