"""Completes the OpenAPI description with what FastAPI cannot derive from the routes.

Adds responses of bytes and event streams, forms, problems and API keys; `operation_docs` describes
operations. See
docs/decisions.md#openapi-describes-json-and-forms-raw-pictures-are-described-in-prose.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from api.access import OPEN_PATHS, SAFE_METHODS
from api.deadline import MAX_TIMEOUT_S
from api.errors import MEDIA_TYPE, TITLES
from api.openai_errors import PREFIX, openai_status
from api.request_content import FORM
from api.responses.render import JSON, NPZ, PNG
from api.schemas.common import Problem
from api.schemas.datasets import DatasetForm, DatasetUrlBody, NamedDatasetBody
from api.schemas.models import VersionForm
from api.schemas.openai import ImageEditForm, OpenAIError, OpenAIFileForm
from api.schemas.operations import RESPONSES
from api.schemas.webhooks import WebhookEvent
from api.webhook_description import JOB_EVENT
from core.imaging.encoders import MEDIA

Schema = dict[str, Any]

TEMPLATE = "#/components/schemas/{model}"
SSE = "text/event-stream"
BINARY: Schema = {"schema": {"type": "string", "format": "binary"}}


def reference(model: type[BaseModel] | str) -> dict[str, str]:
    """Return a reference to a schema under `components`, given a pydantic model or its name."""
    return {"$ref": TEMPLATE.format(model=model if isinstance(model, str) else model.__name__)}


def problem_responses(*statuses: int) -> dict[int | str, Schema]:
    """Return the OpenAPI descriptions of problem responses with `statuses`, keyed by status."""
    content = {MEDIA_TYPE: {"schema": reference(Problem)}}
    return {str(status): {"description": TITLES[status], "content": content} for status in statuses}


def openai_responses(*statuses: int) -> dict[int | str, Schema]:
    """Return the OpenAPI descriptions of error responses in OpenAI's form, keyed by status."""
    content = {JSON: {"schema": reference(OpenAIError)}}
    described = {str(openai_status(status)): TITLES[status] for status in statuses}
    return {status: {"description": title, "content": content} for status, title in described.items()}


def bytes_response(described: dict[int | str, Schema], *statuses: int) -> dict[str, Any]:
    """Return decorator arguments for a route that returns bytes or an event stream.

    `described` are the responses of the route, keyed by status; `statuses` are the statuses of its
    problem responses.
    """
    return {"response_class": Response, "responses": {**described, **problem_responses(*statuses)}}


def no_content(*statuses: int) -> dict[str, Any]:
    """Return decorator arguments for a route that returns 204 or a problem.

    `statuses` are the statuses of the problems.
    """
    return {"status_code": 204, "responses": problem_responses(*statuses)}


_WAIT = "`wait=N`: wait up to N seconds before the request becomes a job; `respond-async`: make it a job at once."
PREFER: Schema = {"name": "Prefer", "in": "header", "schema": {"type": "string"}, "description": _WAIT}


_TIMEOUT_SCHEMA: Schema = {"type": "number", "minimum": 0.001, "maximum": MAX_TIMEOUT_S}
TIMEOUT: Schema = {
    "name": "Request-Timeout",
    "in": "header",
    "schema": _TIMEOUT_SCHEMA,
    "description": "Seconds until the deadline: then the work stops, and the response, or the job's problem, is a 504.",
}


def upload(form: type[BaseModel], *, json: Sequence[type[BaseModel]] = ()) -> dict[str, Any]:
    """Return the `openapi_extra` of an upload route: its body is a form with the fields of `form`.

    With `json`, the body may also be JSON with the fields of one of these models. Such a request
    starts a job, so the header `Prefer` is described too.
    """
    bodies = {JSON: {"schema": {"anyOf": [reference(one) for one in json]}}} if json else {}
    content = {FORM: {"schema": reference(form)}, **bodies}
    return {"requestBody": {"required": True, "content": content}, **({"parameters": [PREFER]} if json else {})}


_JOB_RESULT = {
    "description": "The result as its operation returns it, or that of a training or another job.",
    "anyOf": [*map(reference, RESPONSES.values()), {"type": "object"}],
}
_CONTENT: Schema = {JSON: {"schema": reference("JobResult")}, NPZ: BINARY} | dict.fromkeys(MEDIA.values(), BINARY)
RESULT: dict[int | str, Schema] = {
    200: {"description": "The result", "content": _CONTENT},
    206: {"description": "The part that `Range` asked for", "content": _CONTENT},
    304: {"description": "The result is the one that `If-None-Match` names"},
}
EVENTS: dict[int | str, Schema] = {
    200: {
        "description": "`status` and `progress` events, numbered, and `preview` events without a number, at most two a "
        "second, which link to a picture of what has been reached; the stream ends with the job",
        "content": {SSE: {"schema": {"type": "string"}}},
    },
    204: {"description": "The job has ended, and no event came after `Last-Event-ID`"},
}
UNCHANGED: dict[int | str, Schema] = {304: {"description": "The client has what `If-None-Match` names"}}
PICTURE: dict[int | str, Schema] = {200: {"description": "A picture", "content": {PNG: BINARY}}}

