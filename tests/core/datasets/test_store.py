"""The store of datasets, which are added atomically and not deleted while they are used."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.datasets.convert import convert
from core.datasets.readers.base import ConversionOptions
from core.datasets.store import SPLITS, Datasets, InUseError, NameTakenError
from tests.api.helpers import decode_image
from tests.datasets import write
from tests.forked import FORKING

DIGITS = Path(__file__).parents[2] / "fixtures" / "digits-images-idx3-ubyte.gz"


def added(datasets: Datasets, name: str, file: bytes = b"", **options: Any) -> tuple[dict[str, Any], bool]:
    """Convert a file (by default the fixture's digits) and add it under a name."""
    with datasets.scratch_folder() as folder:
        (folder / "file").write_bytes(file or DIGITS.read_bytes())
        return datasets.add(folder / "made", name, convert(folder, ConversionOptions(**options)))


@pytest.fixture
def datasets(tmp_path: Path) -> Datasets:
    """Return an empty store."""
    return Datasets(tmp_path / "datasets")


def test_a_dataset_is_a_folder_with_its_description(datasets: Datasets) -> None:
    """A dataset is found by its name and listed; no scratch folder is left."""
    about, new = added(datasets, "digits")
    assert new
    assert datasets.get("digits") == about
    assert about["name"] == "digits"
    assert about["created_at"].startswith("20")
    files = {path.name for path in datasets.path("digits").iterdir()}
    assert files == {"dataset.json", "train.npy", "validation.npy", "test.npy", "uses"}
    assert [path.name for path in datasets.folder.iterdir() if path.is_dir()] == ["digits"]
    for name in ("none", "", ".", "..", "../datasets/digits", "a/b", ".lock", "x" * 65):
        assert datasets.get(name) is None


def test_equal_arrays_return_the_existing_dataset(datasets: Datasets) -> None:
    """Adding equal arrays under a taken name returns the existing dataset; other arrays are
    rejected.
    """
    first, _ = added(datasets, "digits")
    again, new = added(datasets, "digits")
    assert not new
    assert again == first
    with pytest.raises(NameTakenError):
        added(datasets, "digits", test=0.2)
    assert added(datasets, "digits-2")[1]
    assert [one["name"] for one in datasets.listing()] == ["digits", "digits-2"]
    assert [one["name"] for one in datasets.listing(after="digits")] == ["digits-2"]
    assert [one["name"] for one in datasets.listing(limit=1)] == ["digits"]


def test_a_dataset_in_use_is_not_deleted(datasets: Datasets) -> None:
    """A dataset is deleted only after its last user has released it."""
    added(datasets, "digits")
    assert datasets.use("digits", "job_1")
    assert datasets.use("digits", "job_2")
    assert datasets.use("digits", "job_2")
    assert not datasets.use("none", "job_1")
    with pytest.raises(InUseError, match=r"job_1, job_2"):
        datasets.delete("digits")
    datasets.release("digits", "job_1")
    datasets.release("digits", "job_1")
    assert datasets.users("digits") == ["job_2"]
    datasets.release("digits", "job_2")
    datasets.release("none", "job_2")
    opened_before = np.load(datasets.path("digits") / "train.npy", mmap_mode="r")
    assert datasets.delete("digits")
    assert opened_before.sum() > 0  # a reader that has it open can go on
    assert datasets.get("digits") is None
    assert datasets.listing() == []
    assert not datasets.delete("digits")
    assert added(datasets, "digits")[1]


def test_a_failed_conversion_leaves_nothing(datasets: Datasets) -> None:
    """A scratch folder is removed on any error."""
    with pytest.raises(FileExistsError), datasets.scratch_folder() as folder:
        (folder / "lock").mkdir()
    assert [path.name for path in datasets.folder.iterdir() if path.is_dir()] == []


def test_scratch_folders_of_dead_processes_are_removed(datasets: Datasets) -> None:
    """The next start removes scratch folders of dead processes, and keeps those of live ones."""
    program = (
        "import os, sys; from pathlib import Path; from core.datasets.store import Datasets\n"
        "with Datasets(Path(sys.argv[1])).scratch_folder() as folder: (folder / 'file').touch(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", program, str(datasets.folder)], check=False, timeout=30)
    with datasets.scratch_folder() as mine:
        assert len(list(datasets.folder.glob(".*/lock"))) == 2
        Datasets(datasets.folder)
        assert [path.parent for path in datasets.folder.glob(".*/lock")] == [mine]


