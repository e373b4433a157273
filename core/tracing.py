"""Record OpenTelemetry traces: from an HTTP request through batch, queue and forward pass.

Unless tracing was set up with the setting `tracing`, nothing is recorded, and OpenTelemetry is not
imported. A span's context is sent as the text of its `traceparent` (W3C Trace Context), in messages
to workers and in rows of jobs. A batch has many requests, so its spans are in the trace of the
first one, and have links to the others.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

    from core.settings import Settings

Kind = Literal["internal", "server", "producer", "consumer"]
Attributes = Mapping[str, str | int | float | bool]

CURRENT = "current"  # the parent is the current span of this thread or task
ROOT = "root"  # no parent: the span begins a trace

REMEDY = "pip install -r requirements/otel.lock (or the packages of the extra `otel`), or unset REVERIE_TRACING"

_tracer: Tracer | None = None
_OFF: AbstractContextManager[None] = nullcontext()


def installed() -> bool:
    """Return whether the packages of the extra `otel` are installed."""
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False


def set_up(settings: Settings, program: str) -> None:
    """If the setting `tracing` is on, record this process's spans and export them by OTLP/HTTP.

    The service name in the spans is `reverie-PROGRAM`. The environment variables of OpenTelemetry
    (`OTEL_…`) configure exporter, sampler and limits.
    """
    global _tracer  # noqa: PLW0603 - one tracer per process, as OpenTelemetry has
    if not settings.tracing or _tracer is not None:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    named = Resource.create({"service.name": f"reverie-{program}", "service.namespace": "reverie"})
    provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = provider.get_tracer("reverie")


def is_on() -> bool:
    """Return whether this process records spans, that is, whether tracing was set up."""
    return _tracer is not None


def start(
    name: str,
    parent: str = CURRENT,
    *,
    links: Iterable[str] = (),
    kind: Kind = "internal",
    started_at: float | None = None,
    attributes: Attributes | None = None,
) -> Span | None:
    """Start a span and return it; return None if tracing is off or there is no parent.

    `parent` is `CURRENT` (the current span), `ROOT` (the span begins a new trace) or a
    `traceparent`; "" means that there is no parent. `links` are `traceparent`s. `started_at` is a
    Unix time; None means now. The caller must end the span.
    """
    if _tracer is None or not parent:
        return None
    from opentelemetry import trace  # noqa: PLC0415 - imported already: a look-up

    context: Context | None = None
    if parent != CURRENT:
        context = _context(parent)
    elif not trace.get_current_span().get_span_context().is_valid:
        return None
    contexts = (trace.get_current_span(_context(link)).get_span_context() for link in links if link)
    return _tracer.start_span(
        name,
        context,
        trace.SpanKind[kind.upper()],
        attributes=dict(attributes or {}),
        links=[trace.Link(one) for one in contexts if one.is_valid],
        start_time=None if started_at is None else int(started_at * 1e9),
    )


def span(
    name: str,
    parent: str = CURRENT,
    *,
    links: Iterable[str] = (),
    kind: Kind = "internal",
    attributes: Attributes | None = None,
) -> AbstractContextManager[Span | None]:
    """Return a context manager that records its block as a span, which is current in the block.

    `parent` is `CURRENT` (the current span), `ROOT` (the span begins a new trace) or a
    `traceparent`; "" means that there is no parent. `links` are `traceparent`s. The context manager
    yields the span; if tracing is off or there is no parent, it yields None and nothing is
    recorded.
    """
    if _tracer is None or not parent:
        return _OFF
    return _recorded(start(name, parent, links=links, kind=kind, attributes=attributes))


@contextmanager
def _recorded(started: Span | None) -> Iterator[Span | None]:
    if started is None:
        yield None
        return
    from opentelemetry import trace  # noqa: PLC0415

    with trace.use_span(started, end_on_exit=True):
        yield started


def make_current(started: Span | None) -> object:
    """Make a span the current one of this task; return a token by which this can be undone.

    Does nothing and returns None if `started` is None.
    """
    if started is None:
        return None
    from opentelemetry import context, trace  # noqa: PLC0415

    return context.attach(trace.set_span_in_context(started))


def restore_current(token: Any) -> None:
    """Undo `make_current`, which returned `token`: the span before it is the current one again.

    Does nothing if `token` is None.
    """
    if token is not None:
        from opentelemetry import context  # noqa: PLC0415

        context.detach(token)


def record(name: str, parent: str, started_at: float, ended_at: float | None = None, **attributes: Any) -> None:
    """Record a span that is over, from `started_at` to `ended_at` (Unix times).

    `ended_at` None means now. `parent` is `CURRENT` (the current span), `ROOT` (the span begins a
    new trace) or a `traceparent`; without a parent ("") nothing is recorded. `attributes` are those
    of the span.
    """
    past = start(name, parent, started_at=started_at, attributes=attributes)
    if past is not None:
        past.end(int((time.time() if ended_at is None else ended_at) * 1e9))


def traceparent(of: Span | None) -> str:
    """Return the `traceparent` of a span as text; "" for None."""
    if of is None:
        return ""
    context = of.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _context(parent: str) -> Context:
    """Return OpenTelemetry's context of a `traceparent`.

    It is empty, so that a span in it begins a new trace, if `parent` is `ROOT` or not valid.
    """
    from opentelemetry.context import Context  # noqa: PLC0415
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    if parent == ROOT:
        return Context()
    return TraceContextTextMapPropagator().extract({"traceparent": parent}, Context())
