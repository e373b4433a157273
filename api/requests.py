"""Reads a request body (JSON, multipart or an image) into an `InferenceRequest`, checked by the model's card."""

import asyncio
import base64
import binascii
import hashlib
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Annotated, Any, TypeVar

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect, Request

from api import json_scan
from api.errors import InvalidError, MalformedError, NotFoundError, UnsupportedMediaError, field_errors
from api.fields import WHOLE
from api.form_fields import given, json_value, option_value
from api.multipart import FORM, form_boundary
from api.permissions import Models
from api.responses.upscaled import UpscaleSpec
from core.broker.codec import Items
from core.catalog.numbers import canonical
from core.catalog.operations import Operation, Shared
from core.catalog.registry import ModelOperation, ModelVersion
from core.catalog.validation import InvalidOptionsError
from core.imaging.pictures import Pixels, UnusableImageError, decode
from core.imaging.tiling import Photograph
from core.settings import Settings

SEED_LIMIT = 2**63
Fields = TypeVar("Fields", bound=BaseModel)
RAW = "application/octet-stream"
_EXAMPLE = 'for example {"model": "vae-mnist"}'
_INLINE_BYTES = 16 << 10
"""A larger body is parsed, and its images decoded, in a thread, so that it does not delay small requests."""


class Asked(BaseModel):
    """The fields that every operation knows; any other field is taken as an option."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(description="Name of a model, or name@version to pin one.", examples=["vae-mnist"])
    count: Annotated[int, WHOLE] = Field(1, description="How many to draw.")
    seed: Annotated[int, Field(ge=0, lt=SEED_LIMIT), WHOLE] | None = Field(
        None, description="0 ≤ seed < 2^63; drawn and echoed where left out."
    )
    images: Annotated[list[str], FailFast()] = Field(
        [], description="Pictures as base64 of PNG, JPEG, WebP, BMP, GIF or TIFF files."
    )
    options: dict[str, Any] = Field({}, description="Options of the operation; the model's card has their schema.")


@dataclass
class Content:
    """The content of a body of any type: fields by name, uploaded images, and other files by name."""

    fields: dict[str, Any]
    uploads: Sequence[bytes] = ()
    named: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    """The fields of a form or query as text; the schema of an option says which value its text stands for."""

    @cached_property
    def fingerprint(self) -> str:
        """Content hash that ignores the multipart boundary and the order of fields."""
        digest = hashlib.sha256(orjson.dumps(canonical(self.fields), option=orjson.OPT_SORT_KEYS))
        for upload in self.uploads:
            digest.update(hashlib.sha256(upload).digest())
        for name, uploads in sorted(self.named.items()):
            digest.update(name.encode())
            for upload in uploads:
                digest.update(hashlib.sha256(upload).digest())
        return digest.hexdigest()


@dataclass
class InferenceRequest:
    """A validated request: its model, operation and options are known, and its images are decoded.

    One for a picture of any size has it as `photograph`, and what is to become of it as `order`.
    """

    operation: Operation
    entry: ModelVersion
    options: dict[str, Any]
    seed: int
    rows: int
    content: Content
    items: Items = field(default_factory=dict)
    per: int = 1
    notes: tuple[str, ...] = ()
    photograph: Photograph | None = None
    order: UpscaleSpec | None = None

    @property
    def fingerprint(self) -> str:
        """The content hash, which identifies retries of an Idempotency-Key."""
        return self.content.fingerprint

    @property
    def summary(self) -> dict[str, Any]:
        """The request without image data, as jobs show it."""
        asked: dict[str, Any] = {"model": self.entry.ref, "seed": self.seed, "options": self.options}
        if self.operation.counted:
            asked["count"] = self.per if self.items else self.rows
        if self.order is not None:
            asked |= self.order.summary
        elif self.items:
            asked["images"] = sum(len(self.items[name]) for name in self.operation.images)
        if self.notes:
            asked["conversions"] = list(self.notes)
        return asked


async def read_request(
    request: Request, operation: Operation, registry: Models, settings: Settings
) -> InferenceRequest:
    """Return the inference request of an HTTP request. Raises a ProblemError."""
    headers = first_headers(request)
    kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    if kind == FORM:
        body = await request.body()
        form = await _form(request, operation, settings.max_images)
    else:
        body, form = await read_body(request), None

    def resolve() -> InferenceRequest:
        content = form or _content(body, kind, request)
        if b"idempotency-key" in headers:
            content.fingerprint  # noqa: B018 - computed here, in a thread for large bodies, and cached
        return _inference_request(content, operation, registry, settings)

    return resolve() if len(body) <= _INLINE_BYTES else await asyncio.to_thread(resolve)


def first_headers(request: Request) -> dict[bytes, bytes]:
    """Return the headers of a request by lower-case name, the first of each name, as `request.headers` does.

    One pass over the headers; each lookup in `request.headers` is another one, in Python.
    """
    return dict(reversed(request.scope["headers"]))


async def read_body(request: Request) -> bytes:
    """Return the body, as `request.body()` does, without its generator and without a copy. Raises ClientDisconnect."""
    chunks: list[bytes] = []
    while True:
        message = await request.receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _content(body: bytes, kind: str, request: Request) -> Content:
    if kind == "application/json":
        return Content(parsed(body))
    if kind.startswith("image/") or kind == RAW:
        fields, texts = typed(request.query_params.multi_items())
        return Content(fields, [body], texts=texts)
    raise UnsupportedMediaError(
        f"{kind[:60] or 'a body without a Content-Type'} is not read here; send application/json, multipart/form-data "
        "with files named `images`, or one picture as image/* with the other fields in the query"
    )


def _inference_request(
    content: Content, operation: Operation, registry: Models, settings: Settings
) -> InferenceRequest:
    asked = validated(Asked, content.fields)
    entry = registry.find(asked.model)
    if entry is None:
        known = ", ".join(found.name for found in registry.active()) or "none"
        raise NotFoundError(f"no model {asked.model[:120]!r}; there are: {known}")
    choice = entry.operations.get(operation.method)
    if choice is None:
        able = ", ".join(f"/v1/{one.operation.path}" for one in entry.operations.values())
        raise InvalidError(f"{entry.name} cannot do this; it can do: {able}")
    extra = asked.model_extra or {}
    if operation.shared:
        beside = {shared.name for shared in operation.shared}
        extra = {name: value for name, value in extra.items() if name not in beside}
    options = validate_options(choice, asked.options, extra, _fields(operation), content.texts)
    images: list[bytes | str] = [*content.uploads, *asked.images]
    rows, per = _sizes(operation, asked, len(images), options, settings)
    seed = secrets.randbelow(SEED_LIMIT) if asked.seed is None else asked.seed
    items, notes = _items(operation, entry, images)
    for shared in operation.shared:
        sent: list[bytes | str] = [*content.named.get(shared.name, ()), *_texts(shared, asked)]
        items[shared.name], shared_notes = _shared(shared, entry, sent)
        notes += shared_notes
    return InferenceRequest(operation, entry, options, seed, rows, content, items, per, notes)


@cache
def _fields(operation: Operation) -> frozenset[str]:
    """Return the names of fields that are no options."""
    return frozenset(Asked.model_fields) | {shared.name for shared in operation.shared}


def parsed(body: bytes) -> dict[str, Any]:
    """Return the fields of a JSON object; call it in a thread for a large body."""
    try:
        fields = json_scan.loads(body)
    except json_scan.CostlyJsonError as error:
        raise MalformedError(f"the body is JSON that is not read here: {error}; send an object, {_EXAMPLE}") from error
    except orjson.JSONDecodeError as error:
        raise MalformedError(f"the body is not JSON ({error}); send an object, {_EXAMPLE}") from error
    if not isinstance(fields, dict):
        raise MalformedError(f"the body must be a JSON object, {_EXAMPLE}")
    return fields


def typed(values: Iterable[tuple[str, str]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return text fields as what they stand for, numbers and JSON where they parse as such; and as they came.

    For a thread where the texts are large.
    """
    texts = given(values)
    try:
        json_scan.scan(text.encode() for text in texts.values())
    except json_scan.CostlyJsonError as error:
        raise MalformedError(f"the fields of the form are not read: {error}") from error
    return {name: text if name == "model" else json_value(text) for name, text in texts.items()}, texts


