"""Completes the OpenAPI description with what FastAPI cannot derive from the routes.

It adds bytes, event streams, forms, problems, API keys, and the operations, whose options come from
the cards of the models; see
docs/decisions.md#openapi-describes-json-and-forms-raw-pictures-are-described-in-prose.
"""

import base64
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from api.access import OPEN_PATHS, SAFE_METHODS
from api.deadline import MAX_TIMEOUT_S
from api.errors import MEDIA_TYPE, TITLES
from api.openai_errors import PREFIX, openai_status
from api.permissions import Models
from api.request_content import FORM
from api.responses.render import JSON, NPZ, PNG
from api.schemas.common import Problem
from api.schemas.datasets import DatasetForm, DatasetUrlBody, NamedDatasetBody
from api.schemas.models import VersionForm
from api.schemas.openai import ImageEditForm, OpenAIError, OpenAIFileForm
from api.schemas.operations import IMAGE_URL, RESPONSES, OperationFields, UpscaleFields
from api.schemas.webhooks import WebhookEvent
from api.webhook_description import JOB_EVENT
from core.catalog.operations import OPERATIONS, Operation
from core.catalog.registry import ModelVersion
from core.imaging.encoders import MEDIA
from core.imaging.pictures import png
from core.settings import Settings

Schema = dict[str, Any]

_TEMPLATE = "#/components/schemas/{model}"
SSE = "text/event-stream"
BINARY: Schema = {"schema": {"type": "string", "format": "binary"}}


def reference(model: type[BaseModel] | str) -> dict[str, str]:
    """Return a reference to a schema under `components`, given a pydantic model or its name."""
    return {"$ref": _TEMPLATE.format(model=model if isinstance(model, str) else model.__name__)}


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
    """Return decorator arguments for a route that returns 204, or a problem with these statuses."""
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
    _, definitions = models_json_schema(models, ref_template=_TEMPLATE)
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


# --- operations ---

_KEY = "Sent again with the same body, the same job's result is returned."
_KEY_SCHEMA = {"type": "string", "pattern": r'^("[ !#-~]{1,255}"|[!#-~]{1,255})$'}
_HEADERS = [PREFER, {"name": "Idempotency-Key", "in": "header", "schema": _KEY_SCHEMA, "description": _KEY}]
_STATUSES = (400, 404, 406, 409, 410, 413, 415, 422, 429, 500, 503, 507)


