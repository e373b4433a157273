"""ZIP files of strangers: their lists of members are compared with the file before any of them is believed."""

import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from core.datasets.upload_errors import UploadRejectedError

MAX_MEMBERS = 1_000_000
MAX_DIRECTORY_BYTES = 256 << 20
DAMAGE = (
    OSError,
    EOFError,
    zlib.error,
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    UnicodeError,
    OverflowError,
    struct.error,
)
"""What reading a damaged file may raise."""

_END = struct.Struct("<4s4H2IH")
_LOCATOR_BYTES = 20
_WIDE = struct.Struct("<4sQ2H2I4Q")
_ENTRY_BYTES, _LOCAL_HEADER_BYTES = 46, 30
_LONGEST_COMMENT = 65_535
_LONGEST_ENTRY_BYTES = _ENTRY_BYTES + 3 * 65_535  # name, extra field and comment
_HIDDEN = {
    "__macosx",
    "__pycache__",
    "@eadir",
    "@__thumb",
    "@recycle",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "recycler",
    "system volume information",
    "lost+found",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
}
"""What systems and tools leave beside pictures, in lower case; so are all names that begin with a dot."""


def path_of(info: zipfile.ZipInfo) -> tuple[str, ...]:
    r"""Return the folders and the name of a member; `\` separates them as `/` does, for .NET packs so."""
    return tuple(step for step in info.filename.replace("\\", "/").split("/") if step not in {"", "."})


def is_folder(info: zipfile.ZipInfo) -> bool:
    """Whether a member is a folder."""
    return info.filename.endswith(("/", "\\"))


def is_hidden(info: zipfile.ZipInfo) -> bool:
    """Whether a member is hidden or in a hidden folder, in a cache, or in a bin."""
    return any(step.startswith(".") or step.casefold() in _HIDDEN for step in path_of(info))


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a ZIP whose list of members agrees with the file. Raises RefusedError."""
    start = _check_directory(path)
    try:
        archive = zipfile.ZipFile(path)
    except (*DAMAGE, ValueError, LookupError) as error:
        raise _damaged(str(error)[:120]) from error
    try:
        _check_places(archive.infolist(), start)
    except BaseException:
        archive.close()
        raise
    return archive


def check_member(info: zipfile.ZipInfo) -> None:
    """Refuse a member that no honest ZIP of pictures has; nothing is ever written under its name."""
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
    """Return the error for one member, which it names."""
    return UploadRejectedError(f"{info.orig_filename[:200]!r}: {detail}")


def _damaged(reason: str) -> UploadRejectedError:
    return UploadRejectedError(f"the ZIP is damaged: {reason}; pack and send it anew")


def _check_directory(path: Path) -> int:
    """Compare the list of members with what the end of the file says of it; return where the list begins.

    Only what is small enough is read, and none of it is kept.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        base = max(0, size - _LONGEST_COMMENT - _END.size - _LOCATOR_BYTES - _WIDE.size)
        file.seek(base)
        tail = file.read()
        place = tail.rfind(b"PK\5\6")
        if place < 0 or len(tail) < place + _END.size:
            raise UploadRejectedError(
                "the ZIP is truncated or damaged: it has no list of members at its end; send it whole"
            )
        count, length, end = _directory(tail, place)
        start = base + end - length
        if start < 0 or not count * _ENTRY_BYTES <= length <= count * _LONGEST_ENTRY_BYTES:
            raise _damaged(f"it says {count} members, in a list of {length} bytes, which do not fit into it")
        if count > MAX_MEMBERS or length > MAX_DIRECTORY_BYTES:
            raise UploadRejectedError(
                f"the ZIP has {count} members, more than {MAX_MEMBERS}; send so many pictures as NPZ or IDX",
                status=413,
            )
        file.seek(start)
        _check_count(file, count, length)
    return start


def _directory(tail: bytes, place: int) -> tuple[int, int, int]:
    """Return the number of members, the size of their list in bytes, and where in `tail` the list ends.

    `place` is that of the end record; a ZIP64 record before it must say the same, but for what the end record has no
    room for.
    """
    _, disk, first_disk, on_disk, count, length, offset, _ = _END.unpack_from(tail, place)
    if any(0 < number < 0xFFFF for number in (disk, first_disk)) or on_disk != count:
        raise UploadRejectedError("the ZIP is one part of several; pack it as one file")
    locator = place - _LOCATOR_BYTES
    if locator < 0 or tail[locator : locator + 4] != b"PK\6\7":
        return count, length, place
    wide = locator - _WIDE.size
    if wide < 0 or tail[wide : wide + 4] != b"PK\6\6":
        raise _damaged("its ZIP64 record is not where it says")
    _, _, _, _, _, _, wide_on_disk, wide_count, wide_length, wide_offset = _WIDE.unpack_from(tail, wide)
    pairs = ((count, wide_count, 0xFFFF), (length, wide_length, 0xFFFFFFFF), (offset, wide_offset, 0xFFFFFFFF))
    if wide_on_disk != wide_count or any(short not in {long, no_room} for short, long, no_room in pairs):
        raise _damaged(
            f"its ZIP64 record ({wide_count} members in {wide_length} bytes) contradicts its end record "
            f"({count} in {length})"
        )
    return wide_count, wide_length, wide


def _check_count(file: IO[bytes], count: int, length: int) -> None:
    """Count the entries of the list of members, as far as they should go."""
    directory = file.read(length)
    place = 0
    for _ in range(count):
        if directory[place : place + 4] != b"PK\1\2" or place + _ENTRY_BYTES > length:
            raise _damaged(f"its list of members ends before the {count} that it should have")
        name, extra, comment = struct.unpack_from("<3H", directory, place + 28)
        place += _ENTRY_BYTES + name + extra + comment
    if place != length:
        raise _damaged(f"its list of members does not end after the {count} that it should have")


def _check_places(members: Sequence[zipfile.ZipInfo], start: int) -> None:
    """Refuse members that share bytes, with each other or with the list of members at `start`."""
    end = 0
    for info in sorted(members, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise member_error(info, "it overlaps another member; pack the ZIP anew")
        end = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size
        if end > start:
            raise member_error(info, "it overlaps the list of members; pack the ZIP anew")
