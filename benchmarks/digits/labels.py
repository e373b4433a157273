"""MNIST's images with their labels, both verified by SHA-256."""

from __future__ import annotations

import gzip
import hashlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from models.kit import data  # noqa: E402

FILES = {"train": "train-labels-idx1-ubyte", "test": "t10k-labels-idx1-ubyte"}
SHA256 = {
    "train": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "test": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def labelled(split: str, folder: Path = ROOT / "data") -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (N, 1, 28, 28) uint8 and digits (N,) int64.

    Raises ValueError if the labels are missing or differ.
    """
    images = data.load("mnist", split, folder).images
    places = [folder / "mnist" / f"{FILES[split]}{end}" for end in ("", ".gz")]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ValueError(f"no {FILES[split]} in {folder.name}/mnist")
    payload = found.read_bytes()
    payload = gzip.decompress(payload) if payload[:2] == b"\x1f\x8b" else payload
    if hashlib.sha256(payload).hexdigest() != SHA256[split]:
        raise ValueError(f"{found.name} does not hold MNIST's {split} labels")
    return images, torch.from_numpy(data.parse_idx(payload, found.name).astype("int64"))
