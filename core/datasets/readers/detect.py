"""Detect the format of an upload from its first bytes, and open it."""

import gzip
import tarfile
from pathlib import Path

from core.datasets.readers import base
from core.datasets.readers.base import ConversionOptions, Source, UploadRejectedError
from core.datasets.readers.idx import GZIP_MAGIC, open_idx
from core.datasets.readers.npz import open_npz
from core.datasets.readers.zip_archive import check_member, is_folder, is_hidden, open_zip
from core.datasets.readers.zip_images import open_zip_images

_ACCEPTED = "send IDX (gzipped or not), NPZ, or a ZIP of pictures"
_ZIP_MAGICS = {b"PK\3\4", b"PK\5\6"}
_NUMPY_MAGIC = b"\x93NUMPY"
_OTHER_ARCHIVES = {
    b"BZh": "file packed by bzip2",
    b"\xfd7zXZ\0": "file packed by xz",
    b"\x28\xb5\x2f\xfd": "file packed by zstd",
    b"7z\xbc\xaf\x27\x1c": "7z archive",
    b"Rar!\x1a\7": "RAR archive",
}


def open_upload(folder: Path, options: ConversionOptions) -> Source:
    """Open FOLDER/file, and FOLDER/labels if it exists; check their headers.

    Images are read later, from the returned source. Raises UploadRejectedError if the format is
    unknown or not the one in `options`, or if a header is not valid.
    """
    path = folder / "file"
    with path.open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
    if not head:
        raise UploadRejectedError(f"the file is empty; {_ACCEPTED}")
    _reject_other_archives(path, head)
    if head[:4] in _ZIP_MAGICS:
        return _open_zip(folder, options)
    if head[:2] not in {GZIP_MAGIC, b"\0\0"}:
        hint = "; numpy.savez writes the NPZ of an array" if head.startswith(_NUMPY_MAGIC) else ""
        detail = f"the file begins with {head[:4].hex()}, which is neither IDX nor ZIP; {_ACCEPTED}{hint}"
        raise UploadRejectedError(detail)
    if options.format not in {"", "idx"}:
        raise UploadRejectedError(f"format is {options.format}, but the file begins as IDX does", "format")
    _reject_image_options(options, "IDX")
    return open_idx(folder, options)


def _open_zip(folder: Path, options: ConversionOptions) -> Source:
    """Open the ZIP FOLDER/file: as NPZ if it has only arrays, otherwise as images."""
    with open_zip(folder / "file") as archive:
        members = [info for info in archive.infolist() if not is_folder(info)]
        total = sum(info.file_size for info in members)
        if total > options.unpacked_bytes:
            raise base.unpacked_size_error(f"its members ({len(members)}) are {total} bytes", options)
        for info in members:
            check_member(info)
        visible = [info for info in members if not is_hidden(info)]
        hidden = len(members) - len(visible)
        arrays = bool(visible) and all(info.filename.endswith(".npy") for info in visible)
    if options.format not in {"", "npz" if arrays else "zip"}:
        content = "holds arrays (.npy): it is NPZ" if arrays else "is a ZIP, and not only of arrays (.npy)"
        raise UploadRejectedError(f"format is {options.format}, but the file {content}", "format")
    if not arrays:
        return open_zip_images(folder, visible, hidden, options)
    _reject_image_options(options, "NPZ")
    return open_npz(folder, visible, hidden, options)


def _reject_image_options(options: ConversionOptions, found: str) -> None:
    """Raise UploadRejectedError for options that are only valid for a ZIP of images.

    `found` is the name of the detected format in the message.
    """
    if options.resize:
        raise UploadRejectedError(f"resize is for a ZIP of pictures; this is {found}", "resize")
    if options.kind:
        raise UploadRejectedError(f"kind is for a ZIP of photographs; this is {found}", "kind")


def _reject_other_archives(path: Path, head: bytes) -> None:
    """Raise UploadRejectedError for an archive of a format that is not read, such as tar or 7z.

    `head` is the start of the file. The message names the format.
    """
    packed = ""
    if head[:2] == GZIP_MAGIC:
        packed = "gzipped "
        try:
            with gzip.open(path, "rb") as file:
                head = file.read(tarfile.BLOCKSIZE)
        except base.READ_ERRORS:
            return  # the IDX reader reports the damage
        if head[:4] in _ZIP_MAGICS:
            detail = "the file is a gzipped ZIP or NPZ; send the ZIP or NPZ itself, which is packed already"
            raise UploadRejectedError(detail)
        if head.startswith(_NUMPY_MAGIC):
            detail = "the file is a gzipped array of NumPy; send an NPZ, which numpy.savez_compressed writes"
            raise UploadRejectedError(detail)
    name = next((name for magic, name in _OTHER_ARCHIVES.items() if head.startswith(magic)), "")
    if _is_tar(head):
        name = "tar archive"
    if name:
        raise UploadRejectedError(f"the file is a {packed}{name}, which is not read here; unpack it, and {_ACCEPTED}")


def _is_tar(head: bytes) -> bool:
    """Return whether a file begins with a tar header, by the header's checksum."""
    if len(head) < tarfile.BLOCKSIZE or not head[0]:
        return False
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True
