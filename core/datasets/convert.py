"""Convert an uploaded dataset: `python -m core.datasets.convert FOLDER OPTIONS [PARENT_PID]`.

The API runs this program as a child process, which keeps hostile files and Pillow's memory out of
the API. The program reads FOLDER/file (IDX, gzipped or not, NPZ, or a ZIP of images) and
FOLDER/labels in batches, in bounded memory. It writes FOLDER/made/train.npy, validation.npy,
test.npy and labels.npy, and prints the dataset's description as JSON, or the problem. OPTIONS is
JSON. If the process PARENT_PID ends, the program is killed.
"""

import hashlib
import json
import math
import os
import resource
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.datasets.readers import base
from core.datasets.readers.base import ConversionOptions, Source, UploadRejectedError
from core.datasets.readers.detect import open_upload
from core.datasets.split_names import SPLITS
from core.process import end_with_parent

MEMORY_BYTES = 2 << 30
MIN_PICTURES = 10
MAX_VALUES = 4 << 20  # of one image: its channels times its pixels

_NICENESS = 5


def convert(folder: Path, options: ConversionOptions) -> dict[str, Any]:
    """Convert the upload in a folder to arrays in FOLDER/made; return the dataset's description.

    The uploaded file is deleted. Raises UploadRejectedError if the upload cannot be used, and
    OSError if the disk is full.
    """
    source = open_upload(folder, options)
    count = sum(split.count for split in source.splits)
    size_bytes = count * math.prod(source.shape)
    if count < MIN_PICTURES and source.kind != "photographs":
        raise UploadRejectedError(f"{count} pictures are too few to split and train on; send {MIN_PICTURES} or more")
    image_size = base.format_image_size(source.shape)
    if math.prod(source.shape) > MAX_VALUES:
        raise UploadRejectedError(f"pictures of {image_size} are too large; at most {MAX_VALUES} values each")
    if size_bytes > options.unpacked_bytes:
        raise base.unpacked_size_error(f"{count} pictures of {image_size} are {size_bytes} bytes", options)
    base.check_free_space(folder, 2 * size_bytes, options)
    staged = _stage(source, folder / "stage", count)
    assignment = _assign_splits(source, staged, options)
    (folder / "file").unlink(missing_ok=True)  # its space is needed for the arrays
    made = folder / "made"
    made.mkdir()
    _write_arrays(source, staged, assignment, folder / "stage", made)
    (folder / "stage").unlink()
    return _describe(source, staged, assignment, made, options)


# --- staging, splitting, writing ---


@dataclass(frozen=True)
class _StagedImages:
    """What is known of the images of an upload after all were written to one file.

    `fingerprints` has the hash of each image; for a patch it is the hash of all patches of its
    photograph. `origins` has, for each image, the index in `source.splits` of the split that it
    came from. `factors` has, for each of these splits, the factor that scales its pixel values to 0
    … 255.
    """

    fingerprints: np.ndarray
    origins: np.ndarray
    factors: Sequence[int]


def _stage(source: Source, path: Path, count: int) -> _StagedImages:
    """Write all `count` images of an upload to the file `path`; return their hashes and splits.

    The result has the hash of each image, the index of its split in `source.splits`, and for each
    of these splits the factor that scales its pixel values to 0 … 255.
    """
    fingerprints = np.zeros(count, np.uint64)
    origins = np.zeros(count, np.int8)
    highest = [0] * len(source.splits)
    position = 0
    with path.open("wb") as file:
        for number, split in enumerate(source.splits):
            for batch in split.read_batches():
                file.write(batch.data)
                units = [batch] if split.grouped else batch
                digests = [hashlib.blake2b(unit.data, digest_size=8).digest() for unit in units]
                fingerprints[position : position + len(batch)] = np.frombuffer(b"".join(digests), np.uint64)
                origins[position : position + len(batch)] = number
                highest[number] = max(highest[number], 0 if split.scaled else int(batch.max()))
                position += len(batch)
    binary = max(highest) <= 1  # of splits whose levels are not final
    return _StagedImages(fingerprints, origins, [255 if binary and not split.scaled else 1 for split in source.splits])


def _missing_shares(source: Source, options: ConversionOptions) -> dict[str, float]:
    """Return the shares (0 to 1) of images for the splits that the upload lacks, keyed by split.

    The shares are the options `validation` and `test`.
    """
    present = {split.split for split in source.splits}
    shares = {"validation": options.validation, "test": options.test}
    return {name: share for name, share in shares.items() if name not in present}


