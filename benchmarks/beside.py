"""Measure the latency of single samples of `vae-mnist` while long work of each kind runs.

    python benchmarks/beside.py                   # all kinds, 20 s each
    python benchmarks/beside.py --only bulk --write

It runs its own service with one worker. Linux only.
"""

import argparse
import base64
import io
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from serving import facts
from upscales import ROOT, Service, photograph, sampled

RESULTS = ROOT / "docs" / "results" / "beside"
MUST_P50_MS, MUST_P99_MS = 25.0, 100.0
MEGAPIXELS = 1.5


def _post(path: str, body: dict[str, Any]) -> Callable[[httpx.Client], object]:
    return lambda client: client.post(path, json=body, headers={"Prefer": "wait=60"}).raise_for_status()


def _likelihoods(rows: int) -> dict[str, Any]:
    images = []
    for pixels in np.random.default_rng(0).integers(0, 2, (rows, 28, 28), np.uint8) * 255:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        images.append(base64.b64encode(file.getvalue()).decode())
    return {"images": images}


def _upscale(**options: str) -> Callable[[httpx.Client], object]:
    file, _ = photograph(MEGAPIXELS)

    def act(client: httpx.Client) -> None:
        headers = {"Content-Type": "image/jpeg", "Prefer": "respond-async"}
        job = client.post("/v1/upscales", params={"scale": "4", **options}, content=file, headers=headers)
        path = f"/v1/jobs/{job.raise_for_status().json()['id']}"
        while client.get(path).json()["status"] in {"queued", "running"}:
            time.sleep(0.2)

    return act


def kinds() -> dict[str, Callable[[httpx.Client], object]]:
    """Return functions by kind of long work; each sends one request and waits until it is done."""
    return {
        "nothing": lambda _client: time.sleep(1),
        "bulk draws of bihm-mnist": _post("/v1/samples", {"model": "bihm-mnist", "count": 256}),
        "single draws of bihm-mnist": _post("/v1/samples", {"model": "bihm-mnist"}),
        "likelihoods of vae-mnist": _post("/v1/likelihoods", {"model": "vae-mnist", **_likelihoods(32)}),
        "likelihoods of bihm-mnist": _post("/v1/likelihoods", {"model": "bihm-mnist", **_likelihoods(32)}),
        "upscaling, regression": _upscale(method="mse"),
        "upscaling, statistics": _upscale(method="statistics"),
        "upscaling, TV": _upscale(method="tv"),
        "upscaling, descent": _upscale(method="statistics", inference="descent"),
    }


def beside(url: str, act: Callable[[httpx.Client], object], seconds: float) -> dict[str, Any]:
    """Repeat long work for some seconds; return the latencies of single samples meanwhile."""
    over = threading.Event()

    def work() -> None:
        with httpx.Client(base_url=url, timeout=120) as client:
            while not over.is_set():
                act(client)

    worker = threading.Thread(target=work, daemon=True)  # its last request may outlast the measurement
    worker.start()
    time.sleep(1)
    _, latencies = sampled(url, lambda: time.sleep(seconds))
    over.set()
    with httpx.Client(base_url=url, timeout=60) as client:
        for job in client.get("/v1/jobs", params={"status": "running"}).json()["data"]:
            client.post(f"/v1/jobs/{job['id']}/cancel")
    worker.join(120)
    return latencies


def page(measured: dict[str, dict[str, Any]], about: dict[str, Any]) -> str:
    """Return the table of results."""
    lines = [
        "# Single samples beside long work",
        "",
        f"Made by `python benchmarks/beside.py --write` on {about['machine']['cores']} × {about['machine']['cpu']},",
        f"{about['date']}, commit {about['commit']}, load average at the start {about['load']:.1f}. One client draws",
        "single samples of `vae-mnist` one after another; another client repeats the long work; one worker.",
        f"Limits: median {MUST_P50_MS:.0f} ms, p99 {MUST_P99_MS:.0f} ms.",
        "",
        "| beside | samples | p50, ms | p99, ms | largest, ms | within the limits |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, one in measured.items():
        kept = one["p50_ms"] <= MUST_P50_MS and one["p99_ms"] <= MUST_P99_MS and not one["bad"]
        figures = " | ".join(str(one[field]) for field in ("requests", "p50_ms", "p99_ms", "largest_ms"))
        lines.append(f"| {name} | {figures} | {'yes' if kept else '**no**'} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print, or write the results' page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="kinds whose name contains one of these")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each measurement")
    parser.add_argument("--checkpoints", type=Path, default=ROOT / "checkpoints", help="models to serve")
    parser.add_argument("--write", action="store_true", help="write docs/results/beside.md and .json")
    arguments = parser.parse_args()
    about = {"machine": facts.machine(), "commit": facts.commit(), "date": facts.now(), "load": facts.load_average()}
    measured = {}
    with tempfile.TemporaryDirectory() as state:
        service = Service(arguments.checkpoints, Path(state))
        try:
            for name, act in kinds().items():
                if any(word in name for word in arguments.only):
                    measured[name] = beside(service.url, act, arguments.seconds)
                    print(name, measured[name], flush=True)
        finally:
            service.stop()
    print(page(measured, about))
    if arguments.write:
        RESULTS.with_suffix(".md").write_text(page(measured, about))
        RESULTS.with_suffix(".json").write_text(json.dumps({**about, "beside": measured}, indent=1) + "\n")


if __name__ == "__main__":
    main()
