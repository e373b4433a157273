"""Conversion of uploads: splits, labels, and the child process."""

import gzip
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from core.datasets.readers.base import ConversionOptions
from tests.uploads import DIGITS, SPLITS, UploadConverter, idx, npz, packed, pictures, png, rows, zipped


def test_the_split_is_the_pictures_own(converter: UploadConverter) -> None:
    """The split does not depend on the order, and equal images are in one split."""
    some = np.concatenate([pictures(300), pictures(60)])  # the first sixty twice
    result = converter(idx(some), validation=0.2, test=0.2)
    assert result["duplicates"] == {"pictures": 60, "names": 0, "held_back_in_train": 0}
    first = {name: rows(converter.array(name)) for name in SPLITS}
    assert not first["train"] & first["test"]
    assert not first["train"] & first["validation"]
    assert not first["validation"] & first["test"]
    assert abs(result["counts"]["test"] - 72) <= 2
    assert sum(result["counts"].values()) == 360
    converter(idx(some[::-1].copy()), validation=0.2, test=0.2)
    assert {name: rows(converter.array(name)) for name in SPLITS} == first


def test_shares_may_be_none(converter: UploadConverter) -> None:
    """With shares of 0 all images are for training, and the other arrays are empty but valid."""
    result = converter(idx(pictures(20)), validation=0.0, test=0.0)
    assert result["counts"] == {"train": 20, "validation": 0, "test": 0}
    assert np.load(converter.made / "test.npy", mmap_mode="c").shape == (0, 1, 6, 5)


def test_labels_stay_with_their_pictures(converter: UploadConverter) -> None:
    """Labels follow the order of the arrays, from an IDX file or from arrays of an NPZ."""
    some = pictures(40)
    some[:, 0, 0] = np.arange(40)
    for file, labels in (
        (idx(some), gzip.compress(idx(np.arange(40, dtype=np.uint8)))),
        (idx(some), idx(np.arange(40, dtype=">i4"), 0x0C)),
        (npz(images=some, labels=np.arange(40)), None),
        (packed((f"{number:02}.png", png(one)) for number, one in enumerate(some)), idx(np.arange(40, dtype=np.uint8))),
    ):
        assert converter(file, labels)["labels"] is True
        assert converter.array("labels").tolist() == converter.all()[:, 0, 0, 0].tolist()
    assert converter(idx(some))["labels"] is False


def test_splits_that_cannot_be_are_refused(converter: UploadConverter) -> None:
    """Equal images, folders for some images only, and too few photographs are rejected."""
    converter.refused(idx(np.ones((20, 4, 4), np.uint8)), "1 different pictures", "too few", "train")
    some = [("train/a.png", png(pictures(1)[0]))]
    converter.refused(packed([*zipped(), *some]), "'digits/000.png' in none")
    converter.refused(packed([("test/" + str(name), data) for name, data in zipped()]), "folder train")
    photograph = [(f"{seed}.png", png(pictures(1, 96, 96, seed)[0])) for seed in range(3)]
    converter.refused(packed(photograph[:2]), "2 photographs are too few", kind="photographs")
    converter.refused(
        packed([*photograph, ("small.png", png(pictures(1, 95, 96)[0]))]), "'small.png'", kind="photographs"
    )
    assert converter(packed(photograph), kind="photographs")["counts"] == {"train": 1, "validation": 1, "test": 1}


def _process(folder: Path, file: bytes, **options: Any) -> dict[str, Any]:
    """Return what the child process prints for an upload."""
    folder.mkdir()
    (folder / "file").write_bytes(file)
    command = [
        sys.executable,
        "-m",
        "core.datasets.convert",
        str(folder),
        json.dumps(asdict(ConversionOptions(**options))),
    ]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_the_process_says_what_it_made_or_what_is_wrong(tmp_path: Path) -> None:
    """The child process prints the description or the problem as JSON; a full disk is 507 and
    leaves no dataset.
    """
    assert _process(tmp_path / "a", DIGITS.read_bytes(), resize=None)["counts"]["train"] == 1600
    assert not (tmp_path / "a" / "file").exists()
    assert not (tmp_path / "a" / "stage").exists()
    result = _process(tmp_path / "b", b"nonsense")["problem"]
    assert (result["status"], result["field"]) == (422, "file")
    assert _process(tmp_path / "c", DIGITS.read_bytes(), reserve_bytes=1 << 60)["problem"]["status"] == 507
    assert not (tmp_path / "c" / "made").exists()


def test_a_disk_that_fills_while_it_writes_is_507(tmp_path: Path) -> None:
    """A write that fails later, here at a file size limit of 1 MB, is a problem of status 507,
    too.
    """
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "file").write_bytes(DIGITS.read_bytes())
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "from core.datasets.convert import main; main()"
    )
    command = [sys.executable, "-c", program, str(folder), json.dumps(asdict(ConversionOptions()))]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert json.loads(done.stdout)["problem"]["status"] == 507


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Converting a gzipped array of 130 MB, or one in Fortran order, takes under 130 MB of
    memory.
    """
    some = np.zeros((130, 1000, 1000), np.uint8)
    some[:, 0, 0] = np.arange(130)
    program = (
        "import sys; from pathlib import Path; from core.datasets.convert import main; main()\n"
        "peak = Path('/proc/self/status').read_text().partition('VmHWM:')[2]; print(peak.split()[0], file=sys.stderr)"
    )
    for name, file in (("idx", gzip.compress(idx(some), 1)), ("npz", npz(np.asfortranarray(some[:60])))):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "file").write_bytes(file)
        command = [sys.executable, "-c", program, str(folder), json.dumps(asdict(ConversionOptions()))]
        done = subprocess.run(command, capture_output=True, timeout=100, check=True)
        assert sum(json.loads(done.stdout)["counts"].values()) in {60, 130}
        assert int(done.stderr) < 130_000, name  # kB, a third of them Python, NumPy and Pillow
