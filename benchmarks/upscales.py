"""Measure `POST /v1/upscales` with the largest photograph.

The figures are times, memory of API and worker, and the latency of other requests.

It runs its own service, upscales one synthetic photograph as a job, draws single samples one after
another meanwhile, and then downloads the result in each format. Linux only: it reads and resets
peaks in /proc.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from serving import facts

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.settings import Settings  # noqa: E402 - after the path is known
from tests.stack import free_port  # noqa: E402
from workers.devserver import queue_command  # noqa: E402

MIB = 1 << 20
PREEMPTION = "2026-11-26"  # since when small batches run between the layers of a tile
OCTAVES = 11
WAIT_S = 60.0


class Service:
    """Queue server, worker and API of this checkout, with their memory and CPU time."""

    def __init__(self, checkpoints: Path, state: Path) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        queue_url = f"redis://127.0.0.1:{free_port()}/0"
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("REVERIE_")},
            "REVERIE_PORT": self.url.rpartition(":")[2],
            "REVERIE_QUEUE_URL": queue_url,
            "REVERIE_STATE": str(state),
            "REVERIE_CHECKPOINTS": str(checkpoints),
            "REVERIE_LOG_LEVEL": "warning",
        }
        commands = {
            "queue": queue_command(Settings(state=state, queue_url=queue_url)),
            "worker": [sys.executable, "-m", "workers.inference"],
            "api": [sys.executable, "-m", "api"],
        }
        self.parts = {}
        for name, command in commands.items():
            self.parts[name] = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=sys.stderr)
            time.sleep(1.0)
        until = time.monotonic() + 300
        while time.monotonic() < until:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.5)
        raise TimeoutError("the service did not come up")

    def memory(self, name: str) -> dict[str, int]:
        """Return the resident memory of a process in bytes, and its peak since `forget`."""
        lines = Path(f"/proc/{self.parts[name].pid}/status").read_text().splitlines()
        found = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.startswith("Vm")}
        return {"now": found["VmRSS"], "peak": found["VmHWM"]}

    def cpu_s(self, name: str) -> float:
        """Return the CPU seconds of a process."""
        words = Path(f"/proc/{self.parts[name].pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def forget(self) -> None:
        """Reset the peak memory of the processes."""
        for part in self.parts.values():
            Path(f"/proc/{part.pid}/clear_refs").write_text("5")

    def stop(self) -> None:
        """Stop all processes."""
        for part in reversed(self.parts.values()):
            part.terminate()
            part.wait(60)


def photograph(megapixels: float) -> tuple[bytes, tuple[int, int]]:
    """Return a synthetic 3:2 JPEG of that size: noise in octaves, with detail at each scale."""
    height = round((megapixels * 1e6 / 1.5) ** 0.5)
    width = round(megapixels * 1e6 / height)
    random = np.random.default_rng(4)
    whole = np.zeros((height, width, 3), np.float32)
    for octave in range(1, OCTAVES):
        cells = random.normal(0, 2.0 ** (5.5 - octave * 0.5), (2**octave * 2, 2**octave * 3, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(cells[:, :, channel]).resize((width, height), Image.Resampling.BICUBIC)
            whole[:, :, channel] += np.asarray(layer)
    file = io.BytesIO()
    Image.fromarray((whole + 128).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue(), (width, height)


class Sampler(threading.Thread):
    """A client that draws one sample after another until it is stopped."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url, self._over = url, threading.Event()
        self.waits: list[float] = []
        self.bad = 0

    def run(self) -> None:
        """Draw samples."""
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self.waits or not self._over.wait(0.02):
                started = time.perf_counter()
                response = client.post("/v1/samples", json={"model": "vae-mnist"})
                self.waits.append(time.perf_counter() - started)
                self.bad += response.status_code != 200

    def stop(self) -> dict[str, Any]:
        """Stop, and return the latencies."""
        self._over.set()
        self.join()
        waits = sorted(self.waits)
        last = [waits[min(len(waits) - 1, int(len(waits) * share))] for share in (0.5, 0.99)]
        said = {"p50_ms": last[0] * 1e3, "p99_ms": last[1] * 1e3, "largest_ms": waits[-1] * 1e3}
        return {"requests": len(waits), "bad": self.bad, **{name: round(value, 1) for name, value in said.items()}}


