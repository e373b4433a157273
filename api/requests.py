"""Reads HTTP requests for operations, and validates them."""

import asyncio
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from api.access import caller_of
from api.auth import ANONYMOUS, Caller
from api.batching.requests import PendingRequest
from api.codes import CODES, FILE_ACCEPTED, read_codes
from api.deadline import deadline_of
from api.errors import InvalidError, MalformedError, NotFoundError, request_id_of
from api.input_images import base64_texts, check_number, decode_images, decode_shared
from api.permissions import Models
from api.request_bodies import read_body
from api.request_content import FORM, IMAGE_TYPES, NPZ_TYPES, Content, media_type, option_value, parse_body, read_form
from api.request_span import traceparent_of
from api.responses.render import JSON
from api.responses.upscaled import UpscaleSpec
from api.schemas.operations import SEED_LIMIT, OperationFields, UpscaleFields
from api.schemas.webhooks import WebhookBody
from api.stored_content import IMAGES_URL, store_content
from core.broker.codec import Items
from core.catalog.operations import Operation
from core.catalog.registry import ModelOperation, ModelVersion
from core.catalog.validation import InvalidOptionsError
from core.imaging.tiling import Photograph
from core.jobs.records import new_id
from core.outbound.addresses import parse_url
from core.settings import Settings
from core.webhooks.records import Webhook

Fields = TypeVar("Fields", bound=BaseModel)
Texts = Mapping[str, str]  # keyed by field name
_INLINE_BYTES = 16 << 10  # a larger body is parsed and decoded in a thread, so that it does not delay small requests
_KEY = re.compile(r'"?([\x20\x21\x23-\x7e]{1,255})"?')
_IMAGES_ACCEPTED = (
    "send application/json, multipart/form-data with files named `images`, or one picture as image/* with the other "
    "fields in the query"
)


@dataclass
class InferenceRequest:
    """A validated request for an operation, with decoded images or latent codes.

    `items` are the pixels of the input images, or the codes, keyed by the model's argument; each
    image or code is for `rows_per_image` consecutive rows. `input_urls`, keyed by field, name
    images that must be fetched first; until then `items` is empty. `conversions` are messages about
    how images were converted. `deadline_at` is in seconds since the epoch; `traceparent` is that of
    the request's span. A request of `POST /v1/upscales` has, in place of items, the complete image
    (`photograph`) and how to enlarge it (`upscale`).
    """

    operation: Operation
    entry: ModelVersion
    options: dict[str, Any]
    seed: int
    rows: int
    content: Content
    items: Items = field(default_factory=dict)
    rows_per_image: int = 1
    conversions: tuple[str, ...] = ()
    caller: Caller = ANONYMOUS
    request_id: str = ""
    photograph: Photograph | None = None
    upscale: UpscaleSpec | None = None
    deadline_at: float | None = None
    traceparent: str = ""
    webhook_body: WebhookBody | None = None
    webhook: Webhook | None = None  # the checked `webhook_body`
    # URLs of images that must be fetched before the request can run, keyed by field.
    input_urls: dict[str, list[str]] = field(default_factory=dict)
    # The kind of device on which its rows are computed, and how often another kind had to start
    # anew.
    device_kind: str = ""
    restarts: int = 0
    output_kind: str = ""  # file format of an upscaled image whose input is a URL

    @property
    def always_job(self) -> bool:
        """Whether the request becomes a job even if it is small: it has a webhook or URLs."""
        return self.webhook_body is not None or bool(self.input_urls)

    def stored_content(self) -> bytes:
        """Return the packed body of a request with URLs, to be stored until the images are fetched.

        The packed body has the version and the seed that the service has chosen. It lacks the URLs
        and the webhook, because the job's record has them.
        """
        fixed = {"model": self.entry.ref, "seed": self.seed}
        if self.output_kind:
            fixed["format"] = self.output_kind
        return store_content(self.content, fixed, frozenset({"webhook", *self.input_urls}))

    @property
    def summary(self) -> dict[str, Any]:
        """The request without the data of its images, for the field `request` of its job."""
        summary: dict[str, Any] = {"model": self.entry.ref, "seed": self.seed, "options": self.options}
        if self.operation.counted:
            summary["count"] = self.rows_per_image if self.items else self.rows
        if self.upscale is not None:
            summary |= self.upscale.summary
        elif self.operation.codes:
            summary[CODES] = len(self.items[CODES])
        elif self.items:
            summary["images"] = sum(len(self.items[name]) for name in self.operation.images)
        if self.conversions:
            summary["conversions"] = list(self.conversions)
        return summary | self.input_urls

    def pending(self, *, png: bool = False) -> PendingRequest:
        """Return the record of this request for the batch scheduler.

        Its id is a job id: if the request becomes a job, this is the id of the job.
        `png`: workers return images as PNG files, not as pixels.
        """
        return PendingRequest(
            self.entry,
            self.operation.method,
            self.options,
            self.seed,
            self.rows,
            self.items,
            self.rows_per_image,
            png,
            self.request_id,
            self.caller.name,
            self.caller.limits,
            self.deadline_at,
            self.traceparent,
            id=new_id(),
        )


