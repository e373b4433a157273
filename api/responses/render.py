"""From fields to a body: JSON, PNG or NPZ as `Accept` asks, with a strong ETag and byte ranges for results."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from starlette.requests import Request

from api.errors import NotAcceptableError, RangeError
from core.broker.codec import Fields
from core.catalog.operations import Operation
from core.imaging.pictures import Pixels, grid, png, unpng

JSON, PNG, NPZ = "application/json", "image/png", "application/x-npz"
ACCEPTANCE = "acceptance_rate"


_NUMBERED = re.compile(r"(.+)\.(\d{1,9})")


@dataclass(slots=True)
class About:
    """What an answer says beside its fields; `columns` of its grid of pictures, where they are not near-square."""

    model: str
    version: str
    seed: int
    notes: tuple[str, ...] = ()
    columns: int | None = None

    def headers(self, fields: Fields) -> dict[str, str]:
        """Return the same as response headers, for bodies that cannot hold it; of the conversions the first eight."""
        headers = {"Reverie-Model": f"{self.model}@{self.version}", "Reverie-Seed": str(self.seed)}
        if self.notes:
            headers["Reverie-Conversions"] = "; ".join(self.notes[:8])
        if ACCEPTANCE in fields:
            headers["Reverie-Acceptance-Rate"] = f"{fields[ACCEPTANCE]:.6g}"
        return headers


def summed(fields: Fields) -> Fields:
    """The fields, and what follows from all rows of a request together: of those drawn by rejection, the acceptance.

    `accepted` (whether a row found what it looked for) and `proposals` (how many it drew) give `acceptance_rate`.
    """
    if not {"accepted", "proposals"} <= fields.keys():
        return fields
    proposals = int(np.sum(fields["proposals"]))
    return {**fields, ACCEPTANCE: int(np.sum(fields["accepted"])) / proposals} if proposals else fields


def negotiate(accept: str, operation: Operation) -> str:
    """The media type that an operation is answered with. Raises NotAcceptableError."""
    if not accept or accept in {"*/*", JSON}:
        return JSON
    return choose(accept, [JSON, PNG, NPZ] if operation.pictures else [JSON, NPZ])


def choose(accept: str, offers: Sequence[str]) -> str:
    """The media type wished for most, then named most exactly, then first offered. Raises NotAcceptableError."""
    wishes = [_wish(entry) for entry in (accept or "*/*").split(",")]
    best, chosen = (0.0, 0), None
    for offer in offers:
        exact, quality = max(((_matches(pattern, offer), q) for pattern, q in wishes), default=(0, 0.0))
        if exact and quality > 0 and (quality, exact) > best:
            best, chosen = (quality, exact), offer
    if chosen is None:
        raise NotAcceptableError(f"this answer comes as {', '.join(offers)}, not as {accept[:200]}")
    return chosen


def _wish(entry: str) -> tuple[str, float]:
    """A pattern of `Accept` and its quality, 1 where none is given and 0 where it is no number."""
    pattern, _, parameters = entry.strip().lower().partition(";")
    found = re.search(r"(?:^|;)\s*q\s*=\s*([^;\s]*)", parameters)
    quality = found.group(1) if found else "1"
    return pattern.strip(), float(quality) if re.fullmatch(r"[01](\.\d{0,9})?", quality) else 0.0


def _matches(pattern: str, offer: str) -> int:
    """How exactly a pattern means an offer: 3, 2 or 1, or 0 where it does not."""
    if pattern == offer or (offer == NPZ and pattern in {"application/npz", "application/vnd.numpy.npz"}):
        return 3
    if pattern == offer.partition("/")[0] + "/*":
        return 2
    return int(pattern == "*/*")


def render(fields: Fields, about: About, media: str) -> bytes:
    """The body of an answer. Pictures come as pixels, or as PNGs where JSON was asked for first.

    In JSON, fields `name.0`, `name.1`, … of different widths are one list `name`; in NPZ they stay what they are.
    """
    if media == PNG:
        pixels = _pixels(fields["images"])
        return png(pixels[0]) if len(pixels) == 1 else grid(pixels, about.columns)
    if media == NPZ:
        return _npz({**fields, "images": _pixels(fields["images"])} if "images" in fields else fields, about)
    body: dict[str, Any] = {"model": about.model, "version": about.version, "seed": about.seed}
    for name, value in _gathered(fields).items():
        if name == "images":
            pngs = value if isinstance(value, list) else [png(pixels) for pixels in value]
            body[name] = [base64.b64encode(data).decode() for data in pngs]
        else:
            body[name] = value
    if about.notes:
        body["conversions"] = list(about.notes)
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _gathered(fields: Fields) -> Fields:
    """Numbered fields as lists, each at the place of the first of its fields."""
    numbered: dict[str, dict[int, Any]] = {}
    gathered: Fields = {}
    for name, value in fields.items():
        found = _NUMBERED.fullmatch(name)
        if found:
            numbered.setdefault(found.group(1), {})[int(found.group(2))] = value
            gathered[found.group(1)] = None
        else:
            gathered[name] = value
    lists = {name: [values[number] for number in sorted(values)] for name, values in numbered.items()}
    return gathered | lists


def _pixels(images: Pixels | list[bytes]) -> Pixels:
    return np.stack([unpng(image) for image in images]) if isinstance(images, list) else images


def _npz(fields: Fields, about: About) -> bytes:
    buffer = io.BytesIO()
    arrays = {name: np.asarray(value) for name, value in fields.items()}
    if about.notes:
        arrays["conversions"] = np.asarray(about.notes)
    np.savez(buffer, model=about.model, version=about.version, seed=np.int64(about.seed), **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def window(request: Request, size: int, digest: str, headers: dict[str, str]) -> tuple[int, int, int, dict[str, str]]:
    """Which bytes of a result to send: status (200, 206 or 304), begin, end and headers. Raises RangeError."""
    tag = f'"{digest[:32]}"'
    headers = {
        **headers,
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, immutable",
        "Vary": "Accept",
    }
    if request.method != "GET":
        return 200, 0, size, headers
    seen = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
    if tag in seen or "*" in seen:
        return 304, 0, 0, headers
    wanted = request.headers.get("range", "")
    condition = request.headers.get("if-range", tag)
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", wanted.strip())
    if found is None or condition != tag or found.groups() == ("", ""):
        return 200, 0, size, headers  # a range of another shape may be ignored
    begin, end = found.groups()
    first = int(begin) if begin else max(0, size - int(end))
    last = min(int(end), size - 1) if begin and end else size - 1
    if first > last or (not begin and int(end) == 0):
        raise RangeError(f"the result has {size} bytes", headers={"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return 206, first, last + 1, headers
