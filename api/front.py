"""What every request passes: an id, the key check, the body limit, the clock. Plain ASGI, to cost little."""

import hashlib
import logging
import re
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import TooLargeError, problem, respond
from api.metrics import LATENCY
from workers.settings import Settings

log = logging.getLogger("api.access")

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
_PLAIN_ID = re.compile(rb"[\x21-\x7e]{1,120}")


class Keys:
    """Names of callers by the SHA-256 of their key, from a file of `name:hash` lines; no file lets everybody in."""

    def __init__(self, path: Path | None) -> None:
        """Read the file. Raises ValueError for a line of another shape."""
        self._names: dict[str, str] | None = None
        if path is None:
            return
        self._names = {}
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            name, _, digest = line.strip().partition(":")
            if not name or not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise ValueError(f"line {number} of the key file is not name:sha256-in-hex")
            self._names[digest] = name

    def owner(self, authorization: bytes) -> str | None:
        """The caller's name, empty where keys are not used; None if the key is missing or unknown."""
        if self._names is None:
            return ""
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        return self._names.get(hashlib.sha256(key.strip()).hexdigest())


class Front:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        """Wrap `app`."""
        self._app = app
        self._keys = Keys(settings.api_keys)
        self._limit = settings.max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _PLAIN_ID.fullmatch(given) else uuid4().hex
        scope["reverie_request_id"] = request_id
        status = 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", request_id.encode()))
            await send(message)

        owner = self._keys.owner(headers.get(b"authorization", b""))
        scope["reverie_owner"] = owner
        try:
            refusal = self._refusal(scope["path"], owner, headers, request_id)
            if refusal is not None:
                await refusal(scope, receive, sending)
            else:
                await self._app(scope, self._limited(receive), sending)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.perf_counter() - begun
            LATENCY.labels(scope["method"], route, str(status)).observe(seconds)
            if scope["path"] not in OPEN_PATHS and log.isEnabledFor(logging.INFO):
                said = {"request_id": request_id, "method": scope["method"], "path": scope["path"], "status": status}
                log.info("request", extra={**said, "ms": round(seconds * 1000, 2)})

    def _refusal(self, path: str, owner: str | None, headers: dict[bytes, bytes], request_id: str) -> Any:
        if owner is None and path not in OPEN_PATHS:
            detail = "send `Authorization: Bearer KEY` with a key that the operator of this service gave you"
            return respond(request_id, problem(401, "Not authorized", detail), {"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._limit:
            return respond(request_id, problem(413, "Body too large", self._too_large()), {"Connection": "close"})
        return None

    def _too_large(self) -> str:
        return f"this route takes bodies of at most {self._limit} bytes; send fewer images a request"

    def _limited(self, receive: Receive) -> Receive:
        read = 0

        async def receiving() -> Message:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > self._limit:
                    raise TooLargeError(self._too_large(), headers={"Connection": "close"})
            return message

        return receiving
