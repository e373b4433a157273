"""Generated requests, valid and invalid, alone and in sequences, cause no server error and no
hang.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.stack import ROOT, Stack

HERE = Path(__file__).parent
HANG_S = 10.0
ALLOWED = {503, 504, 507}
"""Allowed statuses from 500 on: overload, deadline and full disk."""


@dataclass(frozen=True)
class Exchange:
    """A request and its response; status 0 if there was none."""

    method: str
    url: str
    sent: str
    status: int
    seconds: float
    content_type: str
    received: str

    @classmethod
    def of(cls, entry: dict[str, Any]) -> Exchange:
        """Return the exchange in an entry of a HAR file."""
        request, response = entry["request"], entry["response"]
        content = response["content"]
        return cls(
            request["method"],
            request["url"],
            str(request.get("postData", ""))[:2000],
            response["status"],
            entry["time"] / 1000,
            str(content.get("mimeType", "")),
            str(content.get("text") or "")[:2000],
        )

    @property
    def fault(self) -> str:
        """What is wrong with the response; empty if nothing is."""
        if self.status == 0:
            return "no response"
        if self.seconds > HANG_S:
            return f"{self.seconds:.1f} s"
        if self.status < 500:
            return ""
        if self.status not in ALLOWED:
            return "a fault of the service"
        if self.url.partition("?")[0].endswith("/readyz"):
            return ""  # its body says what is missing
        if "/openai/v1/" in self.url:
            reasoned = json.loads(self.received)["error"]["message"]
        else:
            reasoned = self.content_type.startswith("application/problem+json") and json.loads(self.received)["detail"]
        return "" if reasoned else "no reason"


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service with a PATH without programs, so that it fetches nothing."""
    folder = tmp_path_factory.mktemp("fuzzed")
    running = Stack(folder, sync_timeout_s="3", max_sync_timeout_s="5", data=str(folder / "data"))
    running.environment["PATH"] = str(folder)
    with running:
        yield running


def exchanges(stack: Stack, seconds: int) -> tuple[list[Exchange], str]:
    """Run schemathesis for so many seconds.

    Return its requests with their responses, and its output if a check has failed, otherwise "".
    `schemathesis.toml` beside this file says which responses are intended.
    """
    report = stack.state / "report.har"
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(HERE / "schemathesis.toml")),
        *("run", f"{stack.url}/openapi.json", "--phases", "examples,coverage,fuzzing,stateful"),
        *("--max-time", str(seconds), "--request-timeout", str(2 * HANG_S), "--report-har-path", str(report)),
        *("--continue-on-failure", "--suppress-health-check", "all", "--no-shrink", "--output-sanitize", "false"),
    ]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.service.schemathesis_hooks", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=stack.state, capture_output=True, text=True, timeout=seconds + 120, check=False, env=environment
    )
    assert report.is_file(), done.stdout[-2000:] + done.stderr[-2000:]
    made = [Exchange.of(entry) for entry in json.loads(report.read_text())["log"]["entries"]]
    return made, done.stdout if done.returncode else ""


LEAST = 3000
"""Requests that ten minutes are enough for."""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_generated_requests_meet_no_fault(fuzzed: Stack) -> None:
    """No generated request fails a check of schemathesis, gets a 5xx without a reason, or hangs."""
    made, failures = exchanges(fuzzed, 600)
    assert not failures, failures[:20_000]
    statuses = Counter(exchange.status for exchange in made)
    assert len(made) >= LEAST, statuses
    assert statuses[200] >= LEAST / 20, statuses
    assert statuses[422] >= LEAST / 20, statuses
    faults = [(exchange.fault, exchange) for exchange in made if exchange.fault]
    assert not faults, f"{len(faults)} of {len(made)}: {faults[:5]}"
    assert httpx.get(f"{fuzzed.url}/readyz", timeout=10).status_code == 200
