"""The reader of IDX files and labels."""

import gzip
import hashlib
import struct
from collections.abc import Callable

import numpy as np
import pytest

from tests.uploads import DIGITS, SPLITS, UploadConverter, idx, packed, pictures, rows, zipped


def test_idx_gzipped_or_not_is_the_same_dataset(converter: UploadConverter) -> None:
    """A plain and a gzipped IDX file give the same dataset: each image is in one of three splits of
    the requested sizes.
    """
    dataset = converter(DIGITS.read_bytes())
    assert (dataset["kind"], dataset["channels"], dataset["height"], dataset["width"]) == ("pictures", 1, 28, 28)
    assert dataset["counts"] == {"train": 1600, "validation": 200, "test": 200}
    assert dataset["format"] == "idx"
    plain = gzip.decompress(DIGITS.read_bytes())
    assert rows(converter.all()) == {plain[start : start + 784] for start in range(16, len(plain), 784)}
    again = converter(plain)
    assert again == dataset
    files = b"".join((converter.made / f"{name}.npy").read_bytes() for name in SPLITS)
    assert dataset["sha256"] == hashlib.sha256(files).hexdigest()
    assert dataset["bytes"] == len(files)
    train = np.load(converter.made / "train.npy", mmap_mode="r")
    assert isinstance(train, np.memmap)
    assert (train.dtype, train.shape, train.flags.c_contiguous) == (np.uint8, (1600, 1, 28, 28), True)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda b: b[:-1], ["truncated", "359 bytes of data where its header states 360"]),
        (lambda b: b + b"\0", ["too long"]),
        (lambda b: b[:9], ["truncated within its header"]),
        (lambda b: b"\0\0\x07\3" + b[4:], ["not IDX", "00000703"]),
        (lambda b: b"\0\0\x08\0" + b[4:], ["not IDX", "00000800"]),
        (lambda b: gzip.compress(b"PK" + b), ["not IDX", "504b0000"]),
        (lambda b: gzip.compress(b)[:-9], ["truncated"]),
        (lambda b: gzip.compress(b)[:-8] + b"\1" * 8, ["damaged"]),
        (lambda b: b"\x1f\x8bnonsense", ["damaged"]),
        (lambda b: b[:4] + struct.pack(">3I", 0, 6, 5), ["empty", "0×6×5"]),
        (lambda b: b[:4] + b"\xff" * 12, ["unpacked, more than"]),
        (lambda b: idx(np.arange(9, dtype=np.uint8)), ["labels", "`file`"]),
        (lambda b: idx(np.zeros((9, 2, 6, 5), np.uint8)), ["(9, 2, 6, 5)", "channels"]),
        (lambda b: idx(pictures(9)), ["9 pictures are too few", "10"]),
        (lambda b: idx(np.full((12, 2, 2), 256, ">i4"), 0x0C), ["holds 256 in picture 0", "0 … 255"]),
        (lambda b: idx(np.full((12, 2, 2), np.nan, ">f4"), 0x0D), ["holds nan in picture 0", "0 … 1"]),
    ],
)
def test_a_bad_idx_file_is_rejected_with_the_reason(
    converter: UploadConverter, damage: Callable[[bytes], bytes], words: list[str]
) -> None:
    """An invalid IDX file is rejected with an error at `file` that says what is wrong."""
    assert converter.refused(damage(idx(pictures(12))), *words).field == "file"


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (b"", ["empty"]),
        (idx(np.zeros(11, np.uint8)), ["11 labels for 12 pictures"]),
        (idx(np.zeros(12, np.uint8))[:-1], ["truncated"]),
        (idx(np.zeros(12, np.uint8)) + b"1", ["too long"]),
        (idx(np.zeros((12, 1), np.uint8)), ["one whole number a picture"]),
        (b"1,2,3", ["not IDX"]),
    ],
)
def test_bad_labels_are_rejected_with_the_reason(converter: UploadConverter, labels: bytes, words: list[str]) -> None:
    """Invalid labels are rejected with an error at `labels`, for IDX and ZIP uploads."""
    assert converter.refused(idx(pictures(12)), *words, labels=labels).field == "labels"
    assert converter.refused(packed(zipped()), *words, labels=labels).field == "labels"
