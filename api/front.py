"""What every request passes: an id, the key check, the body limit, the clock. Plain ASGI, to cost little."""

import asyncio
import contextlib
import logging
import re
import time
from uuid import uuid4

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import audit
from api.access import OPEN_PATHS, AccessControl, rule_of
from api.errors import ProblemError, TooLargeError, problem, respond
from api.html_headers import add_html_headers
from api.metrics import LATENCY
from workers.settings import Settings

log = logging.getLogger("api.access")

LINGER_S = 2.0
DATASETS = ("POST", "/v1/datasets")
_VERSIONS = re.compile(r"/v1/models/[^/]+/versions")
_PLAIN_ID = re.compile(rb"[\x21-\x7e]{1,120}")


class Front:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        """Wrap `app`."""
        self._app = app
        self._access = AccessControl(settings)
        self._limit = settings.max_body_bytes
        self._limits = {DATASETS: settings.max_dataset_bytes}  # of routes that stream their body to the disk
        self._version_limit = settings.max_version_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        if scope["method"] == "HEAD" and not scope["path"].endswith("/events"):
            scope = {**scope, "method": "GET"}  # the server leaves the body out
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        answer = _Answer(receive, send, given.decode() if _PLAIN_ID.fullmatch(given) else uuid4().hex)
        answer.may_be_html = not scope["path"].startswith("/v1/")
        try:
            await self._pass(scope, receive, headers, answer)
        except ClientDisconnect:
            answer.status = 499  # nobody is there to be told
        except Exception:
            log.exception("fault", extra={"request_id": answer.request_id})
            if answer.status:
                raise  # the answer has begun; the connection is closed on it
            body = problem(500, "Internal error", "a fault of the service; it was logged under this request id")
            await respond(answer.request_id, body)(scope, receive, answer.send)
        finally:
            _note(scope, answer, time.perf_counter() - begun)

    async def _pass(self, scope: Scope, receive: Receive, headers: dict[bytes, bytes], answer: "_Answer") -> None:
        scope["reverie_request_id"] = answer.request_id
        limit = self._limits.get((scope["method"], scope["path"]), self._limit)
        if scope["method"] == "POST" and _VERSIONS.fullmatch(scope["path"]):
            limit = self._version_limit
        refusal = self._access.refusal(scope, headers) or self._refusal(headers, limit)
        if refusal is not None:
            await refusal.response(answer.request_id)(scope, receive, answer.send)
        else:
            await self._app(scope, self._limited(receive, answer, limit), answer.send)

    def _refusal(self, headers: dict[bytes, bytes], limit: int) -> ProblemError | None:
        length = headers.get(b"content-length", b"")
        return self._too_large(limit) if length.isdigit() and int(length) > limit else None

    def _too_large(self, limit: int) -> TooLargeError:
        way = "send fewer images a request, or a smaller file" if limit == self._limit else "send a smaller file"
        detail = f"this route takes bodies of at most {limit} bytes; {way}"
        return TooLargeError(detail, headers={"Connection": "close"})

    def _limited(self, receive: Receive, answer: "_Answer", limit: int) -> Receive:
        read = 0

        async def receiving() -> Message:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > limit:
                    raise self._too_large(limit)
                answer.unread = message.get("more_body", False)
            return message

        return receiving


class _Answer:
    """What goes back to a client, under the request's id; a refused upload is read on before its answer ends."""

    def __init__(self, receive: Receive, send: Send, request_id: str) -> None:
        self._receive = receive
        self._send = send
        self.request_id = request_id
        self.status = 0
        self.may_be_html = True
        self.unread = False
        """Whether the body was begun to be read, and has more."""

    async def send(self, message: Message) -> None:
        """Send on what the application says."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"].append((b"x-request-id", self.request_id.encode()))
            if self.may_be_html:
                add_html_headers(message)
        elif (self.status == 413 or (self.status >= 400 and self.unread)) and not message.get("more_body"):
            await self._send({**message, "more_body": True})
            await _linger(self._receive)
            message = {"type": "http.response.body"}
        await self._send(message)


def _note(scope: Scope, answer: _Answer, seconds: float) -> None:
    """Count and log a request that is over."""
    route = getattr(scope.get("route"), "path", "other")
    LATENCY.labels(scope["method"], route, str(answer.status)).observe(seconds)
    owner = scope.get("reverie_owner", "")
    action = rule_of(scope["method"], scope["path"]).action
    if action and answer.status not in {401, 429}:
        details = {"owner": owner, "resource": scope["path"][:200], "request_id": answer.request_id}
        audit.record(action, status=answer.status, **details, **audit.details_of(scope))
    if scope["path"] not in OPEN_PATHS and log.isEnabledFor(logging.INFO):
        said = {"request_id": answer.request_id, "owner": owner, "method": scope["method"], "path": scope["path"]}
        log.info("request", extra={**said, "status": answer.status, "ms": round(seconds * 1000, 2)})


async def _linger(receive: Receive) -> None:
    """Read on for a moment what the client still sends: closing at once would reset the connection under the answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (await receive()).get("more_body"):
                pass
