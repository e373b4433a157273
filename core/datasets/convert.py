"""`python -m core.datasets.convert FOLDER WISH`: an upload becomes memory-mapped arrays of pictures, in bounded memory.

A child process of the API, so that neither a hostile file nor Pillow's memory is the API's. It reads FOLDER/file (IDX,
gzipped or not, NPZ, or a ZIP of pictures) and FOLDER/labels a piece at a time, writes FOLDER/made/train.npy,
validation.npy, test.npy and labels.npy, and says on stdout, as JSON, what they are or why there are none.
"""

import ctypes
import hashlib
import json
import math
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.datasets.readers import (
    CHUNK_BYTES,
    FULL,
    MAX_VALUES,
    SPLITS,
    Source,
    UploadRejectedError,
    Wish,
    bomb,
    exactly,
    opened,
    room,
    size_text,
)

MEMORY_BYTES = 2 << 30
MIN_PICTURES = 10
_NICENESS = 5
_PR_SET_PDEATHSIG = 1


def convert(folder: Path, wish: Wish) -> dict[str, Any]:
    """Turn FOLDER/file into FOLDER/made; answers what it is. Raises RefusedError, or OSError where the disk is full."""
    source = opened(folder, wish)
    count = sum(piece.count for piece in source.pieces)
    size_bytes = count * math.prod(source.shape)
    if count < MIN_PICTURES and source.kind != "photographs":
        raise UploadRejectedError(f"{count} pictures are too few to split and train on; send {MIN_PICTURES} or more")
    if math.prod(source.shape) > MAX_VALUES:
        raise UploadRejectedError(
            f"pictures of {size_text(source.shape)} are too large; at most {MAX_VALUES} values each"
        )
    if size_bytes > wish.unpacked_bytes:
        raise bomb(f"{count} pictures of {size_text(source.shape)} are {size_bytes} bytes", wish)
    room(folder, 2 * size_bytes, wish)
    staged = _stage(source, folder / "stage", count)
    codes = _split(source, staged, wish)
    (folder / "file").unlink(missing_ok=True)  # the disk need not hold it three times
    made = folder / "made"
    made.mkdir()
    _write(source, staged, codes, folder / "stage", made)
    (folder / "stage").unlink()
    return _told(source, staged, codes, made, wish)


# --- staging, splitting, writing ---


@dataclass(frozen=True)
class _Staged:
    """All pictures as they came: of each its fingerprint (that of its photograph, for patches) and its piece."""

    fingerprints: np.ndarray
    pieces: np.ndarray
    factors: Sequence[int]


def _stage(source: Source, path: Path, count: int) -> _Staged:
    """Lay all pictures one after the other on the disk."""
    fingerprints = np.zeros(count, np.uint64)
    pieces = np.zeros(count, np.int8)
    highest = [0] * len(source.pieces)
    place = 0
    with path.open("wb") as file:
        for number, piece in enumerate(source.pieces):
            for chunk in piece.chunks():
                file.write(chunk.data)
                units = [chunk] if piece.whole else chunk
                marks = [hashlib.blake2b(unit.data, digest_size=8).digest() for unit in units]
                fingerprints[place : place + len(chunk)] = np.frombuffer(b"".join(marks), np.uint64)
                pieces[place : place + len(chunk)] = number
                highest[number] = max(highest[number], 0 if piece.scaled else int(chunk.max()))
                place += len(chunk)
    binary = max(highest) <= 1  # of those with levels that are not final
    return _Staged(fingerprints, pieces, [255 if binary and not piece.scaled else 1 for piece in source.pieces])


def _split(source: Source, staged: _Staged, wish: Wish) -> np.ndarray:
    """The split of each picture, as its place in SPLITS: as the upload says, or by the pictures' own fingerprints.

    So the same pictures are split the same way whenever and in whatever order they come, equal ones stay together, and
    the splits hold as many as asked.
    """
    own = [piece.split for piece in source.pieces]
    codes: np.ndarray = np.array([SPLITS.index(split or "train") for split in own], np.int8)[staged.pieces]
    shares = {name: share for name, share in (("test", wish.test), ("validation", wish.validation)) if name not in own}
    parted = np.flatnonzero(codes == 0)
    marks, inverse, counts = np.unique(staged.fingerprints[parted], return_inverse=True, return_counts=True)
    weights = np.ones_like(counts) if source.pieces[0].whole else counts
    begins = np.cumsum(weights) - weights
    total, reached = int(weights.sum()), 0
    drawn = np.zeros(len(marks), np.int8)
    for name, share in shares.items():
        wanted = max(1, round(share * total)) if share else 0
        drawn[(begins >= reached) & (begins < reached + wanted)] = SPLITS.index(name)
        reached += wanted
    codes[parted] = drawn[inverse]
    for name in SPLITS:
        if not (codes == SPLITS.index(name)).any() and shares.get(name, 1):
            noun = "photographs" if source.pieces[0].whole else "pictures"
            raise UploadRejectedError(
                f"{len(marks)} different {noun} are too few: none is left for {name}; send more, or smaller shares",
                name if name in shares else "file",
            )
    return codes


