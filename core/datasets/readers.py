"""What an upload holds: IDX, NPZ or a ZIP of pictures, checked by headers first and read a piece at a time.

Every fault is a RefusedError that names the array or the member and says what would work. Nothing is unpacked to disk
under its own name, no pickled object is loaded, and no size is believed before it was compared with a limit.
"""

import errno
import gzip
import json
import math
import os
import shutil
import struct
import tarfile
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

from core.datasets.split_names import arrays_by_split, splits_of_paths
from core.datasets.upload_errors import UploadRejectedError
from core.datasets.zip_files import DAMAGE, check_member, is_folder, is_hidden, member_error, open_zip, path_of
from core.imaging.decode import open_picture
from core.imaging.pictures import Pixels, UnusableImageError, decode

__all__ = [
    "CHUNK_BYTES",
    "FULL",
    "MAX_VALUES",
    "SPLITS",
    "Source",
    "SourceChunk",
    "UploadRejectedError",
    "Wish",
    "bomb",
    "exactly",
    "opened",
    "room",
    "size_text",
]

SPLITS = ("train", "validation", "test")
PATCH = 96
"""Edge of the patches that photographs are cut into, in pixels."""

CHUNK_BYTES = 4 << 20
MAX_MEMBER_BYTES = 256 << 20
MAX_VALUES = 4 << 20
"""Of one picture: its channels times its pixels."""

MAX_PIXELS = 64_000_000
"""Of one picture in a ZIP, before it is resized or cut."""

MIN_PHOTOGRAPHS = 3
TOLD = 5
"""Names told of many."""

