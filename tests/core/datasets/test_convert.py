"""Uploads become arrays, or are refused with the reason."""

import gzip
import hashlib
import io
import json
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from core.datasets import readers as sources
from core.datasets import zip_files
from core.datasets.convert import convert
from core.datasets.readers import UploadRejectedError, Wish
from core.datasets.split_names import arrays_by_split

DIGITS = Path(__file__).parents[2] / "fixtures" / "digits-images-idx3-ubyte.gz"
SPLITS = ("train", "validation", "test")


def idx(array: np.ndarray, kind: int = 0x08) -> bytes:
    """The IDX file of an array."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


def npz(*unnamed: np.ndarray, **arrays: np.ndarray) -> bytes:
    """The NPZ file of arrays."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, *unnamed, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """A picture file of pixels (H, W) or (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def packed(members: Iterable[tuple[str | zipfile.ZipInfo, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A ZIP of these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def pictures(count: int, height: int = 6, width: int = 5, seed: int = 0) -> np.ndarray:
    """Different grey pictures."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width), dtype=np.uint8)


def zipped(count: int = 12) -> list[tuple[str | zipfile.ZipInfo, bytes]]:
    """Members of a good ZIP."""
    return [(f"digits/{number:03}.png", png(one)) for number, one in enumerate(pictures(count))]


class Bench:
    """A folder to convert uploads in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = 0
        self.made = folder

    def __call__(self, file: bytes, labels: bytes | None = None, **wish: Any) -> dict[str, Any]:
        """What the upload is converted to."""
        self.runs += 1
        folder = self.folder / str(self.runs)
        folder.mkdir()
        (folder / "file").write_bytes(file)
        if labels is not None:
            (folder / "labels").write_bytes(labels)
        self.made = folder / "made"
        return convert(folder, Wish(**wish))

    def array(self, name: str) -> np.ndarray:
        """An array of the last conversion."""
        return np.load(self.made / f"{name}.npy")

    def all(self) -> np.ndarray:
        """The pictures of the last conversion, split after split."""
        return np.concatenate([self.array(name) for name in SPLITS])

    def refused(self, file: bytes, *words: str, labels: bytes | None = None, **wish: Any) -> UploadRejectedError:
        """The refusal of an upload, once its words are in it."""
        with pytest.raises(UploadRejectedError) as caught:
            self(file, labels, **wish)
        for word in words:
            assert word in str(caught.value)
        assert len(str(caught.value)) < 1500
        return caught.value


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A fresh one."""
    return Bench(tmp_path)


def rows(array: np.ndarray) -> set[bytes]:
    """Pictures to compare without order."""
    return {one.tobytes() for one in array}


# --- what is welcome ---


def test_idx_gzipped_or_not_is_the_same_dataset(bench: Bench) -> None:
    """The fixture's digits: all of them, once each, in three splits of the asked sizes."""
    said = bench(DIGITS.read_bytes())
    assert (said["kind"], said["channels"], said["height"], said["width"]) == ("pictures", 1, 28, 28)
    assert said["counts"] == {"train": 1600, "validation": 200, "test": 200}
    assert said["format"] == "idx"
    plain = gzip.decompress(DIGITS.read_bytes())
    assert rows(bench.all()) == {plain[start : start + 784] for start in range(16, len(plain), 784)}
    again = bench(plain)
    assert again == said
    files = b"".join((bench.made / f"{name}.npy").read_bytes() for name in SPLITS)
    assert said["sha256"] == hashlib.sha256(files).hexdigest()
    assert said["bytes"] == len(files)
    train = np.load(bench.made / "train.npy", mmap_mode="r")
    assert isinstance(train, np.memmap)
    assert (train.dtype, train.shape, train.flags.c_contiguous) == (np.uint8, (1600, 1, 28, 28), True)


def test_the_split_is_the_pictures_own(bench: Bench) -> None:
    """It does not depend on their order, and equal pictures never stand on both sides."""
    some = np.concatenate([pictures(300), pictures(60)])  # the first sixty twice
    said = bench(idx(some), validation=0.2, test=0.2)
    assert said["duplicates"] == {"pictures": 60, "names": 0, "held_back_in_train": 0}
    first = {name: rows(bench.array(name)) for name in SPLITS}
    assert not first["train"] & first["test"]
    assert not first["train"] & first["validation"]
    assert not first["validation"] & first["test"]
    assert abs(said["counts"]["test"] - 72) <= 2
    assert sum(said["counts"].values()) == 360
    bench(idx(some[::-1].copy()), validation=0.2, test=0.2)
    assert {name: rows(bench.array(name)) for name in SPLITS} == first


def test_shares_may_be_none(bench: Bench) -> None:
    """Then everything is there to train on, and the empty arrays can be opened all the same."""
    said = bench(idx(pictures(20)), validation=0.0, test=0.0)
    assert said["counts"] == {"train": 20, "validation": 0, "test": 0}
    assert np.load(bench.made / "test.npy", mmap_mode="c").shape == (0, 1, 6, 5)


def test_labels_stay_with_their_pictures(bench: Bench) -> None:
    """In the order of the three arrays; from an IDX beside the file, or from arrays of the NPZ."""
    some = pictures(40)
    some[:, 0, 0] = np.arange(40)
    for file, labels in (
        (idx(some), gzip.compress(idx(np.arange(40, dtype=np.uint8)))),
        (idx(some), idx(np.arange(40, dtype=">i4"), 0x0C)),
        (npz(images=some, labels=np.arange(40)), None),
        (packed((f"{number:02}.png", png(one)) for number, one in enumerate(some)), idx(np.arange(40, dtype=np.uint8))),
    ):
        assert bench(file, labels)["labels"] is True
        assert bench.array("labels").tolist() == bench.all()[:, 0, 0, 0].tolist()
    assert bench(idx(some))["labels"] is False


def test_npz_brings_its_own_split(bench: Bench) -> None:
    """In the order of its arrays; a split that it lacks is cut from its training pictures."""
    train, valid, test = pictures(50), pictures(7, seed=1), pictures(9, seed=2)
    said = bench(npz(train=train, valid=valid, test=test, extra=np.zeros(3)))
    assert said["split"] == {"rule": "as sent", "shares": {}}
    assert said["ignored"] == {"count": 1, "names": ["extra"]}
    for name, array in (("train", train), ("validation", valid), ("test", test)):
        assert np.array_equal(bench.array(name)[:, 0], array)
    said = bench(npz(x_train=train, x_test=test, y_train=np.arange(50), y_test=np.arange(9)), validation=0.2)
    assert said["counts"] == {"train": 40, "validation": 10, "test": 9}
    assert said["split"] == {"rule": "by content", "shares": {"validation": 0.2}}
    assert bench.array("labels")[-9:].tolist() == list(range(9))
    leaky = bench(npz(train=train, valid=valid, test=train[:4]))
    assert leaky["duplicates"]["held_back_in_train"] == 4


def test_binary_vectors_are_welcome(bench: Bench) -> None:
    """As pictures of one line with the levels 0 and 255, whatever type holds the zeros and ones."""
    bits = np.random.default_rng(0).integers(0, 2, (60, 112), dtype=np.uint8)
    for array in (bits, bits.astype(bool), bits.astype(np.int64), bits.astype(np.float32), np.asfortranarray(bits)):
        said = bench(npz(train=array[:40], valid=array[40:50], test=array[50:]))
        assert (said["kind"], said["channels"], said["height"], said["width"]) == ("vectors", 1, 1, 112)
        assert np.array_equal(bench.all()[:, 0, 0], bits * 255)


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW", "F"])
def test_arrays_in_every_layout(bench: Bench, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels first or last, rows or columns first, read in chunks: the same pictures."""
    monkeypatch.setattr(sources, "CHUNK_BYTES", 1000)
    some = np.random.default_rng(0).integers(0, 256, (30, 3, 8, 7), dtype=np.uint8)
    sent = {
        "NHW": some[:, 0],
        "NHWC": some.transpose(0, 2, 3, 1).copy(),
        "NCHW": some,
        "F": np.asfortranarray(some.astype(np.float64) / 255),
    }[layout]
    said = bench(npz(sent), validation=0, test=0)
    assert said["channels"] == (1 if layout == "NHW" else 3)
    assert np.array_equal(bench.array("train"), some[:, :1] if layout == "NHW" else some)


def test_zip_of_pictures(bench: Bench) -> None:
    """By the order of their names; folders train and test are a split; what is no picture is left out and told."""
    some = pictures(20)
    members: list[tuple[str | zipfile.ZipInfo, bytes]] = [
        (f"set/{'test' if number < 4 else 'train'}/{number:02}.png", png(one)) for number, one in enumerate(some)
    ]
    more = [("set/README.txt", b"hello"), ("__MACOSX/set/._00.png", b"x"), ("set/.DS_Store", b"x"), ("set/train/", b"")]
    said = bench(packed([*reversed(members), *more]), validation=0.25)
    assert said["counts"] == {"train": 12, "validation": 4, "test": 4}
    assert said["ignored"] == {"count": 1, "names": ["set/README.txt"]}
    assert said["hidden"] == 2
    assert np.array_equal(bench.array("test")[:, 0], some[:4])
    assert rows(bench.array("train")) | rows(bench.array("validation")) == rows(some[4:, None])


def test_one_colour_picture_makes_all_rgb(bench: Bench) -> None:
    """Grey ones among them have three equal channels."""
    colour = np.zeros((6, 5, 3), np.uint8)
    colour[..., 0] = 200
    said = bench(packed([*zipped(), ("red.jpg", png(colour, "JPEG"))]), validation=0, test=0)
    assert said["channels"] == 3
    assert sum((one[0] == one[1]).all() for one in bench.array("train")) == 12


def test_resize_covers_and_cuts_at_the_centre(bench: Bench) -> None:
    """Mixed sizes become one without being squeezed."""
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 255
    said = bench(packed([*zipped(), ("wide.png", png(wide))]), resize=(8, 8), validation=0, test=0)
    assert (said["height"], said["width"], said["resized"]) == (8, 8, 13)
    assert bench.array("train")[-1].min() > 200


def test_photographs_are_cut_into_patches(bench: Bench) -> None:
    """Of any size, each wholly in one split; a patch is a piece of its photograph."""
    random = np.random.default_rng(0)
    sizes = [(100, 200), (96, 96), (300, 150), (192, 288), (97, 400)]
    photographs = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    for number, one in enumerate(photographs):
        one[..., 0] = number
    file = packed((f"{number}.png", png(one)) for number, one in enumerate(photographs))
    said = bench(file, kind="photographs", validation=0.2, test=0.2)
    assert (said["kind"], said["channels"], said["height"], said["width"]) == ("photographs", 3, 96, 96)
    assert said["photographs"] == 5
    assert sum(said["counts"].values()) == 2 + 1 + 3 + 6 + 4
    held = {name: {int(one[0, 0, 0]) for one in bench.array(name)} for name in SPLITS}
    assert sorted(len(numbers) for numbers in held.values()) == [1, 1, 3]
    assert set().union(*held.values()) == set(range(5))
    patch = next(one for one in bench.all() if one[0, 0, 0] == 0)
    assert np.array_equal(patch.transpose(1, 2, 0), photographs[0][2:98, 4:100])


def test_duplicate_names_are_counted(bench: Bench) -> None:
    """Both pictures are there."""
    with pytest.warns(UserWarning, match="Duplicate name"):
        file = packed([*zipped(), ("digits/000.png", png(pictures(1, seed=5)[0]))])
    assert bench(file)["duplicates"] == {"pictures": 0, "names": 1, "held_back_in_train": 0}
    assert len(bench.all()) == 13


# --- what is refused ---


def test_what_is_neither_is_told_how_it_begins(bench: Bench) -> None:
    """And which formats would work."""
    bench.refused(b"", "empty", "NPZ")
    bench.refused(png(pictures(1)[0]), "89504e47", "ZIP of pictures")
    buffer = io.BytesIO()
    np.save(buffer, pictures(9))
    bench.refused(buffer.getvalue(), "numpy.savez")
    bench.refused(pickle.dumps([1]), "neither")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda b: b[:-1], ["truncated", "359 bytes of data where its header promises 360"]),
        (lambda b: b + b"\0", ["too long"]),
        (lambda b: b[:9], ["truncated within its header"]),
        (lambda b: b"\0\0\x07\3" + b[4:], ["not IDX", "00000703"]),
        (lambda b: b"\0\0\x08\0" + b[4:], ["not IDX", "00000800"]),
        (lambda b: gzip.compress(b"PK" + b), ["not IDX", "504b0000"]),
        (lambda b: gzip.compress(b)[:-9], ["truncated"]),
        (lambda b: gzip.compress(b)[:-8] + b"\1" * 8, ["damaged"]),
        (lambda b: b"\x1f\x8bnonsense", ["damaged"]),
        (lambda b: b[:4] + struct.pack(">3I", 0, 6, 5), ["empty", "0×6×5"]),
        (lambda b: b[:4] + b"\xff" * 12, ["unpacked, more than"]),
        (lambda b: idx(np.arange(9, dtype=np.uint8)), ["labels", "`file`"]),
        (lambda b: idx(np.zeros((9, 2, 6, 5), np.uint8)), ["(9, 2, 6, 5)", "channels"]),
        (lambda b: idx(pictures(9)), ["9 pictures are too few", "10"]),
        (lambda b: idx(np.full((12, 2, 2), 256, ">i4"), 0x0C), ["holds 256 in picture 0", "0 … 255"]),
        (lambda b: idx(np.full((12, 2, 2), np.nan, ">f4"), 0x0D), ["holds nan in picture 0", "0 … 1"]),
    ],
)
def test_a_bad_idx_file_is_told(bench: Bench, damage: Callable[[bytes], bytes], words: list[str]) -> None:
    """What is wrong, at the file's own field."""
    assert bench.refused(damage(idx(pictures(12))), *words).field == "file"


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (b"", ["empty"]),
        (idx(np.zeros(11, np.uint8)), ["11 labels for 12 pictures"]),
        (idx(np.zeros(12, np.uint8))[:-1], ["truncated"]),
        (idx(np.zeros(12, np.uint8)) + b"1", ["too long"]),
        (idx(np.zeros((12, 1), np.uint8)), ["one whole number a picture"]),
        (b"1,2,3", ["not IDX"]),
    ],
)
def test_bad_labels_are_told(bench: Bench, labels: bytes, words: list[str]) -> None:
    """At their field."""
    assert bench.refused(idx(pictures(12)), *words, labels=labels).field == "labels"
    assert bench.refused(packed(zipped()), *words, labels=labels).field == "labels"


class _Trap:
    """Unpickling it would create the file that it names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickled_objects_are_refused_and_never_loaded(bench: Bench, tmp_path: Path) -> None:
    """The array is named, and nothing ran."""
    trap = tmp_path / "sprung"
    bench.refused(npz(train=np.array([_Trap(trap)] * 12, object)), "train.npy", "pickled", "never loaded")
    bench.refused(npz(train=pictures(12), train_labels=np.array([_Trap(trap)], object)), "train_labels.npy", "pickled")
    bench.refused(npz(train=np.zeros(12, [("a", object)])), "train.npy", "pickled")
    bench.refused(packed([("train.npy", pickle.dumps([_Trap(trap)]))]), "train.npy", "no array")
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
def test_a_bad_npz_is_told(bench: Bench, arrays: dict[str, np.ndarray], words: list[str]) -> None:
    """The array is named."""
    bench.refused(npz(**arrays), *words)


def test_a_damaged_npz_is_told(bench: Bench) -> None:
    """Whether its list, an array's header, its data or its end is damaged."""
    good = npz(train=pictures(12))
    bench.refused(good[:-30], "truncated or damaged", "list of members")
    bench.refused(good.replace(b"PK\1\2", b"PK\7\7"), "damaged")
    spoilt = bytearray(packed([("train.npy", zipfile.ZipFile(io.BytesIO(good)).read("train.npy"))], zipfile.ZIP_STORED))
    spoilt[300] ^= 1
    bench.refused(bytes(spoilt), "train.npy is damaged", "CRC")
    array = zipfile.ZipFile(io.BytesIO(good)).read("train.npy")
    bench.refused(packed([("train.npy", array[:-9])]), "train.npy is truncated")
    bench.refused(packed([("train.npy", array + b"more")]), "train.npy", "goes on")
    bench.refused(packed([("train.npy", array[:30])]), "train.npy", "no array")
    bench.refused(packed([("train.npy", array.replace(b"'shape'", b"__name_"))]), "no array")
    bench.refused(packed([("train.npy", array.replace(b"(12, 6, 5)", b"(-1, 6, 5)"))]), "(-1, 6, 5)")
    bench.refused(packed([("train.npy", array.replace(b"12,", b"9" * 3))]), "no array")


def test_one_bad_picture_is_named(bench: Bench) -> None:
    """Whether its header, its data or its kind is at fault."""
    whole = png(pictures(1, 40, 40, seed=1)[0])
    many = [(f"{number:02}.png", png(one)) for number, one in enumerate(pictures(12, 40, 40))]
    animation = io.BytesIO()
    frames = [Image.fromarray(one) for one in pictures(2, 40, 40)]
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    deep = io.BytesIO()
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(deep, "PNG")
    for name, data, word in (
        ("bad.png", b"no picture", "no picture"),
        ("cut.png", whole[:-500], "truncated"),
        ("moving.gif", animation.getvalue(), "animated"),
        ("deep.png", deep.getvalue(), "8 bits"),
        ("page.pdf.png", b"%PDF-1.4", "no picture"),
    ):
        bench.refused(packed([*many, (name, data)]), repr(name), word)
    spoilt = packed([*many, ("last.png", whole)], zipfile.ZIP_STORED)
    place = spoilt.index(whole) + 60
    bench.refused(spoilt[:place] + bytes([spoilt[place] ^ 1]) + spoilt[place + 1 :], "'last.png'", "damaged")


def test_an_empty_zip_is_told(bench: Bench) -> None:
    """And one without pictures, with what it holds instead."""
    bench.refused(packed([]), "holds no picture", ".png", "nothing")
    bench.refused(packed([("a.txt", b""), ("b/c.zip", packed(zipped()))]), "holds no picture", "a.txt, b/c.zip")
    bench.refused(packed(zipped(9)), "9 pictures are too few")


def test_mixed_sizes_are_refused_with_the_sizes(bench: Bench) -> None:
    """And with the two ways there are."""
    more = [("tall.png", png(pictures(1, 9, 5)[0])), ("wide.png", png(pictures(1, 6, 7)[0]))]
    error = bench.refused(
        packed([*zipped(), *more]), "12 of 6×5", "1 of 9×5 (as 'tall.png')", "resize=HxW", "kind=photographs"
    )
    assert error.field == "resize"
    sizes = [(f"{edge}.png", png(pictures(1, edge, edge)[0])) for edge in range(3, 30)]
    bench.refused(packed(sizes), "and 22 more sizes")


@pytest.mark.parametrize(
    "name", ["../x.png", "a/../../x.png", "/etc/x.png", "..\\x.png", "C:\\x.png", "\\\\host\\x.png"]
)
def test_names_that_lead_out_are_refused(bench: Bench, name: str) -> None:
    """Though nothing is ever unpacked under a member's name."""
    info = zipfile.ZipInfo("x")
    info.filename = name
    bench.refused(packed([*zipped(), (info, b"x")]), repr(name), "leads out")


def test_odd_members_are_refused(bench: Bench) -> None:
    """Links, passwords and compressions that cannot be read in bounds."""
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    bench.refused(packed([*zipped(), (link, b"/etc/passwd")]), "'link.png'", "symbolic link")
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        bench.refused(packed(zipped(), compression), "'digits/000.png'", "compression")
    secret = bytearray(packed(zipped()))
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        secret[secret.index(mark) + offset] |= 1
    bench.refused(bytes(secret), "'digits/000.png'", "encrypted")


def test_bombs_are_refused_by_what_they_promise(bench: Bench) -> None:
    """Members, pixels, arrays and the whole, before any of it is unpacked; 413 says that it is the size."""
    limit = {"unpacked_bytes": 1 << 20}
    cases = [
        (packed([*zipped(), ("zeros.png", bytes(2 << 20))]), "its members (13) are"),
        (packed((f"{number}.png", png(np.zeros((200, 200, 3), np.uint8))) for number in range(12)), "12 pictures"),
        (npz(train=np.zeros((12, 400, 400))), "its members (1) are"),
        (gzip.compress(idx(np.zeros((12, 300, 400), np.uint8))), "the file promises"),
    ]
    for file, word in cases:
        assert bench.refused(file, word, str(1 << 20), **limit).status == 413
    hidden = packed((f"{number}.png", png(np.zeros((300, 400), np.uint8))) for number in range(12))
    assert bench.refused(hidden, "are 1440000 pixels", resize=(4, 4), **limit).status == 413
    huge = png(np.zeros((8001, 8000), np.uint8))
    assert bench.refused(packed([*zipped(), ("huge.png", huge)]), "'huge.png'", "8000×8001 pixels").status == 413


def test_a_member_larger_than_it_says_is_damaged(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than promised is ever unpacked."""
    reads: list[int] = []
    plain = zipfile.ZipExtFile.read
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda file, n=-1: reads.append(n) or plain(file, n))
    file = bytearray(packed([("liar.png", bytes(1 << 20))]))
    place = file.index(b"PK\1\2") + 24
    file[place : place + 4] = struct.pack("<I", 100)
    bench.refused(bytes(file), "'liar.png'")
    assert set(reads) == {101}


def zip_end(count: int, length: int, offset: int, wide: tuple[int, int, int] | None = None) -> bytes:
    """The end of a ZIP: the number of members, their list's size and place, in a ZIP64 record, too, if it is given."""
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, length, offset, 0)
    if wide is None:
        return end
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, wide[0], *wide)
    return record + struct.pack("<4sIQI", b"PK\6\7", 0, wide[2] + wide[1], 1) + end


def test_too_many_members_are_refused_before_their_list_is_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the old form of the list and in the one for large ZIPs."""
    monkeypatch.setattr(zip_files, "MAX_MEMBERS", 11)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    file = b"PK\3\4" + bytes(12 * 46)
    assert bench.refused(file + zip_end(12, 12 * 46, 4), "12 members", "NPZ or IDX").status == 413
    wide = zip_end(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, (12, 12 * 46, 4))
    assert bench.refused(file + wide, "12 members").status == 413


def end_of(file: bytes) -> tuple[bytes, int, int, int]:
    """A ZIP without its end record, and what that says: the number of members, their list's size and place."""
    place = file.rindex(b"PK\5\6")
    count, length, offset = struct.unpack_from("<HII", file, place + 10)
    return file[:place], count, length, offset


def test_records_that_contradict_the_file_are_refused(bench: Bench) -> None:
    """Absurd numbers, a ZIP64 record that says another thing than the end record, a list with more or fewer members."""
    body, count, length, offset = end_of(packed(zipped()))
    assert sum(bench(body + zip_end(count, length, offset, (count, length, offset)))["counts"].values()) == 12
    full = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF
    assert sum(bench(body + zip_end(*full, (count, length, offset)))["counts"].values()) == 12
    for wide in ((1 << 40, length, offset), (count, 1 << 40, offset), (count, length, 0), (count - 1, length, offset)):
        error = bench.refused(body + zip_end(count, length, offset, wide), "ZIP64", "contradicts")
        assert error.status == 422
        assert bench.refused(body + zip_end(*full, wide), "the ZIP").status == 422 or wide[2] == 0
    for number in (0, 1, count - 1, count + 1, 60_000):
        assert bench.refused(body + zip_end(number, length, offset), "the ZIP is damaged", "members").status == 422
    assert bench.refused(body + zip_end(count, length - 1, offset + 1), "damaged").status == 422
    assert bench.refused(body + zip_end(count, 1 << 31, offset), "damaged").status == 422
    lost = zip_end(*full, (count, length, offset)).replace(b"PK\6\6", b"PK\6\0")
    assert bench.refused(body + lost, "ZIP64 record").status == 422


def test_a_long_list_behind_a_small_number_costs_nothing(tmp_path: Path) -> None:
    """A million entries where the end says fewer: refused without reading them one by one."""
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", *([0] * 16))
    for count in (1, 1000):
        path = tmp_path / str(count)
        path.write_bytes(b"PK\3\4" + entry * 1_000_000 + zip_end(count, len(entry) * 1_000_000, 4))
        start = time.process_time()
        with pytest.raises(UploadRejectedError, match="damaged"):
            zip_files.open_zip(path)
        assert time.process_time() - start < 0.2


def test_members_that_share_bytes_are_refused(bench: Bench) -> None:
    """A kernel of data that many members point to, or members that hold each other, as in the densest of bombs."""
    body, count, length, offset = end_of(packed(zipped()))
    places = [place for place in range(offset, len(body)) if body[place : place + 4] == b"PK\1\2"]
    same = bytearray(body)
    for place in places:
        same[place + 42 : place + 46] = bytes(4)
    assert bench.refused(bytes(same) + zip_end(count, length, offset), "overlaps another member").status == 422
    longer = bytearray(body)
    size = struct.unpack_from("<I", body, places[0] + 20)[0]
    longer[places[0] + 20 : places[0] + 24] = struct.pack("<I", size + 60)
    assert bench.refused(bytes(longer) + zip_end(count, length, offset), "overlaps").status == 422
    last = bytearray(body)
    last[places[-1] + 20 : places[-1] + 24] = struct.pack("<I", 1 << 30)
    assert bench.refused(bytes(last) + zip_end(count, length, offset), "overlaps the list").status == 422


def test_damaged_zips_are_refused(bench: Bench) -> None:
    """Six hundred with bytes changed: a dataset or a RefusedError of 422 or 413, never another error."""
    whole, chance = packed(zipped()), random.Random(0)
    outcomes: Counter[int] = Counter()
    for number in range(600):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 6)):  # most of them where the lists are
            low = 0 if number % 3 else len(data) - 900
            data[chance.randrange(low, len(data))] = chance.choice([0, 1, 0x7F, 0xFF, chance.randrange(256)])
        try:
            bench(bytes(data))
        except UploadRejectedError as error:
            outcomes[error.status] += 1
        else:
            outcomes[200] += 1
    assert set(outcomes) <= {200, 413, 422}
    assert outcomes[422] > 100