async def read_request(request: Request, operation: Operation, models: Models, settings: Settings) -> InferenceRequest:
    """Read a request for an operation and validate it against the model's card.

    Raises NotFoundError for an unknown model, InvalidError for fields, options or images that are
    not valid, and other ProblemErrors for a body that cannot be read.
    """
    headers = first_headers(request)
    media = media_type(headers.get(b"content-type", b"").decode("latin-1"))
    form: Content | None = None
    if media == FORM:
        body = await request.body()
        names = [CODES] if operation.codes else ["images", *(shared.name for shared in operation.shared)]
        fields = " and ".join(f"`{name}`" for name in names)
        # one file more than the limit, so that the error for too many files is that of JSON bodies
        max_files = 2 if operation.codes else settings.max_images + 1 + 2 * len(operation.shared)
        form = await read_form(request, names, max_files, f"the files' field is {fields}")
    else:
        body = await read_body(request.receive)

    files, accepted = (NPZ_TYPES, FILE_ACCEPTED) if operation.codes else (IMAGE_TYPES, _IMAGES_ACCEPTED)

    def resolve() -> InferenceRequest:
        content = form or parse_body(body, media, request, accepted, files)
        if b"idempotency-key" in headers:
            content.fingerprint  # noqa: B018 - computed here, in a thread for large bodies, and cached
        return request_of_content(request, content, operation, models, settings)

    inline = len(body) <= _INLINE_BYTES and (not operation.codes or media == JSON)  # a small NPZ may unpack to much
    return resolve() if inline else await asyncio.to_thread(resolve)


def request_of_content(
    request: Request, content: Content, operation: Operation, models: Models, settings: Settings
) -> InferenceRequest:
    """Return the validated request for an operation, from the parsed body `content`.

    The caller, id, deadline and trace are those of the HTTP request. Raises NotFoundError for an
    unknown model, and InvalidError for fields, options or images that are not valid.
    """
    inference_request = _inference_request(content, operation, models, settings)
    inference_request.caller, inference_request.request_id = caller_of(request.scope), request_id_of(request)
    inference_request.deadline_at = deadline_of(request.scope)
    inference_request.traceparent = traceparent_of(request.scope)
    return inference_request


def first_headers(request: Request) -> dict[bytes, bytes]:
    """Return the headers of a request, keyed by lower-case name; of repeated ones, the first.

    Faster than `request.headers`, which searches all headers at each look-up.
    """
    return dict(reversed(request.scope["headers"]))