_MOST_CONVERSIONS = 20
"""Kinds of conversions that are counted each for itself."""

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What a full disk says."""

_GREY = {"1", "L", "LA", "La"}
_WHOLE = "whole numbers must be 0 … 255"
_WELCOME = "send IDX (gzipped or not), NPZ, or a ZIP of pictures"
_ARCHIVES = {
    b"BZh": "file packed by bzip2",
    b"\xfd7zXZ\0": "file packed by xz",
    b"\x28\xb5\x2f\xfd": "file packed by zstd",
    b"7z\xbc\xaf\x27\x1c": "7z archive",
    b"Rar!\x1a\7": "RAR archive",
}


@dataclass(frozen=True)
class Wish:
    """What a client asked for beside its file."""

    format: str = ""
    kind: str = ""
    resize: tuple[int, int] | None = None
    validation: float = 0.1
    test: float = 0.1
    unpacked_bytes: int = 16 << 30
    reserve_bytes: int = 0

    @classmethod
    def from_json(cls, text: str) -> "Wish":
        """The wish that `asdict` was made of."""
        values = json.loads(text)
        return cls(**{**values, "resize": tuple(values["resize"]) if values["resize"] else None})


@dataclass(frozen=True)
class SourceChunk:
    """Pictures that come one after the other: of one split, or of none where the upload has none.

    `scaled` says that levels are final; others are 0 … 1 or 0 … 255, as the highest of them tells. A chunk that is
    `whole` is never parted by a split: the patches of one photograph.
    """

    split: str | None
    count: int
    chunks: Callable[[], Iterator[Pixels]]
    scaled: bool = False
    whole: bool = False
    labels: np.ndarray | None = None


@dataclass(frozen=True)
class Source:
    """What an upload was found to hold."""

    format: str
    kind: str
    shape: tuple[int, int, int]
    pieces: Sequence[SourceChunk]
    said: Mapping[str, Any] = field(default_factory=dict)
    conversions: Counter[str] = field(default_factory=Counter)
    """What was converted in how many pictures, counted while they are read."""


# --- reading ---


def opened(folder: Path, wish: Wish) -> Source:
    """What FOLDER/file and FOLDER/labels hold, by their headers. Raises RefusedError."""
    path = folder / "file"
    with path.open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
    if not head:
        raise UploadRejectedError(f"the file is empty; {_WELCOME}")
    _refuse_archives(path, head)
    found = {b"PK\3\4": "zip", b"PK\5\6": "zip"}.get(head[:4], "idx" if head[:2] in {b"\x1f\x8b", b"\0\0"} else "")
    if not found:
        numpy = "; numpy.savez writes the NPZ of an array" if head.startswith(b"\x93NUMPY") else ""
        raise UploadRejectedError(
            f"the file begins with {head[:4].hex()}, which is neither IDX nor ZIP; {_WELCOME}{numpy}"
        )
    if found == "zip":
        return _from_zip(folder, wish)
    if wish.format not in {"", "idx"}:
        raise UploadRejectedError(f"format is {wish.format}, but the file begins as IDX does", "format")
    _pictures_only(wish, "idx")
    return _from_idx(folder, wish)


def _refuse_archives(path: Path, head: bytes) -> None:
    """Refuse what packs files in a form that is not read here, and name it."""
    packed = ""
    if head[:2] == b"\x1f\x8b":
        packed = "gzipped "
        try:
            with gzip.open(path, "rb") as file:
                head = file.read(tarfile.BLOCKSIZE)
        except DAMAGE:
            return  # damage is told where the file is read
        if head[:4] in {b"PK\3\4", b"PK\5\6"}:
            raise UploadRejectedError(
                "the file is a gzipped ZIP or NPZ; send the ZIP or NPZ itself, which is packed already"
            )
        if head.startswith(b"\x93NUMPY"):
            raise UploadRejectedError(
                "the file is a gzipped array of NumPy; send an NPZ, which numpy.savez_compressed writes"
            )
    name = next((name for magic, name in _ARCHIVES.items() if head.startswith(magic)), "")
    if _is_tar(head):
        name = "tar archive"
    if name:
        raise UploadRejectedError(f"the file is a {packed}{name}, which is not read here; unpack it, and {_WELCOME}")


def _is_tar(head: bytes) -> bool:
    """Whether a file begins with the header of a member of a tar archive, of any age, by its checksum."""
    if len(head) < tarfile.BLOCKSIZE or not head[0]:
        return False
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _pictures_only(wish: Wish, found: str) -> None:
    """Refuse what is for a ZIP of pictures alone."""
    if wish.resize:
        raise UploadRejectedError(f"resize is for a ZIP of pictures; this is {found.upper()}", "resize")
    if wish.kind:
        raise UploadRejectedError(f"kind is for a ZIP of photographs; this is {found.upper()}", "kind")


def _from_idx(folder: Path, wish: Wish) -> Source:
    path = folder / "file"
    shape, dtype, _ = _idx_head(path, "file")
    if len(shape) == 1:
        raise UploadRejectedError(
            "the file holds one number each (labels, as it seems); send the pictures as `file` and these as `labels`"
        )
    _check_array(shape, dtype, "the file", wish)
    labels = _labels(folder, shape[0])

    def chunks() -> Iterator[Pixels]:
        with _unpacked(path) as file:
            yield from _levels(file, shape, dtype, "the file", 4 + 4 * len(shape))
            if file.read(1):
                raise UploadRejectedError(
                    "the file is too long: it goes on after what its header promises; save it anew"
                )

    piece = SourceChunk(None, shape[0], _careful(chunks, "the file"), scaled=dtype.kind == "f", labels=labels)
    return Source("idx", _kind(shape), _image(shape), [piece])


def _idx_head(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape and type of an IDX file, and where its data begin."""
    try:
        with _unpacked(path) as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in IDX_TYPES or not magic[3]:
                raise UploadRejectedError(f"the {name} is not IDX: it begins with {magic.hex() or 'nothing'}", name)
            sizes = file.read(4 * magic[3])
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(f"the {name}", error, name) from error
    if len(sizes) < 4 * magic[3]:
        raise UploadRejectedError(f"the {name} is truncated within its header; send it whole", name)
    shape = struct.unpack(f">{magic[3]}I", sizes)
    if 0 in shape:
        raise UploadRejectedError(f"the {name} is empty: its header says {'×'.join(map(str, shape))}", name)
    return shape, np.dtype(IDX_TYPES[magic[2]]), 4 + len(sizes)


def _unpacked(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]


