"""A small dataset for tests, stored as an upload is: digits reduced to 14×14 pixels, or binary
vectors.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from tests.stack import Stack

DIGITS = Path(__file__).parent / "fixtures" / "digits-images-idx3-ubyte.gz"


def digits(datasets: Path, name: str = "digits", counts: tuple[int, int, int] = (300, 60, 40)) -> Path:
    """Store a dataset of digits of 14×14 pixels as `datasets`/`name`; return its folder.

    `counts` are the numbers of training, validation and test images.
    """
    from models.kit import data  # not at collection, which precedes the shape checks

    images = data.load(str(DIGITS)).images[: sum(counts), :, ::2, ::2].contiguous().numpy()
    return write(datasets, name, np.split(images, np.cumsum(counts)[:2]), "pictures")


def add_digits(stack: Stack, name: str = "digits", counts: tuple[int, int, int] = (300, 60, 40)) -> Path:
    """Store a dataset as `digits` does where a service stores datasets; return its folder.

    If the service stores them in an object store, the folder is a copy that it does not read.
    """
    folder = digits(stack.state / "state" / "datasets", name, counts)
    stack.share_state()
    return folder


def write(datasets: Path, name: str, splits: list[np.ndarray], kind: str) -> Path:
    """Store a dataset with these training, validation and test images, uint8 (N, C, H, W); return
    its folder.
    """
    folder = datasets / name
    (folder / "uses").mkdir(parents=True)
    for part, images in zip(("train", "validation", "test"), splits, strict=True):
        np.save(folder / f"{part}.npy", images)
    _, channels, height, width = splits[0].shape
    counts = {part: len(images) for part, images in zip(("train", "validation", "test"), splits, strict=True)}
    sha256 = hashlib.sha256(b"".join(images.tobytes() for images in splits)).hexdigest()
    shape = {"channels": channels, "height": height, "width": width}
    about = {"name": name, "kind": kind, **shape, "counts": counts, "sha256": sha256}
    about |= {"created_at": "2026-11-22T00:00:00.000+00:00", "format": "npz"}
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder
