"""The serving benchmark checks responses, chooses settings and stops servers; no test measures."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.imaging.pictures import png
from tests.benchmarks.modules import Importer
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


def body(level: int = 7, **changes: Any) -> dict[str, Any]:
    """Return a response body with one 28×28 image of one grey level."""
    picture = base64.b64encode(png(np.full((1, 28, 28), level, np.uint8))).decode()
    return {"model": "vae-mnist", "version": "1", "seed": 3, "images": [picture], **changes}


def counts(verdict: Any) -> tuple[int, int, int]:
    """Return the numbers of exact, near and bad responses in a verdict on one response."""
    assert verdict.taken == 1
    return verdict.exact, verdict.near, verdict.bad


@pytest.mark.parametrize(
    ("status", "response", "verdict"),
    [
        (200, body(), (1, 0, 0)),
        (200, body(level=8), (0, 1, 0)),
        (200, body(level=9), (0, 0, 1)),
        (200, body(seed=4), (0, 0, 1)),
        (200, body(images=[]), (0, 0, 1)),
        (200, body(images=["bm8gcGljdHVyZQ=="]), (0, 0, 1)),
        (200, {}, (0, 0, 1)),
        (202, body(), (0, 0, 1)),
    ],
)
def test_responses_are_checked(
    module: Importer, status: int, response: dict[str, Any], verdict: tuple[int, int, int]
) -> None:
    """A response is exact, near (one grey level off), or bad: other pixels, seed or status, or no
    image.
    """
    judge = module("serving.client").judge
    assert counts(judge(status, json.dumps(response).encode(), body(), "fields")) == verdict
    assert counts(judge(status, json.dumps([response]).encode(), body(), "list")) == verdict


def test_a_body_that_is_no_json_is_bad(module: Importer) -> None:
    """A body that cannot be parsed counts as bad and does not stop the benchmark."""
    assert counts(module("serving.client").judge(200, b"<html>", body(), "fields")) == (0, 0, 1)


def trial(module: Importer, name: str, served: tuple[float, ...], p50_ms: tuple[float, ...], fault: str = "") -> Any:
    """Return a trial with requests per second and median latency at 1, 16 and 64 connections."""
    numbers = (1, 16, 64)
    return module("serving.sweep").Trial(
        {"dial": name}, dict(zip(numbers, served, strict=True)), dict(zip(numbers, p50_ms, strict=True)), fault
    )


def test_dials_are_chosen_for_each_number_of_connections(module: Importer) -> None:
    """Settings with the most requests at 16 and 64 connections and the lowest median at one are
    chosen, if no request failed.
    """
    trials = [
        trial(module, "many", (100, 500, 900), (10, 30, 70)),
        trial(module, "few", (400, 800, 600), (2, 20, 100)),
        trial(module, "refuses", (900, 9000, 9000), (1, 1, 1), "12 answers not 2xx"),
    ]
    choice = module("serving.sweep").choose(trials)
    assert choice.dials == {1: {"dial": "few"}, 16: {"dial": "few"}, 64: {"dial": "many"}}
    assert sorted(counts for _, counts in choice.settings()) == [[1, 16], [64]]


def test_a_setting_within_five_percent_gives_way(module: Importer) -> None:
    """If settings differ by less than 5 %, one is used for all numbers of connections."""
    trials = [
        trial(module, "best", (100, 500, 900), (10, 30, 70)),
        trial(module, "near", (102, 510, 890), (9.8, 30, 70)),
    ]
    assert len(list(module("serving.sweep").choose(trials).settings())) == 1


def test_a_server_is_ended_with_its_daemons(module: Importer, tmp_path: Path) -> None:
    """A daemon of the server, in its own session and under another parent, is stopped with it."""
    daemon = "import os, time; os.fork() and os._exit(0); os.setsid(); print(os.getpid(), flush=True); time.sleep(60)"
    server = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {daemon!r}]); time.sleep(60)"
    log = tmp_path / "log"
    command = [sys.executable, "-c", server]
    with module("serving.processes").process_tree(command, dict(os.environ), tmp_path, log, 1) as tree:
        pid = int(wait_until(lambda: log.read_text().strip(), "the daemon has printed its process id"))
        assert {tree.process.pid, pid} <= tree.pids()
        weight = tree.weigh(0.2)
        assert weight.processes == 2
        assert 0 < weight.pss_bytes <= weight.rss_bytes
    assert not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def test_the_script_explains_itself() -> None:
    """`--help` works before anything is installed or measured."""
    command = [sys.executable, str(ROOT / "benchmarks" / "serve.py"), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "--quick" in shown
    assert "wrk" in shown