def _labels(folder: Path, count: int) -> np.ndarray | None:
    """The labels sent beside the pictures, one whole number each; None where there are none."""
    path = folder / "labels"
    if not path.exists():
        return None
    if not path.stat().st_size:
        raise UploadRejectedError(
            "the labels are empty; send an IDX file, one number a picture, or leave them out", "labels"
        )
    shape, dtype, start = _idx_head(path, "labels")
    if len(shape) != 1 or dtype.kind not in "iu":
        raise UploadRejectedError("labels are an IDX file of one whole number a picture", "labels")
    if shape[0] != count:
        raise UploadRejectedError(
            f"{shape[0]} labels for {count} pictures; send one a picture, in their order", "labels"
        )
    try:
        with _unpacked(path) as file:
            payload = file.read(start + count * dtype.itemsize + 1)[start:]
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged("the labels", error, "labels") from error
    if len(payload) != count * dtype.itemsize:
        kind = "truncated" if len(payload) < count * dtype.itemsize else "too long"
        raise UploadRejectedError(f"the labels are {kind}: their header promises {count} of them", "labels")
    return np.frombuffer(payload, dtype).astype(np.int64)


def _careful(chunks: Callable[[], Iterator[Pixels]], name: str) -> Callable[[], Iterator[Pixels]]:
    """The same chunks, with damage to the file told as such; a full disk stays what it is."""

    def careful() -> Iterator[Pixels]:
        each = chunks()
        while True:
            try:
                chunk = next(each, None)
            except DAMAGE as error:
                if isinstance(error, OSError) and error.errno in FULL:
                    raise
                raise _damaged(name, error) from error
            if chunk is None:
                return
            yield chunk

    return careful


def _damaged(name: str, error: Exception, field: str = "file") -> UploadRejectedError:
    what = "truncated" if isinstance(error, EOFError) else "damaged"
    return UploadRejectedError(f"{name} is {what} ({str(error)[:120]}); save and send it anew", field)


# --- arrays ---


def _check_array(shape: tuple[int, ...], dtype: np.dtype[Any], name: str, wish: Wish) -> None:
    """Refuse an array by its header alone."""
    if dtype.kind not in "biuf":
        raise UploadRejectedError(f"{name} holds {dtype}; pictures are whole numbers 0 … 255, floats 0 … 1 or booleans")
    if len(shape) not in {2, 3, 4} or min(shape) < 1:
        raise UploadRejectedError(
            f"{name} has shape {_shape(shape)}; pictures are (N, H, W), (N, H, W, C), (N, C, H, W), vectors (N, D)"
        )
    if len(shape) == 4 and _image(shape)[0] not in {1, 3}:
        raise UploadRejectedError(f"{name} has shape {_shape(shape)}; one or three channels, first or last, would work")
    total = math.prod(shape) * dtype.itemsize
    if total > wish.unpacked_bytes:
        raise bomb(f"{name} promises {total} bytes", wish)


def _image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width of the pictures in an array of this shape."""
    if len(shape) == 2:
        return 1, 1, shape[1]
    if len(shape) == 3:
        return 1, shape[1], shape[2]
    return (shape[3], shape[1], shape[2]) if _channels_last(shape) else (shape[1], shape[2], shape[3])


def _channels_last(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[3] in {1, 3} and shape[1] > 4


def _kind(shape: tuple[int, ...]) -> str:
    return "vectors" if len(shape) == 2 else "pictures"


def _levels(
    file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], name: str, skip: int = 0
) -> Iterator[Pixels]:
    """The array that follows `skip` bytes, as uint8 (n, C, H, W), a chunk at a time. Raises RefusedError."""
    file.read(skip)
    row = math.prod(shape[1:]) * dtype.itemsize
    step = max(1, CHUNK_BYTES // row)
    for first in range(0, shape[0], step):
        count = min(step, shape[0] - first)
        payload = exactly(file, count * row)
        if len(payload) < count * row:
            total, reached = math.prod(shape) * dtype.itemsize, first * row + len(payload)
            raise UploadRejectedError(f"{name} is truncated: {reached} bytes of data where its header promises {total}")
        array = np.frombuffer(payload, dtype).reshape(count, *shape[1:])
        yield _uint8(array, shape, name, first)


def exactly(file: IO[bytes], size: int) -> bytes:
    """So many bytes, or fewer at the end of the file."""
    pieces = []
    while size:
        piece = file.read(size)
        if not piece:
            break
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _uint8(array: np.ndarray, shape: tuple[int, ...], name: str, first: int) -> Pixels:
    """Levels as they are, floats 0 … 1 as 0 … 255; RefusedError names the picture that is out of range."""
    real = array.dtype.kind == "f"
    highest, allowed = (1, "floats must be 0 … 1 (or send levels as whole numbers)") if real else (255, _WHOLE)
    good = (array >= 0) & (array <= highest)  # false for what is not a number, too
    if not good.all():
        place = np.unravel_index(np.argmin(good), good.shape)
        raise UploadRejectedError(f"{name} holds {array[place]} in picture {first + int(place[0])}; {allowed}")
    if real:
        array = np.rint(array * 255)
    images = array.astype(np.uint8)
    if _channels_last(shape):
        images = images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images).reshape(len(images), *_image(shape))


def _shape(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def room(folder: Path, size_bytes: int, wish: Wish) -> None:
    """Raise OSError where the disk has no room for so many bytes beside those that uploads leave alone."""
    if shutil.disk_usage(folder).free < size_bytes + wish.reserve_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def size_text(shape: tuple[int, int, int]) -> str:
    """A picture's size in words."""
    channels, height, width = shape
    return f"{channels} channel{'s' * (channels > 1)} of {height}×{width}"


