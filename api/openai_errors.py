"""Turns problems into OpenAI's error objects, for the OpenAI-compatible routes.

Routes and middleware raise the same errors everywhere. Only below `/openai/v1` does the response to
an error have the form that OpenAI's clients read.
"""

import re
from typing import Any

import orjson
from starlette.types import Message, Send

from api.errors import MEDIA_TYPE, ConflictError, InvalidError

PREFIX = "/openai/v1"
UNKNOWN_PARAMETER = "unknown_parameter"  # of the extension member `code` of a problem

# `code` of an error object, by the status of the problem.
_CODES = {
    401: "invalid_api_key",
    403: "permission_denied",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    409: "conflict",
    410: "expired",
    413: "request_too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
    421: "misdirected_request",
    422: "invalid_value",
    429: "rate_limit_exceeded",
    500: "server_error",
    503: "overloaded",
    504: "deadline_exceeded",
    507: "insufficient_storage",
}
_PLACE = re.compile(r"^(body|query|path|options)\.")
_REQUEST_ERROR, _SERVER_ERROR, _RATE_ERROR = "invalid_request_error", "server_error", "rate_limit_error"


def openai_status(status: int) -> int:
    """Return OpenAI's status for the status of a problem: 400 for 422, all others unchanged.

    OpenAI's API does not use 422.
    """
    return 400 if status == InvalidError.status else status


def error_object(problem: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON body of an error in OpenAI's form, made from a problem (RFC 9457).

    `param` is the first invalid field; `code` is the problem's member `code` or, without this
    member, follows from the status.
    """
    status = problem["status"]
    message, fields = problem["detail"], [error["field"] for error in problem.get("errors", ())]
    for index, field in enumerate(fields):  # FastAPI says where a field is, which OpenAI does not
        fields[index] = _PLACE.sub("", field)
        message = message.replace(f"{field}:", f"{fields[index]}:")
    kind = _RATE_ERROR if status == 429 else _SERVER_ERROR if status >= 500 else _REQUEST_ERROR
    code = problem.get("code") or _CODES.get(status, "invalid_request")
    return {"error": {"message": message, "type": kind, "param": next(iter(fields), None), "code": code}}


class OpenAIErrorSender:
    """An ASGI `send` that replaces problem responses by OpenAI's error objects."""

    def __init__(self, send: Send) -> None:
        """Wrap the ASGI `send` of a request; all messages are sent by it."""
        self._send = send
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        """Pass a message on at once, or hold it if it belongs to a problem response.

        When the body of the problem is complete, OpenAI's error object is sent in its place.
        """
        if message["type"] == "http.response.start":
            if dict(message["headers"]).get(b"content-type") == MEDIA_TYPE.encode():
                self._start = message
                return
        elif self._start is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                await self._send_error(self._start)
            return
        await self._send(message)

    async def _send_error(self, start: Message) -> None:
        """Send OpenAI's error object in place of the problem response that was held."""
        problem = orjson.loads(self._body)
        body = orjson.dumps(error_object(problem))
        replaced = {b"content-type", b"content-length"}
        headers = [header for header in start["headers"] if header[0] not in replaced]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if problem["status"] == ConflictError.status:  # OpenAI's clients would retry it
            headers.append((b"x-should-retry", b"false"))
        self._start = None
        await self._send({**start, "status": openai_status(start["status"]), "headers": headers})
        await self._send({"type": "http.response.body", "body": body})
