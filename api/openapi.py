"""What OpenAPI says of the generic routes: made from the operations and the cards, so it cannot fall behind."""

import base64
from typing import Any

import numpy as np
from pydantic import BaseModel

from api.access import OPEN_PATHS, SAFE_METHODS
from api.errors import MEDIA_TYPE, TITLES
from api.permissions import Models
from api.requests import Asked
from api.responses.render import JSON, NPZ, PNG
from core.catalog.operations import Operation
from core.catalog.registry import ModelVersion
from core.imaging.encoders import MEDIA
from core.imaging.pictures import png
from core.settings import Settings

PROBLEM = {
    "type": "object",
    "description": "RFC 9457 problem details",
    "required": ["type", "title", "status", "detail", "request_id"],
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
        "status": {"enum": ["queued", "running", "paused", "succeeded", "failed", "cancelled"]},
        "progress": {"type": "number", "minimum": 0, "maximum": 1},
        "created_at": {"type": "string"},
        "model": {"type": "string"},
        "waiting_reason": {
            "type": ["string", "null"],
            "description": "Why a queued job is not run now: its result cannot be stored",
        },
        "problem": {"anyOf": [{"type": "null"}, {"$ref": "#/components/schemas/Problem"}]},
        "links": {"type": "object", "required": ["self", "events", "result", "cancel", "preview"]},
    },
}

MODEL = {
    "type": "object",
    "required": ["name", "family", "version", "versions", "operations", "image", "figures", "provenance", "links"],
    "properties": {
        "name": {"type": "string"},
        "family": {"type": "string"},
        "version": {"type": "string", "description": "The version that answers to the bare name"},
        "versions": {"type": "array", "items": {"type": "string"}},
        "operations": {"type": "object", "description": "By the last part of their route, with their options' schema"},
        "image": {"type": "object", "required": ["channels", "height", "width"]},
        "figures": {"description": "Measured quality"},
        "provenance": {"description": "How it was trained, on which data"},
        "links": {"type": "object"},
    },
}

DATASET = {
    "type": "object",
    "required": ["name", "kind", "channels", "height", "width", "counts", "sha256", "created_at", "format", "links"],
    "properties": {
        "name": {"type": "string"},
        "kind": {"enum": ["pictures", "vectors", "photographs"]},
        "channels": {"type": "integer"},
        "height": {"type": "integer"},
        "width": {"type": "integer"},
        "counts": {"type": "object", "required": ["train", "validation", "test"]},
        "sha256": {"type": "string", "description": "Of train.npy, validation.npy, test.npy and labels.npy in a row"},
        "created_at": {"type": "string"},
        "format": {"type": "string", "description": "Of the upload"},
        "split": {"type": "object", "description": "By what rule, and which shares were cut from what was sent"},
        "labels": {"type": "boolean"},
        "duplicates": {"type": "object", "description": "Equal pictures, equal names, held-back pictures in train"},
        "bytes": {"type": "integer", "description": "On the disk"},
        "links": {"type": "object", "required": ["self", "preview"]},
    },
}