def tar(mode: str, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar archive of a picture."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=form) as archive:
        info = tarfile.TarInfo("a.png")
        data = png(pictures(1)[0])
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (tar("w"), ["tar archive", "not read here"]),
        (tar("w", tarfile.USTAR_FORMAT), ["tar archive"]),
        (tar("w").replace(b"ustar", bytes(5)), ["neither IDX nor ZIP"]),  # whose checksum is wrong now
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
    ids=lambda value: value[0] if isinstance(value, list) else "",  # the files hold the time at which they were made
)
def test_archives_of_other_kinds_are_named(bench: Bench, file: bytes, words: list[str]) -> None:
    """With what would work."""
    bench.refused(file, *words, "send ")


# --- names ---

SPLIT_WORDS = {
    "train": ["train", "training"],
    "validation": ["val", "valid", "validation", "dev"],
    "test": ["test"],
}


def spellings(first: str, second: str) -> list[str]:
    """Both orders, with and without a character between, in several cases."""
    pairs = [(first, second), (second, first)]
    joined = [f"{a}{between}{b}" for a, b in pairs for between in ("_", "", "-")]
    camel = [a + b.capitalize() for a, b in pairs]
    return [*joined, *camel, *(name.upper() for name in joined), *(name.title() for name in joined)]


