"""Measure what a request, a job and a heartbeat cost in each part, and simulate the service at a
larger load.

    python benchmarks/capacity.py measure             # unit costs and capacity by number of workers: a minute or two
    python benchmarks/capacity.py plan [--write]      # which part saturates first, from the measured costs

`measure` runs a service on PostgreSQL and writes docs/results/capacity.json. `plan` needs no
service: it simulates each part as a queue (exponential arrivals, the measured cost as service time)
and writes docs/results/capacity.md. Linux only: CPU time is that of /proc.

This file has more than 400 lines because the simulation uses what the measurement defines.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import redis
from serving import facts

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.broker.keys import WORKERS  # noqa: E402 - after the path is known
from core.settings import HEARTBEAT_S  # noqa: E402
from tests.postgresql import PostgreSQL, programs  # noqa: E402
from tests.stack import Stack  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "capacity"
CLIENTS, REQUESTS, JOBS = 32, 4000, 300
PASS_S = 0.05
"""Duration of a forward pass of the model that stands for one on an accelerator: it takes no CPU
time.
"""

WORKERS_MEASURED = (1, 2, 4, 8)


@dataclass(frozen=True)
class Costs:
    """CPU-seconds by part for one request, one job and one heartbeat, and what they write."""

    request_api_s: float
    request_queue_s: float
    request_worker_s: float
    rows_per_batch: float
    job_api_s: float
    job_queue_s: float
    job_worker_s: float
    job_database_s: float
    job_transactions: float
    job_wal_bytes: float
    job_event_rows: float
    heartbeat_bytes: float
    heartbeat_write_s: float
    heartbeat_send_s: float
    """Of the queue server, for one heartbeat to one API process."""
    heartbeat_read_s: float
    """Of an API process, for one worker's heartbeat."""


# --- measure ---


class Meter:
    """CPU time of the parts of a service, PostgreSQL and its children included."""

    def __init__(self, stack: Stack, server: PostgreSQL) -> None:
        self._parts = {name: psutil.Process(process.pid) for name, process in stack.parts.items()}
        self._parts["database"] = psutil.Process(server.pid)

    def read(self) -> dict[str, float]:
        """Return the CPU-seconds that each part has used so far."""
        used = {}
        for name, process in self._parts.items():
            family = [process, *process.children(recursive=True)] if name == "database" else [process]
            used[name] = sum(sum(one.cpu_times()[:2]) for one in family) + sum(process.cpu_times()[2:4])
        return used


async def send(
    url: str, bodies: list[dict[str, Any]], headers: dict[str, str], clients: int = CLIENTS
) -> list[httpx.Response]:
    """Send requests for samples over so many connections; return the responses in order."""
    responses: list[httpx.Response | None] = [None] * len(bodies)
    numbers = iter(range(len(bodies)))

    async def client() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:
            for number in numbers:
                responses[number] = await http.post("/v1/samples", json=bodies[number], headers=headers)

    await asyncio.gather(*[client() for _ in range(clients)])
    return [response for response in responses if response is not None]


def differences(after: dict[str, float], before: dict[str, float], number: int) -> dict[str, float]:
    """Return what each part used between two readings, per request."""
    return {name: (after[name] - before[name]) / number for name in after}


