"""The benchmark judges answers, chooses dials and ends servers as it says; nothing is measured here."""

import base64
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from core.imaging.pictures import png

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def serving(monkeypatch):
    """Imports a module of benchmarks/serving, as the script does."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return lambda name: importlib.import_module(f"serving.{name}")


def body(level=7, **changes):
    """An answer with one 28×28 picture of one grey level."""
    picture = base64.b64encode(png(np.full((1, 28, 28), level, np.uint8))).decode()
    return {"model": "vae-mnist", "version": "1", "seed": 3, "images": [picture], **changes}


def counts(found):
    """Exact, near and bad of a verdict on one answer."""
    assert found.taken == 1
    return found.exact, found.near, found.bad


@pytest.mark.parametrize(
    ("status", "answer", "verdict"),
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
def test_answers_are_judged(serving, status, answer, verdict):
    """Equal to the bit, one grey level off, or bad: another pixel, seed, status or no picture at all."""
    judge = serving("client").judge
    assert counts(judge(status, json.dumps(answer).encode(), body(), "fields")) == verdict
    assert counts(judge(status, json.dumps([answer]).encode(), body(), "list")) == verdict


def test_what_is_no_json_is_bad(serving):
    """A body that does not parse counts as bad and stops nothing."""
    assert counts(serving("client").judge(200, b"<html>", body(), "fields")) == (0, 0, 1)


def trial(serving, name, served, p50_ms, fault=""):
    """A trial with requests per second and median latency at 1, 16 and 64 connections."""
    numbers = (1, 16, 64)
    return serving("sweep").Trial(
        {"dial": name}, dict(zip(numbers, served, strict=True)), dict(zip(numbers, p50_ms, strict=True)), fault
    )


def test_dials_are_chosen_for_each_number_of_connections(serving):
    """Most requests at 16 and 64, lowest median alone; a setting that refused requests is never taken."""
    trials = [
        trial(serving, "many", (100, 500, 900), (10, 30, 70)),
        trial(serving, "few", (400, 800, 600), (2, 20, 100)),
        trial(serving, "refuses", (900, 9000, 9000), (1, 1, 1), "12 answers not 2xx"),
    ]
    choice = serving("sweep").choose(trials)
    assert choice.dials == {1: {"dial": "few"}, 16: {"dial": "few"}, 64: {"dial": "many"}}
    assert sorted(counts for _, counts in choice.settings()) == [[1, 16], [64]]


def test_a_setting_within_five_percent_gives_way(serving):
    """One start serves for all where the gain is within noise."""
    trials = [
        trial(serving, "best", (100, 500, 900), (10, 30, 70)),
        trial(serving, "near", (102, 510, 890), (9.8, 30, 70)),
    ]
    assert len(list(serving("sweep").choose(trials).settings())) == 1


def test_a_server_is_ended_with_its_daemons(serving, tmp_path):
    """A child that left for a session of its own, under another parent, dies with the server."""
    daemon = "import os, time; os.fork() and os._exit(0); os.setsid(); print(os.getpid(), flush=True); time.sleep(60)"
    server = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {daemon!r}]); time.sleep(60)"
    log = tmp_path / "log"
    command = [sys.executable, "-c", server]
    with serving("processes").process_tree(command, dict(os.environ), tmp_path, log, 1) as tree:
        until = time.monotonic() + 20
        while not log.read_text().strip() and time.monotonic() < until:
            time.sleep(0.05)
        pid = int(log.read_text())
        assert {tree.process.pid, pid} <= tree.pids()
        weight = tree.weigh(0.2)
        assert weight.processes == 2
        assert 0 < weight.pss_bytes <= weight.rss_bytes
    assert not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def test_the_script_explains_itself():
    """`--help` answers in the project's own environment, before anything is installed or measured."""
    command = [sys.executable, str(ROOT / "benchmarks" / "serve.py"), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "--quick" in shown
    assert "wrk" in shown