def bomb(what: str, wish: Wish) -> UploadRejectedError:
    """The refusal of what would become too large."""
    return UploadRejectedError(
        f"{what} unpacked, more than the {wish.unpacked_bytes} that a dataset may have", status=413
    )


# --- ZIP and NPZ ---


def _from_zip(folder: Path, wish: Wish) -> Source:
    with open_zip(folder / "file") as archive:
        members = [info for info in archive.infolist() if not is_folder(info)]
        total = sum(info.file_size for info in members)
        if total > wish.unpacked_bytes:
            raise bomb(f"its members ({len(members)}) are {total} bytes", wish)
        for info in members:
            check_member(info)
        hidden = [info for info in members if is_hidden(info)]
        members = [info for info in members if not is_hidden(info)] if hidden else members
        arrays = bool(members) and all(info.filename.endswith(".npy") for info in members)
    if wish.format not in {"", "npz" if arrays else "zip"}:
        said = "holds arrays (.npy): it is NPZ" if arrays else "is a ZIP, and not only of arrays (.npy)"
        raise UploadRejectedError(f"format is {wish.format}, but the file {said}", "format")
    if not arrays:
        return _from_pictures(folder, members, len(hidden), wish)
    _pictures_only(wish, "npz")
    return _from_npz(folder, members, len(hidden), wish)


def _from_npz(folder: Path, members: Sequence[zipfile.ZipInfo], hidden: int, wish: Wish) -> Source:
    names = [info.filename.removesuffix(".npy") for info in members]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise UploadRejectedError(f"the NPZ has more than one array {twice[0][:60]!r}; save it anew")
    found = dict(zip(names, members, strict=True))
    chosen, labelled = arrays_by_split(names)
    if not chosen and len(found) == 1:
        chosen = {None: names[0]}
    wanted = "train (with validation and test, or without), or images"
    if not chosen:
        raise UploadRejectedError(
            f"the NPZ has no array of pictures; name it {wanted}. It has {', '.join(names)[:200]}"
        )
    if None in chosen and len(chosen) > 1:
        raise UploadRejectedError(f"the NPZ has both {chosen[None]!r} and splits; name its arrays {wanted}")
    if None not in chosen and "train" not in chosen:
        raise UploadRejectedError(f"the NPZ has no training pictures; name its arrays {wanted}")
    if (folder / "labels").exists():
        raise UploadRejectedError("labels of an NPZ are its arrays labels, or train_labels, test_labels, …", "labels")
    if labelled and set(labelled) != set(chosen):
        have, need = (", ".join(sorted(names.values())) for names in (labelled, chosen))
        raise UploadRejectedError(
            f"labels for some pictures only: there are {have} beside {need}; send all or none", "labels"
        )
    heads = {split: _npy_head(folder, found[name], wish) for split, name in chosen.items()}
    shapes = {_image(shape): name for (shape, _, _), name in zip(heads.values(), chosen.values(), strict=True)}
    if len(shapes) > 1:
        sizes = "; ".join(f"{name}: {size_text(image)}" for image, name in shapes.items())
        raise UploadRejectedError(f"the arrays' pictures differ in size: {sizes}; one size, please")
    pieces = [
        SourceChunk(
            split,
            head[0][0],
            _careful(_npy_chunks(folder, found[chosen[split]], wish, *head), chosen[split]),
            scaled=head[1].kind == "f",
            labels=_npy_labels(folder, found[labelled[split]], head[0][0]) if labelled else None,
        )
        for split, head in heads.items()
    ]
    ignored = sorted(set(names) - {*chosen.values(), *labelled.values()})
    shape = next(iter(heads.values()))[0]
    return Source("npz", _kind(shape), _image(shape), pieces, {**_ignored(ignored), **_hidden(hidden)})


