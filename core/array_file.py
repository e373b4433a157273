"""Read one array of numbers from an NPY or NPZ file of a client.

Shape and type are checked before memory is allocated, and nothing is unpickled. An NPZ is a ZIP: a
hostile one may claim any size, have very many members, or expand a thousandfold.
"""

import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

_NPY_MAGIC, _ZIP_MAGIC = b"\x93NUMPY", b"PK\3\4"
_END_RECORD = struct.Struct("<4s4H2IH")  # without a comment, the last bytes of a ZIP
_ZIP64_LOCATOR, _ZIP64_LOCATOR_BYTES = b"PK\6\7", 20
_MAX_DIRECTORY_BYTES = 64 << 10  # of the list of an NPZ's members
_MAX_DIMENSIONS = 8
_DAMAGE = (
    *(OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, ValueError, LookupError, OverflowError),
    struct.error,
)
_HEADER_ERRORS = (*_DAMAGE, SyntaxError, TypeError, tokenize.TokenError, MemoryError)


class UnusableArrayError(ValueError):
    """Raised for a file without a usable array; the message says why and what would work."""


def read_array(data: bytes, name: str, max_bytes: int) -> np.ndarray[Any, Any]:
    """Return the array of an NPY file, or the array `name` of an NPZ; an NPZ with one array may
    name it anything.

    The array has numbers or booleans, and at most `max_bytes` bytes. Raises UnusableArrayError for
    a file that is damaged or has no such array.
    """
    if data.startswith(_NPY_MAGIC):
        return _read_npy(io.BytesIO(data), "the file", max_bytes)
    if not data.startswith(_ZIP_MAGIC):
        raise UnusableArrayError("it is neither an NPZ nor an NPY file; save the array with numpy.savez")
    _check_end_record(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            member = _find_member(archive.infolist(), name)
            with archive.open(member) as file:
                return _read_npy(file, member.filename[:60], max_bytes)
    except UnusableArrayError:
        raise
    except _DAMAGE as error:
        raise UnusableArrayError(f"the NPZ is damaged ({str(error)[:120]}); save and send it anew") from error


def _check_end_record(data: bytes) -> None:
    """Raise UnusableArrayError if the end record of an NPZ is damaged or states very many members.

    This is checked before zipfile opens the NPZ, because zipfile reads the complete list of
    members.
    """
    end = max(0, len(data) - _END_RECORD.size)
    signature, *_, directory_bytes, _, comment_bytes = _END_RECORD.unpack(data[end:].ljust(_END_RECORD.size))
    locator = data[max(0, end - _ZIP64_LOCATOR_BYTES) : end]
    if signature != b"PK\5\6" or comment_bytes or locator.startswith(_ZIP64_LOCATOR):
        raise UnusableArrayError("the NPZ is truncated or damaged: it does not end as numpy.savez writes it")
    if directory_bytes > _MAX_DIRECTORY_BYTES:
        raise UnusableArrayError("the NPZ has very many arrays; send one")


def _find_member(members: Sequence[zipfile.ZipInfo], name: str) -> zipfile.ZipInfo:
    """Return the member of an NPZ with the array `name`, or its only member, whatever its name."""
    found = [info for info in members if info.filename.removesuffix(".npy") == name]
    if len(found) != 1 and (found or len(members) != 1):
        names = ", ".join(info.filename.removesuffix(".npy") for info in members[:10])[:200]
        problem = f"more than one array {name!r}" if found else f"no array {name!r}; it has {names or 'none'}"
        raise UnusableArrayError(f"the NPZ has {problem}")
    member = (found or members)[0]
    if member.flag_bits & 1 or member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise UnusableArrayError("the NPZ is encrypted or compressed otherwise than by deflate; use numpy.savez")
    return member


def _read_npy(file: IO[bytes], name: str, max_bytes: int) -> np.ndarray[Any, Any]:
    """Return the array of an NPY file; `name` is its name in error messages."""
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):  # later ones have no limit of the header's length, and records only need them
            raise ValueError(f"of the version {version[0]}.{version[1]} of the format")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except _HEADER_ERRORS as error:
        raise UnusableArrayError(f"{name} is no array of NumPy ({str(error)[:120]}); use numpy.savez") from error
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise UnusableArrayError(f"{name} holds {str(dtype)[:60]}; numbers would work, such as float32")
    if len(shape) > _MAX_DIMENSIONS or any(not 0 <= side <= max_bytes for side in shape):
        raise UnusableArrayError(f"{name} has too many dimensions, or too large ones")
    size_bytes = math.prod(shape) * dtype.itemsize
    if size_bytes > max_bytes:
        raise UnusableArrayError(f"{name} has {size_bytes} bytes, {max_bytes} at most; send less in one request")
    payload = _read_exactly(file, size_bytes)
    if len(payload) != size_bytes:
        raise UnusableArrayError(f"{name} is truncated: {len(payload)} of {size_bytes} bytes; send it anew")
    return np.frombuffer(payload, dtype).reshape(shape, order="F" if fortran else "C")


def _read_exactly(file: IO[bytes], size_bytes: int) -> bytes:
    """Return the next `size_bytes` bytes of a file, or fewer at its end.

    Raises UnusableArrayError if further bytes follow.
    """
    chunks = []
    left = size_bytes
    while left and (chunk := file.read(left)):
        chunks.append(chunk)
        left -= len(chunk)
    if not left and file.read(1):  # at the end zipfile compares the checksum
        raise UnusableArrayError("the array goes on after its end; save it anew")
    return b"".join(chunks)
