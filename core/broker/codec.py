"""Pack and unpack the messages between API processes and workers: msgpack, never pickle.

Arrays are an extension type with (dtype, shape, bytes).
"""

import math
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np

# Results of some rows by name: arrays with one entry per row, lists of PNG bytes, or values for all
# rows.
Fields = dict[str, Any]

# What some rows read, by the name of the input: images, uint8 (M, C, H, W), or codes, float32 (M,
# n).
Items = dict[str, np.ndarray[Any, Any]]

# The item of tiles with their vertical and horizontal margin, int64 (1, 2); without it, tiles have
# the margin of the model's card on both axes.
MARGINS = "margins"

_TYPES = {name: np.dtype(name) for name in ("uint8", "float32", "float64", "int64", "bool")}
_ARRAY = 1


def _default(value: object) -> msgpack.ExtType:
    """Encode an array as the extension type of arrays. Raises TypeError for any other value."""
    if isinstance(value, np.ndarray):
        if value.dtype.name not in _TYPES:
            raise TypeError(f"arrays of {value.dtype} cannot be packed; {', '.join(_TYPES)} can")
        head = [value.dtype.name, list(value.shape), np.ascontiguousarray(value).tobytes()]
        return msgpack.ExtType(_ARRAY, msgpack.packb(head))
    if isinstance(value, np.generic):
        return _default(np.asarray(value))
    raise TypeError(f"{type(value).__name__} cannot be packed")


def _ext(code: int, data: bytes) -> np.ndarray[Any, Any]:
    """Decode the extension type of arrays. Raises ValueError if it is damaged."""
    if code != _ARRAY:
        raise ValueError(f"unknown extension {code}")
    name, shape, raw = msgpack.unpackb(data)
    if len(raw) != _TYPES[name].itemsize * math.prod(shape):
        raise ValueError(f"{len(raw)} bytes are not a {name} array of shape {shape}")
    return np.frombuffer(raw, _TYPES[name]).reshape(shape)


def pack(value: Any) -> bytes:
    """Pack a tree of dicts, lists, numbers, text, bytes and arrays as msgpack.

    Raises TypeError for any other value.
    """
    return msgpack.packb(value, default=_default)  # type: ignore[no-any-return]


def unpack(data: bytes) -> Any:
    """Unpack msgpack bytes; return the tree of values, with arrays as NumPy arrays.

    Raises ValueError if an array in it is damaged.
    """
    return msgpack.unpackb(data, ext_hook=_ext, strict_map_key=False)


@dataclass
class BatchSlice:
    """Rows `first` … `first + rows − 1` of one request, all with the same seed.

    `id` is the id of the pending request or job. `items` has the images of each input of the model,
    uint8 (M, C, H, W), or its latent codes, float32 (M, n): one per row (M = `rows`), or one for
    all rows (M = 1). With `png`, images are returned as PNG bytes instead of an array. `request_id`
    is the id of the HTTP request, for the log, and `traceparent` identifies its span, for traces;
    "" if there are none.
    """

    id: str
    seed: int
    first: int
    rows: int
    items: Items = field(default_factory=dict)
    png: bool = False
    request_id: str = ""
    traceparent: str = ""


@dataclass
class Batch:
    """Rows of requests that share a forward pass: same model version, operation and options.

    `slices` has the rows of each request. `method` is the model's method for the operation. `reply`
    is the completion stream of the API process that gets the results. `state` has the arrays from
    which an operation that used up its time slice continues; None at its start. `isolated` means
    that a worker died while it ran the batch, so the batch must run alone. `traceparent` identifies
    the batch's span; "" without traces. `device_kind` is the device kind (device, processor, torch
    version, threads) on which the batch must run. `target` is the id of the worker, or of the
    worker group (same device kind and same setting `models`), to whose queues the batch is sent.
    Both are "" from releases without these fields.
    """

    id: str
    reply: str
    model: str
    version: str
    method: str
    options: dict[str, Any]
    slices: list[BatchSlice]
    state: dict[str, Any] | None = None
    isolated: bool = False
    traceparent: str = ""
    device_kind: str = ""
    target: str = ""

    def pack(self) -> bytes:
        """Return the batch as msgpack, in the wire format.

        Workers of the releases before and after this one read it, so the names of its fields must
        not change.
        """
        tree = {name: value for name, value in vars(self).items() if name != "slices"}
        if not self.isolated:
            del tree["isolated"]
        for name in ("traceparent", "device_kind", "target"):
            if not tree[name]:
                del tree[name]  # unknown to the release before
        parts = []
        for one in self.slices:
            part = {name: value for name, value in vars(one).items() if name != "id"}
            if not one.traceparent:
                del part["traceparent"]
            parts.append({"call": one.id, **part})
        return pack({**tree, "parts": parts})

    @classmethod
    def unpack(cls, data: bytes) -> "Batch":
        """Return the batch that another process packed in the wire format as `data`."""
        tree = unpack(data)
        slices = [BatchSlice(part.pop("call"), **part) for part in tree.pop("parts")]
        return cls(**tree, slices=slices)


# See docs/decisions.md#several-results-per-image-are-rows
def cut_items(items: Items, rows_per_image: int, first: int, rows: int) -> Items:
    """Return those images of a request that its rows `first` … `first + rows − 1` read.

    `items` has all images of the request; like the result, it is keyed by name of the input. Each
    image is for `rows_per_image` consecutive rows and is repeated for each of them. If an input has
    a single image, it is for all rows and is returned once.
    """
    index = np.arange(first, first + rows) // rows_per_image
    return {name: array if len(array) == 1 else array[index] for name, array in items.items()}


@dataclass
class Outcome:
    """What a worker reports for one request in a batch: its results in `fields`, or a `problem`.

    `fields` is keyed by the name of the result, such as "images". `problem` is an error by RFC
    9457.
    """

    fields: Fields | None = None
    problem: dict[str, Any] | None = None


def joined(chunks: list[Fields]) -> Fields:
    """Join the results of consecutive ranges of rows to the results of all rows.

    Arrays and lists have an entry per row and are concatenated; other values are taken from the
    first range.
    """
    if len(chunks) == 1:
        return chunks[0]
    whole: Fields = {}
    for name, value in chunks[0].items():
        if isinstance(value, np.ndarray):
            whole[name] = np.concatenate([chunk[name] for chunk in chunks])
        elif isinstance(value, list):
            whole[name] = [entry for chunk in chunks for entry in chunk[name]]
        else:
            whole[name] = value
    return whole