_TAGS = [
    {"name": "operations", "description": "What a model computes. A request that takes long becomes a job."},
    {"name": "models", "description": "Models, their versions, and which version is active."},
    {"name": "jobs", "description": "Requests that run in the background: status, events and results."},
    {"name": "trainings", "description": "Trainings: start, watch, pause, resume and publish."},
    {"name": "datasets", "description": "Pictures to train on."},
    {"name": "access", "description": "The API key of a request: its roles, limits and use."},
    {"name": "openai", "description": "What clients of OpenAI's API call; errors have its form."},
    {"name": "health", "description": "For probes and for Prometheus."},
]
_FASTAPI_PROBLEMS = frozenset({"HTTPValidationError", "ValidationError"})  # FastAPI's own schemas of a 422


def complete(schema: Schema, operation_schemas: dict[str, Schema], *, keys: bool) -> None:
    """Complete FastAPI's description `schema` in place.

    Adds `operation_schemas`, the component schemas of the operations keyed by name; the schemas of
    responses and problems; the problem responses of each route; and, if `keys` says that the
    service has API keys, how to send one.
    """
    schema |= {"servers": [{"url": "/", "description": "This service"}], "tags": _TAGS}
    schema["webhooks"] = {"job": {"post": JOB_EVENT}}
    components = schema.setdefault("components", {})
    models: list[Any] = [
        (model, "serialization") for model in (Problem, WebhookEvent, OpenAIError, *RESPONSES.values())
    ]
    forms = (DatasetForm, NamedDatasetBody, DatasetUrlBody, VersionForm, ImageEditForm, OpenAIFileForm)
    models += [(model, "validation") for model in forms]
    _, definitions = models_json_schema(models, ref_template=TEMPLATE)
    schemas = components.get("schemas", {}) | definitions["$defs"] | operation_schemas | {"JobResult": _JOB_RESULT}
    for one in schemas.values():  # the default of JSON Schema; stated, it makes generated types vague
        if one.get("additionalProperties") is True:
            del one["additionalProperties"]
    components["schemas"] = {name: one for name, one in sorted(schemas.items()) if name not in _FASTAPI_PROBLEMS}
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "An API key."}}
    else:
        schema["security"] = []
    for path, methods in schema["paths"].items():
        for method, described in methods.items():
            _complete_operation(path, method, described, keys=keys)
    _write_whole_numbers(schema)


def _write_whole_numbers(value: Any) -> None:
    """Replace floats such as 9.223372036854776e18, which FastAPI makes of bounds, by integers.

    A program that parses this decimal exactly would read a number other than 2^63.
    """
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        if isinstance(item, dict | list):
            _write_whole_numbers(item)
        elif isinstance(item, float) and item.is_integer():
            value[key] = int(item)


def _links(parameter: str, field: str, *operations: str) -> Schema:
    """Return OpenAPI links from a response to operations, given by their `operationId`.

    The link sets the path parameter `parameter` of an operation to the field `field` of the
    response's body.
    """
    parameters = {parameter: f"$response.body#/{field}"}
    return {name: {"operationId": name, "parameters": parameters} for name in operations}


_JOB_OPERATIONS = ("get_job", "stream_job_events", "get_job_result", "list_deliveries", "cancel_job", "delete_job")
_JOB_LINKS = _links("job_id", "id", *_JOB_OPERATIONS)
# Further links of a response, by operation and status.
_LINKS: dict[tuple[str, str], Schema] = {
    ("create_training", "202"): _links("job_id", "id", "get_training", "pause_training", "publish_training"),
    ("create_dataset", "201"): _links("name", "name", "get_dataset", "delete_dataset"),
}


def _complete_operation(path: str, method: str, described: Schema, *, keys: bool) -> None:
    """Add links, error responses and common headers to the OpenAPI description of a route.

    `keys` says whether the service has API keys, so that a route needs one.
    """
    responses = described["responses"]
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]  # a problem replaces it, see below
    if path in OPEN_PATHS:
        return
    if method == "post" and "202" in responses:
        responses["202"]["links"] = dict(_JOB_LINKS)
        responses |= problem_responses(400, 504)
        described["parameters"] = [*described.get("parameters", ()), TIMEOUT]
    for (operation, status), links in _LINKS.items():
        if described.get("operationId") == operation:
            responses[status]["links"] = responses[status].get("links", {}) | links
    errors = openai_responses if path.startswith(PREFIX) else problem_responses
    responses |= errors(421)
    if path.startswith(("/v1/", PREFIX)):
        responses |= errors(422)  # for unknown query parameters
    if "requestBody" in described:  # see api/request_bodies.py
        responses |= errors(400, 408, 413, 415, 503)
    if keys:
        described["security"] = [{"key": []}]
        responses |= errors(401, 403, 429)
    elif method.upper() not in SAFE_METHODS:
        responses |= errors(403)