BINARY = {"schema": {"type": "string", "format": "binary"}}
_ANSWER = {
    "type": "object",
    "required": ["model", "version", "seed"],
    "properties": {
        "model": {"type": "string"},
        "version": {"type": "string"},
        "seed": {"type": "integer"},
        "conversions": {
            "type": "array",
            "items": {"type": "string"},
            "description": "What was converted in the pictures sent, where anything was",
        },
        "accepted": {
            "type": "array",
            "items": {"type": "boolean"},
            "description": "Of rows drawn by rejection: whether a proposal met the condition",
        },
        "proposals": {
            "type": "array",
            "items": {"type": "integer"},
            "description": "Of rows drawn by rejection: how many proposals each took",
        },
        "acceptance_rate": {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "description": "Rows accepted over proposals, of all rows; as a header Reverie-Acceptance-Rate",
        },
        "effective_sample_size": {
            "type": "array",
            "items": {"type": ["number", "null"]},
            "description": "Of rows that came by importance weights: (Σw)²/Σw², between 1 and their number",
        },
    },
}
_PICTURES = {
    **_ANSWER,
    "required": [*_ANSWER["required"], "images"],
    "properties": {
        **_ANSWER["properties"],  # type: ignore[dict-item]
        "images": {"type": "array", "items": {"type": "string"}, "description": "PNGs as base64"},
    },
}
_PICTURE_ANSWER: dict[str, Any] = {**_ANSWER["properties"]}  # type: ignore[dict-item]
_UPSCALED = {
    "image": {"type": "string", "description": "The picture's file as base64"},
    "format": {"type": "string"},
    "scale": {"type": "integer"},
    "width": {"type": "integer"},
    "height": {"type": "integer"},
}
_FORMS: dict[str, Any] = {
    JSON: {"schema": {"$ref": "#/components/schemas/Answer"}},
    NPZ: BINARY,
    **dict.fromkeys(MEDIA.values(), BINARY),
}

RESULT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer, as its operation gives it", "content": _FORMS},
    206: {"description": "The part that `Range` asked for", "content": _FORMS},
    304: {"description": "What `If-None-Match` names is what there is"},
}
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "`status` and `progress` events, numbered, and `preview` ones without a number, at most two a "
        "second, which link to a picture of what the run has reached; the stream ends with the job",
        "content": {"text/event-stream": {}},
    },
    204: {"description": "The job has ended, and nothing came after `Last-Event-ID`"},
}

PREVIEW: dict[int | str, dict[str, Any]] = {
    200: {"description": "Up to 64 pictures as a grid, as of one of the last slices", "content": {PNG: BINARY}},
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
        "schema": {"type": "string", "pattern": r'^("[ !#-~]{1,255}"|[!#-~]{1,255})$'},
        "description": "Sent again with the same body, the first answer is given again.",
    },
]
_OPERATION_ERRORS = (400, 404, 406, 409, 410, 413, 415, 422, 429, 500, 503)


def operation_docs(operation: Operation, registry: Models, settings: Settings) -> dict[str, Any]:
    """The OpenAPI entry of one operation."""
    able = [entry for entry in registry.serving() if operation.method in entry.choices]
    properties = _properties(operation, able, settings)
    named = {shared.name: shared.description for shared in operation.shared}
    required = ["model", *(["images"] if operation.images else []), *named]
    example: dict[str, Any] = {"model": able[0].name if able else "vae-mnist", "seed": 3}
    if operation.counted:
        example["count"] = 4
    if operation.images:
        example["images"] = [_example_picture(able)] * len(operation.images)
    example |= dict.fromkeys(named, _example_picture(able))
    form = {name: rule for name, rule in properties.items() if name != "images"}
    if operation.images:
        form["images"] = {"type": "array", "items": BINARY["schema"]}
    form |= {name: {**BINARY["schema"], "description": said} for name, said in named.items()}
    bodies: dict[str, Any] = {
        JSON: {"schema": _object(required, properties), "example": example},
        "multipart/form-data": {"schema": _object(required, form)},
    }
    if len(operation.inputs) == 1:
        bodies[PNG] = BINARY
    answer = _PICTURES if operation.pictures else _ANSWER
    content = {JSON: {"schema": answer}, NPZ: BINARY, **({PNG: BINARY} if operation.pictures else {})}
    return {
        "description": _limits(operation, settings),
        "parameters": [*_HEADERS, *(_in_query(properties) if len(operation.inputs) == 1 else ())],
        "requestBody": {"required": True, "content": bodies},
        "responses": {
            "200": {"description": "The answer", "content": content},
            "202": {"description": "A job", "content": {JSON: {"schema": {"$ref": "#/components/schemas/Job"}}}},
            **problem_responses(*_OPERATION_ERRORS),
        },
    }


