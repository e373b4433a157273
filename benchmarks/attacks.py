"""Measure how hostile requests affect other clients.

One client draws samples while a process at nice 19 attacks.

For each attack: p50 and p99 of the samples without and under it, and the resident memory of the API
before it and 60 s after it began. It runs its own service on free ports. Linux only: memory is read
from /proc.
"""

import argparse
import contextlib
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
from hostile import ATTACKS, CHAIN, KEYED, KEYS, MODEL, Target, bearer
from serving.facts import commit, machine, now

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.stack import Stack  # noqa: E402 - after the path is known

MIB = 1 << 20
P99_S, TIMES_IDLE = 0.100, 5
GROWTH, GROWTH_BYTES = 0.20, 64 * MIB
DATASET = "attacked"
LARGER = "enlarge"  # a family of the tests, which loads quickly
RESULTS = ROOT / "docs" / "results" / "attacks"


@dataclass(frozen=True)
class Outcome:
    """What one attack cost: statuses of its requests, and other clients' latencies in seconds."""

    name: str
    words: str
    outcomes: dict[str, int]
    samples: int
    failed: int
    idle_p50_s: float
    idle_p99_s: float
    p50_s: float
    p99_s: float
    rss_before: int
    rss_after: int

    @property
    def kept(self) -> bool:
        """Whether latency and memory stayed within their limits and no sample failed."""
        slow = self.p99_s > max(TIMES_IDLE * self.idle_p99_s, P99_S)
        large = self.rss_after > self.rss_before + max(GROWTH * self.rss_before, GROWTH_BYTES)
        return not (slow or large or self.failed)


class Sampler:
    """A client that draws single samples one after another while it is open."""

    def __init__(self, url: str, key: str) -> None:
        self._url, self._key = url, key
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._draw)
        self.seconds: list[float] = []
        self.failed = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _draw(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60, headers=bearer(self._key)) as client:
            while not self._over.is_set():
                started = time.perf_counter()
                try:
                    body = {"model": MODEL, "seed": len(self.seconds)}
                    self.failed += client.post("/v1/samples", json=body).status_code != 200
                except httpx.HTTPError:
                    self.failed += 1
                self.seconds.append(time.perf_counter() - started)
                time.sleep(0.005)

    def percentile(self, share: float) -> float:
        """Return a percentile of the samples' seconds; infinity without samples."""
        if not self.seconds:
            return float("inf")
        return float(np.percentile(self.seconds, 100 * share))


def _upload(client: httpx.Client, name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2000, 28, 28), np.uint8)
    idx = struct.pack(">BBBBIII", 0, 0, 8, 3, *pixels.shape) + pixels.tobytes()
    headers = {"Content-Type": "application/octet-stream"}
    client.post(f"/v1/datasets?name={name}", content=idx, headers=headers).raise_for_status()


def _train(client: httpx.Client, name: str) -> str:
    """Start a training that runs until it is cancelled; return its job."""
    training = {"family": "vae", "dataset": name, "name": f"{name}-goes-on"}
    body = {**training, "recipe": {"training": {"epochs": 100_000}}}
    return str(client.post("/v1/trainings", json=body).raise_for_status().json()["id"])


def prepared_keyed(url: str) -> dict[str, Any]:
    """Create one training job per API key; without a training worker they all stay queued."""
    jobs = []
    for number, key in enumerate(KEYS):
        with httpx.Client(base_url=url, timeout=300, headers=bearer(key)) as client:
            _upload(client, f"{DATASET}-{number}")
            jobs.append(_train(client, f"{DATASET}-{number}"))
    return {"dataset": "", "result": "", "jobs": jobs}


def prepared(url: str) -> dict[str, Any]:
    """Prepare what the attacks need: a data set, a large result, and an unfinished job."""
    with httpx.Client(base_url=url, timeout=300) as client:
        _upload(client, DATASET)
        body = {"model": MODEL, "count": 60_000, "seed": 1}
        result = (
            client.post("/v1/samples", json=body, headers={"Prefer": "respond-async"}).raise_for_status().json()["id"]
        )
        job = _train(client, DATASET)
        while client.get(f"/v1/jobs/{result}").json()["status"] != "succeeded":
            time.sleep(0.5)
        client.post(
            f"/v1/trainings/{job}/pause"
        ).raise_for_status()  # its events are needed; its work would disturb the measurement
    return {"dataset": DATASET, "result": result, "jobs": [job]}


def cleared(url: str, kept: list[str]) -> None:
    """Cancel the jobs that an attack left, so that the next attack starts on an idle service."""
    with httpx.Client(base_url=url, timeout=300) as client:
        for status in ("queued", "running", "paused"):
            for job in client.get("/v1/jobs", params={"status": status, "limit": 100}).json()["data"]:
                if job["id"] not in kept:
                    client.post(f"/v1/jobs/{job['id']}/cancel")