@pytest.mark.parametrize("pictures_word", ["x", "images", "data"])
@pytest.mark.parametrize("labels_word", ["y", "labels"])
def test_names_of_arrays_are_understood_in_any_spelling(pictures_word: str, labels_word: str) -> None:
    """Each split, of pictures and of labels."""
    for split, words in SPLIT_WORDS.items():
        for word in words:
            for name in spellings(word, pictures_word):
                assert arrays_by_split([name]) == ({split: name}, {}), name
            for name in spellings(word, labels_word):
                assert arrays_by_split([name]) == ({}, {split: name}), name
            assert arrays_by_split([word.upper()]) == ({split: word.upper()}, {})
    for name in (pictures_word, pictures_word.upper()):
        assert arrays_by_split([name]) == ({None: name}, {})
    assert arrays_by_split([labels_word.upper()]) == ({}, {None: labels_word.upper()})
    for name in ("extra", "trainer", "latest", "my", "xy", "train_x_images", "observations"):
        assert arrays_by_split([name]) == ({}, {}), name


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
def test_an_npz_in_other_spellings_is_split_as_sent(bench: Bench, train: str, validation: str, test: str) -> None:
    """Its own validation pictures are kept, with their labels."""
    arrays = {train: pictures(20), validation: pictures(10, seed=1), test: pictures(11, seed=2)}
    said = bench(npz(**arrays))
    assert said["counts"] == {"train": 20, "validation": 10, "test": 11}
    assert "ignored" not in said
    assert np.array_equal(bench.array("validation")[:, 0], arrays[validation])
    for labels in ("{}_labels", "y{}", "{}Y", "LABELS-{}"):
        named = {
            labels.format(word): np.full((count, 1), count)
            for word, count in (("train", 20), ("val", 10), ("test", 11))
        }
        assert bench(npz(**arrays, **named))["labels"] is True
        assert bench.array("labels").tolist() == [20] * 20 + [10] * 10 + [11] * 11


