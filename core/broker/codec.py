"""What travels between the API and the workers: msgpack, arrays as (type, shape, bytes), never pickle."""

import math
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np

Fields = dict[str, Any]
"""Named results of some rows: arrays with one entry a row, lists of PNG bytes, or constants of the whole answer."""

_TYPES = {name: np.dtype(name) for name in ("uint8", "float32", "float64", "int64", "bool")}
_ARRAY = 1


def _default(value: object) -> msgpack.ExtType:
    if isinstance(value, np.ndarray):
        if value.dtype.name not in _TYPES:
            raise TypeError(f"arrays of {value.dtype} do not travel; {', '.join(_TYPES)} do")
        head = [value.dtype.name, list(value.shape), np.ascontiguousarray(value).tobytes()]
        return msgpack.ExtType(_ARRAY, msgpack.packb(head))
    if isinstance(value, np.generic):
        return _default(np.asarray(value))
    raise TypeError(f"{type(value).__name__} does not travel")


def _ext(code: int, data: bytes) -> np.ndarray[Any, Any]:
    if code != _ARRAY:
        raise ValueError(f"unknown extension {code}")
    name, shape, raw = msgpack.unpackb(data)
    if len(raw) != _TYPES[name].itemsize * math.prod(shape):
        raise ValueError(f"{len(raw)} bytes are no {name} array of shape {shape}")
    return np.frombuffer(raw, _TYPES[name]).reshape(shape)


def pack(value: Any) -> bytes:
    """Bytes of a tree of dicts, lists, numbers, text, bytes and arrays. Raises TypeError for anything else."""
    return msgpack.packb(value, default=_default)  # type: ignore[no-any-return]


def unpack(data: bytes) -> Any:
    """The tree that `pack` made these bytes from. Raises ValueError if they are damaged."""
    return msgpack.unpackb(data, ext_hook=_ext, strict_map_key=False)


@dataclass
class Part:
    """Some consecutive rows of one request: `rows` of them from row `first` on, all with one seed.

    `items` holds the images they read, uint8 (M, C, H, W): one a row, or one (M = 1) for all of them.
    `png` asks for the pictures as PNG bytes instead of an array.
    """

    call: str
    seed: int
    first: int
    rows: int
    items: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    png: bool = False
    request_id: str = ""


@dataclass
class Batch:
    """Parts that share one forward pass: same model version, method and options.

    `reply` names the stream that its notes go to. `state` is what an unfinished run carries to its next slice.
    """

    id: str
    reply: str
    model: str
    version: str
    method: str
    options: dict[str, Any]
    parts: list[Part]
    state: dict[str, Any] | None = None

    def pack(self) -> bytes:
        """Bytes for the queue."""
        return pack({**vars(self), "parts": [vars(part) for part in self.parts]})

    @classmethod
    def unpack(cls, data: bytes) -> "Batch":
        """The batch that these bytes hold."""
        tree = unpack(data)
        return cls(**{**tree, "parts": [Part(**part) for part in tree["parts"]]})


Items = dict[str, np.ndarray[Any, Any]]


def cut_items(items: Items, per: int, first: int, rows: int) -> Items:
    """The images that rows `first` … `first + rows − 1` read, where each image serves `per` consecutive rows.

    One that is alone under its name serves all rows.
    """
    index = np.arange(first, first + rows) // per
    return {name: array if len(array) == 1 else array[index] for name, array in items.items()}


@dataclass
class Outcome:
    """What became of one part: its `fields`, or the `problem` that it alone met."""

    fields: Fields | None = None
    problem: dict[str, Any] | None = None


def joined(pieces: list[Fields]) -> Fields:
    """Fields of consecutive rows as one: arrays and lists are put end to end, constants taken from the first piece."""
    if len(pieces) == 1:
        return pieces[0]
    whole: Fields = {}
    for name, value in pieces[0].items():
        if isinstance(value, np.ndarray):
            whole[name] = np.concatenate([piece[name] for piece in pieces])
        elif isinstance(value, list):
            whole[name] = [entry for piece in pieces for entry in piece[name]]
        else:
            whole[name] = value
    return whole