def idempotency_key(header: str) -> str:
    """Return the key in an Idempotency-Key header, whose value may be in quotes.

    Raises MalformedError if the key is not 1 to 255 printable ASCII characters.
    """
    match = _KEY.fullmatch(header.strip())
    if match is None:
        raise MalformedError("Idempotency-Key must be 1 to 255 printable ASCII characters, quoted or bare")
    return match.group(1)


def _inference_request(content: Content, operation: Operation, models: Models, settings: Settings) -> InferenceRequest:
    """Find the model of a request, and return the validated request.

    Raises NotFoundError for an unknown model, and InvalidError for fields that are not valid.
    """
    fields = validate_fields(OperationFields, content.fields)
    entry = models.find(fields.model)
    if entry is None:
        known = ", ".join(active.name for active in models.active()) or "none"
        raise NotFoundError(f"no model {fields.model[:120]!r}; there are: {known}")
    return inference_request_of(content, fields, operation, entry, settings)


def inference_request_of(
    content: Content, fields: OperationFields, operation: Operation, entry: ModelVersion, settings: Settings
) -> InferenceRequest:
    """Validate the fields of a request against the model card, and decode its images or latent
    codes.

    If the request names an image by URL, no image is decoded yet. Raises InvalidError for fields,
    options, images, codes or URLs that are not valid.
    """
    model_operation = entry.operations.get(operation.method)
    if model_operation is None:
        able = ", ".join(f"/v1/{one.operation.path}" for one in entry.operations.values())
        raise InvalidError.in_fields(["model"], f"{entry.name} cannot do this; it can do: {able}")
    options = validate_options(model_operation, fields, _field_names(operation), content.texts)
    if model_operation.codes is not None:
        codes = read_codes(content, fields, model_operation.codes, options, settings)
        rows = _checked_rows(operation, fields, len(codes), options, settings)
        seed, items = seed_or_random(fields.seed), {CODES: codes}
        inference_request = InferenceRequest(operation, entry, options, seed, rows, content, items, fields.count)
        inference_request.webhook_body = fields.webhook
        return inference_request
    images: list[bytes | str] = [*content.uploads, *fields.images]
    urls = _input_urls(operation, fields)
    rows, rows_per_image = _sizes(operation, fields, len(images) + len(urls.get(IMAGES_URL, ())), options, settings)
    conversions: list[str] = []
    items = {} if urls else decode_images(operation, entry, images, conversions)
    for shared in operation.shared:
        sent: list[bytes | str] = [*content.named.get(shared.name, ()), *base64_texts(shared, fields)]
        if urls:
            check_number(shared, entry, len(sent) + len(urls.get(f"{shared.name}_url", ())))
        else:
            items[shared.name] = decode_shared(shared, entry, sent, conversions)
    seed = seed_or_random(fields.seed)
    inference_request = InferenceRequest(
        operation, entry, options, seed, rows, content, items, rows_per_image, tuple(conversions)
    )
    inference_request.webhook_body, inference_request.input_urls = fields.webhook, urls
    return inference_request


def _input_urls(operation: Operation, fields: OperationFields) -> dict[str, list[str]]:
    """Return the URLs by which a request names images, keyed by field; empty without URLs.

    Raises InvalidError if a URL is not valid.
    """
    urls: dict[str, list[str]] = {}
    if fields.image_url:
        urls[IMAGES_URL] = valid_urls(IMAGES_URL, fields.image_url)
    for shared in operation.shared:
        name = f"{shared.name}_url"
        value = (fields.model_extra or {}).get(name)
        if value is not None:
            if not isinstance(value, str):
                raise InvalidError.in_field(name, "must be one URL, as text")
            urls[name] = valid_urls(name, value)
    return urls


def valid_urls(field: str, value: str | list[str]) -> list[str]:
    """Return the URLs that the request field `field` has as its `value`, normalized.

    Raises InvalidError, which names the field, if a URL is not valid.
    """
    try:
        return [str(parse_url(text)) for text in ([value] if isinstance(value, str) else value)]
    except ValueError as error:
        raise InvalidError.in_field(field, str(error)) from error