# See docs/decisions.md#a-pictures-split-follows-from-its-bytes
def _assign_splits(source: Source, staged: _StagedImages, options: ConversionOptions) -> np.ndarray:
    """Return the split of each image: 0 train, 1 validation or 2 test, int8 (N,).

    An image stays in the split that the upload names. Splits that the upload does not have get
    their shares of the training images in the order of the images' hashes. So the assignment does
    not depend on the order of the upload, and equal images are in the same split. Raises
    UploadRejectedError if a split is empty, unless its share is 0.
    """
    names = [split.split or "train" for split in source.splits]
    assignment: np.ndarray = np.array([SPLITS.index(name) for name in names], np.int8)[staged.origins]
    shares = _missing_shares(source, options)
    training = np.flatnonzero(assignment == 0)
    unique, inverse, counts = np.unique(staged.fingerprints[training], return_inverse=True, return_counts=True)
    grouped = source.splits[0].grouped
    weights = np.ones_like(counts) if grouped else counts
    starts = np.cumsum(weights) - weights
    total, reached = int(weights.sum()), 0
    drawn = np.zeros(len(unique), np.int8)
    for name in ("test", "validation"):
        share = shares.get(name, 0)
        wanted = max(1, round(share * total)) if share else 0
        drawn[(starts >= reached) & (starts < reached + wanted)] = SPLITS.index(name)
        reached += wanted
    assignment[training] = drawn[inverse]
    for index, name in enumerate(SPLITS):
        if not (assignment == index).any() and shares.get(name, 1):
            noun = "photographs" if grouped else "pictures"
            raise UploadRejectedError(
                f"{len(unique)} different {noun} are too few: none is left for {name}; send more, or smaller shares",
                name if name in shares else "file",
            )
    return assignment


def _write_arrays(source: Source, staged: _StagedImages, assignment: np.ndarray, stage: Path, made: Path) -> None:
    """Write the images in the file `stage` to the folder `made`, one array per split.

    `assignment` has the split of each image: 0 train, 1 validation or 2 test. If there are labels,
    the labels of all splits are written to one file, in this order.
    """
    size = math.prod(source.shape)
    factors = np.array(staged.factors, np.uint8)[staged.origins]
    step = max(1, base.BATCH_BYTES // size)
    with ExitStack() as stack:
        files = [stack.enter_context((made / f"{name}.npy").open("wb")) for name in SPLITS]
        for index, file in enumerate(files):
            shape = (int((assignment == index).sum()), *source.shape)
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        images = stack.enter_context(stage.open("rb"))
        for first in range(0, len(assignment), step):
            splits = assignment[first : first + step]
            batch = np.frombuffer(base.read_exactly(images, len(splits) * size), np.uint8).reshape(len(splits), size)
            batch = batch * factors[first : first + step, None]
            for index, file in enumerate(files):
                file.write(batch[splits == index].data)
        for file in files:
            file.flush()
            os.fsync(file.fileno())
    if source.splits[0].labels is not None:
        labels = np.concatenate([split.labels for split in source.splits if split.labels is not None])
        np.save(made / "labels.npy", np.concatenate([labels[assignment == index] for index in range(len(SPLITS))]))


def _describe(
    source: Source, staged: _StagedImages, assignment: np.ndarray, made: Path, options: ConversionOptions
) -> dict[str, Any]:
    """Return the dataset's description, as it is in `dataset.json` and the API's responses.

    `assignment` has the split of each image, and `made` is the folder of the arrays.
    """
    channels, height, width = source.shape
    report = dict(source.report)
    units = int(report.get("photographs", len(assignment)))
    training = np.unique(staged.fingerprints[assignment == 0])
    duplicates = {
        "pictures": units - len(np.unique(staged.fingerprints)),
        "names": report.pop("duplicate_names", 0),
        "held_back_in_train": int(np.isin(staged.fingerprints[assignment > 0], training).sum()),
    }
    shares = _missing_shares(source, options)
    files = [made / f"{name}.npy" for name in (*SPLITS, "labels") if (made / f"{name}.npy").exists()]
    return {
        "kind": source.kind,
        "channels": channels,
        "height": height,
        "width": width,
        "counts": {name: int((assignment == index).sum()) for index, name in enumerate(SPLITS)},
        "sha256": _sha256(files),
        "format": source.format,
        "split": {"rule": "by content" if shares else "as sent", "shares": shares},
        "labels": (made / "labels.npy").exists(),
        "duplicates": duplicates,
        "bytes": sum(path.stat().st_size for path in files),
        **({"conversions": dict(source.conversions)} if source.conversions else {}),
        **report,
    }


def _sha256(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the concatenated files in hexadecimal."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def main() -> None:
    """Convert the upload that the command line names; print its description or the problem."""
    hard_limit = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = MEMORY_BYTES if hard_limit == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard_limit)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    os.nice(_NICENESS)
    if len(sys.argv) > 3:
        end_with_parent(signal.SIGKILL, int(sys.argv[3]))
    try:
        result = convert(Path(sys.argv[1]), ConversionOptions.from_json(sys.argv[2]))
    except UploadRejectedError as error:
        result = {"problem": {"status": error.status, "field": error.field, "detail": str(error)}}
    except MemoryError:
        detail = f"reading the file takes more than {MEMORY_BYTES} bytes of memory; send it in smaller pieces"
        result = {"problem": {"status": 413, "field": "file", "detail": detail}}
    except OSError as error:
        if error.errno not in base.DISK_FULL:
            raise
        result = {"problem": {"status": 507, "field": "file", "detail": "the disk is full"}}
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
