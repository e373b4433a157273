"""Measure several workers: throughput by their number, and one owner's latency beside another's
jobs.

    python benchmarks/fleet.py heavy [--write]     # rows/s of a heavy model with one and with two workers
    python benchmarks/fleet.py small [--write]     # a small decoder with 1 + 1 and with 2 + 2 processes
    python benchmarks/fleet.py owners [--write]    # single samples beside two jobs of 50 000
    python benchmarks/fleet.py workers [--write]   # capacity by number of workers, for docs/operations.md

Each takes up to three minutes. Both sides are measured alternately on the same processes: a worker
that does not take part is stopped by SIGSTOP. With `--write` the figures are added to
docs/results/fleet.json, beside those of machines with another number of cores;
docs/results/fleet.md and a table in docs/operations.md are made of it.
CPU time is that of /proc. `small` and `workers` need `wrk`.

This file has more than 400 lines because its measurements share the service and the page.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
from capacity import worker_counter
from serving import client as load
from serving import facts

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.settings import HEARTBEAT_S  # noqa: E402 - after the path is known
from tests.stack import Stack, free_port  # noqa: E402 - after the path is known
from tests.waiting import wait_until  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "fleet"
OPERATIONS = ROOT / "docs" / "operations.md"
BEGIN, END = "<!-- capacity: made by benchmarks/fleet.py workers -->", "<!-- end of capacity -->"
SMALL_MODEL = "vae-mnist-2d"
HEAVY_LAYERS, HEAVY_ROWS, CLIENTS, SECONDS = 5, 64, 6, 8
JOB_ROWS, JOBS = 50_000, 2

# Time in which idle workers load the heavy model and measure its batch plan.
PLANNING_S = 15

BUSY_S = 25

SMALL_CLIENTS, SMALL_SECONDS = 64, 4

# of `workers`: the numbers of workers, of which those above 4 need a machine with twice as many
# cores, and the least number of connections
WORKERS_MEASURED, WORKERS_CLIENTS = (1, 2, 3, 4, 8, 16), 12
ROLES = ("api", "queue", "inference")

Figures = dict[str, Any]
Machines = dict[str, Figures]
"""Figures by the number of cores of the machine."""


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of the values is."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def running(scratch: Path, workers: int, **settings: str) -> Stack:
    """Start a service with so many workers, and wait until it is ready."""
    stack = Stack(scratch / "service", workers=("inference",), log_level="warning", threads="1", **settings)
    stack.up()
    for number in range(1, workers):
        stack.start("inference", f"inference-{number}")
        wait_until(lambda name=f"inference-{number}": stack.serves(name), "a worker is ready")  # type: ignore[misc]
    stack.wait_ready()
    return stack


def cpu_s(stack: Stack, parts: Sequence[str]) -> float:
    """Return the CPU-seconds of parts of a service and of this process with its children."""
    pids = [stack.parts[part].pid for part in parts]
    used = sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)
    return used + sum(os.times()[:4])


def pause(stack: Stack, names: Sequence[str]) -> None:
    """Stop workers; wait until the API has noticed, and for as long as lost batches need."""
    for name in names:
        stack.parts[name].send_signal(signal.SIGSTOP)
    time.sleep(2.5 if names else 0)


def resume(stack: Stack, names: Sequence[str]) -> None:
    """Let stopped workers go on."""
    for name in names:
        stack.parts[name].send_signal(signal.SIGCONT)
    time.sleep(1.5 if names else 0)


# --- a heavy model ---


def requests_in(url: str, body: Figures, seconds: float, clients: int) -> list[float]:
    """Send requests over so many connections for some seconds; return the latencies, in seconds, of
    those that were done in that time.
    """
    until, done = time.monotonic() + seconds, list[float]()
    netloc = url.removeprefix("http://")
    headers = {"Content-Type": "application/json", "Accept": "application/x-npz"}

    def send(number: int) -> None:
        connection = http.client.HTTPConnection(netloc, timeout=60)
        seed = number * 100_000
        while (started := time.monotonic()) < until:
            seed += 1
            connection.request("POST", "/v1/samples", json.dumps({**body, "seed": seed}), headers)
            response = connection.getresponse()
            response.read()
            if response.status != http.HTTPStatus.OK:
                raise RuntimeError(f"status {response.status}")
            if (ended := time.monotonic()) < until:
                done.append(ended - started)
        connection.close()

    threads = [threading.Thread(target=send, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


def heavy_model(folder: Path) -> None:
    """Make the checkpoint of the heavy model, with random weights, in a folder of checkpoints."""
    command = [sys.executable, str(ROOT / "benchmarks" / "peers" / "checkpoint.py"), str(folder), "vae-heavy"]
    subprocess.run([*command, *["4096"] * HEAVY_LAYERS], check=True, env={"PYTHONPATH": str(ROOT)}, timeout=300)


def heavy(scratch: Path) -> Figures:
    """Return rows/s of a heavy model with one worker and with two, one thread each."""
    folder = scratch / "models"
    heavy_model(folder)
    stack = running(scratch, 2, checkpoints=str(folder), sync_timeout_s="60")
    try:
        body, rounds = {"model": "vae-heavy", "count": HEAVY_ROWS}, []
        requests_in(stack.url, body, 1, 2)
        time.sleep(PLANNING_S)
        for _ in range(3):
            pause(stack, ["inference-1"])
            requests_in(stack.url, body, 3, CLIENTS)  # a message that the stopped worker has taken is sent again
            one = HEAVY_ROWS * len(requests_in(stack.url, body, SECONDS, CLIENTS)) / SECONDS
            resume(stack, ["inference-1"])
            requests_in(stack.url, body, 2, CLIENTS)
            before = cpu_s(stack, ["api", "queue"])
            two = HEAVY_ROWS * len(requests_in(stack.url, body, SECONDS, CLIENTS)) / SECONDS
            rounds.append((one, two, (cpu_s(stack, ["api", "queue"]) - before) / SECONDS))
    finally:
        stack.down()
    one, two, cores = (statistics.median(values) for values in zip(*rounds, strict=True))
    ratio = statistics.median(second / first for first, second, _ in rounds)
    return {"one": one, "two": two, "ratio": ratio, "cores": cores, "must": 1.8 * (1 - cores / 2)}


# --- a small decoder ---


def wrk_sum(urls: Sequence[str], model: str, connections: int, seconds: float) -> float:
    """Return the requests per second of wrk on each of these services together."""
    results: list[load.Load] = []

    def drive(url: str) -> None:
        target = load.Target(f"{url}/v1/samples", "fields", model)
        results.append(load.drive(target, connections // len(urls), seconds))

    threads = [threading.Thread(target=drive, args=(url,)) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if any(one.non_2xx or one.socket_errors for one in results):
        raise SystemExit("there were error responses")
    return sum(one.requests_per_s for one in results)


def small_load(stack: Stack, urls: Sequence[str]) -> Figures:
    """Load API processes with 64 connections; return requests/s, rows a batch, and the CPU time of a
    request by part, in µs.
    """
    time.sleep(2 * HEARTBEAT_S)
    before, batches, client_s = parts_cpu_s(stack), worker_counter(stack, "batches"), sum(os.times()[2:4])
    rate = wrk_sum(urls, SMALL_MODEL, SMALL_CLIENTS, SMALL_SECONDS)
    time.sleep(2 * HEARTBEAT_S)
    requests = rate * SMALL_SECONDS
    used = {role: (seconds - before[role]) / requests for role, seconds in parts_cpu_s(stack).items()}
    used["client"] = (sum(os.times()[2:4]) - client_s) / requests
    rows = requests / max(1.0, worker_counter(stack, "batches") - batches)
    return {"rate": rate, "rows": rows} | {f"{role}_us": 1e6 * seconds for role, seconds in used.items()}


def parts_cpu_s(stack: Stack) -> dict[str, float]:
    """Return the CPU-seconds of all processes of a service, by role."""
    used = dict.fromkeys(ROLES, 0.0)
    for name, process in stack.parts.items():
        used[name.partition("-")[0]] += sum(psutil.Process(process.pid).cpu_times()[:2])
    return used


def small(scratch: Path) -> Figures:
    """Return requests/s of a small decoder with one API process and worker, and with two of each, and
    what a request costs in both settings.
    """
    load.wrk_path()
    stack = running(scratch, 2)
    port = free_port()
    stack.environment["REVERIE_PORT"] = str(port)
    stack.start("api", "api-1")
    urls = [stack.url, f"http://127.0.0.1:{port}"]
    try:
        wait_until(lambda: _ready(urls[1]), "the second API process is ready")
        wrk_sum(urls, SMALL_MODEL, SMALL_CLIENTS, 3)
        rounds = []
        for _ in range(6):
            pause(stack, ["inference-1"])
            wrk_sum(
                urls[:1], SMALL_MODEL, SMALL_CLIENTS, 1
            )  # a message that the stopped worker has taken is sent again
            one = small_load(stack, urls[:1])
            resume(stack, ["inference-1"])
            rounds.append((one, small_load(stack, urls)))
    finally:
        stack.down()
    one, two = (
        {name: statistics.median(side[name] for side in sides) for name in sides[0]}
        for sides in zip(*rounds, strict=True)
    )
    ratio = statistics.median(second["rate"] / first["rate"] for first, second in rounds)
    return {"one": one["rate"], "two": two["rate"], "ratio": ratio, "must": 0.95, "costs": [one, two]}


def costs_table(machines: Machines) -> list[str]:
    """Return the table of what a request of the small decoder costs in both settings."""
    names = [*ROLES, "client"]
    lines = ["", "CPU time of a request to the small decoder, in µs, and rows in a batch:", ""]
    lines += ["| cores | processes | " + " | ".join(names) + " | all | rows |"]
    lines += ["| ---: | --- " + "| ---: " * (len(names) + 2) + "|"]
    for cores, one in by_cores(machines):
        for title, side in zip(("1 + 1", "2 + 2"), one["costs"], strict=True):
            values = [side[f"{name}_us"] for name in names]
            shown = " | ".join(f"{value:.0f}" for value in [*values, sum(values)])
            lines.append(f"| {cores} | {title} | {shown} | {side['rows']:.1f} |")
    return lines


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == http.HTTPStatus.OK
    except httpx.HTTPError:
        return False


# --- two owners ---


def owners(scratch: Path) -> Figures:
    """Return latencies of single samples without other work and beside two large jobs of another
    client.
    """
    stack = running(scratch, 2)
    try:
        with httpx.Client(base_url=stack.url, timeout=120) as client:
            singles(client, 5)
            idle = singles(client, 15)
            stop, ended = threading.Event(), [0]
            jobs = [threading.Thread(target=run_jobs, args=(stack.url, number, stop, ended)) for number in range(JOBS)]
            for thread in jobs:
                thread.start()
            time.sleep(1)
            busy = singles(client, BUSY_S)
            stop.set()
            for thread in jobs:
                thread.join()
    finally:
        stack.down()
    numbers = {"idle": idle, "busy": busy}
    figures: Figures = {f"{name}_p50_ms": 1e3 * percentile(values, 0.5) for name, values in numbers.items()}
    figures |= {f"{name}_p99_ms": 1e3 * percentile(values, 0.99) for name, values in numbers.items()}
    figures |= {"samples": len(busy), "jobs_ended": ended[0], "must": 3.0}
    return figures | {"ratio": figures["busy_p99_ms"] / figures["idle_p99_ms"]}


def run_jobs(url: str, number: int, stop: threading.Event, ended: list[int]) -> None:
    """Run one job of `JOB_ROWS` samples after the other until `stop` is set."""
    body, headers = {"model": SMALL_MODEL, "count": JOB_ROWS}, {"Prefer": "respond-async"}
    with httpx.Client(base_url=url, timeout=120) as client:
        while not stop.is_set():
            job = client.post("/v1/samples", json={**body, "seed": number}, headers=headers)
            job.raise_for_status()
            while not stop.is_set() and client.get(job.headers["location"]).json()["finished_at"] is None:
                time.sleep(0.2)
            ended[0] += not stop.is_set()


def singles(client: httpx.Client, seconds: float) -> list[float]:
    """Send single samples for some seconds, fifty a second at most; return their latencies in
    seconds.
    """
    until, taken = time.monotonic() + seconds, list[float]()
    while (started := time.monotonic()) < until:
        response = client.post("/v1/samples", json={"model": SMALL_MODEL, "seed": len(taken)})
        response.raise_for_status()
        taken.append(time.monotonic() - started)
        time.sleep(max(0.0, 0.02 - taken[-1]))
    return taken


# --- capacity ---


def workers(scratch: Path) -> Figures:
    """Return rows/s and p99 of both models with 1, 2, … workers of one thread, and one API process."""
    load.wrk_path()
    folder = scratch / "models"
    heavy_model(folder)
    (folder / SMALL_MODEL).symlink_to(ROOT / "checkpoints" / SMALL_MODEL)
    stack = running(scratch, 1, checkpoints=str(folder), sync_timeout_s="60")
    body, rows, started = {"model": "vae-heavy", "count": HEAVY_ROWS}, list[Figures](), 1
    target = load.Target(f"{stack.url}/v1/samples", "fields", SMALL_MODEL)
    try:
        requests_in(stack.url, body, 1, 2)
        load.drive(target, 1, 1)
        cores = len(os.sched_getaffinity(0))
        for number in [number for number in WORKERS_MEASURED if number <= max(4, cores // 2)]:
            while started < number:
                started += 1
                stack.start("inference", f"inference-{started}")
                wait_until(lambda name=f"inference-{started}": stack.serves(name), "a worker is ready")  # type: ignore[misc]
            time.sleep(PLANNING_S)
            clients = max(WORKERS_CLIENTS, 3 * number)
            requests_in(stack.url, body, 3, clients)
            latencies = requests_in(stack.url, body, SECONDS, clients)
            load.drive(target, SMALL_CLIENTS, 1)
            driven = load.drive(target, SMALL_CLIENTS, SMALL_SECONDS)
            rows.append(
                {
                    "workers": number,
                    "heavy_rows_per_s": HEAVY_ROWS * len(latencies) / SECONDS,
                    "heavy_p99_ms": 1e3 * percentile(latencies, 0.99),
                    "small_rows_per_s": driven.requests_per_s,
                    "small_p99_ms": driven.p99_ms,
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
    finally:
        stack.down()
    return {"rows": rows}


def capacity_table(machines: Machines) -> str:
    """Return the table of capacity for docs/operations.md, between its markers."""
    lines = [
        BEGIN,
        "| cores | workers | `vae-heavy`, rows/s | p99 | `vae-mnist-2d`, rows/s | p99 |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {cores} | {row['workers']} | {row['heavy_rows_per_s']:,.0f} | {row['heavy_p99_ms']:,.0f} ms | "
        f"{row['small_rows_per_s']:,.0f} | {row['small_p99_ms']:.0f} ms |"
        for cores, one in by_cores(machines)
        for row in one["rows"]
    ]
    return "\n".join([*lines, "", *(f"{facts_of(one)}." for _, one in by_cores(machines)), END])


def write_capacity(machines: Machines) -> None:
    """Write the table of capacity into docs/operations.md.

    Raises ValueError if the markers are missing.
    """
    before, begin, rest = OPERATIONS.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{OPERATIONS.name} lacks the markers {BEGIN} and {END}")
    OPERATIONS.write_text(before + capacity_table(machines) + after)


# --- the page ---

MEASURES: dict[str, Callable[[Path], Figures]] = {"heavy": heavy, "small": small, "owners": owners, "workers": workers}


def facts_of(one: Figures) -> str:
    """Return when, where and with which commit figures were measured."""
    note = one.get("note", "")
    return f"{one['date']}, {one['cpu']}, {one['cores_of_machine']} cores, commit {one['commit']}{note}"


def by_cores(machines: Machines) -> list[tuple[str, Figures]]:
    """Return the figures of all machines with their numbers of cores, the smallest machine first."""
    return sorted(machines.items(), key=lambda item: int(item[0]))


def page(results: dict[str, Machines]) -> list[str]:
    """Return the lines of the page with all figures."""
    lines = ["# Several workers", "", "| figure | cores | measured | must |", "| --- | ---: | --- | --- |"]
    for cores, one in by_cores(results.get("heavy", {})):
        lines.append(
            f"| `vae-heavy`, one thread a worker, requests of {HEAVY_ROWS} rows: rows/s with 1 and 2 workers | {cores} "
            f"| {one['one']:.0f} → {one['two']:.0f}, **{one['ratio']:.2f}×** (API, queue and client used "
            f"c = {one['cores']:.2f} cores) | ≥ 1.8 × (1 − c/2) = {one['must']:.2f} |"
        )
    for cores, one in by_cores(results.get("small", {})):
        lines.append(
            "| small decoder, 64 connections: requests/s with 1 API process + 1 worker, and 2 + 2 | "
            f"{cores} | {one['one']:.0f} → {one['two']:.0f}, **{one['ratio']:.2f}×** | ≥ 0.95× |"
        )
    for cores, one in by_cores(results.get("owners", {})):
        lines.append(
            f"| single samples, alone and while {JOBS} jobs of {JOB_ROWS:,} samples run ({one['jobs_ended']} ended): "
            f"p50, p99 | {cores} | "
            f"{one['idle_p50_ms']:.1f}, {one['idle_p99_ms']:.1f} ms → {one['busy_p50_ms']:.1f}, "
            f"{one['busy_p99_ms']:.1f} ms, p99 **{one['ratio']:.2f}×** | ≤ 3× |"
        )
    lines += costs_table(results.get("small", {}))
    lines += ["", "Medians of rounds; both sides alternately, on the same processes."]
    lines += [
        f"`{name}`: {facts_of(one)}."
        for name, machines in results.items()
        if name != "workers"
        for _, one in by_cores(machines)
    ]
    return [*lines, "", "Made by `python benchmarks/fleet.py … --write`."]


def main() -> None:
    """Measure one figure and print it; with `--write`, also write the results' page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=MEASURES)
    parser.add_argument("--write", action="store_true", help="write docs/results/fleet.md and .json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        figures = MEASURES[arguments.figure](Path(folder))
    machine = facts.machine()
    figures |= {"date": facts.now(), "cpu": machine["cpu"], "cores_of_machine": machine["cores"]}
    figures["commit"] = facts.commit()
    print(json.dumps(figures, indent=1))
    if arguments.write:
        file = RESULTS.with_suffix(".json")
        results = json.loads(file.read_text()) if file.exists() else {}
        results.setdefault(arguments.figure, {})[str(machine["cores"])] = figures
        file.write_text(json.dumps(results, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text("\n".join(page(results)) + "\n")
        if arguments.figure == "workers":
            write_capacity(results["workers"])


if __name__ == "__main__":
    main()