def test_two_arrays_that_mean_the_same_are_refused_by_name(bench: Bench) -> None:
    """Rather than one of them being left out without a word."""
    some = pictures(12)
    for first, second in (("x_train", "train_images"), ("train", "training"), ("val", "dev"), ("images", "data")):
        more = {} if first in {"x_train", "train", "images"} else {"train": some}
        bench.refused(npz(**{first: some, second: some}, **more), repr(first), repr(second))
    bench.refused(
        npz(train=some, y_train=np.zeros(12, int), trainLabels=np.zeros(12, int)), "'y_train'", "'trainLabels'"
    )
    said = bench(npz(some, images=pictures(13)))  # an array without a name is no other name of `images`
    assert (sum(said["counts"].values()), said["ignored"]["names"]) == (13, ["arr_0"])


# --- folders ---

HIDDEN = [
    ".ipynb_checkpoints/0-checkpoint.png",
    ".thumbnails/0.png",
    ".Trash-1000/files/0.png",
    ".Trashes/501/0.png",
    "@eaDir/0.png/SYNOPHOTO_THUMB.jpg",
    "__pycache__/0.png",
    "__MACOSX/._0.png",
    ".git/objects/0.png",
    "$RECYCLE.BIN/0.png",
    "System Volume Information/0.png",
    "lost+found/0.png",
    "Thumbs.db",
    "desktop.ini",
    ".DS_Store",
    "._0.png",
]


