"""The reader of NPZ files."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.datasets.readers import base
from tests.uploads import UploadConverter, npz, packed, pictures


def test_npz_brings_its_own_split(converter: UploadConverter) -> None:
    """Named splits keep their order; a missing split is taken from the training images."""
    train, valid, test = pictures(50), pictures(7, seed=1), pictures(9, seed=2)
    dataset = converter(npz(train=train, valid=valid, test=test, extra=np.zeros(3)))
    assert dataset["split"] == {"rule": "as sent", "shares": {}}
    assert dataset["ignored"] == {"count": 1, "names": ["extra"]}
    for name, array in (("train", train), ("validation", valid), ("test", test)):
        assert np.array_equal(converter.array(name)[:, 0], array)
    dataset = converter(npz(x_train=train, x_test=test, y_train=np.arange(50), y_test=np.arange(9)), validation=0.2)
    assert dataset["counts"] == {"train": 40, "validation": 10, "test": 9}
    assert dataset["split"] == {"rule": "by content", "shares": {"validation": 0.2}}
    assert converter.array("labels")[-9:].tolist() == list(range(9))
    leaky = converter(npz(train=train, valid=valid, test=train[:4]))
    assert leaky["duplicates"]["held_back_in_train"] == 4


def test_binary_vectors_are_welcome(converter: UploadConverter) -> None:
    """Vectors of zeros and ones of any dtype become images of one line with levels 0 and 255."""
    bits = np.random.default_rng(0).integers(0, 2, (60, 112), dtype=np.uint8)
    for array in (bits, bits.astype(bool), bits.astype(np.int64), bits.astype(np.float32), np.asfortranarray(bits)):
        dataset = converter(npz(train=array[:40], valid=array[40:50], test=array[50:]))
        assert (dataset["kind"], dataset["channels"], dataset["height"], dataset["width"]) == ("vectors", 1, 1, 112)
        assert np.array_equal(converter.all()[:, 0, 0], bits * 255)


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW", "F"])
def test_arrays_in_every_layout(converter: UploadConverter, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels first or last and Fortran order give the same images, also in several batches."""
    monkeypatch.setattr(base, "BATCH_BYTES", 1000)
    some = np.random.default_rng(0).integers(0, 256, (30, 3, 8, 7), dtype=np.uint8)
    layouts: dict[str, np.ndarray] = {
        "NHW": some[:, 0],
        "NHWC": some.transpose(0, 2, 3, 1).copy(),
        "NCHW": some,
        "F": np.asfortranarray(some.astype(np.float64) / 255),
    }
    dataset = converter(npz(layouts[layout]), validation=0, test=0)
    assert dataset["channels"] == (1 if layout == "NHW" else 3)
    assert np.array_equal(converter.array("train"), some[:, :1] if layout == "NHW" else some)


class _Trap:
    """An object whose unpickling would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickled_objects_are_refused_and_never_loaded(converter: UploadConverter, tmp_path: Path) -> None:
    """An array of pickled objects is rejected with its name, and no pickled code runs."""
    trap = tmp_path / "sprung"
    converter.refused(npz(train=np.array([_Trap(trap)] * 12, object)), "train.npy", "pickled", "never loaded")
    converter.refused(
        npz(train=pictures(12), train_labels=np.array([_Trap(trap)], object)), "train_labels.npy", "pickled"
    )
    converter.refused(npz(train=np.zeros(12, [("a", object)])), "train.npy", "pickled")
    converter.refused(packed([("train.npy", pickle.dumps([_Trap(trap)]))]), "train.npy", "no array")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": pictures(12), "b": pictures(12)}, ["no array of pictures", "a, b"]),
        ({"test": pictures(12), "valid": pictures(12)}, ["no training pictures"]),
        ({"train": pictures(12), "images": pictures(12)}, ["both"]),
        ({"train": pictures(12), "test": pictures(12, 9, 9)}, ["differ in size", "train: 1 channel of 6×5", "9×9"]),
        ({"train": pictures(12), "test": pictures(12), "y_train": np.zeros(12, int)}, ["labels for some"]),
        ({"train": pictures(12), "y_train": np.zeros(11, int)}, ["y_train.npy has 11 labels for 12"]),
        ({"train": pictures(12), "y_train": np.zeros((12, 2), int)}, ["y_train.npy must hold one"]),
        ({"train": np.array(["a"] * 12)}, ["train.npy holds <U1"]),
        ({"train": np.zeros((12, 2, 2), complex)}, ["train.npy holds complex128"]),
        ({"train": np.zeros(12)}, ["train.npy has shape (12)"]),
        ({"train": np.zeros((0, 4, 4))}, ["train.npy has shape (0, 4, 4)"]),
        ({"train": np.full((12, 2, 2), -1)}, ["train.npy holds -1 in picture 0"]),
        ({"train": np.arange(48).reshape(12, 2, 2) * 2.0}, ["train.npy holds 2.0 in picture 0", "0 … 1"]),
        ({"train": np.zeros((12, 3000, 3000), bool)}, ["too large"]),
        ({"train": np.zeros(12, [("a", int)])}, ["train.npy", "records"]),
    ],
)
def test_a_bad_npz_is_rejected_with_the_reason(
    converter: UploadConverter, arrays: dict[str, np.ndarray], words: list[str]
) -> None:
    """An invalid NPZ is rejected with the array's name and what is wrong."""
    converter.refused(npz(**arrays), *words)


