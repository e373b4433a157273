"""From a request's body to an `Ask`: JSON, multipart or a raw picture, checked against the model's card."""

import base64
import binascii
import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from api.errors import InvalidError, MalformedError, NotFoundError, UnsupportedMediaError
from workers.operations import Operation
from workers.pictures import UnusableImageError, decode
from workers.registry import Choice, Entry, OptionsError, Registry
from workers.settings import Settings
from workers.wire import Items

SEED_LIMIT = 2**63
_RAW = "application/octet-stream"


class Asked(BaseModel):
    """The fields that every operation knows; any other field is taken as an option."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(description="Name of a model, or name@version to pin one.", examples=["vae-mnist"])
    count: int = Field(1, description="How many samples to draw.")
    seed: int | None = Field(None, ge=0, lt=SEED_LIMIT, description="0 ≤ seed < 2^63; drawn and echoed where left out.")
    images: list[str] = Field([], description="Pictures as base64 of PNG, JPEG, WebP, BMP, GIF or TIFF files.")
    options: dict[str, Any] = Field({}, description="Options of the operation; the model's card has their schema.")


@dataclass(frozen=True)
class Ask:
    """A request that can be granted: everything about it is settled, and its images are pixels."""

    operation: Operation
    entry: Entry
    options: dict[str, Any]
    seed: int
    rows: int
    fingerprint: str
    items: Items = field(default_factory=dict)
    per: int = 1
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> dict[str, Any]:
        """The request without pixels, as jobs show it."""
        asked: dict[str, Any] = {"model": self.entry.ref, "seed": self.seed, "options": self.options}
        if self.operation.counted:
            asked["count"] = self.rows
        if self.items:
            asked["images"] = (
                max(len(array) for array in self.items.values()) if len(self.items) == 1 else len(self.items)
            )
        if self.notes:
            asked["conversions"] = list(self.notes)
        return asked


async def read_ask(request: Request, operation: Operation, registry: Registry, settings: Settings) -> Ask:
    """The ask in a request. Raises the ProblemError that says what is wrong with it."""
    body = await request.body()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    uploads: list[bytes] = []
    if kind == "application/json":
        fields = _json(body)
    elif kind == "multipart/form-data":
        fields, uploads = await _form(request)
    elif kind.startswith("image/") or kind == _RAW:
        fields, uploads = _typed(request.query_params), [body]
    else:
        raise UnsupportedMediaError(
            f"{kind or 'a body without a Content-Type'} is not read here; send application/json, multipart/form-data "
            "with files named `images`, or one picture as image/* with the other fields in the query"
        )
    asked = _validated(fields)
    entry = registry.find(asked.model)
    if entry is None:
        known = ", ".join(found.name for found in registry.serving()) or "none"
        raise NotFoundError(f"no model {asked.model[:120]!r}; there are: {known}")
    choice = entry.choices.get(operation.method)
    if choice is None:
        able = ", ".join(f"/v1/{one.operation.path}" for one in entry.choices.values())
        raise InvalidError(f"{entry.name} cannot do this; it can do: {able}")
    options = _options(choice, asked)
    rows, images = _sizes(operation, asked, len(asked.images) + len(uploads), options, settings)
    fingerprint = hashlib.sha256(body + kind.encode() + str(request.query_params).encode()).hexdigest()
    seed = secrets.randbelow(SEED_LIMIT) if asked.seed is None else asked.seed
    items, notes = _items(operation, entry, uploads or asked.images)
    return Ask(operation, entry, options, seed, rows, fingerprint, items, max(1, rows // max(1, images)), notes)


def _json(body: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedError(f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise MalformedError('the body must be a JSON object, for example {"model": "vae-mnist"}')
    return fields


def _typed(values: Mapping[str, str]) -> dict[str, Any]:
    """Text fields as what they stand for: numbers and JSON where they parse as such, text otherwise."""
    typed: dict[str, Any] = {}
    for name, value in values.items():
        try:
            typed[name] = value if name == "model" else orjson.loads(value)
        except orjson.JSONDecodeError:
            typed[name] = value
    return typed


async def _form(request: Request) -> tuple[dict[str, Any], list[bytes]]:
    form = await request.form()  # python-multipart's own faults come as HTTP 400
    uploads, texts = [], {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name != "images":
                raise InvalidError(f"no file field {name[:60]!r}; the files' field is `images`")
            uploads.append(await value.read())
        else:
            texts[name] = value
    return _typed({**dict(request.query_params), **texts}), uploads


def _validated(fields: dict[str, Any]) -> Asked:
    try:
        return Asked.model_validate(fields)
    except ValidationError as error:
        wrong = [
            {"field": ".".join(map(str, one["loc"])), "detail": one["msg"]} for one in error.errors(include_input=False)
        ]
        raise InvalidError("; ".join(f"{one['field']}: {one['detail']}" for one in wrong[:5]), errors=wrong) from error


def _options(choice: Choice, asked: Asked) -> dict[str, Any]:
    extra = asked.model_extra or {}
    twice = sorted(extra.keys() & asked.options.keys())
    if twice:
        raise InvalidError(f"given twice, as a field and in options: {', '.join(twice)}")
    unknown = sorted(name[:60] for name in extra if name not in choice.schema.get("properties", {}))
    if unknown:
        known = sorted({*Asked.model_fields, *choice.schema.get("properties", {})})
        raise InvalidError(f"no such field: {', '.join(unknown)}; there are: {', '.join(known)}")
    try:
        return choice.options({**extra, **asked.options})
    except OptionsError as error:
        raise InvalidError(str(error), errors=error.errors) from error


def _sizes(
    operation: Operation, asked: Asked, images: int, options: dict[str, Any], settings: Settings
) -> tuple[int, int]:
    """Rows and images of the request, within their limits."""
    needed = len(operation.inputs)
    if (needed == 0 and images) or (needed == 1 and not images) or (needed == 2 and images != 2):
        raise InvalidError(f"this operation takes {operation.images_needed}, not {images}")
    if images > settings.max_images:
        raise InvalidError(f"images: {images} are more than the {settings.max_images} that one request may bring")
    if not operation.counted and asked.count != 1:
        raise InvalidError("count: this operation has none; the number of answers follows from the images and options")
    if not 1 <= asked.count <= settings.max_count:
        raise InvalidError(f"count: {asked.count} is not between 1 and {settings.max_count}")
    rows = operation.rows(asked.count, images, options)
    if rows > settings.max_count:
        raise InvalidError(f"{rows} answers are more than the {settings.max_count} that one request may ask for")
    return rows, images if needed == 1 else min(images, 1)


def _items(operation: Operation, entry: Entry, images: Sequence[bytes | str]) -> tuple[Items, tuple[str, ...]]:
    if not images:
        return {}, ()
    decoded, notes = [], []
    for index, image in enumerate(images):
        try:
            data = image if isinstance(image, bytes) else base64.b64decode(image.rpartition(",")[2], validate=True)
            pixels, said = decode(data, *entry.image)
        except (binascii.Error, ValueError) as error:
            detail = str(error) if isinstance(error, UnusableImageError) else "not base64 of a picture"
            raise InvalidError(
                f"images[{index}]: {detail}", errors=[{"field": f"images.{index}", "detail": detail}]
            ) from error
        decoded.append(pixels)
        if said:
            notes.append(f"images[{index}]: {said}")
    if len(operation.inputs) == 2:
        return {name: pixels[None] for name, pixels in zip(operation.inputs, decoded, strict=True)}, tuple(notes)
    return {operation.inputs[0]: np.stack(decoded)}, tuple(notes)