def measure_costs(stack: Stack, server: PostgreSQL) -> Costs:
    """Measure requests, then jobs, then what an idle service uses for heartbeats."""
    meter = Meter(stack, server)
    url = stack.url
    asyncio.run(send(url, [{"model": "vae-mnist-2d", "seed": seed} for seed in range(500)], {}))
    batches = worker_counter(stack, "batches")
    before = meter.read()
    bodies = [{"model": "vae-mnist-2d", "seed": seed} for seed in range(REQUESTS)]
    assert {response.status_code for response in asyncio.run(send(url, bodies, {}))} == {200}
    request = differences(meter.read(), before, REQUESTS)
    time.sleep(2 * HEARTBEAT_S)
    rows_per_batch = REQUESTS / max(1.0, worker_counter(stack, "batches") - batches)

    statistics = database_statistics(server)
    before = meter.read()
    bodies = [{"model": "vae-mnist-2d", "seed": seed} for seed in range(JOBS)]
    accepted = asyncio.run(send(url, bodies, {"Prefer": "respond-async"}, 8))
    assert {response.status_code for response in accepted} == {202}
    with httpx.Client(base_url=url) as client:
        while client.get("/metrics").text.count('reverie_jobs{status="queued"} 0.0') == 0:
            time.sleep(0.2)
        time.sleep(1)
    job = differences(meter.read(), before, JOBS)
    transactions, wal_bytes, rows = (
        (after - earlier) / JOBS for after, earlier in zip(database_statistics(server), statistics, strict=True)
    )

    with redis.Redis.from_url(stack.queue_url) as client:
        heartbeats = client.hgetall(WORKERS)
        size = float(np.mean([len(data) for data in heartbeats.values()]))
        used = _queue_cpu_s(client)
        for _ in range(2000):
            client.hset("capacity", "worker", b"x" * int(size))
        write_s = (_queue_cpu_s(client) - used) / 2000
        client.hset("capacity", mapping={f"worker-{number}": b"x" * int(size) for number in range(100)})
        used = _queue_cpu_s(client)
        for _ in range(100):
            client.hgetall("capacity")
        send_s = (_queue_cpu_s(client) - used) / 10_000
        client.delete("capacity")
    from core.broker.codec import unpack

    (packed,) = list(heartbeats.values())[:1]
    began = time.process_time()
    for _ in range(2000):
        unpack(packed)
    read_s = (time.process_time() - began) / 2000
    return Costs(
        request_api_s=request["api"],
        request_queue_s=request["queue"],
        request_worker_s=request["inference"],
        rows_per_batch=rows_per_batch,
        job_api_s=job["api"],
        job_queue_s=job["queue"],
        job_worker_s=job["inference"],
        job_database_s=job["database"],
        job_transactions=transactions,
        job_wal_bytes=wal_bytes,
        job_event_rows=rows,
        heartbeat_bytes=size,
        heartbeat_write_s=write_s,
        heartbeat_send_s=send_s,
        heartbeat_read_s=read_s,
    )


def _queue_cpu_s(client: redis.Redis) -> float:
    info: Any = client.info("cpu")
    return float(info["used_cpu_sys"] + info["used_cpu_user"])


def worker_counter(stack: Stack, name: str) -> float:
    """Return a counter of the worker's heartbeat."""
    from core.broker.codec import unpack

    with redis.Redis.from_url(stack.queue_url) as client:
        return float(sum(unpack(data)["counters"].get(name, 0) for data in client.hgetall(WORKERS).values()))


def database_statistics(server: PostgreSQL) -> tuple[float, float, float]:
    """Return committed transactions, bytes of the write-ahead log, and inserted rows so far."""
    import psycopg

    with psycopg.connect(f"postgresql://reverie@127.0.0.1:{server.port}/postgres") as connection:
        time.sleep(1.1)  # statistics are reported with a delay
        row = connection.execute(
            "SELECT xact_commit, pg_current_wal_lsn() - '0/0'::pg_lsn, tup_inserted FROM pg_stat_database "
            "WHERE datname = 'postgres'"
        ).fetchone()
    assert row is not None
    return float(row[0]), float(row[1]), float(row[2])


def measure_workers(stack: Stack) -> list[dict[str, float]]:
    """Measure requests per second with more and more workers of a model whose pass takes `PASS_S`
    and no CPU.
    """
    results = []
    for workers in WORKERS_MEASURED:
        for number in range(len([name for name in stack.parts if name.startswith("inference")]), workers):
            stack.start("inference", f"inference-{number}")
        while httpx.get(f"{stack.url}/readyz").json()["workers"] < workers:
            time.sleep(0.2)
        time.sleep(3)  # models are loaded
        number = int(workers * 3 / PASS_S)
        # each has options of its own, so that no two requests share a pass
        bodies = [{"model": "faulty", "seed": 1000 + one, "seconds": PASS_S + one * 1e-9} for one in range(number)]
        asyncio.run(send(stack.url, bodies[: 4 * workers], {}, 4 * workers))
        began = time.monotonic()
        assert {one.status_code for one in asyncio.run(send(stack.url, bodies, {}, 4 * workers))} == {200}
        rate = number / (time.monotonic() - began)
        results.append({"workers": workers, "rate": rate, "of_ideal": rate * PASS_S / workers})
        print(
            f"{workers} workers: {rate:.0f} passes/s, {rate * PASS_S / workers:.2f} of what they could do", flush=True
        )
    return results


def measure() -> None:
    """Run a service on PostgreSQL, measure, and write the results."""
    binaries = programs()
    if binaries is None:
        sys.exit("PostgreSQL is not installed: apt-get install --no-install-recommends postgresql")
    with tempfile.TemporaryDirectory(prefix="reverie-capacity-") as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "postgresql").mkdir()
        server = PostgreSQL(Path(folder) / "postgresql", binaries)
        server.start()
        try:
            settings = {"log_level": "warning", "database_url": server.create("jobs")}
            with Stack(Path(folder) / "stack", **settings) as stack:
                costs, workers = measure_costs(stack, server), measure_workers(stack)
        finally:
            server.stop()
    measured = {"at": facts.now(), "commit": facts.commit(), "machine": facts.machine(), "load": facts.load_average()}
    RESULTS.with_suffix(".json").write_text(
        json.dumps({**measured, "costs": asdict(costs), "workers": workers}, indent=2) + "\n"
    )