def seed_or_random(seed: int | None) -> int:
    """Return the seed of a request, or a random one if the request has none."""
    return secrets.randbelow(SEED_LIMIT) if seed is None else seed


@cache
def _field_names(operation: Operation) -> frozenset[str]:
    """Return the names of the body fields of an operation that are not options."""
    shared = {name for one in operation.shared for name in (one.name, f"{one.name}_url")}
    return frozenset(OperationFields.model_fields) | shared | ({CODES} if operation.codes else set())


def validate_fields(model: type[Fields], fields: Any) -> Fields:
    """Validate the fields of a body, and return them as an instance of the pydantic class `model`.

    Raises InvalidError, which lists the invalid fields.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise InvalidError.of_validation(error.errors(include_input=False)) from error


def validate_options(
    model_operation: ModelOperation, body: OperationFields | UpscaleFields, fields: Collection[str], texts: Texts
) -> dict[str, Any]:
    """Validate the options of a body against the model's schema; return them with all defaults.

    Options are in the field `options`, or are fields of the body that are not in `fields`. `texts`
    has the text of each field that came in a form or query. Raises InvalidError for an option that
    is unknown, given twice or not valid.
    """
    options, values = body.options, {}
    if extra := {name: value for name, value in (body.model_extra or {}).items() if name not in fields}:
        if twice := sorted(extra.keys() & options.keys()):
            names = ", ".join(name[:60] for name in twice[:10])
            raise InvalidError.in_fields(twice, f"given twice, as a field and in options: {names}; send each once")
        rules = model_operation.schema.get("properties", {})
        if unknown := sorted(name[:60] for name in extra if name not in rules):
            known = sorted({*fields, *rules})
            detail = f"no such field: {', '.join(unknown[:10])}; there are: {', '.join(known)}"
            raise InvalidError.in_fields(unknown, detail)
        values = {name: option_value(texts[name], rules[name]) if name in texts else extra[name] for name in extra}
    try:
        return model_operation.options({**values, **options})
    except InvalidOptionsError as error:
        raise InvalidError(str(error), errors=error.errors) from error


def _sizes(
    operation: Operation, fields: OperationFields, images: int, options: dict[str, Any], settings: Settings
) -> tuple[int, int]:
    """Return the number of rows of a request, and how many consecutive rows each image is for.

    `images` is the number of images sent. Raises InvalidError if this number does not fit the
    operation, or if there are too many images or rows.
    """
    needed = len(operation.images)
    if (needed == 0 and images) or (needed == 1 and not images) or (needed == 2 and images != 2):
        raise InvalidError.in_fields(["images"], f"this operation takes {operation.images_needed}, not {images}")
    if images > settings.max_images:
        raise InvalidError.in_field(
            "images", f"{images} are more than the {settings.max_images} that one request may bring"
        )
    if not operation.counted and fields.count != 1:
        detail = "this operation has none; the number of results follows from the images and options"
        raise InvalidError.in_field("count", detail)
    rows = _checked_rows(operation, fields, images, options, settings)
    return rows, rows // images if needed == 1 else rows


def _checked_rows(
    operation: Operation, fields: OperationFields, inputs: int, options: dict[str, Any], settings: Settings
) -> int:
    """Return the number of rows of a request with `inputs` images or codes.

    Raises InvalidError if `count` or the number of rows is out of range.
    """
    if not 1 <= fields.count <= settings.max_count:
        raise InvalidError.in_field("count", f"{fields.count} is not between 1 and {settings.max_count}")
    if (rows := operation.rows(fields.count, inputs, options)) > settings.max_count:
        detail = f"{rows} results are more than the {settings.max_count} that one request may ask for"
        raise InvalidError.in_fields(["count" if operation.counted else "options"], detail)
    return rows
