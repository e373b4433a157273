"""Arrays in NPY and NPZ files of clients, hostile ones included."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from core.array_file import UnusableArrayError, read_array

CODES = np.arange(6, dtype=np.float32).reshape(3, 2)
MAX_BYTES = 1 << 20


def npy(array: Any, **options: Any) -> bytes:
    """Return an array as an NPY file."""
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def npz(save: Callable[..., None] = np.savez, **arrays: Any) -> bytes:
    """Return arrays as an NPZ file."""
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def zipped(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a ZIP of these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def stated(shape: str, descr: str = "<f4", version: bytes = b"\1\0") -> bytes:
    """Return an NPY file whose header states this shape, without data."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "data",
    [
        npy(CODES),
        npy(np.asfortranarray(CODES)),
        npz(codes=CODES, other=np.zeros(3)),
        npz(anything=CODES),
        npz(np.savez_compressed, codes=CODES),
    ],
    ids=["npy", "fortran", "named", "single", "compressed"],
)
def test_an_array_is_found(data: bytes) -> None:
    """By its name, or as the only one."""
    array = read_array(data, "codes", MAX_BYTES)
    assert array.dtype == np.float32
    assert (array == CODES).all()


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float64", ">f8"])
def test_numbers_of_any_type_are_read(dtype: str) -> None:
    """Values are those of the file."""
    array = CODES.astype(dtype)
    assert (read_array(npz(codes=array), "codes", MAX_BYTES) == array).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "neither an NPZ nor an NPY"),
        (b"[[1, 2]]", "neither an NPZ nor an NPY"),
        (b"PK\3\4", "truncated or damaged"),
        (npz(codes=CODES)[:-5], "truncated or damaged"),
        (npz(first=CODES, second=CODES), "no array 'codes'; it has first, second"),
        (zipped(("codes", npy(CODES)), ("codes.npy", npy(CODES))), "more than one array 'codes'"),
        (zipped(*((f"{number:05}", b"") for number in range(1500))), "very many arrays"),
        (zipped(("codes.npy", npy(CODES)), compression=zipfile.ZIP_LZMA), "compressed otherwise than by deflate"),
        (zipped(("codes.npy", b"text")), "is no array of NumPy"),
        (npy(CODES)[:-1], "is truncated: 23 of 24 bytes"),
        (npy(CODES) + b"x", "goes on after its end"),
        (npy(np.array(["a"])), "numbers would work"),
        (npy(np.zeros(3, np.complex64)), "numbers would work"),
        (npy(np.zeros(3, np.longdouble)), "numbers would work"),
        (npy(np.array([{}]), allow_pickle=True), "numbers would work"),
        (npy(np.zeros(3, [("a", "f4")])), "numbers would work"),
        (stated("(4611686018427387904, 2)"), "too large"),
        (stated(f"(0, {10**400})"), "too large"),
        (stated("(-1, 2)"), "too large"),
        (stated("(1,) * 9"), "is no array"),
        (stated(str((1,) * 70)), "too many dimensions"),
        (stated("(300000, 1)"), "has 1200000 bytes, 1048576 at most"),
        (stated("(" * 4000 + ")" * 4000), "is no array"),
        (stated("(" + "-" * 5000 + "1, 2)"), "is no array"),
        (stated("(1, 2)", version=b"\2\0"), "of the version 2.0"),
    ],
)
def test_other_files_are_rejected(data: bytes, message: str) -> None:
    """The error says why; nothing is unpickled, and no memory is allocated for what a header
    claims.
    """
    with pytest.raises(UnusableArrayError, match=message):
        read_array(data, "codes", MAX_BYTES)


def test_a_bomb_is_not_unpacked() -> None:
    """A member that goes on after its array is rejected when the array has been read."""
    bomb = zipped(("codes.npy", npy(CODES) + bytes(1 << 24)), compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 1 << 16
    with pytest.raises(UnusableArrayError, match="goes on after its end"):
        read_array(bomb, "codes", MAX_BYTES)


def test_damage_is_named() -> None:
    """A checksum that does not fit is found at the end of the array."""
    data = bytearray(npz(codes=CODES))
    data[data.index(CODES.tobytes())] ^= 1
    with pytest.raises(UnusableArrayError, match="Bad CRC"):
        read_array(bytes(data), "codes", MAX_BYTES)
