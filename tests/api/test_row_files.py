"""Large results are joined in a file with little memory, or in memory if the disk is full."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api.row_files import ROW_FILE_BYTES, RowFile, array_bytes, cut_rows, join_rows
from core.broker.codec import Fields, joined

ROWS = 3000


def _result(rows: int) -> Fields:
    draw = np.random.default_rng(0)
    return {
        "images": draw.integers(0, 256, (rows, 1, 28, 28), np.uint8),
        "unit": "nats",
        "energies": draw.normal(size=rows).astype(np.float32),
        "accepted": draw.integers(0, 2, rows).astype(bool),
        "names": [str(row) for row in range(rows)],
        "empty": np.zeros((rows, 0), np.float64),
    }


def _chunks(fields: Fields, rows: int, step: int) -> dict[int, Fields]:
    return {first: cut_rows(fields, first, min(step, rows - first)) for first in range(0, rows, step)}


def _equal(one: Fields, other: Fields) -> None:
    assert list(one) == list(other)
    for name, value in one.items():
        if isinstance(value, np.ndarray):
            assert value.dtype == other[name].dtype
            assert np.array_equal(value, other[name])
        else:
            assert value == other[name]


def _mapped(fields: Fields) -> bool:
    """Return whether the images are mapped from a file."""
    base: Any = fields["images"]
    while isinstance(base, np.ndarray):
        base = base.base
    return type(base).__name__ in {"mmap", "memoryview"}


@pytest.mark.parametrize("step", [1000, 700, ROWS])
def test_a_large_result_is_joined_in_a_file(tmp_path: Path, step: int) -> None:
    """A large result is joined in a file without a name, with its fields in order."""
    fields = _result(ROWS)
    assert array_bytes(fields) > ROW_FILE_BYTES
    found = join_rows(_chunks(fields, ROWS, step).values(), ROWS, tmp_path / "unfinished")
    _equal(fields, found)
    assert _mapped(found)
    assert list((tmp_path / "unfinished").iterdir()) == []


def test_a_small_result_is_joined_in_memory(tmp_path: Path) -> None:
    """A small result is joined in memory, and no file is created."""
    fields = _result(100)
    _equal(fields, join_rows(_chunks(fields, 100, 30).values(), 100, tmp_path / "unfinished"))
    assert not (tmp_path / "unfinished").exists()
    assert join_rows([], 100, tmp_path) == {}


def test_slices_are_written_in_any_order(tmp_path: Path) -> None:
    """Slices may be written in any order; the joined arrays outlive the file object."""
    fields = _result(ROWS)
    file = RowFile(tmp_path, ROWS)
    chunks = _chunks(fields, ROWS, 700)
    kept = {first: file.write(first, chunks[first]) for first in sorted(chunks, reverse=True)}
    assert all(array_bytes(chunk) == 0 for chunk in kept.values())
    found = file.join([kept[first] for first in sorted(kept)])
    del file
    _equal(fields, found)


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_full_disk_stops_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """If the disk becomes full, further slices stay in memory and the result is complete."""
    fields, written = _result(ROWS), 0
    original = RowFile.write

    def full(file: RowFile, first: int, chunk: Fields) -> Fields:
        nonlocal written
        if written >= after:
            raise OSError(28, "No space left on device")
        written += 1
        return original(file, first, chunk)

    monkeypatch.setattr(RowFile, "write", full)
    chunks = _chunks(fields, ROWS, 500)
    _equal(fields, join_rows(chunks.values(), ROWS, tmp_path))
    assert written == after
    _equal(fields, joined(list(chunks.values())))  # the chunks are unchanged