def _write(source: Source, staged: _Staged, codes: np.ndarray, stage: Path, made: Path) -> None:
    """The arrays of the splits, and the labels in the order train, validation, test."""
    size = math.prod(source.shape)
    factors = np.array(staged.factors, np.uint8)[staged.pieces]
    files = {name: (made / f"{name}.npy").open("wb") for name in SPLITS}
    step = max(1, CHUNK_BYTES // size)
    try:
        for code, name in enumerate(SPLITS):
            head = {"descr": "|u1", "fortran_order": False, "shape": (int((codes == code).sum()), *source.shape)}
            np.lib.format.write_array_header_1_0(files[name], head)
        with stage.open("rb") as file:
            for first in range(0, len(codes), step):
                there = codes[first : first + step]
                chunk = np.frombuffer(exactly(file, len(there) * size), np.uint8).reshape(len(there), size)
                chunk = chunk * factors[first : first + step, None]
                for code, name in enumerate(SPLITS):
                    files[name].write(chunk[there == code].data)
        for opened in files.values():
            opened.flush()
            os.fsync(opened.fileno())
    finally:
        for opened in files.values():
            opened.close()
    if source.pieces[0].labels is not None:
        labels = np.concatenate([piece.labels for piece in source.pieces if piece.labels is not None])
        np.save(made / "labels.npy", np.concatenate([labels[codes == code] for code in range(len(SPLITS))]))


def _told(source: Source, staged: _Staged, codes: np.ndarray, made: Path, wish: Wish) -> dict[str, Any]:
    channels, height, width = source.shape
    different = len(np.unique(staged.fingerprints))
    units = int(source.said.get("photographs", len(codes)))
    train = np.unique(staged.fingerprints[codes == 0])
    leaked = int(np.isin(staged.fingerprints[codes > 0], train).sum())
    own = {piece.split for piece in source.pieces} - {None}
    shares = {name: share for name, share in (("validation", wish.validation), ("test", wish.test)) if name not in own}
    said = dict(source.said)
    duplicates = {"pictures": units - different, "names": said.pop("duplicate_names", 0), "held_back_in_train": leaked}
    files = [made / f"{name}.npy" for name in (*SPLITS, "labels") if (made / f"{name}.npy").exists()]
    return {
        "kind": source.kind,
        "channels": channels,
        "height": height,
        "width": width,
        "counts": {name: int((codes == code).sum()) for code, name in enumerate(SPLITS)},
        "sha256": _sha256(files),
        "format": source.format,
        "split": {"rule": "by content" if shares else "as sent", "shares": shares},
        "labels": (made / "labels.npy").exists(),
        "duplicates": duplicates,
        "bytes": sum(path.stat().st_size for path in files),
        **({"conversions": dict(source.conversions)} if source.conversions else {}),
        **said,
    }


def _sha256(files: Sequence[Path]) -> str:
    """The SHA-256 of the files' bytes one after the other, as `cat … | sha256sum` has it."""
    said = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while piece := file.read(CHUNK_BYTES):
                said.update(piece)
    return said.hexdigest()


def _bind(parent: int) -> None:
    """End when the process that started this one does, however it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)  # it ended meanwhile


def main() -> None:
    """Convert, and say as JSON what was made or what is wrong; a fault of ours leaves its traceback on stderr."""
    most = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = MEMORY_BYTES if most == resource.RLIM_INFINITY else min(MEMORY_BYTES, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    os.nice(_NICENESS)
    if len(sys.argv) > 3:
        _bind(int(sys.argv[3]))
    try:
        said = convert(Path(sys.argv[1]), Wish.from_json(sys.argv[2]))
    except UploadRejectedError as error:
        said = {"problem": {"status": error.status, "field": error.field, "detail": str(error)}}
    except MemoryError:
        detail = f"reading the file takes more than {MEMORY_BYTES} bytes of memory; send it in smaller pieces"
        said = {"problem": {"status": 413, "field": "file", "detail": detail}}
    except OSError as error:
        if error.errno not in FULL:
            raise
        said = {"problem": {"status": 507, "field": "file", "detail": "the disk is full"}}
    sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    main()
