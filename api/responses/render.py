"""Makes response bodies (JSON, PNG, NPZ) and evaluates `Accept`, entity tags and byte ranges."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from api.errors import NotAcceptableError, RangeError
from api.request_content import NPZ_TYPES
from core import tracing
from core.broker.codec import Fields
from core.catalog.operations import Operation
from core.imaging.pictures import Pixels, decode_own_png, png, write_grid

JSON, PNG, NPZ = "application/json", "image/png", "application/x-npz"
ACCEPTANCE = "acceptance_rate"

_JSON_ROWS = 256  # rows of a field that are written to JSON at once

_NUMBERED = re.compile(r"(.+)\.(\d{1,9})")


class JsonRoute(APIRoute):
    """A route whose function returns a pydantic model.

    Fields that are not set are left out of the JSON.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Create the route with FastAPI's `response_model_exclude_unset`."""
        super().__init__(*args, **{**kwargs, "response_model_exclude_unset": True})


def json_response(body: BaseModel, headers: Mapping[str, str] | None = None, status: int = 200) -> Response:
    """Return a JSON response; fields of `body` that are not set are left out."""
    return Response(body.model_dump_json(exclude_unset=True), status, headers, JSON)


@dataclass(slots=True)
class ResultMetadata:
    """Metadata of a result: model, version, seed, and how the images of the request were converted.

    `columns` is the number of columns if several images are put into one PNG; None for a grid that
    is nearly square. `device_kind` (device, processor, torch version, threads) identifies the
    workers that computed the result; it is empty if unknown. `restarts` counts how often the
    request began again on another device kind.
    """

    model: str
    version: str
    seed: int
    conversions: tuple[str, ...] = ()
    columns: int | None = None
    device_kind: str = ""
    restarts: int = 0

    def headers(self, fields: Fields) -> dict[str, str]:
        """Return the metadata as response headers, because PNG bodies cannot contain metadata.

        Only the first eight conversions are named. If the result `fields` has an acceptance rate,
        it is a header too.
        """
        headers = {"Reverie-Model": f"{self.model}@{self.version}", "Reverie-Seed": str(self.seed)}
        if self.device_kind:
            headers["Reverie-Device-Kind"] = self.device_kind
        if self.restarts:
            headers["Reverie-Restarts"] = str(self.restarts)
        if self.conversions:
            headers["Reverie-Conversions"] = "; ".join(self.conversions[:8])
        if ACCEPTANCE in fields:
            headers["Reverie-Acceptance-Rate"] = f"{fields[ACCEPTANCE]:.6g}"
        return headers


def with_acceptance_rate(fields: Fields) -> Fields:
    """Return the fields with `acceptance_rate` added; unchanged without `accepted` and `proposals`.

    The fields `accepted` and `proposals` come from rejection sampling, and have a value per row:
    whether the row's last proposal was accepted, and the number of its proposals. The rate is the
    sum of `accepted` over the sum of `proposals`.
    """
    if not {"accepted", "proposals"} <= fields.keys():
        return fields
    proposals = int(np.sum(fields["proposals"]))
    return {**fields, ACCEPTANCE: int(np.sum(fields["accepted"])) / proposals} if proposals else fields


def negotiate(accept: str, operation: Operation) -> str:
    """Return the media type that the header `accept` prefers for the response of an operation.

    Raises NotAcceptableError if the header allows none of the operation's media types.
    """
    if not accept or accept in {"*/*", JSON}:
        return JSON
    return choose(accept, [JSON, PNG, NPZ] if operation.pictures else [JSON, NPZ])


def choose(accept: str, offers: Sequence[str]) -> str:
    """Return the media type in `offers` that an `Accept` header prefers.

    The highest quality wins, then the most specific pattern, then the first offer. Raises
    NotAcceptableError if the header allows no offer.
    """
    patterns = [_parse_pattern(entry) for entry in (accept or "*/*").split(",")]
    best, best_offer = (0.0, 0), None
    for offer in offers:
        precision, quality = max(((_precision(pattern, offer), q) for pattern, q in patterns), default=(0, 0.0))
        if precision and quality > 0 and (quality, precision) > best:
            best, best_offer = (quality, precision), offer
    if best_offer is None:
        raise NotAcceptableError(f"this response comes as {', '.join(offers)}, not as {accept[:200]}")
    return best_offer


def _parse_pattern(entry: str) -> tuple[str, float]:
    """Return the media range and the quality (`q`) of one entry of an `Accept` header.

    The quality is 1 if the entry has no `q`, and 0 if its `q` is not valid.
    """
    pattern, _, parameters = entry.strip().lower().partition(";")
    match = re.search(r"(?:^|;)\s*q\s*=\s*([^;\s]*)", parameters)
    quality = match.group(1) if match else "1"
    return pattern.strip(), float(quality) if re.fullmatch(r"[01](\.\d{0,9})?", quality) else 0.0


def _precision(pattern: str, offer: str) -> int:
    """Return how precisely the media range `pattern` matches `offer`.

    3: type and subtype, 2: `type/*`, 1: `*/*`, 0: not at all.
    """
    if pattern == offer or (offer == NPZ and pattern in NPZ_TYPES):
        return 3
    if pattern == offer.partition("/")[0] + "/*":
        return 2
    return int(pattern == "*/*")


def render(fields: Fields, metadata: ResultMetadata, media: str) -> bytes:
    """Return the body of the result `fields` in the media type `media`, with its metadata.

    `fields["images"]` are pixels, or PNG files if the worker has encoded them. Fields `name.0`,
    `name.1`, …, which have different widths, become one list `name` in JSON; in NPZ they stay
    separate arrays.
    """
    if media != JSON:
        file = io.BytesIO()
        write(file, fields, metadata, media)
        return file.getvalue()
    with tracing.span("encode", attributes={"reverie.media_type": media}):
        return _json_body(fields, metadata)


def _json_body(fields: Fields, metadata: ResultMetadata) -> bytes:
    """Return a result with its metadata as JSON."""
    body: dict[str, Any] = {"model": metadata.model, "version": metadata.version, "seed": metadata.seed}
    for name, value in _join_numbered(fields).items():
        if name == "images":
            body[name] = _base64_pngs(value)
        else:
            body[name] = value
    if metadata.conversions:
        body["conversions"] = list(metadata.conversions)
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _join_numbered(fields: Fields) -> Fields:
    """Return the fields with `name.0`, `name.1`, … replaced by one list `name`, in this order."""
    numbered: dict[str, dict[int, Any]] = {}
    joined: Fields = {}
    for name, value in fields.items():
        if match := _NUMBERED.fullmatch(name):
            numbered.setdefault(match.group(1), {})[int(match.group(2))] = value
            joined[match.group(1)] = None
        else:
            joined[name] = value
    return joined | {name: [values[number] for number in sorted(values)] for name, values in numbered.items()}


def _pixels(images: Pixels | list[bytes]) -> Pixels:
    """Return images as pixels, uint8 (N, C, H, W); PNG files are decoded."""
    return np.stack([decode_own_png(image) for image in images]) if isinstance(images, list) else images


def write(out: BinaryIO, fields: Fields, metadata: ResultMetadata, media: str) -> None:
    """Write the body of the result `fields` to `out`, a seekable file, in bounded memory.

    The body is in the media type `media`, and contains the metadata if this type allows it.
    """
    with tracing.span("encode", attributes={"reverie.media_type": media}):
        if media == PNG:
            pixels = _pixels(fields["images"])
            if len(pixels) == 1:
                out.write(png(pixels[0]))
            else:
                write_grid(out, pixels, metadata.columns)
        elif media == NPZ:
            _write_npz(out, {**fields, "images": _pixels(fields["images"])} if "images" in fields else fields, metadata)
        else:
            _write_json(out, fields, metadata)


def _write_json(out: BinaryIO, fields: Fields, metadata: ResultMetadata) -> None:
    """Write a result with its metadata as JSON, at most `_JSON_ROWS` rows at a time."""
    out.write(orjson.dumps({"model": metadata.model, "version": metadata.version, "seed": metadata.seed})[:-1])
    for name, value in _join_numbered(fields).items():
        out.write(b"," + orjson.dumps(name) + b":")
        if not isinstance(value, np.ndarray | list) or not len(value):
            out.write(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))
            continue
        for first in range(0, len(value), _JSON_ROWS):
            rows = value[first : first + _JSON_ROWS]
            if name == "images":
                rows = _base64_pngs(rows)
            out.write((b"," if first else b"[") + orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1])
        out.write(b"]")
    if metadata.conversions:
        out.write(b',"conversions":' + orjson.dumps(list(metadata.conversions)))
    out.write(b"}")


def _base64_pngs(images: Pixels | list[bytes]) -> list[str]:
    """Return images as base64 texts of PNG files."""
    pngs = images if isinstance(images, list) else [png(pixels) for pixels in images]
    return [base64.b64encode(data).decode() for data in pngs]


def _write_npz(out: BinaryIO, fields: Fields, metadata: ResultMetadata) -> None:
    """Write a result with its metadata as an NPZ file."""
    arrays = {name: np.asarray(value) for name, value in fields.items()}
    if metadata.conversions:
        arrays["conversions"] = np.asarray(metadata.conversions)
    np.savez(out, model=metadata.model, version=metadata.version, seed=np.int64(metadata.seed), **arrays)  # type: ignore[arg-type]


def not_modified(request: Request, headers: Mapping[str, str]) -> Response | None:
    """Return a 304 response if the client already has the content with the `ETag` in `headers`.

    Returns None if it does not.
    """
    return Response(status_code=304, headers=dict(headers)) if _is_known(request, headers["ETag"]) else None


def _is_known(request: Request, tag: str) -> bool:
    """Return whether the header If-None-Match of a request has an entity tag."""
    known = {one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")}
    return tag in known or "*" in known


def evaluate_range_headers(
    request: Request, size: int, digest: str, headers: dict[str, str]
) -> tuple[int, int, int, dict[str, str]]:
    """Evaluate the conditional and range headers of a request for a result of `size` bytes.

    Returns the status (200, 206 or 304), the first byte to send, the byte after the last one to
    send, and `headers` with the header fields for caching and ranges added. `digest` is the
    result's SHA-256 in hex, from which the entity tag is made. Raises RangeError for a range
    outside the result.
    """
    tag = f'"{digest[:32]}"'
    cache = {"ETag": tag, "Accept-Ranges": "bytes", "Cache-Control": "private, immutable", "Vary": "Accept"}
    headers = {**headers, **cache}
    if request.method != "GET":
        return 200, 0, size, headers
    if _is_known(request, tag):
        return 304, 0, 0, headers
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", request.headers.get("range", "").strip())
    if match is None or request.headers.get("if-range", tag) != tag or match.groups() == ("", ""):
        return 200, 0, size, headers  # RFC 9110 lets a server ignore ranges of other forms
    begin, end = match.groups()
    first = int(begin) if begin else max(0, size - int(end))
    last = min(int(end), size - 1) if begin and end else size - 1
    if first > last or (not begin and int(end) == 0):
        raise RangeError(f"the result has {size} bytes", headers={"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return 206, first, last + 1, headers
