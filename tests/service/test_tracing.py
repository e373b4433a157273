"""OpenTelemetry: one trace from the HTTP request to the forward pass, received by a collector."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from core import tracing
from core.settings import Settings
from core.startup import StartupError, check
from tests.api.helpers import TINY, b64, finished_job
from tests.datasets import add_digits
from tests.forked import ForkedProcess
from tests.stack import Stack
from tests.waiting import wait_until

PARENT = "b7ad6b7169203331"


@dataclass(frozen=True)
class Received:
    """A received span; ids are hexadecimal."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    links: tuple[str, ...]
    attributes: dict[str, str]
    start: int
    end: int


@dataclass
class Collector:
    """A collector of OTLP over HTTP on a free port."""

    spans: list[Received] = field(default_factory=list)
    server: ThreadingHTTPServer = field(init=False)

    def __post_init__(self) -> None:
        received = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.extend(_spans(ExportTraceServiceRequest.FromString(body)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def trace(self, trace_id: str, *names: str) -> dict[str, Received]:
        """Wait until a trace has spans of these names; return its spans by name."""

        def found() -> dict[str, Received] | None:
            spans = {f"{one.service} {one.name}": one for one in self.spans if one.trace == trace_id}
            return spans if set(names) <= set(spans) else None

        return wait_until(found, f"the trace has {names}; there are {self.spans}", 60)


def _spans(request: ExportTraceServiceRequest) -> Iterator[Received]:
    for group in request.resource_spans:
        service = {one.key: one.value.string_value for one in group.resource.attributes}["service.name"]
        for span in (span for scope in group.scope_spans for span in scope.spans):
            yield Received(
                service.removeprefix("reverie-"),
                span.name,
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                tuple(link.trace_id.hex() for link in span.links),
                {
                    one.key: one.value.string_value or str(one.value.int_value or one.value.bool_value)
                    for one in span.attributes
                },
                span.start_time_unix_nano,
                span.end_time_unix_nano,
            )


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """A running collector."""
    collector = Collector()
    threading.Thread(target=collector.server.serve_forever, daemon=True).start()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


@pytest.fixture(scope="module")
def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service that sends its spans to the collector."""
    stack = Stack(tmp_path_factory.mktemp("traced"), tracing="true")
    stack.environment |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server.server_port}",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    with stack:
        yield stack


def _trace(number: int) -> str:
    return f"{number:032x}"


def _parent(number: int, *, sampled: bool = True) -> dict[str, str]:
    return {"traceparent": f"00-{_trace(number)}-{PARENT}-0{int(sampled)}"}


def test_a_request_is_one_trace(traced: Stack, collector: Collector) -> None:
    """The trace of a request has spans of queue, batch, forward pass and encoding, with the right
    parents.
    """
    with httpx.Client(base_url=traced.url, timeout=60) as client:
        body = {"model": TINY, "seed": 3, "count": 2}
        response = client.post("/v1/samples", json=body, headers=_parent(1))
    assert response.status_code == 200, response.text
    names = ["POST /v1/samples", "queue", "batch", "encode"]
    names = [f"api {name}" for name in names] + [
        f"inference {name}" for name in ("run batch", "forward pass", "encode")
    ]
    spans = collector.trace(_trace(1), *names)
    assert set(spans) == set(names)
    server, batch, run, forward = (spans[names[index]] for index in (0, 2, 4, 5))
    assert server.parent == PARENT
    assert response.headers["traceresponse"] == f"00-{server.trace}-{server.id}-01"
    assert {spans[name].parent for name in ("api queue", "api batch", "api encode")} == {server.id}
    assert (run.parent, forward.parent) == (batch.id, run.id)
    assert spans["inference encode"].parent == forward.id
    assert server.start <= spans["api queue"].start <= spans["api queue"].end <= batch.end <= server.end
    assert batch.start <= run.start <= forward.start <= forward.end <= run.end
    assert server.attributes["http.route"] == "/v1/samples"
    assert server.attributes["http.response.status_code"] == "200"
    assert server.attributes["reverie.request_id"] == response.headers["x-request-id"]
    (line,) = [one for one in traced.log("api") if one.get("request_id") == response.headers["x-request-id"]]
    assert line["trace_id"] == server.trace


def test_a_batch_of_several_requests_links_them(traced: Stack, collector: Collector) -> None:
    """The span of a shared batch is in the trace of one request and has links to those of the
    others, which link to it.
    """
    body = {"model": TINY, "seed": 3, "count": 1, "steps": 2, "seconds": 0.3}

    def post(number: int) -> int:
        return httpx.post(f"{traced.url}/v1/samples", json=body, headers=_parent(number), timeout=60).status_code

    numbers = range(100, 116)
    with ThreadPoolExecutor(len(numbers)) as pool:
        assert set(pool.map(post, numbers)) == {200}
    for number in numbers:
        collector.trace(_trace(number), "api batch", "api POST /v1/samples")
    runs = [one for one in collector.spans if one.name == "run batch" and one.links]
    assert runs
    for run in runs:
        assert run.trace not in run.links
        for linked in run.links:
            own = collector.trace(linked, "api batch")["api batch"]
            assert run.trace in own.links


def test_a_job_is_in_the_trace_of_its_request(traced: Stack, collector: Collector) -> None:
    """The spans of a job and of a dry run are in the trace of the request that created them."""
    add_digits(traced)
    recipe = {"config": {"hidden": [16], "latents": 3}, "training": {"epochs": 1, "batch_size": 50}}
    training = {"family": "vae", "dataset": "digits", "name": "traced", "recipe": recipe}
    with httpx.Client(base_url=traced.url, timeout=60) as client:
        body = {"model": TINY, "seed": 3, "count": 2}
        queued = client.post("/v1/samples", json=body, headers={"Prefer": "respond-async", **_parent(2)})
        trained = client.post("/v1/trainings", json={**training, "dry_run": True}, headers=_parent(3))
        finished_job(client, queued.json()["id"])
        assert trained.status_code in {200, 202}
    spans = collector.trace(_trace(2), "api POST /v1/samples", "inference run job", "inference forward pass")
    server = spans["api POST /v1/samples"]
    assert spans["inference run job"].parent == spans["inference queue"].parent == server.id
    assert spans["inference run job"].attributes["reverie.job_id"] == queued.json()["id"]
    spans = collector.trace(_trace(3), "api POST /v1/trainings", "training run estimate", "training queue")
    assert spans["training run estimate"].parent == spans["api POST /v1/trainings"].id


def test_the_clients_decision_on_sampling_holds(traced: Stack, collector: Collector) -> None:
    """A trace that the client does not sample is not recorded; an invalid `traceparent` starts a
    new trace.
    """
    with httpx.Client(base_url=traced.url, timeout=60) as client:
        body = {"model": TINY, "seed": 3, "count": 2}
        silent = client.post("/v1/samples", json=body, headers=_parent(4, sampled=False))
        assert silent.status_code == 200
        assert re.fullmatch(rf"00-{_trace(4)}-[0-9a-f]{{16}}-00", silent.headers["traceresponse"])
        for wrong in ("", "00-zz-1-01", "00-" + "0" * 32 + "-" + PARENT + "-01", "é" * 10):
            fresh = client.post("/v1/samples", json=body, headers={"traceparent": wrong.encode()})  # type: ignore[arg-type]
            assert fresh.status_code == 200
            trace = fresh.headers["traceresponse"].split("-")[1]
            spans = collector.trace(trace, "api POST /v1/samples", "inference forward pass")
            assert spans["api POST /v1/samples"].parent == ""
        refused = client.post("/v1/samples", json={"model": "nothing"}, headers=_parent(5))
        assert refused.status_code == 404
        span = collector.trace(_trace(5), "api POST /v1/samples")["api POST /v1/samples"]
        assert span.attributes["http.response.status_code"] == "404"
    assert not [one for one in collector.spans if one.trace == _trace(4)]


def test_images_are_the_same_with_and_without_traces(traced: Stack, client: httpx.Client, digit: bytes) -> None:
    """Tracing does not change response bodies; without it there is no `traceresponse` header."""
    for path, body in (
        ("samples", {"model": TINY, "seed": 3, "count": 5}),
        ("upscales", {"model": "enlarge", "seed": 3, "image": b64(digit)}),
    ):
        with_traces = httpx.post(f"{traced.url}/v1/{path}", json=body, timeout=60)
        without = client.post(f"/v1/{path}", json=body, headers=_parent(6))
        assert with_traces.status_code == without.status_code == 200, without.text
        assert with_traces.content == without.content
        assert "traceresponse" in with_traces.headers
        assert "traceresponse" not in without.headers


def test_without_its_packages_tracing_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing without its packages stops the start, and the error says what to install."""
    monkeypatch.setattr(tracing, "installed", lambda: False)
    with pytest.raises(StartupError, match=r"requirements/otel\.lock"):
        check(Settings(state=tmp_path, tracing=True))


def test_without_tracing_no_exporter_is_imported(root: Path, tmp_path: Path) -> None:
    """Without tracing neither API nor workers import an exporter; redis-py itself imports the SDK
    if it is installed.
    """
    log = tmp_path / "log"
    assert ForkedProcess("tests.no_exporter", root, dict(os.environ), log).wait(60) == 0, log.read_text()
    assert not tracing.is_on()