# --- plan ---


@dataclass(frozen=True)
class Load:
    """A load, and the parts that carry it."""

    name: str
    requests: float
    """Synchronous requests per second."""
    jobs: float
    """Jobs per second."""
    workers: int
    apis: int
    queue_servers: int = 1
    database_cores: float = 16
    batch_rows: float = 0
    """Rows of a batch; 0: as measured."""
    jobs_per_commit: float = 1
    heartbeats_shared: bool = False
    """Whether each API process reads the heartbeats of its own shard only."""


DAY = 86_400
LOADS = (
    Load("one host", 2_000, 1e5 / DAY, 4, 2),
    Load("ten hosts", 10_000, 1e7 / DAY, 40, 20),
    Load("as it is, at full size", 100_000, 1e8 / DAY, 1000, 200),
    Load("larger batches", 100_000, 1e8 / DAY, 1000, 200, batch_rows=32),
    Load("and 32 queues by model", 100_000, 1e8 / DAY, 1000, 200, 32, batch_rows=32, heartbeats_shared=True),
    Load("and 16 jobs a commit", 100_000, 1e8 / DAY, 1000, 200, 32, 64, 32, 16, heartbeats_shared=True),
)


def utilizations(load: Load, costs: Costs) -> dict[str, float]:
    """Return which share of each part's capacity a load needs; above 1 its queue grows without end."""
    rows = load.batch_rows or costs.rows_per_batch
    # the cost on the queue server is that of messages: with larger batches there are fewer
    queue_s = load.requests * costs.request_queue_s * costs.rows_per_batch / rows + load.jobs * costs.job_queue_s
    shards = load.queue_servers if load.heartbeats_shared else 1
    beats = load.workers / HEARTBEAT_S
    # each API process reads the heartbeats of its shard twice in their interval, and parses those
    # that changed
    sent_s = beats * (costs.heartbeat_write_s + 2 * load.apis / shards * costs.heartbeat_send_s)
    heard = beats / shards
    api_s = load.requests * costs.request_api_s + load.jobs * costs.job_api_s
    return {
        "API process": api_s / load.apis + heard * costs.heartbeat_read_s,
        "worker (small decoder)": (load.requests * costs.request_worker_s + load.jobs * costs.job_worker_s)
        / load.workers,
        "queue server: messages": queue_s / load.queue_servers,
        "queue server: heartbeats": sent_s / load.queue_servers,
        "job database": load.jobs * costs.job_database_s / load.jobs_per_commit / load.database_cores,
    }


