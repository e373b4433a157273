"""Files to upload as datasets, valid and not, and a converter for tests."""

import io
import struct
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from core.datasets.convert import convert
from core.datasets.readers.base import ConversionOptions, UploadRejectedError

DIGITS = Path(__file__).parent / "fixtures" / "digits-images-idx3-ubyte.gz"


SPLITS = ("train", "validation", "test")


def idx(array: np.ndarray, kind: int = 0x08) -> bytes:
    """Return an array as an IDX file."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


def npz(*unnamed: np.ndarray, **arrays: np.ndarray) -> bytes:
    """Return arrays as an NPZ file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, *unnamed, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """Return pixels (H, W) or (H, W, 3) as an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def packed(members: Iterable[tuple[str | zipfile.ZipInfo, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a ZIP with these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def pictures(count: int, height: int = 6, width: int = 5, seed: int = 0) -> np.ndarray:
    """Return different grey images."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width), dtype=np.uint8)


def zipped(count: int = 12) -> list[tuple[str | zipfile.ZipInfo, bytes]]:
    """Return the members of a valid ZIP of images."""
    return [(f"digits/{number:03}.png", png(one)) for number, one in enumerate(pictures(count))]


class UploadConverter:
    """Converts uploads in a folder of its own, each in a new subfolder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = 0
        self.made = folder

    def __call__(self, file: bytes, labels: bytes | None = None, **options: Any) -> dict[str, Any]:
        """Convert an upload and return its description."""
        self.runs += 1
        folder = self.folder / str(self.runs)
        folder.mkdir()
        (folder / "file").write_bytes(file)
        if labels is not None:
            (folder / "labels").write_bytes(labels)
        self.made = folder / "made"
        return convert(folder, ConversionOptions(**options))

    def array(self, name: str) -> np.ndarray:
        """Return an array of the last conversion."""
        array: np.ndarray = np.load(self.made / f"{name}.npy")
        return array

    def all(self) -> np.ndarray:
        """Return the images of the last conversion, split after split."""
        return np.concatenate([self.array(name) for name in SPLITS])

    def refused(self, file: bytes, *words: str, labels: bytes | None = None, **options: Any) -> UploadRejectedError:
        """Return the rejection of an upload, whose message must contain these words."""
        with pytest.raises(UploadRejectedError) as caught:
            self(file, labels, **options)
        for word in words:
            assert word in str(caught.value)
        assert len(str(caught.value)) < 1500
        return caught.value


def rows(array: np.ndarray) -> set[bytes]:
    """Return images as a set, to compare them without order."""
    return {one.tobytes() for one in array}


def zip_end(count: int, length: int, offset: int, wide: tuple[int, int, int] | None = None) -> bytes:
    """Return the end of a ZIP: number of members, size and offset of the directory, maybe in
    ZIP64.
    """
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, length, offset, 0)
    if wide is None:
        return end
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, wide[0], *wide)
    return record + struct.pack("<4sIQI", b"PK\6\7", 0, wide[2] + wide[1], 1) + end


def end_of(file: bytes) -> tuple[bytes, int, int, int]:
    """Return a ZIP without its end record, and the record's number, size and offset."""
    place = file.rindex(b"PK\5\6")
    count, length, offset = struct.unpack_from("<HII", file, place + 10)
    return file[:place], count, length, offset


def tar(mode: Literal["w", "w:gz", "w:bz2", "w:xz"], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar archive of an image."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=form) as archive:
        info = tarfile.TarInfo("a.png")
        data = png(pictures(1)[0])
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    """Return EXIF metadata with this orientation."""
    metadata = Image.Exif()
    metadata[0x0112] = orientation
    return metadata
