"""The ASGI middleware of all requests: request id, access control, body limits, metrics, log."""

import asyncio
import contextlib
import logging
import re
import secrets
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import audit
from api.access import OPEN_PATHS, AccessControl, caller_of, rule_of
from api.deadline import HEADER as DEADLINE_HEADER
from api.deadline import set_deadline, stop_at
from api.errors import OverloadedError, ProblemError
from api.html_headers import add_html_headers
from api.job_events import OpeningPace
from api.openai_errors import PREFIX, OpenAIErrorSender
from api.request_bodies import BodyReader, RequestBodies
from api.request_span import RequestSpan, traceparent_of
from core import tracing
from core.histograms import HISTOGRAMS
from core.settings import Settings

log = logging.getLogger("api.access")

LINGER_S = 2.0  # how long the rest of a rejected body is read
_BODILESS = frozenset({"GET", "DELETE", "OPTIONS"})
_ENCODED_HEADERS = frozenset({b"content-encoding", b"content-length"})
_PLAIN_ID = re.compile(rb"[\x21-\x7e]{1,120}")


class RequestMiddleware:
    """Checks each request, passes it to the application, and records its status and duration."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        """Wrap the ASGI application `app`."""
        self._app = app
        self._access = AccessControl(settings)
        self._bodies = RequestBodies(settings)
        self._openings = OpeningPace()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the application or reject it; record its status and duration."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = time.perf_counter()
        if scope["method"] == "HEAD" and not scope["path"].endswith("/events"):
            scope = {**scope, "method": "GET"}  # the server sends no body
        headers = dict(scope["headers"])
        client_id = headers.get(b"x-request-id")
        request_id = client_id.decode() if client_id and _PLAIN_ID.fullmatch(client_id) else secrets.token_hex(16)
        sender = _ResponseSender(receive, send, headers, request_id)
        sender.start_span(scope)
        sender.may_be_html = not scope["path"].startswith(("/v1/", PREFIX))
        send = OpenAIErrorSender(sender.send) if scope["path"].startswith(PREFIX) else sender.send
        try:
            await self._handle(scope, receive, sender, send)
        except ClientDisconnect:
            sender.status = 499  # as nginx logs it
        except ProblemError as error:
            await error.response(request_id)(scope, receive, send)
        except asyncio.CancelledError:  # the server stops, and the grace period of open requests is over
            if sender.status:
                raise
            stopping = OverloadedError("the service is stopping; send the request again", retry_after_s=2)
            await stopping.response(request_id)(scope, receive, send)
        except Exception:
            log.exception("internal error", extra={"request_id": request_id})
            if sender.status:
                raise  # the response has started; uvicorn closes the connection
            internal = ProblemError("an error of the service; it was logged with this request id")
            await internal.response(request_id)(scope, receive, send)
        finally:
            if sender.body is not None:
                sender.body.release()
            _record(scope, sender, time.perf_counter() - started_at)

    async def _handle(self, scope: Scope, receive: Receive, sender: "_ResponseSender", send: Send) -> None:
        """Check a request and pass it to the application, which sends its response by `send`.

        `sender` has the request's headers and id. Raises a ProblemError if the access control
        rejects the request, if too many event streams are being opened, or if the body exceeds a
        limit; and DeadlineExceededError if no response has started at the request's deadline.
        """
        scope["reverie_request_id"] = sender.request_id
        refusal = self._access.refusal(scope, sender.headers)
        sender.fields.extend(scope.get("reverie_headers", ()))
        if refusal is not None:
            raise refusal
        if DEADLINE_HEADER in sender.headers:
            async with stop_at(set_deadline(scope, sender.headers[DEADLINE_HEADER])) as timeout:
                sender.timeout = timeout
                try:
                    await self._pass_on(scope, receive, sender, send)
                finally:
                    sender.timeout = None
        else:
            await self._pass_on(scope, receive, sender, send)

    async def _pass_on(self, scope: Scope, receive: Receive, sender: "_ResponseSender", send: Send) -> None:
        """Pass a request to the application, with a `receive` that enforces the limits of its body.

        A request for an event stream is delayed first, so that many do not open at the same time.
        Raises OverloadedError if that delay would be too long.
        """
        if scope["path"].endswith("/events"):
            await asyncio.sleep(self._openings.delay_s())
        body = sender.body = self._bodies.reader(scope["method"], scope["path"], scope["headers"], receive)
        if body.decoded:
            scope["headers"] = [field for field in scope["headers"] if field[0] not in _ENCODED_HEADERS]
        receive = body if scope["method"] in _BODILESS else await body.ahead()
        await self._app(scope, receive, send)


class _ResponseSender:
    """Sends a request's response to the client, with the request id and security headers.

    Before the end of an error response it reads the rest of the upload, so that the client can read
    the response before the connection closes.
    """

    def __init__(self, receive: Receive, send: Send, headers: dict[bytes, bytes], request_id: str) -> None:
        self._receive = receive
        self._send = send
        self.headers = headers
        self.request_id = request_id
        self.status = 0
        self.may_be_html = True
        self.fields: list[tuple[bytes, bytes]] = []
        self.span: RequestSpan | None = None
        self.body: BodyReader | None = None
        self.timeout: asyncio.Timeout | None = None  # ends with the start of the response

    def start_span(self, scope: Scope) -> None:
        """Start the span of the request, and name it in the response's header `traceresponse`.

        Does nothing if traces are not recorded.
        """
        if tracing.is_on():
            self.span = RequestSpan(scope, self.headers, self.request_id)
            self.fields.append((b"traceresponse", self.span.traceparent.encode()))

    def _unread(self) -> bool:
        """Return whether the client may still be sending a body that will not be read."""
        if self.body is not None and not self.body.unread:
            return False
        return b"transfer-encoding" in self.headers or self.headers.get(b"content-length", b"0") != b"0"

    async def send(self, message: Message) -> None:
        """Send a message of the application to the client; add the request id and security headers.

        Before an error response ends, read and discard the rest of the request's body for at most
        `LINGER_S` seconds, so that the client can read the response before the connection closes.
        """
        if message["type"] == "http.response.start":
            if self.timeout is not None:
                if self.timeout.expired():
                    await asyncio.sleep(0)  # the cancellation, which is due, comes before the response
                else:
                    self.timeout.reschedule(None)
            self.status = message["status"]
            message["headers"].append((b"x-request-id", self.request_id.encode()))
            message["headers"].extend(self.fields)
            if self.may_be_html:
                add_html_headers(message)
            if self.status >= 400 and self._unread() and all(name != b"connection" for name, _ in message["headers"]):
                message["headers"].append((b"connection", b"close"))
        elif self.status >= 400 and self._unread() and not message.get("more_body"):
            await self._send({**message, "more_body": True})
            await _linger(self._receive)
            message = {"type": "http.response.body"}
        await self._send(message)


def _record(scope: Scope, sender: _ResponseSender, seconds: float) -> None:
    """Record a completed request in the metrics, the audit log, the log and its trace."""
    route, owner = getattr(scope.get("route"), "path", ""), caller_of(scope).name
    HISTOGRAMS.observe("request_seconds", (scope["method"], route or "other", str(sender.status)), seconds)
    if sender.span is not None:
        sender.span.end(route, sender.status, owner)
    action = rule_of(scope["method"], scope["path"]).action
    if action and sender.status not in {401, 429}:
        details = {"owner": owner, "resource": scope["path"][:200], "request_id": sender.request_id}
        audit.record(action, status=sender.status, **details, **scope.get(audit.DETAILS, {}))
    if scope["path"] not in OPEN_PATHS and log.isEnabledFor(logging.INFO):
        fields = {"request_id": sender.request_id, "owner": owner, "method": scope["method"], "path": scope["path"]}
        if traceparent := traceparent_of(scope):
            fields["trace_id"] = traceparent.split("-")[1]
        log.info("request", extra={**fields, "status": sender.status, "ms": round(seconds * 1000, 2)})


async def _linger(receive: Receive) -> None:
    """Read and discard the rest of a body for at most `LINGER_S` seconds.

    Closing at once could reset the connection before the client has read the response.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (await receive()).get("more_body"):
                pass
