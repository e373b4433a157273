"""What OpenAPI says of the generic routes: made from the operations and the cards, so it cannot fall behind."""

from typing import Any

from api.answers import JSON, NPZ, PNG
from api.ask import Asked
from api.errors import ALL, MEDIA_TYPE
from workers.operations import Operation
from workers.registry import Registry
from workers.settings import Settings

PROBLEM = {
    "type": "object",
    "description": "RFC 9457 problem details",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What happened and what would work"},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {"type": "object", "properties": {"field": {"type": "string"}, "detail": {"type": "string"}}},
        },
    },
}

JOB = {
    "type": "object",
    "required": ["id", "kind", "status", "progress", "created_at", "model", "problem", "links"],
    "properties": {
        "id": {"type": "string"},
        "kind": {"type": "string"},
        "status": {"enum": ["queued", "running", "succeeded", "failed", "cancelled"]},
        "progress": {"type": "number", "minimum": 0, "maximum": 1},
        "created_at": {"type": "string"},
        "model": {"type": "string"},
        "problem": {"anyOf": [{"type": "null"}, {"$ref": "#/components/schemas/Problem"}]},
        "links": {"type": "object"},
    },
}

_HEADERS = [
    {
        "name": "Prefer",
        "in": "header",
        "schema": {"type": "string"},
        "description": "`wait=N`: wait up to N seconds before it becomes a job; `respond-async`: make it one at once.",
    },
    {
        "name": "Idempotency-Key",
        "in": "header",
        "schema": {"type": "string", "pattern": "^[!#-~]{1,255}$"},
        "description": "Sent again with the same body, the first answer is given again.",
    },
]
_OPERATION_ERRORS = (400, 401, 404, 406, 409, 410, 413, 415, 422, 500, 503)


def operation_docs(operation: Operation, registry: Registry, settings: Settings) -> dict[str, Any]:
    """The OpenAPI entry of one operation."""
    able = [entry for entry in registry.serving() if operation.method in entry.choices]
    schema = Asked.model_json_schema()
    properties = {name: rule for name, rule in schema["properties"].items() if _has(operation, name)}
    schemas = {entry.name: dict(entry.choices[operation.method].schema) for entry in able}
    if schemas:
        properties["options"] = {
            "description": "Options of the operation: " + "; ".join(_told(name, one) for name, one in schemas.items()),
            "anyOf": list({str(one): one for one in schemas.values()}.values()),
        }
    properties["model"] = (
        {**properties["model"], "enum": [entry.name for entry in able]} if able else properties["model"]
    )
    if operation.counted:
        properties["count"] = {**properties["count"], "minimum": 1, "maximum": settings.max_count}
    body = {"type": "object", "required": _required(operation), "properties": properties, "additionalProperties": False}
    example: dict[str, Any] = {"model": able[0].name if able else "vae-mnist", "seed": 3}
    if operation.counted:
        example["count"] = 4
    if operation.inputs:
        example["images"] = ["iVBORw0KGgo…"] * len(operation.inputs)
    form = {name: rule for name, rule in properties.items() if name not in {"images", "options"}}
    if operation.inputs:
        form["images"] = {"type": "array", "items": {"type": "string", "format": "binary"}}
    limits = (
        f"At most {settings.max_count} answers, {settings.max_images} images and {settings.max_body_bytes} bytes. "
        "Any option may also stand beside `model` as a field of its own."
    )
    content: dict[str, Any] = {JSON: {"schema": {"type": "object"}}, NPZ: {}}
    if operation.pictures:
        content[PNG] = {}
    return {
        "description": limits,
        "parameters": _HEADERS,
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": body, "example": example},
                "multipart/form-data": {
                    "schema": {"type": "object", "required": _required(operation), "properties": form}
                },
            },
        },
        "responses": {
            "200": {"description": "The answer", "content": content},
            "202": {"description": "A job", "content": {JSON: {"schema": {"$ref": "#/components/schemas/Job"}}}},
            **problem_responses(_OPERATION_ERRORS),
        },
    }


def problem_responses(statuses: tuple[int, ...]) -> dict[str, Any]:
    """Problems as responses, each under the title of its class."""
    titles = {kind.status: kind.title for kind in ALL}
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {str(status): {"description": titles[status], "content": content} for status in statuses}


def _has(operation: Operation, name: str) -> bool:
    return {"count": operation.counted, "images": bool(operation.inputs)}.get(name, True)


def _required(operation: Operation) -> list[str]:
    return ["model", "images"] if operation.inputs else ["model"]


def _told(name: str, schema: dict[str, Any]) -> str:
    options = ", ".join(
        f"{option} ({rule.get('description', '')})" for option, rule in schema.get("properties", {}).items()
    )
    return f"{name}: {options or 'none'}"