def sampled(url: str, act: Any) -> tuple[Any, dict[str, Any]]:
    """Call `act`; return its result, and the latencies of single samples drawn at the same time."""
    client = Sampler(url)
    client.start()
    try:
        found = act()
    finally:
        said = client.stop()
    return found, said


def job(url: str, file: bytes, fields: dict[str, str]) -> dict[str, Any]:
    """Upscale the photograph as a job and follow its events."""
    with httpx.Client(base_url=url, timeout=WAIT_S) as client:
        started = time.perf_counter()
        response = client.post(
            "/v1/upscales",
            params=fields,
            content=file,
            headers={"Content-Type": "image/jpeg", "Prefer": "respond-async"},
        )
        assert response.status_code == 202, response.text
        promised = time.perf_counter() - started
        job_id, progress = response.json()["id"], 0
        with client.stream("GET", f"/v1/jobs/{job_id}/events") as events:
            for line in events.iter_lines():
                progress += line == "event: progress"
        found = client.get(f"/v1/jobs/{job_id}").json()
        assert found["status"] == "succeeded", found["problem"]
        took = time.perf_counter() - started
    tiles = found["request"]["tiles"]["count"]
    return {"id": job_id, "promised_s": promised, "seconds": took, "progress_events": progress, "tiles": tiles}


