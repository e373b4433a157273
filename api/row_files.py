"""Joins the rows of large results in a temporary file, not in memory.

The file has no name, so that the system deletes it when the process ends.
"""

import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.broker.codec import Fields, joined

ROW_FILE_BYTES = 1 << 20  # arrays of more bytes than this, all rows together, are joined in a file


@dataclass(frozen=True)
class _Column:
    """The place of an array in the file: `begin` is its first byte, `shape` that of one row."""

    begin: int
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]  # of one row

    @property
    def row_bytes(self) -> int:
        """The size of one row of the array, in bytes."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


# See docs/decisions.md#large-results-are-on-the-disk-until-the-client-has-read-them
class RowFile:
    """Collects the rows of a large result in a temporary file; slices may come in any order.

    The complete arrays are mapped into memory, read-only: the kernel can drop their pages at any
    time, and releases them when the arrays are released.
    """

    def __init__(self, folder: Path, rows: int) -> None:
        """Create a file in `folder` for a result of `rows` rows. Raises OSError if that fails."""
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            self._file = os.dup(file.fileno())
        self._close = weakref.finalize(self, os.close, self._file)
        self._rows = rows
        self._columns: dict[str, _Column] = {}
        self._end = 0
        self._slices: dict[int, int] = {}

    def write(self, first: int, fields: Fields) -> Fields:
        """Write the arrays of a slice, whose first row has the number `first`, to the file.

        Returns `fields` with an array of no rows in place of each array. Raises OSError if the disk
        is full.
        """
        rest: Fields = {}
        rows = 0
        for name, value in fields.items():
            if not isinstance(value, np.ndarray):
                rest[name] = value
                continue
            column = self._columns.get(name)
            if column is None:
                column = self._columns[name] = _Column(self._end, value.dtype, value.shape[1:])
                self._end += -(-column.row_bytes * self._rows // mmap.PAGESIZE) * mmap.PAGESIZE
            _write(self._file, np.ascontiguousarray(value), column.begin + first * column.row_bytes)
            rest[name] = np.empty((0, *column.shape), column.dtype)
            rows = len(value)
        self._slices[first] = rows
        return rest

    def arrays(self) -> Fields:
        """Return the complete arrays, keyed by field. Raises OSError if the file cannot be read."""
        if self._end == 0:
            return {}
        os.ftruncate(self._file, self._end)
        mapped = mmap.mmap(self._file, self._end, access=mmap.ACCESS_READ)
        return {
            name: np.frombuffer(
                mapped, column.dtype, column.row_bytes * self._rows // column.dtype.itemsize, column.begin
            ).reshape(self._rows, *column.shape)
            for name, column in self._columns.items()
        }

    def join(self, chunks: list[Fields]) -> Fields:
        """Return the complete result: the arrays from the file, and the other values from `chunks`.

        `chunks` are the fields of all slices in the order of their rows, without the written
        arrays.
        """
        return joined(chunks) | self.arrays()

    def restore(self, chunks: dict[int, Fields]) -> None:
        """Put the written arrays back into `chunks`, the fields of slices keyed by their first row.

        Call this when the disk is full, so that the whole result is kept in memory.
        """
        arrays = self.arrays()
        for first, rows in self._slices.items():
            chunks[first] |= {name: array[first : first + rows] for name, array in arrays.items()}


def _write(file: int, array: np.ndarray[Any, Any], begin: int) -> None:
    """Write all bytes of an array to the file descriptor `file`, from the byte `begin` on."""
    data = array.reshape(-1).view(np.uint8).data
    while data:
        written = os.pwrite(file, data, begin)
        data, begin = data[written:], begin + written


def array_bytes(fields: Fields) -> int:
    """Return the size of all arrays in `fields` together, in bytes."""
    return sum(value.nbytes for value in fields.values() if isinstance(value, np.ndarray))


def cut_rows(fields: Fields, first: int, rows: int) -> Fields:
    """Return `fields` with only the rows `first` … `first + rows − 1` of its arrays and lists.

    Other values stay as they are.
    """
    end = first + rows
    return {name: value[first:end] if isinstance(value, np.ndarray | list) else value for name, value in fields.items()}


def join_rows(chunks: Iterable[Fields], rows: int, folder: Path) -> Fields:
    """Return the joined fields of chunks of consecutive rows. Blocks.

    `rows` is the number of rows of all chunks together. If the result is large, its arrays are
    mapped from a temporary file in `folder`, unless the disk is full. Without chunks the result is
    empty.
    """
    held: dict[int, Fields] = {}
    file: RowFile | None = None
    first, size = 0, 0
    keep_in_memory = False
    for chunk in chunks:
        held[first] = chunk
        size += array_bytes(chunk)
        if size > ROW_FILE_BYTES and not keep_in_memory:
            try:
                file = file or RowFile(folder, rows)
                for begin in [begin for begin, fields in held.items() if array_bytes(fields)]:
                    held[begin] = file.write(begin, held[begin])
            except OSError:  # the disk is full
                keep_in_memory = True
                if file is not None:
                    file.restore(held)
                    file = None
        first += next((len(value) for value in chunk.values() if isinstance(value, np.ndarray | list)), 0)
    parts = list(held.values())
    if file is not None:
        return file.join(parts)
    return joined(parts) if parts else {}