def _ignored(names: Sequence[str]) -> dict[str, Any]:
    return {"ignored": {"count": len(names), "names": [name[:200] for name in names[:TOLD]]}} if names else {}


def _hidden(count: int) -> dict[str, Any]:
    return {"hidden": count} if count else {}


def _npy_head(folder: Path, info: zipfile.ZipInfo, wish: Wish) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Shape, type and whether it is in Fortran order; pickled objects are refused, never loaded."""
    with _member_file(folder, info) as file:
        shape, dtype, fortran = _npy_header(file, info)
    _check_array(shape, dtype, info.filename, wish)
    return shape, dtype, fortran


def _npy_header(file: IO[bytes], info: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(file)
        shape, fortran, dtype = read[version](file)
    except DAMAGE as error:
        raise _damaged(info.filename, error) from error
    except (ValueError, LookupError, SyntaxError, TypeError, tokenize.TokenError) as error:
        raise member_error(info, f"it is no array of NumPy ({str(error)[:120]}); save it with numpy.savez") from error
    if dtype.hasobject:
        raise member_error(info, "it holds pickled objects, which are never loaded; save plain numbers, as uint8")
    if dtype.fields is not None or dtype.subdtype is not None:
        raise member_error(info, f"it holds records ({dtype}); save plain numbers, as uint8")
    return shape, dtype, fortran


@contextmanager
def _member_file(folder: Path, info: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
    """A member of FOLDER/file, to be read a piece at a time."""
    with zipfile.ZipFile(folder / "file") as archive:
        try:
            file = archive.open(info)
        except DAMAGE as error:
            raise _damaged(info.filename, error) from error
        with file:
            yield file


def _npy_chunks(
    folder: Path, info: zipfile.ZipInfo, wish: Wish, shape: tuple[int, ...], dtype: np.dtype[Any], fortran: bool
) -> Callable[[], Iterator[Pixels]]:
    def chunks() -> Iterator[Pixels]:
        with _member_file(folder, info) as file:
            _npy_header(file, info)
            if fortran and len(shape) > 1:
                yield from _transposed(folder / "columns", file, shape, dtype, info.filename, wish)
            else:
                yield from _levels(file, shape, dtype, info.filename)
            if file.read(1):  # and at the end the checksum is looked at
                raise member_error(info, "it goes on after its array; save it anew")

    return chunks


def _transposed(
    scratch: Path, file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], name: str, wish: Wish
) -> Iterator[Pixels]:
    """An array in Fortran order by its rows: laid on the disk first, for its rows lie scattered."""
    total = math.prod(shape) * dtype.itemsize
    room(scratch.parent, total, wish)
    with scratch.open("wb") as spread:
        while spread.tell() < total:
            payload = exactly(file, min(CHUNK_BYTES, total - spread.tell()))
            if not payload:
                raise UploadRejectedError(
                    f"{name} is truncated: {spread.tell()} bytes where its header promises {total}"
                )
            spread.write(payload)
    array = np.memmap(scratch, dtype, "r", shape=shape, order="F")
    step = max(1, CHUNK_BYTES // (math.prod(shape[1:]) * dtype.itemsize))
    for first in range(0, shape[0], step):
        yield _uint8(np.ascontiguousarray(array[first : first + step]), shape, name, first)
    del array
    scratch.unlink()


def _npy_labels(folder: Path, info: zipfile.ZipInfo, count: int) -> np.ndarray:
    with _member_file(folder, info) as file:
        shape, dtype, _ = _npy_header(file, info)
        if dtype.kind not in "biu" or math.prod(shape) != shape[0]:
            raise UploadRejectedError(
                f"{info.filename} must hold one whole number a picture, not {_shape(shape)}", "labels"
            )
        if shape[0] != count:
            raise UploadRejectedError(f"{info.filename} has {shape[0]} labels for {count} pictures", "labels")
        payload = exactly(file, count * dtype.itemsize)
    if len(payload) < count * dtype.itemsize:
        raise UploadRejectedError(f"{info.filename} is truncated", "labels")
    return np.frombuffer(payload, dtype).astype(np.int64)


# --- pictures ---


@dataclass(frozen=True)
class _Found:
    """A picture in a ZIP, as its header tells."""

    info: zipfile.ZipInfo
    width: int
    height: int
    mode: str


def _from_pictures(folder: Path, members: Sequence[zipfile.ZipInfo], hidden: int, wish: Wish) -> Source:
    files = [info for info in members if info.filename.lower().endswith(ENDINGS)]
    if not files:
        held = ", ".join(info.filename[:60] for info in members[:TOLD]) or "nothing"
        beside = f", and {hidden} files that are hidden or in hidden, cache or bin folders" if hidden else ""
        raise UploadRejectedError(f"the ZIP holds no picture ({', '.join(ENDINGS)}); it holds {held}{beside}")
    ignored = sorted({info.filename for info in members} - {info.filename for info in files})
    files.sort(key=lambda info: info.filename.replace("\\", "/"))
    said: dict[str, Any] = {**_ignored(ignored), **_hidden(hidden)}
    with zipfile.ZipFile(folder / "file") as archive:
        found = [_looked_at(archive, info) for info in files]
    pixels = sum(one.width * one.height for one in found)
    if pixels > wish.unpacked_bytes:
        raise bomb(f"its pictures ({len(found)}) are {pixels} pixels", wish)
    names = Counter(path_of(one.info) for one in found)
    said["duplicate_names"] = sum(times - 1 for times in names.values())
    if wish.kind == "photographs":
        return _photographs(folder, found, wish, said)
    sizes = Counter((one.height, one.width) for one in found)
    if wish.resize is None and len(sizes) > 1:
        raise _mixed(found, sizes)
    channels = 1 if all(one.mode in _GREY for one in found) else 3
    shape = (channels, *(wish.resize or next(iter(sizes))))
    labels = _labels(folder, len(found))
    conversions: Counter[str] = Counter()
    if wish.resize is not None:
        said["resized"] = sum(times for size, times in sizes.items() if size != wish.resize)
    pieces = [
        SourceChunk(
            split,
            len(those),
            _decoded(folder, [found[index] for index in those], shape, conversions),
            scaled=True,
            labels=None if labels is None else labels[those],
        )
        for split, those in _by_folder(found).items()
    ]
    return Source("zip", "pictures", shape, pieces, said, conversions)


def _looked_at(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Found:
    """What a picture's header says, decoding nothing."""
    data = _payload(archive, info)
    try:
        picture = open_picture(data)
        if picture.width * picture.height > MAX_PIXELS:
            raise UploadRejectedError(
                f"{info.filename[:200]!r}: {picture.width}×{picture.height} pixels are more than {MAX_PIXELS}",
                status=413,
            )
        return _Found(info, picture.width, picture.height, picture.mode)
    except UnusableImageError as error:
        raise member_error(info, f"it is no picture that can be used: {error}; or leave it out") from error