def upscale_docs(operation: Operation, asked: type[BaseModel], registry: Models, settings: Settings) -> dict[str, Any]:
    """The OpenAPI entry of the route that takes a picture of any size."""
    able = [entry for entry in registry.serving() if operation.method in entry.choices]
    properties = {name: _plain(rule) for name, rule in asked.model_json_schema()["properties"].items()}
    if able:
        properties["model"]["enum"] = [name for entry in able for name in (entry.name, entry.ref)]
        schemas = {entry.name: dict(entry.choices[operation.method].schema) for entry in able}
        properties["options"] |= {
            "description": "Options of the operation: " + "; ".join(_told(name, one) for name, one in schemas.items()),
            "anyOf": list({str(one): one for one in schemas.values()}.values()),
        }
    picture = base64.b64encode(png(np.full((3, 12, 16), 160, np.uint8))).decode()
    form = {**properties, "image": {**BINARY["schema"], "description": "A PNG, JPEG or WebP file"}}
    query = [
        {"name": name, "in": "query", "schema": rule, "description": "Beside a picture as the body."}
        for name, rule in properties.items()
        if name not in {"image", "options"}
    ]
    pictures: dict[str, Any] = dict.fromkeys(MEDIA.values(), BINARY)
    answer = _object(["model", "version", "seed", *_UPSCALED], {**_PICTURE_ANSWER, **_UPSCALED})
    return {
        "description": (
            f"One picture of any size and at most {settings.max_body_bytes} bytes, as a file `image`, as the body "
            "itself with the other fields in the query, or as base64 in JSON. Its answer has at most "
            f"{settings.max_upscaled_pixels} pixels. Any option may also stand beside `model` as a field of its own."
        ),
        "parameters": [*_HEADERS, *query],
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": _object(["image"], properties), "example": {"image": picture, "seed": 3}},
                "multipart/form-data": {"schema": _object(["image"], form)},
                **pictures,
            },
        },
        "responses": {
            "200": {"description": "The picture", "content": {**pictures, JSON: {"schema": answer}}},
            "202": {"description": "A job", "content": {JSON: {"schema": {"$ref": "#/components/schemas/Job"}}}},
            **problem_responses(*_OPERATION_ERRORS, 507),
        },
    }


def _plain(rule: dict[str, Any]) -> dict[str, Any]:
    """The schema of a field that may be left out, where pydantic says that it may be null."""
    kinds = [kind for kind in rule.get("anyOf", ()) if kind != {"type": "null"}]
    return {"description": rule["description"], **kinds[0]} if len(kinds) == 1 else dict(rule)


def _properties(operation: Operation, able: list[ModelVersion], settings: Settings) -> dict[str, Any]:
    """The fields of a request, by name."""
    known = Asked.model_json_schema()["properties"]
    there = {"count": operation.counted, "images": bool(operation.images)}
    properties = {name: dict(rule) for name, rule in known.items() if there.get(name, True)}
    if able:
        del properties["model"]["examples"]
        properties["model"]["enum"] = [name for entry in able for name in (entry.name, entry.ref)]
        schemas = {entry.name: dict(entry.choices[operation.method].schema) for entry in able}
        properties["options"] = {
            "description": "Options of the operation: " + "; ".join(_told(name, one) for name, one in schemas.items()),
            "anyOf": list({str(one): one for one in schemas.values()}.values()),
        }
    if operation.counted:
        properties["count"] |= {"minimum": 1, "maximum": settings.max_count}
    if operation.counted and operation.images:
        properties["count"]["description"] = "How many answers each image gets: answer j of image i is row i·count + j."
    if operation.images:
        del properties["images"]["default"]
        properties["images"] |= {"minItems": len(operation.images), "maxItems": settings.max_images}
    for shared in operation.shared:
        properties[shared.name] = {"type": "string", "description": f"{shared.description} As base64 of a file."}
    return properties


def _object(required: list[str], properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


def _in_query(properties: dict[str, Any]) -> list[dict[str, Any]]:
    """Fields that a raw picture has no place for."""
    return [
        {"name": name, "in": "query", "schema": properties[name], "description": "Beside a picture as the body."}
        for name in ("model", "seed")
    ]


def _example_picture(able: list[ModelVersion]) -> str:
    pixels = np.zeros(able[0].image if able else (1, 28, 28), np.uint8)
    pixels[:, len(pixels[0]) // 4 : -len(pixels[0]) // 4, pixels.shape[2] // 2] = 255
    return base64.b64encode(png(pixels)).decode()


def _limits(operation: Operation, settings: Settings) -> str:
    said = f"At most {settings.max_count} answers, {settings.max_images} images and {settings.max_body_bytes} bytes. "
    said += "Any option may also stand beside `model` as a field of its own."
    if len(operation.inputs) == 1:
        said += " One picture may also be the body itself, as `image/*` or `application/octet-stream`, with all other"
        said += " fields in the query."
    return said


def dataset_body(asked: type[BaseModel], named: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI entry of an upload: a form, the file itself, or a name."""
    fields, known = asked.model_json_schema(), named.model_json_schema()
    form = {
        "file": {"type": "string", "format": "binary", "description": "IDX, gzipped or not, NPZ, or ZIP of pictures."},
        "labels": {"type": "string", "format": "binary", "description": "IDX of one whole number a picture."},
        **fields["properties"],
    }
    query = [{"name": name, "in": "query", "schema": rule} for name, rule in fields["properties"].items()]
    return {
        "description": "The same content under the same name again is the dataset that exists. Fields may be in the "
        "form or the query.",
        "parameters": query,
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": _object(["file"], form)},
                "application/octet-stream": BINARY,
                JSON: {"schema": _object(known["required"], known["properties"])},
            },
        },
    }


def answered(schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """A 200 of JSON for OpenAPI."""
    return {200: {"description": "As asked", "content": {JSON: {"schema": schema}}}}


def listed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a list of these."""
    ends = {"anyOf": [{"type": "string"}, {"type": "null"}]}
    rules = {"object": {"const": "list"}, "data": {"type": "array", "items": schema}, "has_more": {"type": "boolean"}}
    return _object(["data", "has_more", "first_id", "last_id"], {**rules, "first_id": ends, "last_id": ends})


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Problems as responses, each under its title."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {str(status): {"description": TITLES[status], "content": content} for status in statuses}


_REPLACED_SCHEMAS = frozenset({"HTTPValidationError", "ValidationError"})
"""FastAPI's own descriptions of a 422, which is a problem here."""


def complete(schema: dict[str, Any], *, keys: bool) -> dict[str, Any]:
    """FastAPI's description with our problems in place of its own, and the key where the service asks for one."""
    parts = schema.setdefault("components", {})
    made = {name: one for name, one in parts.get("schemas", {}).items() if name not in _REPLACED_SCHEMAS}
    parts["schemas"] = {**made, "Problem": PROBLEM, "Job": JOB, "Answer": _ANSWER}
    if keys:
        parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, methods in schema["paths"].items():
        for method, described in methods.items():
            responses = described["responses"]
            if "HTTPValidationError" in str(responses.get("422")):
                del responses["422"]  # ours are declared where there are any
            if path in OPEN_PATHS:
                continue
            responses |= problem_responses(421)
            if "requestBody" in described:  # api/request_bodies.py and api/content_encoding.py
                responses |= problem_responses(400, 408, 413, 415, 503)
            if keys:
                described["security"] = [{"key": []}]
                responses |= problem_responses(401, 403, 429)
            elif method.upper() not in SAFE_METHODS:
                responses |= problem_responses(403)
    return schema


def _told(name: str, schema: dict[str, Any]) -> str:
    options = ", ".join(
        f"{option} ({rule.get('description', '')})" for option, rule in schema.get("properties", {}).items()
    )
    return f"{name}: {options or 'none'}"