def simulated_wait_s(rate: float, service_s: float, servers: int, seconds: float = 20.0) -> float:
    """Return the 99 % quantile of the waiting time at `servers` equal servers behind one queue.

    Arrivals are a Poisson process, and each takes `service_s`. Infinite if the queue grows without
    end. A rate of many arrivals is simulated for a shorter time: at most 200 000 of them.
    """
    if rate * service_s >= servers:
        return float("inf")
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(1 / rate, min(int(rate * seconds), 200_000) or 1))
    free = [0.0] * servers
    waits = np.empty(len(arrivals))
    for number, at in enumerate(arrivals):
        start = max(at, free[0])
        heapq.heapreplace(free, start + service_s)
        waits[number] = start - at
    return float(np.quantile(waits[len(waits) // 10 :], 0.99))


def plan(costs: Costs) -> list[str]:
    """Return the lines of two tables: utilization of each part, and simulated waiting times."""
    names = list(utilizations(LOADS[0], costs))
    lines = ["| load | requests/s | jobs a day | workers | API processes | " + " | ".join(names) + " |"]
    lines.append("| --- " + "| ---: " * (4 + len(names)) + "|")
    for load in LOADS:
        used = utilizations(load, costs)
        shares = [f"**{share:.1f}**" if share >= 1 else f"{share:.2f}" for share in used.values()]
        row = [
            load.name,
            f"{load.requests:,.0f}",
            f"{load.jobs * DAY:,.0f}",
            str(load.workers),
            str(load.apis),
            *shares,
        ]
        lines.append("| " + " | ".join(row) + " |")
    lines += ["", "| load | queue server, p99 of waiting | job database, p99 of waiting |", "| --- | ---: | ---: |"]
    for load in LOADS:
        used = utilizations(load, costs)
        share = used["queue server: messages"] + used["queue server: heartbeats"]
        batches = load.requests / (load.batch_rows or costs.rows_per_batch) / load.queue_servers
        queue_s = simulated_wait_s(batches, share / batches, 1)
        commits = load.jobs / load.jobs_per_commit
        database_s = simulated_wait_s(
            commits, used["job database"] * load.database_cores / commits, int(load.database_cores)
        )
        lines.append(f"| {load.name} | {format_wait(queue_s)} | {format_wait(database_s)} |")
    return lines


def format_wait(seconds: float) -> str:
    """Return a waiting time in milliseconds, or that it has no limit."""
    return "grows without end" if seconds == float("inf") else f"{1000 * seconds:.2f} ms"


def describe(measured: dict[str, Any], costs: Costs) -> str:
    """Return the page of results."""
    microseconds = {
        "a synchronous request": (costs.request_api_s, costs.request_queue_s, costs.request_worker_s, None),
        "a job of one image": (costs.job_api_s, costs.job_queue_s, costs.job_worker_s, costs.job_database_s),
    }
    machine = measured["machine"]
    rows = []
    for name, values in microseconds.items():
        shown = " | ".join("–" if value is None else f"{1e6 * value:,.0f}" for value in values)
        rows.append(f"| {name} | {shown} |")
    return _PAGE.format(
        facts=f"{measured['at']}, {machine['cpu']}, {machine['cores']} cores, load {measured['load']:.2f}, commit "
        f"`{measured['commit']}`.",
        clients=CLIENTS,
        rows_per_batch=costs.rows_per_batch,
        unit_costs="\n".join(rows),
        job=f"A job is {costs.job_transactions:.1f} transactions, {costs.job_event_rows:.1f} inserted rows and "
        f"{costs.job_wal_bytes / 1024:.1f} KiB of write-ahead log.",
        heartbeat=f"A heartbeat has {costs.heartbeat_bytes:,.0f} bytes, every {HEARTBEAT_S} s.",
        write=1e6 * costs.heartbeat_write_s,
        send=1e6 * costs.heartbeat_send_s,
        read=1e6 * costs.heartbeat_read_s,
        pass_ms=1000 * PASS_S,
        workers=workers_table(measured),
        plan="\n".join(plan(costs)),
    )


def workers_table(measured: dict[str, Any]) -> str:
    """Return the table of passes per second by number of workers; a sentence if others used the
    machine.
    """
    if measured["load"] > 2 * measured["machine"]["cores"]:
        return f"Not shown: other programs used the machine (load {measured['load']:.0f}), so the rates say nothing."
    rows = [f"| {one['workers']} | {one['rate']:.0f} | {one['of_ideal']:.2f} |" for one in measured["workers"]]
    return "\n".join(["| workers | passes/s | of what the workers could do |", "| ---: | ---: | ---: |", *rows])


_PAGE = """# Capacity: unit costs, more workers, and a larger load

{facts}

Made by `python benchmarks/capacity.py measure` and `plan --write`. What follows from it is in
[operations.md](../operations.md#a-thousand-workers).

## Unit costs

CPU time in microseconds, `vae-mnist-2d`, {clients} connections, {rows_per_batch:.1f} requests a batch. Each part's
background work is included; on a busy machine the numbers are upper bounds.

| | API | queue server | worker | PostgreSQL |
| --- | ---: | ---: | ---: | ---: |
{unit_costs}

{job}

{heartbeat} To write it costs the queue server {write:.0f} µs, to send it to an API process {send:.1f} µs,
and to parse it costs that process {read:.0f} µs.

## More workers

Each request is a forward pass of its own that takes {pass_ms:.0f} ms and no CPU time, as on an accelerator. All
processes and the client share the cores of this machine.

{workers}

## A larger load

Shares of each part's capacity; above 1 it is overloaded. From the third line on, each adds to the one
before. Assumed: an API process or worker is one core, the queue server one core, and PostgreSQL has 16
(64 in the last line); a shared commit divides the whole cost of a job in the database, which is its best case.

{plan}
"""


def main() -> None:
    """Measure, or print or write the plan."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("step", choices=("measure", "plan"))
    parser.add_argument("--write", action="store_true", help="write docs/results/capacity.md")
    arguments = parser.parse_args()
    if arguments.step == "measure":
        measure()
        return
    measured = json.loads(RESULTS.with_suffix(".json").read_text())
    page = describe(measured, Costs(**measured["costs"]))
    if arguments.write:
        RESULTS.with_suffix(".md").write_text(page)
    else:
        print(page)


if __name__ == "__main__":
    main()