def _race(folder: Path, number: int) -> bool | None:
    datasets = Datasets(folder)
    try:
        return added(datasets, "digits", test=0.1 if number % 2 else 0.2)[1]
    except NameTakenError:
        return None


def test_one_of_many_concurrent_additions_succeeds(datasets: Datasets) -> None:
    """Of processes that add different arrays under one name, one succeeds."""
    with FORKING.Pool(4) as pool:
        outcomes = pool.starmap(_race, [(datasets.folder, number) for number in range(8)])
    assert sorted(outcomes, key=str) == [False] * 3 + [None] * 4 + [True]
    assert [path.name for path in datasets.folder.iterdir() if path.is_dir()] == ["digits"]
    assert datasets.get("digits")


def test_images_are_read_in_their_order(datasets: Datasets) -> None:
    """From an index on, at most so many and at most 4 MiB; labels are those of the split."""
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 4), dtype=np.uint8)
    arrays = {
        "train": images[:20],
        "test": images[20:],
        "train_labels": np.arange(20),
        "test_labels": np.arange(20, 30),
    }
    np.savez(datasets.folder / "x.npz", **arrays)  # type: ignore[arg-type]
    added(datasets, "squares", (datasets.folder / "x.npz").read_bytes(), validation=0.2)
    counts = (datasets.get("squares") or {})["counts"]
    for split in SPLITS:
        whole = np.load(datasets.path("squares") / f"{split}.npy")
        page = datasets.images("squares", split, 2, 3)
        assert page is not None
        assert (page.first, page.total) == (2, counts[split])
        assert page.labels is not None
        assert np.array_equal(page.pixels, whole[2:5])
        assert [images[label].tobytes() for label in page.labels] == [one.tobytes() for one in page.pixels]
    last = datasets.images("squares", "test", 9, 100)
    beyond = datasets.images("squares", "test", 10, 100)
    assert last is not None
    assert beyond is not None
    assert (len(last.pixels), len(beyond.pixels)) == (1, 0)
    assert datasets.images("none", "train", 0, 1) is None
    large = np.zeros((5, 1, 1024, 2048), np.uint8)
    write(datasets.folder, "large", [large, large[:0], large[:0]], "pictures")
    page = datasets.images("large", "train", 1, 5)
    assert page is not None
    assert (page.pixels.shape, page.labels) == ((2, 1, 1024, 2048), None)


def test_previews_are_grids(datasets: Datasets) -> None:
    """A preview is a grid from the whole split; vectors are lines; an empty split has none."""
    added(datasets, "digits")
    grid = decode_image(datasets.preview("digits", "train", 9) or b"")
    assert grid.shape == (84, 84)
    train = np.load(datasets.path("digits") / "train.npy")
    assert np.array_equal(grid[:28, :28], train[0, 0])
    assert np.array_equal(grid[-28:, -28:], train[-1, 0])
    assert datasets.preview("none", "train", 9) is None
    bits = np.random.default_rng(0).integers(0, 2, (50, 30), dtype=np.uint8)
    np.savez(datasets.folder / "x.npz", bits)
    added(datasets, "bits", (datasets.folder / "x.npz").read_bytes(), test=0.0)
    assert decode_image(datasets.preview("bits", "train", 20) or b"").shape == (20, 30)
    assert datasets.preview("bits", "test", 20) is None