def fetched(url: str, job_id: str, kind: str) -> dict[str, Any]:
    """Download the result in a format; return its size, and the seconds to the
    first and last byte.
    """
    size = 0
    started = time.perf_counter()
    path = f"{url}/v1/jobs/{job_id}/result"
    with httpx.stream("GET", path, headers={"Accept": f"image/{kind}"}, timeout=600) as response:
        first = time.perf_counter() - started
        for piece in response.iter_bytes():
            size += len(piece)
        detail = json.loads(piece)["detail"] if response.status_code != 200 else None
    return {
        "status": response.status_code,
        "first_byte_s": first,
        "seconds": time.perf_counter() - started,
        "bytes": size,
    } | ({"detail": detail} if detail else {})


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start a service and measure its memory, times and latencies for one photograph."""
    file, (width, height) = photograph(arguments.megapixels)
    fields = {"scale": str(arguments.scale), "method": arguments.method}
    load = facts.load_average()
    with tempfile.TemporaryDirectory() as state:
        service = Service(arguments.checkpoints, Path(state))
        try:
            _, idle = sampled(service.url, lambda: time.sleep(10))
            service.forget()
            before = {name: service.memory(name)["now"] for name in service.parts}
            used = {name: service.cpu_s(name) for name in service.parts}
            made, busy = sampled(service.url, lambda: job(service.url, file, fields))
            made["cpu_s"] = {name: service.cpu_s(name) - before_s for name, before_s in used.items()}
            peaks = {"job": {name: service.memory(name) for name in service.parts}}
            answers, fetching = {}, {}
            for kind in ("png", "jpeg", "webp"):
                service.forget()
                answers[kind], fetching[kind] = sampled(
                    service.url, lambda kind=kind: fetched(service.url, made["id"], kind)
                )
                peaks[kind] = {name: service.memory(name) for name in service.parts}
        finally:
            service.stop()
    return {
        "date": facts.now(),
        "commit": facts.commit(),
        "machine": facts.machine(),
        "load_average_at_start": load,
        "photograph": {"width": width, "height": height, "bytes": len(file)},
        "answer_megapixels": width * height * arguments.scale**2 / 1e6,
        "options": fields,
        "job": made,
        "answers": answers,
        "memory_before": before,
        "memory": peaks,
        "samples": {"idle": idle, "during the job": busy, **{f"while {k} is written": v for k, v in fetching.items()}},
    }


def markdown(runs: list[dict[str, Any]]) -> str:
    """Return the results page as Markdown."""
    first = runs[0]
    machine = first["machine"]
    lines = [
        "# Upscaling: the largest photograph",
        "",
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, Python {machine['python']}.",
        "Made by `python benchmarks/upscales.py`; all numbers are in the JSON file beside this page. The photograph is",
        "made up and sent as a JPEG; it becomes a job, whose tiles the worker takes one slice at a time. One client",
        "draws single samples of `vae-mnist` all the while. The answer is written when it is first asked for.",
        "",
        "Where the load average at the start is well above the cores, others had most of the machine: then seconds and",
        "waits say little, processor time and memory what they always do. The API grows by the decoded picture, of",
        "which it decodes or writes two large ones at a time; the worker by a few tiles.",
        "",
    ]
    if max(run["date"] for run in runs) < PREEMPTION:
        anchor = "small-batches-run-between-the-layers-of-long-work"
        lines += [
            "All of it was measured before small batches ran between the layers of long work",
            f"([decisions.md](../decisions.md#{anchor})).",
            "",
        ]
    for run in runs:
        lines += [*_section(run), ""]
    return "\n".join(lines).rstrip() + "\n"


def _section(run: dict[str, Any]) -> list[str]:
    picture, made, options = run["photograph"], run["job"], run["options"]
    size = f"{picture['width']}×{picture['height']}, {picture['bytes'] / MIB:.1f} MiB"
    cpu = made["cpu_s"]
    pace_s = cpu["worker"] / run["answer_megapixels"]
    pace = f"{made['seconds']:.0f} s ({made['seconds'] / run['answer_megapixels']:.2f} s a megapixel)"
    lines = [
        f"## `{options['method']}`, {options['scale']} times",
        "",
        f"{run['date']}, commit `{run['commit']}`, load average at the start {run['load_average_at_start']:.1f}.",
        f"A photograph of {size} became {run['answer_megapixels']:.1f} megapixels in {made['tiles']} tiles and {pace};",
        f"promised after {made['promised_s']:.2f} s, with {made['progress_events']} progress events.",
        "",
        f"Processor time, that of the samples included: worker {cpu['worker']:.0f} s ({pace_s:.2f} s a megapixel),",
        f"API {cpu['api']:.0f} s, queue server {cpu['queue']:.0f} s.",
        "",
        "| what | seconds | MiB | API's peak RSS, MiB | worker's peak RSS, MiB |",
        "| --- | ---: | ---: | ---: | ---: |",
        f"| before | | | {run['memory_before']['api'] / MIB:.0f} | {run['memory_before']['worker'] / MIB:.0f} |",
    ]
    peak = {what: {name: held["peak"] / MIB for name, held in parts.items()} for what, parts in run["memory"].items()}
    lines.append(f"| the job | {made['seconds']:.0f} | | {peak['job']['api']:.0f} | {peak['job']['worker']:.0f} |")
    for kind, answer in run["answers"].items():
        if answer["status"] == 200:
            took = f"{answer['first_byte_s']:.1f} + {answer['seconds'] - answer['first_byte_s']:.1f}"
            held = f"{peak[kind]['api']:.0f} | {peak[kind]['worker']:.0f}"
            lines.append(f"| {kind.upper()}, written + sent | {took} | {answer['bytes'] / MIB:.0f} | {held} |")
        else:
            lines.append(f"| {kind.upper()} | {answer['status']}: {answer['detail']} | | {peak[kind]['api']:.0f} | |")
    lines += [
        "",
        "| single samples | requests | bad | p50 ms | p99 ms | largest ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for when, said in run["samples"].items():
        figures = " | ".join(str(said[name]) for name in ("requests", "bad", "p50_ms", "p99_ms", "largest_ms"))
        lines.append(f"| {when} | {figures} |")
    return lines


def main() -> None:
    """Measure, and add the run to the page; a run with the same options is replaced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--megapixels", type=float, default=10.65, help="of the photograph; four times larger it is 170"
    )
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--method", default="bicubic", help="of the model")
    parser.add_argument(
        "--checkpoints", type=Path, default=ROOT / "checkpoints", help="vae-mnist and one that upscales"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "upscales.md", help="the Markdown file")
    arguments = parser.parse_args()
    run = measured(arguments)
    side = arguments.out.with_suffix(".json")
    runs = json.loads(side.read_text()) if side.exists() else []
    runs = sorted(
        [one for one in runs if one["options"] != run["options"]] + [run], key=lambda one: str(one["options"])
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    side.write_text(json.dumps(runs, indent=1) + "\n")
    arguments.out.write_text(markdown(runs))
    print(f"wrote {arguments.out} and {side.name}")


if __name__ == "__main__":
    main()
