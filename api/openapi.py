"""What FastAPI's description of the service cannot know: bytes, streams, forms, problems and keys."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.access import OPEN_PATHS, SAFE_METHODS
from api.errors import MEDIA_TYPE, TITLES
from api.responses.render import JSON, NPZ, PNG
from api.schemas.common import Problem
from api.schemas.datasets import DatasetForm, NamedDatasetBody
from api.schemas.models import VersionForm
from api.schemas.operations import RESPONSES, OperationResponse
from core.imaging.encoders import MEDIA

_TEMPLATE = "#/components/schemas/{model}"
SSE = "text/event-stream"
BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


def reference(model: type[BaseModel] | str) -> dict[str, str]:
    """Return a reference to a component schema."""
    return {"$ref": _TEMPLATE.format(model=model if isinstance(model, str) else model.__name__)}


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI descriptions of error responses by status; each has the status's title and a problem."""
    content = {MEDIA_TYPE: {"schema": reference(Problem)}}
    return {str(status): {"description": TITLES[status], "content": content} for status in statuses}


def upload(form: type[BaseModel], *, raw: bool = False, json: type[BaseModel] | None = None) -> dict[str, Any]:
    """Return the request body of a form with files, if so, also of the `raw` file, or of `json` instead of a file."""
    content: dict[str, Any] = {"multipart/form-data": {"schema": reference(form)}}
    if raw:
        content["application/octet-stream"] = BINARY
    if json is not None:
        content[JSON] = {"schema": reference(json)}
    return {"requestBody": {"required": True, "content": content}}


_OPERATION_RESPONSES = (OperationResponse, *RESPONSES.values())
_JOB_RESULT = {
    "description": "The result as its operation returns it, or that of a training or another job.",
    "anyOf": [*map(reference, RESPONSES.values()), {"type": "object"}],
}
_RESULT_CONTENT: dict[str, Any] = {
    JSON: {"schema": reference("JobResult")},
    NPZ: BINARY,
    **dict.fromkeys(MEDIA.values(), BINARY),
}
RESULT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The result", "content": _RESULT_CONTENT},
    206: {"description": "The part that `Range` asked for", "content": _RESULT_CONTENT},
    304: {"description": "The result is the one that `If-None-Match` names"},
}
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "`status` and `progress` events, numbered, and `preview` events without a number, at most two a "
        "second, which link to a picture of what has been reached; the stream ends with the job",
        "content": {SSE: {}},
    },
    204: {"description": "The job has ended, and no event came after `Last-Event-ID`"},
}
PICTURE: dict[int | str, dict[str, Any]] = {200: {"description": "A picture", "content": {PNG: BINARY}}}

_FASTAPI_PROBLEMS = frozenset({"HTTPValidationError", "ValidationError"})
"""FastAPI's own descriptions of a 422, which is a problem here."""


def complete(schema: dict[str, Any], operation_schemas: dict[str, Any], *, keys: bool) -> None:
    """Add to FastAPI's description the problems that any route may return, missing schemas, and the key if needed."""
    components = schema.setdefault("components", {})
    models: list[Any] = [(model, "serialization") for model in (Problem, *_OPERATION_RESPONSES)]
    models += [(model, "validation") for model in (DatasetForm, NamedDatasetBody, VersionForm)]
    _, definitions = models_json_schema(models, ref_template=_TEMPLATE)
    schemas = {name: one for name, one in components.get("schemas", {}).items() if name not in _FASTAPI_PROBLEMS}
    schemas |= definitions["$defs"] | operation_schemas | {"JobResult": _JOB_RESULT}
    components["schemas"] = dict(sorted(schemas.items()))
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, methods in schema["paths"].items():
        for method, described in methods.items():
            _complete_operation(path, method, described, keys=keys)


def _complete_operation(path: str, method: str, described: dict[str, Any], *, keys: bool) -> None:
    responses = described["responses"]
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]  # a route with parameters declares its own
    if path in OPEN_PATHS:
        return
    responses |= problem_responses(421)
    if path.startswith("/v1/"):
        responses |= problem_responses(422)  # for unknown query parameters
    if "requestBody" in described:  # api/request_bodies.py and api/content_encoding.py
        responses |= problem_responses(400, 408, 413, 415, 503)
    if keys:
        described["security"] = [{"key": []}]
        responses |= problem_responses(401, 403, 429)
    elif method.upper() not in SAFE_METHODS:
        responses |= problem_responses(403)