@pytest.mark.parametrize("place", ["{}", "set/{}", "set/train/{}", "set\\{}"])
@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_files_and_caches_are_skipped(bench: Bench, name: str, place: str) -> None:
    """Wherever they lie; what was skipped is counted."""
    path = place.format(name.replace("/", "\\") if "\\" in place else name)
    said = bench(packed([*zipped(), (path, png(pictures(1, 9, 9)[0]))]))
    assert (sum(said["counts"].values()), said["hidden"]) == (12, 1)
    assert "ignored" not in said


def test_a_zip_of_hidden_files_alone_is_told(bench: Bench) -> None:
    """That they are there, but hidden."""
    bench.refused(
        packed([(f".cache/{name}", data) for name, data in zipped()]), "no picture", "12 files that are hidden"
    )
    said = bench(packed([("./set/" + str(name), data) for name, data in zipped()]))  # as `zip -r` of `.` writes it
    assert sum(said["counts"].values()) == 12


@pytest.mark.parametrize("between", ["/", "\\"])
@pytest.mark.parametrize("root", ["", "set/", "My Pictures/2024/", "test/"])
@pytest.mark.parametrize(
    "names",
    [
        ("Train", "Val", "Test"),
        ("TRAIN", "VAL", "TEST"),
        ("Training", "Validation", "Testing"),
        ("train", "dev", "test"),
        ("training_set", "valid", "test_set"),
        ("train2017", "val2017", "test2017"),
        ("Train", "eval", "TEST"),
        ("train_images", "validation_images", "test_images"),
    ],
)
def test_split_folders_are_recognised(bench: Bench, names: tuple[str, str, str], root: str, between: str) -> None:
    """In any case, at the top or below a common folder, with any separator."""
    some = pictures(24)
    files = [
        (f"{root}{names[number // 8]}/{number % 2}/{number:02}.png".replace("/", between), png(one))
        for number, one in enumerate(some)
    ]
    said = bench(packed(files))
    assert said["counts"] == {"train": 8, "validation": 8, "test": 8}
    assert said["split"] == {"rule": "as sent", "shares": {}}
    for number, split in enumerate(SPLITS):
        assert rows(bench.array(split)) == rows(some[8 * number : 8 * number + 8, None])


