"""Measure bulk work: a large request compared with a bare torch loop, and its
effect on small ones.
"""

import base64
import contextlib
import http.client
import io
import json
import secrets
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.servers import PEERS, REVERIE, ROOT, Checkpoint, running

COUNT = 10_000
BATCHES = (50, 100, 250, 500, 1000, 2500, 10_000)
IMAGES, K = 16, 2000
PAUSE_S = 0.02


def measure(checkpoint: Checkpoint, scratch: Path, *, quick: bool) -> dict[str, Any]:
    """Run both measurements on one Reverie with the small decoder."""
    with running(REVERIE, checkpoint, {}, scratch):
        return {
            "draw": draw(checkpoint, scratch, rounds=2 if quick else 5),
            "mixed": mixed(checkpoint, seconds=4 if quick else 10),
        }


def draw(checkpoint: Checkpoint, scratch: Path, rounds: int) -> dict[str, Any]:
    """Compare one request for 10 000 samples as NPZ with the bare loop, alternating.

    The loop uses its best batch size.
    """
    swept = {int(batch): min(took) for batch, took in loop(checkpoint, BATCHES, 2, 1).items()}
    best = min(swept, key=lambda batch: swept[batch])
    ours: list[float] = []
    theirs: list[float] = []
    stored = scratch / "loop.npz"
    for number in range(rounds):
        ours.append(statistics.median(_timed_draw(checkpoint, number)[0] for _ in range(3)))
        theirs.append(statistics.median(loop(checkpoint, (best,), 3, 1, number, stored)[str(best)]))
    same, largest = _compared(_timed_draw(checkpoint, rounds - 1)[1], stored.read_bytes())
    ratios = [loop_s / reverie_s for loop_s, reverie_s in zip(theirs, ours, strict=True)]
    return {
        "count": COUNT,
        "rounds": rounds,
        "reverie_s": statistics.median(ours),
        "loop_s": statistics.median(theirs),
        "loop_two_threads_s": statistics.median(loop(checkpoint, (best,), 3, 2)[str(best)]),
        "best_batch": best,
        "loop_s_by_batch": swept,
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "equal_share": same,
        "largest_difference": largest,
    }


def loop(
    checkpoint: Checkpoint, batches: Sequence[int], repeat: int, threads: int, seed: int = 0, out: Path | None = None
) -> dict[str, list[float]]:
    """Time a loop that only calls the model; return the seconds by batch size."""
    command = [sys.executable, str(PEERS / "loop.py"), "--count", str(COUNT), "--seed", str(seed)]
    command += ["--repeat", str(repeat), "--batches", *map(str, batches), *(["--out", str(out)] if out else [])]
    environment = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "PEER_THREADS": str(threads),
        "PEER_CHECKPOINT": str(checkpoint.path),
    }
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True, timeout=600)
    return dict(json.loads(done.stdout))


def mixed(checkpoint: Checkpoint, seconds: float) -> dict[str, Any]:
    """Measure the latency of single samples without and with bulk work beside them.

    The bulk work is likelihoods alone, then likelihoods and draws.
    """
    pictures = [_png_of(checkpoint, seed) for seed in range(IMAGES)]
    asked = {"model": checkpoint.name, "images": pictures, "options": {"k": K}}
    latency = {"nothing else runs": _latency(checkpoint, seconds)}
    with _repeated("/v1/likelihoods", asked, "application/json") as likelihoods:
        latency["bulk likelihoods run"] = _latency(checkpoint, seconds)
        draws_asked = {"model": checkpoint.name, "count": COUNT}
        with _repeated("/v1/samples", draws_asked, "application/x-npz") as draws:
            latency["bulk likelihoods and bulk draws run"] = _latency(checkpoint, seconds)
    return {
        "latency": latency,
        "likelihoods": len(likelihoods),
        "draws": len(draws),
        "images": IMAGES,
        "k": K,
        "draw_count": COUNT,
    }


def _post(connection: http.client.HTTPConnection, path: str, fields: Any, accept: str) -> bytes:
    headers = {"Content-Type": "application/json", "Accept": accept, "Prefer": "wait=60"}
    connection.request("POST", path, json.dumps(fields), headers)
    response = connection.getresponse()
    body = response.read()
    if response.status != http.HTTPStatus.OK:
        raise RuntimeError(f"{path} answered {response.status}: {body[:300]!r}")
    return body


def _connection() -> "contextlib.closing[http.client.HTTPConnection]":
    return contextlib.closing(http.client.HTTPConnection("127.0.0.1", REVERIE.port, timeout=90))


def _timed_draw(checkpoint: Checkpoint, seed: int) -> tuple[float, bytes]:
    with _connection() as connection:
        start = time.perf_counter()
        fields = {"model": checkpoint.name, "count": COUNT, "seed": seed}
        body = _post(connection, "/v1/samples", fields, "application/x-npz")
        return time.perf_counter() - start, body


def _compared(ours: bytes, theirs: bytes) -> tuple[float, int]:
    """Return the share of equal pixels, and the largest difference."""
    left, right = (np.load(io.BytesIO(data))["images"].astype(np.int16) for data in (ours, theirs))
    if left.shape != right.shape:
        raise RuntimeError(f"{left.shape} pictures from Reverie, {right.shape} from the loop")
    return float((left == right).mean()), int(np.abs(left - right).max())


def _png_of(checkpoint: Checkpoint, seed: int) -> str:
    with _connection() as connection:
        fields = {"model": checkpoint.name, "count": 1, "seed": seed}
        return base64.b64encode(_post(connection, "/v1/samples", fields, "image/png")).decode("ascii")


def _latency(checkpoint: Checkpoint, seconds: float) -> dict[str, float | int]:
    """Return the median and 99th percentile latency of single samples in milliseconds.

    The first half second is a warm-up.
    """
    time.sleep(0.5)
    took: list[float] = []
    with _connection() as connection:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            start = time.perf_counter()
            fields = {"model": checkpoint.name, "count": 1, "seed": secrets.randbelow(2**40)}
            _post(connection, "/v1/samples", fields, "application/json")
            took.append(1000 * (time.perf_counter() - start))
            time.sleep(PAUSE_S)
    ordered = sorted(took)
    return {
        "p50_ms": statistics.median(ordered),
        "p99_ms": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
        "samples": len(ordered),
    }


@contextlib.contextmanager
def _repeated(path: str, fields: Any, accept: str) -> Iterator[list[float]]:
    """Send the same request repeatedly while the block runs; yields the seconds of each."""
    stop = threading.Event()
    took: list[float] = []
    option_errors: list[Exception] = []

    def send() -> None:
        try:
            with _connection() as connection:
                while not stop.is_set():
                    start = time.perf_counter()
                    _post(connection, path, fields, accept)
                    took.append(time.perf_counter() - start)
        except Exception as error:  # noqa: BLE001  # raised again in the thread that measures
            option_errors.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield took
    finally:
        stop.set()
        thread.join()
    if option_errors:
        raise RuntimeError(f"the bulk client failed: {option_errors[0]}") from option_errors[0]
