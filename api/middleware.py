"""What every request passes: an id, the key check, the body limit, the clock. Plain ASGI, to cost little."""

import asyncio
import contextlib
import logging
import re
import secrets
import time
from functools import lru_cache

from prometheus_client import Histogram
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import audit
from api.access import OPEN_PATHS, AccessControl, rule_of
from api.errors import OverloadedError, ProblemError, problem, respond
from api.html_headers import add_html_headers
from api.job_events import OpeningPace
from api.metrics import LATENCY
from api.request_bodies import BodyReader, RequestBodies
from core.settings import Settings

log = logging.getLogger("api.access")

LINGER_S = 2.0
_BODILESS = frozenset({"GET", "DELETE", "OPTIONS"})
_ENCODED_HEADERS = frozenset({b"content-encoding", b"content-length"})
_PLAIN_ID = re.compile(rb"[\x21-\x7e]{1,120}")


class RequestMiddleware:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        """Wrap `app`."""
        self._app = app
        self._access = AccessControl(settings)
        self._bodies = RequestBodies(settings)
        self._openings = OpeningPace()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        if scope["method"] == "HEAD" and not scope["path"].endswith("/events"):
            scope = {**scope, "method": "GET"}  # the server leaves the body out
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id")
        request_id = given.decode() if given and _PLAIN_ID.fullmatch(given) else secrets.token_hex(16)
        answer = _Answer(receive, send, headers, request_id)
        answer.may_be_html = not scope["path"].startswith("/v1/")
        try:
            await self._pass(scope, receive, headers, answer)
        except ClientDisconnect:
            answer.status = 499  # nobody is there to be told
        except asyncio.CancelledError:
            if answer.status:
                raise
            # the server stops, and the time that it gave to open requests is over
            stopping = OverloadedError("the service is stopping; send the request again", headers={"Retry-After": "2"})
            await stopping.response(answer.request_id)(scope, receive, answer.send)
        except Exception:
            log.exception("fault", extra={"request_id": answer.request_id})
            if answer.status:
                raise  # the answer has begun; the connection is closed on it
            body = problem(500, "Internal error", "a fault of the service; it was logged under this request id")
            await respond(answer.request_id, body)(scope, receive, answer.send)
        finally:
            if answer.body is not None:
                answer.body.release()
            _note(scope, answer, time.perf_counter() - begun)

    async def _pass(self, scope: Scope, receive: Receive, headers: dict[bytes, bytes], answer: "_Answer") -> None:
        scope["reverie_request_id"] = answer.request_id
        refusal = self._access.refusal(scope, headers)
        if refusal is not None:
            await _refuse(refusal, scope, receive, answer)
            return
        try:
            if scope["path"].endswith("/events"):
                await asyncio.sleep(self._openings.delay_s())
            body = answer.body = self._bodies.reader(scope["method"], scope["path"], scope["headers"], receive)
            if body.decoded:
                scope["headers"] = [field for field in scope["headers"] if field[0] not in _ENCODED_HEADERS]
            receive = body if scope["method"] in _BODILESS else await body.ahead()
        except ProblemError as error:
            await _refuse(error, scope, receive, answer)
            return
        await self._app(scope, receive, answer.send)


async def _refuse(error: ProblemError, scope: Scope, receive: Receive, answer: "_Answer") -> None:
    await error.response(answer.request_id)(scope, receive, answer.send)


class _Answer:
    """What goes back to a client, under the request's id; a refused upload is read on before its answer ends."""

    def __init__(self, receive: Receive, send: Send, headers: dict[bytes, bytes], request_id: str) -> None:
        self._receive = receive
        self._send = send
        self._headers = headers
        self.request_id = request_id
        self.status = 0
        self.may_be_html = True
        self.body: BodyReader | None = None

    def _unread(self) -> bool:
        """Whether the client may still be sending a body that nobody will read."""
        if self.body is not None and not self.body.unread:
            return False
        return b"transfer-encoding" in self._headers or self._headers.get(b"content-length", b"0") != b"0"

    async def send(self, message: Message) -> None:
        """Send on what the application says."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"].append((b"x-request-id", self.request_id.encode()))
            if self.may_be_html:
                add_html_headers(message)
            if self.status >= 400 and self._unread() and all(name != b"connection" for name, _ in message["headers"]):
                message["headers"].append((b"connection", b"close"))
        elif self.status >= 400 and self._unread() and not message.get("more_body"):
            await self._send({**message, "more_body": True})
            await _linger(self._receive)
            message = {"type": "http.response.body"}
        await self._send(message)


def _note(scope: Scope, answer: _Answer, seconds: float) -> None:
    """Count and log a request that is over."""
    route = getattr(scope.get("route"), "path", "other")
    _latency(scope["method"], route, answer.status).observe(seconds)
    owner = scope.get("reverie_owner", "")
    action = rule_of(scope["method"], scope["path"]).action
    if action and answer.status not in {401, 429}:
        details = {"owner": owner, "resource": scope["path"][:200], "request_id": answer.request_id}
        audit.record(action, status=answer.status, **details, **audit.details_of(scope))
    if scope["path"] not in OPEN_PATHS and log.isEnabledFor(logging.INFO):
        said = {"request_id": answer.request_id, "owner": owner, "method": scope["method"], "path": scope["path"]}
        log.info("request", extra={**said, "status": answer.status, "ms": round(seconds * 1000, 2)})


@lru_cache(1000)
def _latency(method: str, route: str, status: int) -> Histogram:
    """Return the histogram of these labels; `labels` takes a lock and costs more than an observation."""
    return LATENCY.labels(method, route, str(status))


async def _linger(receive: Receive) -> None:
    """Read on for a moment what the client still sends: closing at once would reset the connection under the answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (await receive()).get("more_body"):
                pass