def test_split_folders_within_classes_are_recognised(bench: Bench) -> None:
    """The outermost counts; a class may have a split's name below it."""
    some = pictures(24)
    folders = ["cats/train/dev", "cats/Test/dev", "dogs/train/x", "dogs/test/x"]
    said = bench(packed((f"{folders[number % 4]}/{number:02}.png", png(one)) for number, one in enumerate(some)))
    assert said["counts"]["test"] == 12
    assert rows(bench.array("test")) == rows(some[[n for n in range(24) if n % 2], None])


# --- pictures of cameras ---


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    """The metadata of a camera that was held like this."""
    metadata = Image.Exif()
    metadata[0x0112] = orientation
    return metadata


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_orientation_is_honoured_in_datasets(bench: Bench, kind: str) -> None:
    """Pictures that lie on their side stand upright beside those that do; how many were turned is said."""
    some = pictures(12, 10, 6)
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    files = []
    for number, one in enumerate(some):
        if number % 2:
            lying = Image.fromarray(np.ascontiguousarray(np.rot90(one)))
            files.append(
                (f"{number:02}.img.{kind.lower()}", saved(lying.convert("RGB"), kind, exif=exif(6), **options))
            )
        else:
            files.append(
                (f"{number:02}.img.{kind.lower()}", saved(Image.fromarray(one).convert("RGB"), kind, **options))
            )
    said = bench(packed(files), validation=0, test=0)
    assert (said["height"], said["width"]) == (10, 6)
    assert said["conversions"] == {"turned upright": 6}
    assert np.array_equal(bench.array("train")[:, 0], some)


