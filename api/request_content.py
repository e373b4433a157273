"""Parses request bodies (JSON, forms, single images) and queries; does not validate fields."""

import asyncio
import base64
import binascii
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.requests import Request

from api import json_scan
from api.errors import InvalidError, MalformedError, UnsupportedMediaError
from core.catalog.validation import canonical
from core.imaging.pictures import UnusableImageError

FORM = "multipart/form-data"
RAW = "application/octet-stream"
IMAGE_TYPES = ("image/",)  # beginnings of media types of bodies that are one file
NPZ_TYPES = ("application/x-npz", "application/npz", "application/vnd.numpy.npz")
MAX_BOUNDARY = 70  # characters, by RFC 2046

_MAX_HEADER = 1000
_CHARSETS = frozenset({b"", b"utf-8", b"utf8", b"us-ascii", b"iso-8859-1", b"latin-1"})
_EXAMPLE = 'for example {"model": "vae-mnist"}'
_BOOLEANS: Mapping[str, bool] = {
    **dict.fromkeys(("true", "1", "on", "yes"), True),
    **dict.fromkeys(("false", "0", "off", "no"), False),
}


@dataclass
class Content:
    """The parsed content of a JSON body, a form, or a single file with its fields in the query.

    `fields` has the parsed fields keyed by name. `uploads` has the uploaded images or, for an
    operation on latent codes, the uploaded files of codes. `named` has the files of other file
    fields, keyed by field name. `texts` has the unparsed text of each form or query field, because
    only an option's schema says whether a text such as `1` is a number or a string.
    """

    fields: dict[str, Any]
    uploads: Sequence[bytes] = ()
    named: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content in hex.

        It does not depend on the multipart boundary or the order of fields.
        """
        digest = hashlib.sha256(orjson.dumps(canonical(self.fields), option=orjson.OPT_SORT_KEYS))
        for name, uploads in [("", self.uploads), *sorted(self.named.items())]:
            digest.update(name.encode())
            for upload in uploads:
                digest.update(hashlib.sha256(upload).digest())
        return digest.hexdigest()


def media_type(content_type: str) -> str:
    """Return the media type in a Content-Type header, in lower case and without parameters."""
    return content_type.partition(";")[0].strip().lower()


def parse_body(
    body: bytes, media: str, request: Request, accepted: str, files: tuple[str, ...] = IMAGE_TYPES
) -> Content:
    """Return the content of a JSON body, or of a file with its fields in the query.

    The media type of such a file begins with one of `files`, or is `RAW`.

    `media` is the media type of the body. Raises MalformedError if the body cannot be parsed,
    InvalidError for a field that is given twice, and UnsupportedMediaError, whose message ends with
    `accepted`, for any other media type. Call it in a thread for a large body.
    """
    if media == "application/json":
        return Content(parse_object(body))
    if media.startswith(files) or media == RAW:
        fields, texts = parse_texts(request.query_params.multi_items())
        return Content(fields, [body], texts=texts)
    raise unsupported(media, accepted)


def unsupported(media: str, accepted: str) -> UnsupportedMediaError:
    """Return the error for a body of the media type `media`, which the route does not accept.

    `accepted` tells the client what to send instead.
    """
    return UnsupportedMediaError(f"{media[:60] or 'a body without a Content-Type'} is not read here; {accepted}")


async def read_form(request: Request, names: Sequence[str], max_files: int, accepted: str) -> Content:
    """Return the content of a multipart form with the file fields `names`.

    The first of these fields is for images; at most `max_files` files are read. Raises
    MalformedError for a bad Content-Type or texts that would be costly to parse, InvalidError for
    an unknown file field, with `accepted` at the end of its message, or for a field that is given
    twice, and starlette's HTTPException for a form that its parser rejects.
    """
    form_boundary(request.headers.get("content-type", ""))
    values = request.query_params.multi_items()
    files: dict[str, list[bytes]] = {name: [] for name in names}
    async with request.form(max_files=max_files) as form:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                values.append((name, value))
            elif not value.filename and not value.size:
                continue  # browsers send this for a file field without a file
            elif name in files:
                files[name].append(await value.read())
            else:
                raise InvalidError.in_fields([name[:60]], f"no file field {name[:60]!r}; {accepted}")
    fields, texts = await asyncio.to_thread(parse_texts, values)
    return Content(fields, files.pop(names[0]), files, texts)


def form_boundary(content_type: str) -> bytes:
    """Return the boundary in the Content-Type of a form.

    Raises MalformedError if the boundary is missing or not valid, or the charset is not UTF-8.
    """
    if len(content_type) > _MAX_HEADER:
        raise MalformedError(f"the Content-Type has {len(content_type)} characters; let the client write that header")
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise MalformedError("the Content-Type names no boundary of the parts; let the client write that header")
    if len(boundary) > MAX_BOUNDARY:
        raise MalformedError(f"the boundary in the Content-Type has {len(boundary)} characters, {MAX_BOUNDARY} at most")
    if options.get(b"charset", b"").lower() not in _CHARSETS:
        raise MalformedError("the charset of a form must be UTF-8")
    return boundary


# --- values ---


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the fields of a JSON object.

    Raises MalformedError if the body is not a JSON object, or would be costly to parse. Call this
    function in a thread if the body is large.
    """
    try:
        fields = json_scan.loads(body)
    except json_scan.CostlyJsonError as error:
        raise MalformedError(f"the body is JSON that is not read here: {error}; send an object, {_EXAMPLE}") from error
    except orjson.JSONDecodeError as error:
        raise MalformedError(f"the body is not JSON ({error}); send an object, {_EXAMPLE}") from error
    if not isinstance(fields, dict):
        raise MalformedError(f"the body must be a JSON object, {_EXAMPLE}")
    return fields


