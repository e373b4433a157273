"""Detection of the format of an upload."""

import gzip
import io
import pickle
import tarfile
from typing import Any

import numpy as np
import pytest

from tests.uploads import UploadConverter, idx, npz, packed, pictures, png, tar, zipped


def test_an_unknown_format_is_rejected_with_its_first_bytes(converter: UploadConverter) -> None:
    """An unknown format is rejected with the first bytes of the file and the accepted formats."""
    converter.refused(b"", "empty", "NPZ")
    converter.refused(png(pictures(1)[0]), "89504e47", "ZIP of pictures")
    buffer = io.BytesIO()
    np.save(buffer, pictures(9))
    converter.refused(buffer.getvalue(), "numpy.savez")
    converter.refused(pickle.dumps([1]), "neither")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (tar("w"), ["tar archive", "not read here"]),
        (tar("w", tarfile.USTAR_FORMAT), ["tar archive"]),
        (tar("w").replace(b"ustar", bytes(5)), ["neither IDX nor ZIP"]),  # its checksum is wrong
        (tar("w:gz"), ["gzipped tar archive"]),
        (tar("w:bz2"), ["packed by bzip2"]),
        (tar("w:xz"), ["packed by xz"]),
        (gzip.compress(packed(zipped())), ["gzipped ZIP", "send the ZIP"]),
        (gzip.compress(npz(images=pictures(12))), ["gzipped ZIP or NPZ"]),
        (gzip.compress(b"\x93NUMPY" + bytes(600)), ["NumPy", "NPZ"]),
        (b"7z\xbc\xaf\x27\x1c" + bytes(40), ["7z archive"]),
        (b"Rar!\x1a\7\1\0" + bytes(40), ["RAR archive"]),
        (b"\x28\xb5\x2f\xfd" + bytes(40), ["packed by zstd"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",  # file contents vary with the time
)
def test_archives_of_other_kinds_are_named(converter: UploadConverter, file: bytes, words: list[str]) -> None:
    """Another archive format is rejected with its name and what to send instead."""
    converter.refused(file, *words, "send ")


@pytest.mark.parametrize(
    ("file", "options", "field"),
    [
        (idx(pictures(12)), {"format": "npz"}, "format"),
        (idx(pictures(12)), {"resize": (8, 8)}, "resize"),
        (idx(pictures(12)), {"kind": "photographs"}, "kind"),
        (npz(train=pictures(12)), {"format": "zip"}, "format"),
        (npz(train=pictures(12)), {"kind": "photographs"}, "kind"),
        (packed(zipped()), {"format": "npz"}, "format"),
        (packed(zipped()), {"format": "idx"}, "format"),
        (packed(zipped()), {"kind": "photographs", "resize": (8, 8)}, "resize"),
    ],
)
def test_options_that_do_not_fit_are_rejected(
    converter: UploadConverter, file: bytes, options: dict[str, Any], field: str
) -> None:
    """Options that do not fit the format are rejected at their field."""
    assert converter.refused(file, **options).field == field
