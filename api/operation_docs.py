"""Describes the routes of operations for OpenAPI; their options come from the model cards."""

import base64
from collections.abc import Iterable
from typing import Any

import numpy as np
from pydantic import BaseModel

from api.codes import CODES
from api.openai_errors import PREFIX
from api.openapi import BINARY, PREFER, TEMPLATE, Schema, problem_responses, reference
from api.permissions import Models
from api.request_content import FORM
from api.responses.render import JSON, NPZ, PNG
from api.schemas.operations import IMAGE_URL, RESPONSES, OperationFields, UpscaleFields
from core.catalog.operations import OPERATIONS, Operation
from core.catalog.registry import ModelVersion
from core.imaging.encoders import MEDIA
from core.imaging.pictures import png
from core.settings import Settings

_KEY = "Sent again with the same body, the same job's result is returned."
_KEY_SCHEMA = {"type": "string", "pattern": r'^("[ !#-~]{1,255}"|[!#-~]{1,255})$'}
_HEADERS = [PREFER, {"name": "Idempotency-Key", "in": "header", "schema": _KEY_SCHEMA, "description": _KEY}]
_STATUSES = (400, 404, 406, 409, 410, 413, 415, 422, 429, 500, 503, 507)


class OperationDocs:
    """Describes the routes of operations, from the model cards of the active versions."""

    def __init__(self, models: Models, settings: Settings) -> None:
        """Read the model cards of the active versions; no component schemas are made yet."""
        self._entries = models.active()
        self._settings = settings
        self.schemas: dict[str, Schema] = {}

    def describe(self, paths: dict[str, Any]) -> None:
        """Complete the descriptions of the operations' routes in `paths`; fill `schemas`.

        `paths` is the member of that name in the OpenAPI description. The component schemas to
        which the descriptions refer are added to `schemas`. The size limits of the upload routes
        for datasets and versions are added to the descriptions of these routes.
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
            if operation.inputs:
                input_ = "code" if operation.codes else "image"
                text = f"Results per {input_}: result j of {input_} i is row i·count + j."
                fields["count"]["description"] = text
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
        if operation.codes:
            fields[CODES] = self._codes_schema()
            form[CODES] = {**BINARY["schema"], "description": f"An NPZ file with an array `{CODES}` (N, length)."}
        required = ["model", CODES] if operation.codes else ["model"]
        media = (JSON, NPZ, PNG) if operation.pictures else (JSON, NPZ)
        return {
            "description": self._limits(operation),
            "parameters": _HEADERS,
            "requestBody": self._bodies(operation, required, fields, form, self._example(operation, entries)),
            "responses": _responses(operation, media, "The result", _STATUSES),
        }

    def _codes_schema(self) -> Schema:
        """Return the schema of the field `codes`, the latent codes in a JSON body.

        The schema does not state the length of a code and the range of its numbers, because they
        depend on the model.
        """
        code = {"type": "array", "minItems": 1, "items": {"type": "number"}}
        text = "Codes, each a list of numbers; the model's card has their length and range."
        return {
            "type": "array",
            "minItems": 1,
            "maxItems": self._settings.max_count,
            "items": code,
            "description": text,
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

        `entries` are the models that have the operation: their names become the examples of
        `model`, and `options` allows the options of all of them. Adds a component schema for these
        options to `schemas`.
        """
        fields = {name: _without_null(rule) for name, rule in _properties(body).items()}
        fields["model"]["examples"] = [entry.name for entry in entries] or fields["model"].get("examples", [])
        if references := self._options(operation, entries):
            alternatives = references[0] if len(references) == 1 else {"anyOf": references}
            fields["options"] = {"description": fields["options"]["description"], **alternatives}
        return fields

    def _options(self, operation: Operation, entries: Iterable[ModelVersion]) -> list[Schema]:
        """Add component schemas for the options of the models `entries`; return references to them.

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
        if operation.codes:
            codes = entry.operations[operation.method].codes if entry else None
            length = codes.size(entry.operations[operation.method].defaults) if entry and codes else 2
            example[CODES] = [[0.5] * length, [0.0] * length]
        size = entry.image if entry else (1, 28, 28)
        if operation.images:
            example["images"] = [_example_picture(size)] * len(operation.images)
        return example | {shared.name: _example_picture((1, *size[1:])) for shared in operation.shared}

    def _limits(self, operation: Operation) -> str:
        """Return the text of an operation's description: its limits, and how to send an image."""
        settings = self._settings
        images = "" if operation.codes else f", {settings.max_images} images"
        text = f"At most {settings.max_count} results{images} and {settings.max_body_bytes} bytes. "
        text += "Any option may also be a field beside `model`."
        if operation.codes:
            text += " Many codes are better sent as an NPZ file: in a form, or as the body itself"
            text += " (`application/x-npz`) with all other fields in the query."
        elif len(operation.inputs) == 1:
            text += " One picture may also be the body itself, as `image/*` or `application/octet-stream`, with all"
            text += " other fields in the query."
        return text


def _responses(
    operation: Operation, media: Iterable[str], description: str, statuses: Iterable[int]
) -> dict[int | str, Schema]:
    """Return the descriptions of the responses of an operation's route, keyed by status.

    `media` are the media types of the result, and `statuses` the statuses of problems.
    """
    schema = reference(RESPONSES[operation.path])
    content = {kind: {"schema": schema} if kind == JSON else BINARY for kind in media}
    return {
        "200": {"description": description, "content": content},
        "202": {"description": "A job", "content": {JSON: {"schema": reference("JobResponse")}}},
        **problem_responses(*statuses),
    }


def _properties(body: type[BaseModel]) -> dict[str, Schema]:
    """Return the schemas of a body's fields, keyed by name; nested models become references."""
    properties: dict[str, Schema] = body.model_json_schema(ref_template=TEMPLATE)["properties"]
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