def test_a_damaged_npz_is_rejected_with_the_reason(converter: UploadConverter) -> None:
    """Damage to the directory, an array's header, its data or its end is reported."""
    good = npz(train=pictures(12))
    converter.refused(good[:-30], "truncated or damaged", "list of members")
    converter.refused(good.replace(b"PK\1\2", b"PK\7\7"), "damaged")
    spoilt = bytearray(packed([("train.npy", zipfile.ZipFile(io.BytesIO(good)).read("train.npy"))], zipfile.ZIP_STORED))
    spoilt[300] ^= 1
    converter.refused(bytes(spoilt), "train.npy is damaged", "CRC")
    array = zipfile.ZipFile(io.BytesIO(good)).read("train.npy")
    converter.refused(packed([("train.npy", array[:-9])]), "train.npy is truncated")
    converter.refused(packed([("train.npy", array + b"more")]), "train.npy", "goes on")
    converter.refused(packed([("train.npy", array[:30])]), "train.npy", "no array")
    converter.refused(packed([("train.npy", array.replace(b"'shape'", b"__name_"))]), "no array")
    converter.refused(packed([("train.npy", array.replace(b"(12, 6, 5)", b"(-1, 6, 5)"))]), "(-1, 6, 5)")
    converter.refused(packed([("train.npy", array.replace(b"12,", b"9" * 3))]), "no array")


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train_images", "val_images", "test_images"),
        ("trainImages", "validImages", "testImages"),
        ("X_TRAIN", "X_DEV", "X_TEST"),
        ("images_training", "images_val", "images_test"),
        ("dataTrain", "dataVal", "dataTest"),
        ("Train", "Dev", "Test"),
    ],
)
def test_an_npz_in_other_spellings_is_split_as_sent(
    converter: UploadConverter, train: str, validation: str, test: str
) -> None:
    """Splits with other spellings of their names are kept as sent, with their labels."""
    arrays = {train: pictures(20), validation: pictures(10, seed=1), test: pictures(11, seed=2)}
    dataset = converter(npz(**arrays))
    assert dataset["counts"] == {"train": 20, "validation": 10, "test": 11}
    assert "ignored" not in dataset
    assert np.array_equal(converter.array("validation")[:, 0], arrays[validation])
    for labels in ("{}_labels", "y{}", "{}Y", "LABELS-{}"):
        named = {
            labels.format(word): np.full((count, 1), count)
            for word, count in (("train", 20), ("val", 10), ("test", 11))
        }
        assert converter(npz(**arrays, **named))["labels"] is True
        assert converter.array("labels").tolist() == [20] * 20 + [10] * 10 + [11] * 11


def test_two_arrays_that_mean_the_same_are_refused_by_name(converter: UploadConverter) -> None:
    """Two arrays that mean the same split are rejected with their names, rather than one being
    ignored.
    """
    some = pictures(12)
    for first, second in (("x_train", "train_images"), ("train", "training"), ("val", "dev"), ("images", "data")):
        more = {} if first in {"x_train", "train", "images"} else {"train": some}
        converter.refused(npz(**{first: some, second: some}, **more), repr(first), repr(second))
    converter.refused(
        npz(train=some, y_train=np.zeros(12, int), trainLabels=np.zeros(12, int)), "'y_train'", "'trainLabels'"
    )
    dataset = converter(npz(some, images=pictures(13)))  # an unnamed array is not a second `images`
    assert (sum(dataset["counts"].values()), dataset["ignored"]["names"]) == (13, ["arr_0"])