def parse_texts(values: Iterable[tuple[str, str]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Parse form or query fields; return their JSON values and their texts, both keyed by name.

    A text that is not JSON is taken as a string. Empty fields are left out. Raises InvalidError for
    a field that is given twice, and MalformedError for texts that would be costly to parse. Call
    this function in a thread if the texts are large.
    """
    texts = unique_fields(values)
    try:
        json_scan.scan(text.encode() for text in texts.values())
    except json_scan.CostlyJsonError as error:
        raise MalformedError(f"the fields of the form are not read: {error}") from error
    return {name: text if name == "model" else _json_value(text) for name, text in texts.items()}, texts


def unique_fields(values: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the fields of a form or query, keyed by name; empty fields are left out.

    Raises InvalidError for a field that is given twice.
    """
    filled = [(name, value) for name, value in values if value.strip()]
    if twice := sorted(name[:60] for name, times in Counter(name for name, _ in filled).items() if times > 1):
        raise InvalidError.in_fields(twice, f"given more than once: {', '.join(twice[:10])}; send each field once")
    return dict(filled)


def _json_value(text: str) -> Any:
    """Return the value of a JSON text; the text itself if it is not JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def option_value(text: str, rule: Mapping[str, Any]) -> Any:
    """Return the value of an option from the text of its form or query field.

    The text is parsed as JSON, and is a string if it is not JSON or if `rule`, the option's JSON
    Schema, allows only strings. Booleans may also be written as `on`, `off`, `yes`, `no`, `1`, `0`,
    in any case.
    """
    kind = rule.get("type", ())
    kinds = {kind} if isinstance(kind, str) else set(kind)
    if "boolean" in kinds and text.strip().lower() in _BOOLEANS:
        return _BOOLEANS[text.strip().lower()]
    value = _json_value(text)
    return text if kinds == {"string"} and not isinstance(value, str) else value


def decode_base64(text: str) -> bytes:
    """Return the bytes of a file from base64 text or a data URL; line breaks are ignored.

    Raises UnusableImageError if the text is not base64.
    """
    try:
        return base64.b64decode("".join(text.rpartition(",")[2].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnusableImageError("not base64; send the bytes of a picture file in standard base64") from error
