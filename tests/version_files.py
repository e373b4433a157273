"""Checkpoint files: the shipped one and changed copies of it."""

from __future__ import annotations

import json
import struct
from typing import Any

import httpx
import numpy as np

from tests.stack import ROOT

SHIPPED = ROOT / "checkpoints" / "vae-mnist-2d" / "1" / "model.safetensors"


def split_file(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the weights of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_file(header: dict[str, Any], weights: bytes) -> bytes:
    """Return a safetensors file of a header and weights."""
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + weights


def with_card(data: bytes, **change: object) -> bytes:
    """Return the file with changed fields of its card; None removes a field."""
    header, weights = split_file(data)
    card = json.loads(header["__metadata__"]["card"])
    card |= change
    header["__metadata__"]["card"] = json.dumps({name: value for name, value in card.items() if value is not None})
    return join_file(header, weights)


def with_other_weights(data: bytes) -> bytes:
    """Return the file with other weights of the same shapes."""
    header, weights = split_file(data)
    return join_file(header, (np.frombuffer(weights, np.float32) * np.float32(0.9)).tobytes())


def import_version(client: httpx.Client, data: bytes, name: str = "vae-mnist-2d") -> httpx.Response:
    """Return the response to the import of a file."""
    headers = {"Content-Type": "application/octet-stream", "Prefer": "wait=60"}
    return client.post(f"/v1/models/{name}/versions", content=data, headers=headers)