def test_pictures_of_phones_are_photographs(bench: Bench) -> None:
    """Of a JPEG with several pictures (MPO) the first, upright, through its ICC profile, in patches."""
    y, x = np.mgrid[0:96, 0:192]
    files, plain = [], []
    for number in range(4):
        image = Image.fromarray(np.stack([x, y * 2, (x + y + 20 * number) % 256], -1).astype(np.uint8))
        several = saved(image, "MPO", save_all=True, append_images=[image.resize((30, 25))], exif=exif(8), quality=95)
        files.append((f"IMG_{number}.jpg", several))
        plain.append(np.asarray(Image.open(io.BytesIO(several)).convert("RGB").transpose(Image.Transpose.ROTATE_90)))
    said = bench(packed(files), kind="photographs", validation=0, test=0)
    assert said["conversions"] == {"the first of several pictures in the file, turned upright": 4}
    assert said["counts"]["train"] == 8
    assert np.array_equal(bench.array("train")[0].transpose(1, 2, 0), plain[0][:96])
    assert np.array_equal(bench.array("train")[7].transpose(1, 2, 0), plain[3][96:])


def test_colours_of_datasets_go_through_the_profile(bench: Bench) -> None:
    """As those of upscales do: red and green in each other's place come back in their own."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = bytearray(profile)
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    swapped[red : red + 4], swapped[green : green + 4] = b"gXYZ", b"rXYZ"
    space = bytes(swapped).replace("sRGB built-in".encode("utf-16-be"), "Swapped space".encode("utf-16-be"))
    images = [Image.new("RGB", (6, 5), (255, 0, number)) for number in range(12)]
    said = bench(packed((f"{n:02}.png", saved(one, "PNG", icc_profile=space)) for n, one in enumerate(images)))
    assert said["conversions"] == {"Swapped space to sRGB": 12}
    assert bench.all()[:, 1].min() > 200
    assert bench.all()[:, 0].max() < 50


def test_hostile_pictures_in_a_zip_are_named(bench: Bench) -> None:
    """Those of countless parts, before they are decoded."""
    plain = saved(Image.fromarray(pictures(1)[0]), "JPEG")
    bomb = plain[:2] + b"\xff\xe1\0\x10" + (bytes(14) + b"\xff\xe1\0\x10") * 400_000 + bytes(14) + plain[2:]
    bench.refused(packed([*zipped(), ("bomb.jpg", bomb)]), "'bomb.jpg'", "segments")


def test_splits_that_cannot_be_are_refused(bench: Bench) -> None:
    """Pictures that are all the same, folders for some only, too few photographs."""
    bench.refused(idx(np.ones((20, 4, 4), np.uint8)), "1 different pictures", "too few", "train")
    some = [("train/a.png", png(pictures(1)[0]))]
    bench.refused(packed([*zipped(), *some]), "'digits/000.png' in none")
    bench.refused(packed([("test/" + str(name), data) for name, data in zipped()]), "folder train")
    photograph = [(f"{seed}.png", png(pictures(1, 96, 96, seed)[0])) for seed in range(3)]
    bench.refused(packed(photograph[:2]), "2 photographs are too few", kind="photographs")
    bench.refused(packed([*photograph, ("small.png", png(pictures(1, 95, 96)[0]))]), "'small.png'", kind="photographs")
    assert bench(packed(photograph), kind="photographs")["counts"] == {"train": 1, "validation": 1, "test": 1}


@pytest.mark.parametrize(
    ("file", "wish", "field"),
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
def test_wishes_that_do_not_fit_are_refused(bench: Bench, file: bytes, wish: dict[str, Any], field: str) -> None:
    """At the field that says them."""
    assert bench.refused(file, **wish).field == field


# --- the process ---


def _process(folder: Path, file: bytes, **wish: Any) -> dict[str, Any]:
    """What the child process says of an upload."""
    folder.mkdir()
    (folder / "file").write_bytes(file)
    command = [sys.executable, "-m", "core.datasets.convert", str(folder), json.dumps(asdict(Wish(**wish)))]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_the_process_says_what_it_made_or_what_is_wrong(tmp_path: Path) -> None:
    """As JSON; a full disk is 507 and leaves nothing that looks whole."""
    assert _process(tmp_path / "a", DIGITS.read_bytes(), resize=None)["counts"]["train"] == 1600
    assert not (tmp_path / "a" / "file").exists()
    assert not (tmp_path / "a" / "stage").exists()
    said = _process(tmp_path / "b", b"nonsense")["problem"]
    assert (said["status"], said["field"]) == (422, "file")
    assert _process(tmp_path / "c", DIGITS.read_bytes(), reserve_bytes=1 << 60)["problem"]["status"] == 507
    assert not (tmp_path / "c" / "made").exists()


def test_a_disk_that_fills_while_it_writes_is_507(tmp_path: Path) -> None:
    """Even when there seemed to be room: the process may write files of at most 1 MB here."""
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "file").write_bytes(DIGITS.read_bytes())
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "from core.datasets.convert import main; main()"
    )
    command = [sys.executable, "-c", program, str(folder), json.dumps(asdict(Wish()))]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert json.loads(done.stdout)["problem"]["status"] == 507


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A gzipped array of 200 MB, and one whose rows lie scattered, are converted in a fraction of that."""
    some = np.zeros((200, 1000, 1000), np.uint8)
    some[:, 0, 0] = np.arange(200)
    program = (
        "import sys; from pathlib import Path; from core.datasets.convert import main; main()\n"
        "said = Path('/proc/self/status').read_text().partition('VmHWM:')[2]; print(said.split()[0], file=sys.stderr)"
    )
    for name, file in (("idx", gzip.compress(idx(some), 1)), ("npz", npz(np.asfortranarray(some[:60])))):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "file").write_bytes(file)
        command = [sys.executable, "-c", program, str(folder), json.dumps(asdict(Wish()))]
        done = subprocess.run(command, capture_output=True, timeout=100, check=True)
        assert sum(json.loads(done.stdout)["counts"].values()) in {60, 200}
        assert int(done.stderr) < 130_000, name  # kB, a third of them Python, NumPy and Pillow
