"""Open ZIP archives from untrusted clients.

The central directory is compared with the file before a member is read.
"""

import os
import re
import stat
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from core.datasets.readers.base import READ_ERRORS, UploadRejectedError

MAX_MEMBERS = 1_000_000
MAX_DIRECTORY_BYTES = 256 << 20
_END_RECORD = struct.Struct("<4s4H2IH")
_ZIP64_LOCATOR_BYTES = 20
_ZIP64_END_RECORD = struct.Struct("<4sQ2H2I4Q")
_ENTRY_BYTES, _LOCAL_HEADER_BYTES = 46, 30
_MAX_COMMENT_BYTES = 65_535
_MAX_ENTRY_BYTES = _ENTRY_BYTES + 3 * 65_535  # name, extra field and comment
# Files and folders that systems and tools create, in lower case. Names that begin with a dot are
# hidden, too.
_HIDDEN_NAMES = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "__pycache__", "@eadir", "@__thumb"),
    *("@recycle", "#recycle", "#snapshot", "$recycle.bin", "recycler", "system volume information", "lost+found"),
}


def path_of(info: zipfile.ZipInfo) -> tuple[str, ...]:
    r"""Return the folders and the name of a member, as a tuple.

    `\` is a separator, too, as .NET writes it.
    """
    return tuple(step for step in info.filename.replace("\\", "/").split("/") if step not in {"", "."})


def is_folder(info: zipfile.ZipInfo) -> bool:
    """Return whether a member of a ZIP is a folder, by its name."""
    return info.filename.endswith(("/", "\\"))


def is_hidden(info: zipfile.ZipInfo) -> bool:
    """Return whether a member is hidden, or in a hidden, cache or trash folder."""
    return any(step.startswith(".") or step.casefold() in _HIDDEN_NAMES for step in path_of(info))


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a ZIP file after a check that its central directory agrees with its content.

    Raises UploadRejectedError if it does not, if members overlap, or if there are too many.
    """
    start = _check_directory(path)
    try:
        archive = zipfile.ZipFile(path)
    except (*READ_ERRORS, ValueError, LookupError) as error:
        raise _damage_error(str(error)[:120]) from error
    try:
        _check_overlaps(archive.infolist(), start)
    except BaseException:
        archive.close()
        raise
    return archive


def check_member(info: zipfile.ZipInfo) -> None:
    """Raise UploadRejectedError for a member that must not be read.

    These are links, encrypted members, unknown compression, and names outside the ZIP's folder.
    """
    name = info.orig_filename
    steps = name.replace("\\", "/").split("/")
    if ".." in steps or steps[0] == "" or re.match(r"[A-Za-z]:", name) or "\0" in name:
        raise member_error(info, "its name leads out of the ZIP's folder; pack with relative names")
    if is_hidden(info):  # never read
        return
    if stat.S_ISLNK(info.external_attr >> 16):
        raise member_error(info, "it is a symbolic link; pack the files themselves")
    if info.flag_bits & 1:
        raise member_error(info, "it is encrypted; pack without a password")
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise member_error(info, "its compression is not read here; pack with deflate or none")


def member_error(info: zipfile.ZipInfo, detail: str) -> UploadRejectedError:
    """Return an error whose message is the name of a member, then `detail`."""
    return UploadRejectedError(f"{info.orig_filename[:200]!r}: {detail}")


def _damage_error(reason: str) -> UploadRejectedError:
    return UploadRejectedError(f"the ZIP is damaged: {reason}; pack and send it anew")


def _check_directory(path: Path) -> int:
    """Compare the central directory with the end record; return the directory's offset in bytes.

    The size is compared with the limits before the directory is read. Raises UploadRejectedError if
    the two disagree or a limit is exceeded.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        base = max(0, size - _MAX_COMMENT_BYTES - _END_RECORD.size - _ZIP64_LOCATOR_BYTES - _ZIP64_END_RECORD.size)
        file.seek(base)
        tail = file.read()
        position = tail.rfind(b"PK\5\6")
        if position < 0 or len(tail) < position + _END_RECORD.size:
            detail = "the ZIP is truncated or damaged: it has no list of members at its end; send it whole"
            raise UploadRejectedError(detail)
        count, length, end = _read_end_record(tail, position)
        start = base + end - length
        if start < 0 or not count * _ENTRY_BYTES <= length <= count * _MAX_ENTRY_BYTES:
            raise _damage_error(f"it says {count} members, in a list of {length} bytes, which do not fit into it")
        if count > MAX_MEMBERS or length > MAX_DIRECTORY_BYTES:
            detail = f"the ZIP has {count} members, more than {MAX_MEMBERS}; send so many pictures as NPZ or IDX"
            raise UploadRejectedError(detail, status=413)
        file.seek(start)
        _check_entries(file, count, length)
    return start


def _read_end_record(tail: bytes, position: int) -> tuple[int, int, int]:
    """Parse the end record at the offset `position` of the file's last bytes, `tail`.

    Returns the number of members, the size of the central directory in bytes, and the offset of its
    end in `tail`. Raises UploadRejectedError if the ZIP has several parts, or if a ZIP64 record
    contradicts the end record. Numbers that are too large for the end record are in the ZIP64
    record only.
    """
    _, disk, first_disk, on_disk, count, length, offset, _ = _END_RECORD.unpack_from(tail, position)
    if any(0 < number < 0xFFFF for number in (disk, first_disk)) or on_disk != count:
        raise UploadRejectedError("the ZIP is one part of several; pack it as one file")
    locator = position - _ZIP64_LOCATOR_BYTES
    if locator < 0 or tail[locator : locator + 4] != b"PK\6\7":
        return count, length, position
    zip64 = locator - _ZIP64_END_RECORD.size
    if zip64 < 0 or tail[zip64 : zip64 + 4] != b"PK\6\6":
        raise _damage_error("its ZIP64 record is not where it says")
    zip64_on_disk, zip64_count, zip64_length, zip64_offset = _ZIP64_END_RECORD.unpack_from(tail, zip64)[6:]
    pairs = ((count, zip64_count, 0xFFFF), (length, zip64_length, 0xFFFFFFFF), (offset, zip64_offset, 0xFFFFFFFF))
    if zip64_on_disk != zip64_count or any(short not in {long, overflow} for short, long, overflow in pairs):
        raise _damage_error(
            f"its ZIP64 record ({zip64_count} members in {zip64_length} bytes) contradicts its end record "
            f"({count} in {length})"
        )
    return zip64_count, zip64_length, zip64


def _check_entries(file: IO[bytes], count: int, length: int) -> None:
    """Raise UploadRejectedError unless the central directory has exactly `count` entries.

    The directory has `length` bytes, and `file` is at its start.
    """
    directory = file.read(length)
    position = 0
    for _ in range(count):
        if directory[position : position + 4] != b"PK\1\2" or position + _ENTRY_BYTES > length:
            raise _damage_error(f"its list of members ends before the {count} that it should have")
        name, extra, comment = struct.unpack_from("<3H", directory, position + 28)
        position += _ENTRY_BYTES + name + extra + comment
    if position != length:
        raise _damage_error(f"its list of members does not end after the {count} that it should have")


def _check_overlaps(members: Sequence[zipfile.ZipInfo], start: int) -> None:
    """Raise UploadRejectedError for members that overlap each other or the central directory.

    The directory begins at the offset `start`.
    """
    end = 0
    for info in sorted(members, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise member_error(info, "it overlaps another member; pack the ZIP anew")
        end = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size
        if end > start:
            raise member_error(info, "it overlaps the list of members; pack the ZIP anew")