async def _form(request: Request, operation: Operation, max_images: int) -> Content:
    uploads, values = [], request.query_params.multi_items()
    named: dict[str, list[bytes]] = {shared.name: [] for shared in operation.shared}
    form_boundary(request.headers.get("content-type", ""))
    # one file more than may be, so that too many are refused in the words of JSON's images
    most = max_images + 1 + 2 * len(named)
    async with request.form(max_files=most) as form:  # python-multipart's own faults come as HTTP 400
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                values.append((name, value))
            elif not value.filename and not value.size:
                continue  # what a browser sends for a file field without a file
            elif name == "images":
                uploads.append(await value.read())
            elif name in named:
                named[name].append(await value.read())
            else:
                fields = " and ".join(f"`{one}`" for one in ("images", *named))
                raise InvalidError(f"no file field {name[:60]!r}; the files' field is {fields}")
    fields_by_name, texts = await asyncio.to_thread(typed, values)
    return Content(fields_by_name, uploads, named, texts)


def validated(kind: type[Fields], fields: dict[str, Any]) -> Fields:
    """Return the validated fields. Raises InvalidError, which names the invalid ones."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        wrong = field_errors(error.errors(include_input=False))
        raise InvalidError("; ".join(f"{one['field']}: {one['detail']}" for one in wrong), errors=wrong) from error


def validate_options(
    choice: ModelOperation,
    inside: Mapping[str, Any],
    extra: Mapping[str, Any],
    fields: Collection[str],
    texts: Mapping[str, str],
) -> dict[str, Any]:
    """Validate the options against the model's schema: those in `options` and the `extra` ones beside the `fields`.

    `texts` has the ones that came as text of a form or query. Returns the options with their defaults. Raises
    InvalidError.
    """
    values: dict[str, Any] = {}
    if extra:
        twice = sorted(extra.keys() & inside.keys())
        if twice:
            names = ", ".join(name[:60] for name in twice[:10])
            raise InvalidError(f"given twice, as a field and in options: {names}; send each once")
        rules = choice.schema.get("properties", {})
        unknown = sorted(name[:60] for name in extra if name not in rules)
        if unknown:
            known = sorted({*fields, *rules})
            raise InvalidError(f"no such field: {', '.join(unknown[:10])}; there are: {', '.join(known)}")
        values = {name: option_value(texts[name], rules[name]) if name in texts else extra[name] for name in extra}
    try:
        return choice.options({**values, **inside})
    except InvalidOptionsError as error:
        raise InvalidError(str(error), errors=error.errors) from error


def _sizes(
    operation: Operation, asked: Asked, images: int, options: dict[str, Any], settings: Settings
) -> tuple[int, int]:
    """Return the rows of the request, and the rows per image. Raises InvalidError."""
    needed = len(operation.images)
    if (needed == 0 and images) or (needed == 1 and not images) or (needed == 2 and images != 2):
        raise InvalidError(f"this operation takes {operation.images_needed}, not {images}")
    if images > settings.max_images:
        raise InvalidError(f"images: {images} are more than the {settings.max_images} that one request may bring")
    if not operation.counted and asked.count != 1:
        raise InvalidError("count: this operation has none; the number of results follows from the images and options")
    if not 1 <= asked.count <= settings.max_count:
        raise InvalidError(f"count: {asked.count} is not between 1 and {settings.max_count}")
    rows = operation.rows(asked.count, images, options)
    if rows > settings.max_count:
        raise InvalidError(f"{rows} results are more than the {settings.max_count} that one request may ask for")
    return rows, rows // images if needed == 1 else rows


def _items(operation: Operation, entry: ModelVersion, images: Sequence[bytes | str]) -> tuple[Items, tuple[str, ...]]:
    if not images:
        return {}, ()
    decoded: list[Pixels] = []
    notes: list[str] = []
    for index, image in enumerate(images):
        pixels, conversions = _decoded(image, entry.image, f"images[{index}]", f"images.{index}")
        decoded.append(pixels)
        notes += conversions
    if len(operation.images) == 2:
        return {name: pixels[None] for name, pixels in zip(operation.images, decoded, strict=True)}, tuple(notes)
    return {operation.images[0]: np.stack(decoded)}, tuple(notes)


def _decoded(image: bytes | str, size: tuple[int, int, int], name: str, path: str) -> tuple[Pixels, tuple[str, ...]]:
    """Return the pixels of an image sent as file or text, and its conversions. Raises InvalidError."""
    try:
        pixels, conversions = decode(image if isinstance(image, bytes) else file_of(image), *size)
    except UnusableImageError as error:
        detail = str(error)
        raise InvalidError(f"{name}: {detail}", errors=[{"field": path, "detail": detail}]) from error
    return pixels, (f"{name}: {conversions}",) if conversions else ()


def _texts(shared: Shared, asked: Asked) -> Sequence[str]:
    """Return what was sent as text under the name of a shared image."""
    text = (asked.model_extra or {}).get(shared.name, [])
    texts = text if isinstance(text, list) else [text]
    if not all(isinstance(one, str) for one in texts):
        raise _wrong(shared, "must be a picture file as base64 text")
    return texts


def _shared(shared: Shared, entry: ModelVersion, sent: Sequence[bytes | str]) -> tuple[Pixels, tuple[str, ...]]:
    """Return the only grey image of that name, repeated for the model's channels, (1, C, H, W)."""
    channels, height, width = entry.image
    if len(sent) != 1:
        number = f"{len(sent)} were sent" if sent else "missing"
        raise _wrong(shared, f"{number}; send one picture of {width}×{height} pixels. {shared.description}")
    pixels, notes = _decoded(sent[0], (1, height, width), shared.name, shared.name)
    fault = shared.fault(pixels)
    if fault:
        raise _wrong(shared, fault)
    return np.repeat(pixels[None], channels, axis=1), notes


def _wrong(shared: Shared, detail: str) -> InvalidError:
    return InvalidError(f"{shared.name}: {detail}", errors=[{"field": shared.name, "detail": detail}])


def file_of(text: str) -> bytes:
    """Return the file in base64 text, which may have line breaks or be a data URL."""
    try:
        return base64.b64decode("".join(text.rpartition(",")[2].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnusableImageError("not base64; send the bytes of a picture file in standard base64") from error
