"""Generated requests, valid and invalid, alone and in sequences, cause no server error and no
hang.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.stack import Stack

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


def exchanges(stack: Stack, seconds: int, *words: str) -> list[Exchange]:
    """Run schemathesis for so many seconds; return its requests and responses."""
    report = stack.state / "report.har"
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{stack.url}/openapi.json"),
        *("--max-time", str(seconds), "--request-timeout", str(2 * HANG_S), "--checks", "not_a_server_error"),
        *("--report-har-path", str(report), "--continue-on-failure", "--suppress-health-check", "all"),
        *("--no-shrink", "--output-sanitize", "false", *words),
    ]
    done = subprocess.run(command, cwd=stack.state, capture_output=True, text=True, timeout=seconds + 120, check=False)
    assert report.is_file(), done.stdout[-2000:] + done.stderr[-2000:]
    return [Exchange.of(entry) for entry in json.loads(report.read_text())["log"]["entries"]]


LEAST = 3000
"""Requests that ten minutes are enough for."""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_generated_requests_meet_no_fault(fuzzed: Stack) -> None:
    """No generated request gets another 5xx than the allowed ones with a reason, or hangs."""
    made = exchanges(fuzzed, 600, "--phases", "examples,coverage,fuzzing,stateful")
    statuses = Counter(exchange.status for exchange in made)
    assert len(made) >= LEAST, statuses
    assert statuses[200] >= LEAST / 20, statuses
    assert statuses[422] >= LEAST / 20, statuses
    option_errors = [(exchange.fault, exchange) for exchange in made if exchange.fault]
    assert not option_errors, f"{len(option_errors)} of {len(made)}: {option_errors[:5]}"
    assert httpx.get(f"{fuzzed.url}/readyz", timeout=10).status_code == 200
