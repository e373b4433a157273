"""A worker serves before all models are loaded and batch plans measured, and `/readyz` lists what
is loaded.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.stack import ROOT, Stack, free_port
from tests.waiting import wait_until

MODEL = "vae-mnist-2d"
START_S = 60.0
"""Many times what a start takes on an idle machine (docs/results/start.md)."""


def readiness(stack: Stack) -> dict[str, Any]:
    """Return the body of `/readyz`."""
    answer = httpx.get(f"{stack.url}/readyz", timeout=10)
    body: dict[str, Any] = answer.json()
    assert (answer.status_code == 200) == (body["status"] == "ready")
    assert not set(body["models"]) & set(body["loading"])
    return body


def test_the_first_request_waits_for_its_own_model_only(tmp_path: Path) -> None:
    """On an empty state folder it waits for three forward passes, not for a measurement. The other
    models are loaded afterwards. The health check of a worker's container passes once a model is
    loaded.
    """
    heartbeat_file = tmp_path / "heartbeat"
    stack = Stack(tmp_path / "service", heartbeat_file=str(heartbeat_file))
    (stack.state / "state" / "plans").unlink()  # those that the tests share
    names = {f"{path.name}@1" for path in (stack.state / "checkpoints").iterdir()}
    try:
        stack.start("queue")
        stack.wait_queue()
        stack.start("api")
        wait_until(lambda: _is_up(stack), "the API is up")
        assert readiness(stack)["status"] == "not ready"
        body = {"model": MODEL, "count": 64, "seed": 3}
        headers = {"Prefer": "wait=60", "Accept": "image/png"}
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(httpx.post, f"{stack.url}/v1/samples", json=body, headers=headers, timeout=90)
            assert not _is_alive(heartbeat_file)
            stack.start("inference")
            response = waiting.result()
        assert response.status_code == 200, response.text
        log = stack.log("inference")
        batch = next(index for index, line in enumerate(log) if line["event"] == "batch")
        assert not [line for line in log[:batch] if line["event"] == "batch plan measured"]
        (first,) = [line for line in log if line["event"] == "first batch plan" and line["model"] == f"{MODEL}@1"][:1]
        assert (first["method"], first["passes"]) == ("sample", 3)
        wait_until(lambda: _is_alive(heartbeat_file), "the health check passes")
        wait_until(lambda: not readiness(stack)["loading"] and readiness(stack)["models"], "all models are loaded")
        assert set(readiness(stack)["models"]) == names
        wait_until(lambda: _is_measured(stack), "its batch plan is measured")
        again = httpx.post(f"{stack.url}/v1/samples", json=body, headers=headers, timeout=90)
        assert again.content == response.content
    finally:
        stack.down()


def _is_alive(heartbeat_file: Path) -> bool:
    environment = {**os.environ, "REVERIE_HEARTBEAT_FILE": str(heartbeat_file)}
    command = [sys.executable, "-I", "-S", "docker/alive.py"]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0


def _is_up(stack: Stack) -> bool:
    try:
        return httpx.get(f"{stack.url}/healthz", timeout=5).is_success
    except httpx.HTTPError:
        return False


def _is_measured(stack: Stack) -> bool:
    measured = [line for line in stack.log("inference") if line["event"] == "batch plan measured"]
    return any((line["model"], line["method"]) == (f"{MODEL}@1", "sample") for line in measured)


@pytest.mark.slow
@pytest.mark.timing
def test_the_readme_s_command_is_answered_soon_after_a_start(tmp_path: Path) -> None:
    """The state folder is empty at the first start and used at the second; all shipped models are
    served.
    """
    (command,) = re.findall(r"```sh\n(curl .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[:1]
    for _ in range(2):
        url = f"http://127.0.0.1:{free_port()}"
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("REVERIE_")},
            "REVERIE_PORT": url.rpartition(":")[2],
            "REVERIE_QUEUE_URL": f"redis://127.0.0.1:{free_port()}/0",
            "REVERIE_STATE": str(tmp_path / "state"),
        }
        started = time.monotonic()
        service = subprocess.Popen(
            [sys.executable, "-m", "workers.devserver"], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE
        )
        try:
            assert service.stdout is not None
            assert any(line.startswith("Reverie is ready") for line in service.stdout)
            words = command.replace("http://127.0.0.1:8000", url).replace("digits.png", str(tmp_path / "digits.png"))
            done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=False)
            assert done.stdout.strip() == "200 image/png"
            assert time.monotonic() - started < START_S
        finally:
            service.send_signal(signal.SIGTERM)
            service.communicate(timeout=60)