class OperationDocs:
    """Describes the routes of operations, from the cards of the active versions of models."""

    def __init__(self, models: Models, settings: Settings) -> None:
        """Read the cards of the active versions; no component schemas are made yet."""
        self._entries = models.active()
        self._settings = settings
        self.schemas: dict[str, Schema] = {}

    def describe(self, paths: dict[str, Any]) -> None:
        """Complete the descriptions of the operations' routes in `paths`; fill `schemas`.

        `paths` is the member of that name in the OpenAPI description. `schemas` gets the component
        schemas to which the descriptions refer. The size limits of the upload routes for datasets
        and versions are added to their descriptions.
        """
        settings = self._settings
        dataset = f"{settings.max_dataset_bytes} bytes, and {settings.max_unpacked_bytes} unpacked"
        limits = {
            "/v1/datasets": dataset,
            f"{PREFIX}/files": dataset,
            "/v1/models/{name}/versions": f"{settings.max_version_bytes} bytes",
        }
        for path, limit in limits.items():
            paths[path]["post"]["description"] += f" At most {limit}."
        for operation in OPERATIONS:
            entries = [entry for entry in self._entries if operation.method in entry.operations]
            described = paths[f"/v1/{operation.path}"]["post"]
            described |= (self._upscales if operation.tiled else self._operation)(operation, entries)

    def _operation(self, operation: Operation, entries: list[ModelVersion]) -> Schema:
        """Return the description of an operation on images of the model's size (all but upscales).

        `entries` are the models that have the operation. Adds component schemas to `schemas`.
        """
        fields = self._fields(OperationFields, operation, entries)
        if operation.counted:
            fields["count"] |= {"minimum": 1, "maximum": self._settings.max_count}
            if operation.images:
                fields["count"]["description"] = "Results per image: result j of image i is row i·count + j."
        else:
            del fields["count"]
        images, image_url = fields.pop("images"), fields.pop("image_url")
        form = dict(fields)
        if operation.images:
            fields["image_url"] = form["image_url"] = image_url
            del images["default"]
            number = {"minItems": len(operation.images), "maxItems": self._settings.max_images}
            fields["images"] = {**images, **number}
            form["images"] = {"type": "array", "items": BINARY["schema"], **number}
        for shared in operation.shared:
            url = f"{shared.name}_url"
            fields[shared.name] = {"type": "string", "description": f"{shared.description} As base64 of a file."}
            form[shared.name] = {**BINARY["schema"], "description": shared.description}
            fields[url] = form[url] = {"type": "string", "description": f"{shared.description} {IMAGE_URL}"}
        required = ["model"]
        media = (JSON, NPZ, PNG) if operation.pictures else (JSON, NPZ)
        return {
            "description": self._limits(operation),
            "parameters": _HEADERS,
            "requestBody": self._bodies(operation, required, fields, form, self._example(operation, entries)),
            "responses": _responses(operation, media, "The result", _STATUSES),
        }

    def _upscales(self, operation: Operation, entries: list[ModelVersion]) -> Schema:
        """Return the description of upscales, which take one image of any size.

        `entries` are the models that have the operation. Adds component schemas to `schemas`.
        """
        fields = self._fields(UpscaleFields, operation, entries)
        form = {**fields, "image": {**BINARY["schema"], "description": "A PNG, JPEG or WebP file."}}
        picture = base64.b64encode(png(np.full((3, 12, 16), 160, np.uint8))).decode()
        return {
            "description": (
                f"One picture of any size and at most {self._settings.max_body_bytes} bytes, as a file `image` or as "
                "base64 in JSON; or as the body itself (`image/*`), with the other fields in the query. The result has "
                f"at most {self._settings.max_upscaled_pixels} pixels. Any option may also be a field of its own."
            ),
            "parameters": _HEADERS,
            "requestBody": self._bodies(operation, [], fields, form, {"image": picture, "seed": 3}),
            "responses": _responses(operation, (*MEDIA.values(), JSON), "The picture", _STATUSES),
        }

    def _fields(self, body: type[BaseModel], operation: Operation, entries: list[ModelVersion]) -> dict[str, Schema]:
        """Return the schemas of the fields of a body, keyed by field name.

        `entries` are the models that have the operation: they become the examples of `model`, and
        `options` allows the options of any of them. Adds a component schema for these options to
        `schemas`.
        """
        fields = {name: _without_null(rule) for name, rule in _properties(body).items()}
        fields["model"]["examples"] = [entry.name for entry in entries] or fields["model"].get("examples", [])
        if references := self._options(operation, entries):
            alternatives = references[0] if len(references) == 1 else {"anyOf": references}
            fields["options"] = {"description": fields["options"]["description"], **alternatives}
        return fields

    def _options(self, operation: Operation, entries: Iterable[ModelVersion]) -> list[Schema]:
        """Add component schemas for the options of these models, and return references to them.

        Models of a family share a schema unless their options differ.
        """
        names = []
        for entry in entries:
            schema = dict(entry.operations[operation.method].schema)
            stem = f"{_camel(entry.card.family)}{_camel(operation.path)}Options"
            number = 1
            while self.schemas.setdefault(name := f"{stem}{number if number > 1 else ''}", schema) != schema:
                number += 1  # models of one family whose options differ
            names.append(name)
        return [reference(name) for name in dict.fromkeys(names)]

    def _bodies(
        self, operation: Operation, required: list[str], fields: Schema, form: Schema, example: Schema
    ) -> Schema:
        """Add component schemas for the JSON body and the form; return the OpenAPI request body.

        `fields` and `form` are the schemas of the fields of the JSON body and of the form, keyed by
        name; `required` names the fields that both require. A request must have an image or the
        image's URL. The schema does not express this, because generators of clients take `anyOf`
        for a union of types, and linters reject conditions.
        """
        body, upload = f"{_camel(operation.path)}Body", f"{_camel(operation.path)}Form"
        needed = {"required": required} if required else {}
        self.schemas[body] = {"type": "object", **needed, "properties": fields}
        self.schemas[upload] = {"type": "object", **needed, "properties": form}
        content = {JSON: {"schema": reference(body), "example": example}, FORM: {"schema": reference(upload)}}
        return {"required": True, "content": content}

    def _example(self, operation: Operation, entries: list[ModelVersion]) -> Schema:
        """Return an example of a valid JSON body, for the model with the most operations."""
        # the model with the most operations; of several, the one with the largest images
        entry = max(entries, key=lambda entry: (len(entry.operations), min(entry.image[1:])), default=None)
        example: Schema = {"model": entry.name if entry else "vae-mnist", "seed": 3}
        if operation.counted:
            example["count"] = 4
        size = entry.image if entry else (1, 28, 28)
        if operation.images:
            example["images"] = [_example_picture(size)] * len(operation.images)
        return example | {shared.name: _example_picture((1, *size[1:])) for shared in operation.shared}

    def _limits(self, operation: Operation) -> str:
        """Return the text of an operation's description: its limits, and how to send an image."""
        settings = self._settings
        text = f"At most {settings.max_count} results, {settings.max_images} images and {settings.max_body_bytes} "
        text += "bytes. Any option may also be a field beside `model`."
        if len(operation.inputs) == 1:
            text += " One picture may also be the body itself, as `image/*` or `application/octet-stream`, with all"
            text += " other fields in the query."
        return text


def _responses(
    operation: Operation, media: Iterable[str], description: str, statuses: Iterable[int]
) -> dict[int | str, Schema]:
    schema = reference(RESPONSES[operation.path])
    content = {kind: {"schema": schema} if kind == JSON else BINARY for kind in media}
    return {
        "200": {"description": description, "content": content},
        "202": {"description": "A job", "content": {JSON: {"schema": reference("JobResponse")}}},
        **problem_responses(*statuses),
    }


def _properties(body: type[BaseModel]) -> dict[str, Schema]:
    """Return the schemas of a body's fields, keyed by name; nested models become references."""
    properties: dict[str, Schema] = body.model_json_schema(ref_template=_TEMPLATE)["properties"]
    return properties


def _without_null(rule: Schema) -> Schema:
    """Return the schema of an optional field without the alternative `null` that pydantic adds."""
    kinds = [kind for kind in rule.get("anyOf", ()) if kind != {"type": "null"}]
    if not kinds:
        return dict(rule)
    return {"description": rule["description"], **(kinds[0] if len(kinds) == 1 else {"anyOf": kinds})}


def _camel(name: str) -> str:
    """Return a name in camel case, for the name of a schema; only letters and digits are kept."""
    return "".join(word.capitalize() for word in "".join(c if c.isalnum() else " " for c in name).split())


def _example_picture(size: tuple[int, int, int]) -> str:
    """Return a PNG of the size (C, H, W) as base64: one half is white, the other black."""
    pixels = np.zeros(size, np.uint8).reshape(size[0], -1)
    pixels[:, : max(1, pixels.shape[1] // 2)] = 255
    return base64.b64encode(png(pixels.reshape(size))).decode()