def measured(stack: Stack, name: str, there: dict[str, Any], seconds: float, after_s: float) -> Outcome:
    """Run one attack on a service and measure its cost."""
    process = f"/proc/{stack.parts['api'].pid}/status"

    def loaded_model() -> int:
        line = next(line for line in Path(process).read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) << 10

    before, key = loaded_model(), KEYS[0] if name in KEYED else ""
    with Sampler(stack.url, key) as idle:
        time.sleep(seconds / 2)
    words = [sys.executable, __file__, "--attack", name, "--url", stack.url, "--seconds", str(seconds)]
    started = time.monotonic()
    with Sampler(stack.url, key) as sampler:
        attack = [*words, "--prepared", json.dumps(there)]
        attacker = subprocess.Popen(attack, stdout=subprocess.PIPE, text=True)
        try:
            output, _ = attacker.communicate(timeout=3 * seconds + 60)
        except subprocess.TimeoutExpired:
            attacker.kill()
            output, _ = attacker.communicate()
    time.sleep(max(0.0, started + after_s - time.monotonic()))
    return Outcome(
        name,
        ATTACKS[name][0],
        json.loads(output) if output.strip() else {"killed": 1},
        len(sampler.seconds),
        sampler.failed,
        idle.percentile(0.5),
        idle.percentile(0.99),
        sampler.percentile(0.5),
        sampler.percentile(0.99),
        before,
        loaded_model(),
    )


def attacking(name: str, url: str, seconds: float, there: dict[str, Any]) -> None:
    """Run an attack, and print the number of its requests by outcome."""
    os.nice(19)
    target = Target(url, there["dataset"], there["result"], there["jobs"], time.monotonic() + seconds)
    target.address  # noqa: B018 - refuses another machine
    outcomes: Counter[str] = Counter()
    with contextlib.suppress(KeyboardInterrupt):
        outcomes.update(ATTACKS[name][1](target))
    print(json.dumps(outcomes))


def row(one: Outcome) -> str:
    """Return one line of the table."""
    outcomes = ", ".join(f"{times} × {what}" for what, times in one.outcomes.items())
    times_ms = [1000 * seconds for seconds in (one.idle_p50_s, one.idle_p99_s, one.p50_s, one.p99_s)]
    latency = "{:.1f} / {:.1f} | {:.1f} / {:.1f}".format(*times_ms)
    memory = f"{one.rss_before / MIB:.0f} → {one.rss_after / MIB:.0f}"
    failed = f", {one.failed} of {one.samples} samples failed" if one.failed else ""
    return f"| {one.words} | {outcomes} | {latency} | {memory} | {'yes' if one.kept else '**no**'}{failed} |"


def page(measurements: list[Outcome], about: dict[str, Any]) -> str:
    """Return the table of results."""
    where = f"{about['machine']['cores']} × {about['machine']['cpu']}"
    seconds, after_s = f"{about['seconds']:.0f} s", f"{about['memory_after_s']:.0f} s"
    rows = [row(one) for one in measurements]
    return "\n".join(
        [
            "# What hostile requests cost others",
            "",
            f"Made by `python benchmarks/attacks.py --write` on {where}, {about['date']}.",
            f"One client draws samples one after the other while a process at nice 19 attacks for {seconds}.",
            "Limits: p99 at most five times that without the attack, or 100 ms; memory of the API",
            f"{after_s} after the attack began at most a fifth, or 64 MiB, above what it was; no",
            "sample fails.",
            "",
            "| attack | how its requests ended | idle p50 / p99, ms | under it, ms | memory of the API, MiB | kept |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


@contextlib.contextmanager
def service(*, keyed: bool) -> Iterator[Stack]:
    """Run a service; with API keys it has no training worker."""
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder), log_level="error", training_nice="10")
        models = Path(folder, "models")
        models.mkdir()
        for model in (ROOT / "checkpoints" / MODEL, ROOT / "checkpoints" / CHAIN, stack.state / "checkpoints" / LARGER):
            (models / model.name).symlink_to(model)
        stack.environment["REVERIE_CHECKPOINTS"] = str(models)
        if keyed:
            keys = Path(folder, "keys")
            keys.write_text("".join(f"{key}:{hashlib.sha256(key.encode()).hexdigest()}\n" for key in KEYS))
            stack.environment["REVERIE_API_KEYS"] = str(keys)
        try:
            stack.start("queue")
            stack.wait_queue()
            for part in ("inference", "api") if keyed else ("inference", "training", "api"):
                stack.start(part)
            stack.wait_ready()
            yield stack
        finally:
            stack.down()


def main() -> None:
    """Measure all attacks and write the page, or run one attack in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=ATTACKS, default=list(ATTACKS), help="these attacks")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each attack goes on")
    parser.add_argument("--after", type=float, default=60.0, help="when memory is read, in seconds after its start")
    parser.add_argument("--write", action="store_true", help="write docs/results/attacks.json and .md")
    parser.add_argument("--attack", choices=ATTACKS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--prepared", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.attack:
        attacking(arguments.attack, arguments.url, arguments.seconds, json.loads(arguments.prepared))
        return
    measurements = []
    for keyed in (False, True):
        names = [name for name in arguments.only if (name in KEYED) == keyed]
        with service(keyed=keyed) if names else contextlib.nullcontext() as stack:
            there = (prepared_keyed if keyed else prepared)(stack.url) if names else {}
            for name in names:
                measurements.append(measured(stack, name, there, arguments.seconds, arguments.after))
                print(row(measurements[-1]), flush=True)
                if not keyed:
                    cleared(stack.url, there["jobs"])
    measurements.sort(key=lambda one: arguments.only.index(one.name))
    about = {
        "machine": machine(),
        "commit": commit(),
        "date": now(),
        "seconds": arguments.seconds,
        "memory_after_s": arguments.after,
    }
    if arguments.write:
        result = {**about, "attacks": [{**asdict(one), "kept": one.kept} for one in measurements]}
        RESULTS.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(page(measurements, about))
    sys.exit(not all(one.kept for one in measurements))


if __name__ == "__main__":
    main()