def _payload(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member's bytes, at most as many as the ZIP says it has."""
    if info.file_size > MAX_MEMBER_BYTES:
        raise UploadRejectedError(
            f"{info.filename[:200]!r}: {info.file_size} bytes are too many for a picture", status=413
        )
    try:
        with archive.open(info) as file:
            return file.read(info.file_size + 1)  # with a length, for only then the unpacking is bounded too
    except DAMAGE as error:
        raise member_error(info, f"it is damaged ({str(error)[:120]}); pack it anew") from error


def _mixed(found: Sequence[_Found], sizes: Counter[tuple[int, int]]) -> UploadRejectedError:
    first = {(one.height, one.width): one.info.filename[:80] for one in reversed(found)}
    told = [f"{times} of {h}×{w} (as {first[h, w]!r})" for (h, w), times in sizes.most_common(TOLD)]
    more = f" and {len(sizes) - TOLD} more sizes" if len(sizes) > TOLD else ""
    return UploadRejectedError(
        f"the pictures differ in size (height×width): {', '.join(told)}{more}; give resize=HxW to scale each until it "
        f"covers that size and cut it at the centre, or kind=photographs to cut patches of {PATCH}×{PATCH}",
        "resize",
    )


def _by_folder(found: Sequence[_Found]) -> dict[str | None, list[int]]:
    """The places of the pictures by the split whose folder they lie in; RefusedError where only some lie in one."""
    places: dict[str | None, list[int]] = {}
    for index, split in enumerate(splits_of_paths([path_of(one.info)[:-1] for one in found])):
        places.setdefault(split, []).append(index)
    if None in places and len(places) > 1:
        outside = found[places[None][0]].info.filename[:200]
        raise UploadRejectedError(
            f"some pictures lie in folders train, validation or test, but {outside!r} in none of them"
        )
    if None not in places and "train" not in places:
        raise UploadRejectedError("no picture lies in a folder train, though some lie in validation or test")
    return places


def _decoded(
    folder: Path, found: Sequence[_Found], shape: tuple[int, int, int], conversions: Counter[str]
) -> Callable[[], Iterator[Pixels]]:
    step = max(1, CHUNK_BYTES // math.prod(shape))

    def chunks() -> Iterator[Pixels]:
        with zipfile.ZipFile(folder / "file") as archive:
            for first in range(0, len(found), step):
                yield np.stack([_fitted(archive, one, shape, conversions) for one in found[first : first + step]])

    return chunks


def _fitted(archive: zipfile.ZipFile, one: _Found, shape: tuple[int, int, int], conversions: Counter[str]) -> Pixels:
    """A picture in the dataset's size: scaled to cover it and cut at the centre, where it has another."""
    channels, height, width = shape
    try:
        pixels, notes = decode(_payload(archive, one.info), channels, one.height, one.width)
        if notes is not None:
            conversions[notes if notes in conversions or len(conversions) < _MOST_CONVERSIONS else "other"] += 1
    except UnusableImageError as error:
        raise member_error(one.info, str(error)) from error
    if (one.height, one.width) == (height, width):
        return pixels
    image = Image.fromarray(pixels[0] if channels == 1 else pixels.transpose(1, 2, 0))
    array = np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _photographs(folder: Path, found: Sequence[_Found], wish: Wish, said: dict[str, Any]) -> Source:
    if wish.resize is not None:
        raise UploadRejectedError(
            f"resize is for pictures; photographs are cut into patches of {PATCH}×{PATCH}", "resize"
        )
    if (folder / "labels").exists():
        raise UploadRejectedError("labels are for pictures; patches of photographs have none", "labels")
    small = next((one for one in found if min(one.width, one.height) < PATCH), None)
    if small is not None:
        raise member_error(
            small.info, f"{small.height}×{small.width} pixels hold no patch of {PATCH}×{PATCH}; leave it out"
        )
    if len(found) < MIN_PHOTOGRAPHS:
        raise UploadRejectedError(f"{len(found)} photographs are too few to split; send {MIN_PHOTOGRAPHS} or more")
    said["photographs"] = len(found)
    conversions: Counter[str] = Counter()

    def piece(split: str | None, those: Sequence[_Found]) -> SourceChunk:
        def chunks() -> Iterator[Pixels]:
            with zipfile.ZipFile(folder / "file") as archive:
                for one in those:
                    yield _patches(_fitted(archive, one, (3, one.height, one.width), conversions))

        count = sum((one.height // PATCH) * (one.width // PATCH) for one in those)
        return SourceChunk(split, count, chunks, scaled=True, whole=True)

    pieces = [piece(split, [found[index] for index in those]) for split, those in _by_folder(found).items()]
    return Source("zip", "photographs", (3, PATCH, PATCH), pieces, said, conversions)


def _patches(pixels: Pixels) -> Pixels:
    """Patches side by side from the middle of a photograph, (n, 3, PATCH, PATCH), row by row."""
    _, height, width = pixels.shape
    rows, columns = height // PATCH, width // PATCH
    top, left = (height - rows * PATCH) // 2, (width - columns * PATCH) // 2
    cut = pixels[:, top : top + rows * PATCH, left : left + columns * PATCH]
    cut = cut.reshape(3, rows, PATCH, columns, PATCH).transpose(1, 3, 0, 2, 4)
    return np.ascontiguousarray(cut).reshape(rows * columns, 3, PATCH, PATCH)
