"""Check TIFF files (revision 6.0, and BigTIFF), and remove tags that decoding does not need."""

import struct
from typing import NamedTuple

from core.imaging import container
from core.imaging.container import Container, UnusableImageError

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_WIDTH, _LENGTH, _ORIENTATION, _XMP, _PROFILE = 256, 257, 274, 700, 34675
_STRIPS, _TILES = {273, 279}, {324, 325}
# Tags that decoding needs; all others are metadata.
_PIXEL_TAGS = {
    *(_WIDTH, _LENGTH, *_STRIPS, *_TILES),
    # bits, compression, photometric interpretation, fill order, samples, rows, planes
    *(258, 259, 262, 266, 277, 278, 284),
    # fax options, predictor, colours, tile size, samples
    *(292, 293, 317, 320, 322, 323, 332, 338, 339, 340, 341),
    # JPEG and YCbCr
    *(347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532),
}


class _Layout(NamedTuple):
    """Byte order and field sizes of a TIFF, as format characters of the module struct.

    `order` is "<" or ">". `pointer` is the format of an offset in the file, and `amount` that of
    the number of entries of a directory, each with the byte order.
    """

    order: str
    pointer: str
    amount: str

    @classmethod
    def of(cls, data: bytes) -> "_Layout":
        """Return the layout that the header of a TIFF states."""
        order = "<" if data[:2] == b"II" else ">"
        big = 43 in data[2:4]
        return cls(order, order + ("Q" if big else "I"), order + ("Q" if big else "H"))

    @property
    def first(self) -> int:
        """Offset in bytes of the header's pointer to the first directory."""
        return struct.calcsize(self.pointer)

    @property
    def entry(self) -> struct.Struct:
        """Format of a directory entry: tag, type, number of values, then values or their offset."""
        width = struct.calcsize(self.pointer)
        return struct.Struct(f"{self.order}HH{self.pointer[1]}{width}s")


class _Entry(NamedTuple):
    """An entry of a directory: a tag and its values.

    `kind` is TIFF's type code of the values, and `number` their number. `raw` is the entry's last
    field: the values themselves if they fit into it, otherwise their offset in the file.
    """

    tag: int
    kind: int
    number: int
    raw: bytes
    layout: _Layout

    @property
    def size(self) -> int:
        """Size of the values in bytes."""
        return self.number * _SIZES.get(self.kind, 0)

    def content(self, data: bytes) -> bytes:
        """Return the bytes of the values; `data` is the complete file."""
        if self.size <= len(self.raw):
            return self.raw[: self.size]
        (offset,) = struct.unpack(self.layout.pointer, self.raw)
        return data[offset : offset + self.size]

    def integer(self, data: bytes) -> int:
        """Return the value if it is a single integer; 0 for several values or another type.

        `data` is the complete file.
        """
        form = _INTEGERS.get(self.kind)
        content = self.content(data)
        if form is None or self.number != 1 or len(content) < _SIZES[self.kind]:
            return 0
        return int(struct.unpack_from(self.layout.order + form, content)[0])


def read_tiff(data: bytes) -> Container:
    """Check a TIFF's first directory; return a `Container` with only the tags for decoding.

    Raises UnusableImageError if it has no dimensions, several pages, or too large or too many tags,
    and struct.error for a damaged file.
    """
    layout = _Layout.of(data)
    entries, following = _directory(data, layout)
    if following:
        raise UnusableImageError(container.ANIMATED)
    by_tag = {entry.tag: entry for entry in entries}
    if _WIDTH not in by_tag or _LENGTH not in by_tag:
        raise UnusableImageError("not a picture that can be read: the TIFF has no dimensions; save it anew")
    width, height = by_tag[_WIDTH].integer(data), by_tag[_LENGTH].integer(data)
    kept = [entry for entry in entries if entry.tag in _PIXEL_TAGS]
    _check(kept, width, height, len(data))
    profile, notes = container.limit_profile(by_tag[_PROFILE].content(data) if _PROFILE in by_tag else None)
    if _ORIENTATION in by_tag:
        stated = by_tag[_ORIENTATION].integer(data)
        orientation = stated if 1 <= stated <= 8 else 1
    else:
        orientation = container.orientation_of(None, by_tag[_XMP].content(data) if _XMP in by_tag else None)
    return Container("TIFF", width, height, _rewritten(data, layout, kept), orientation, profile, depth=0, notes=notes)


def _directory(data: bytes, layout: _Layout) -> tuple[list[_Entry], int]:
    """Return the entries of the first directory, and the offset of the next directory (0: none).

    Of entries with the same tag only the first is returned. Raises UnusableImageError if there are
    too many entries.
    """
    (place,) = struct.unpack_from(layout.pointer, data, layout.first)
    (count,) = struct.unpack_from(layout.amount, data, place)
    limit = container.part_limit(len(data))
    if count > limit:
        raise container.too_many("TIFF", "tags", limit)
    place += struct.calcsize(layout.amount)
    form = layout.entry
    entries: dict[int, _Entry] = {}
    for number in range(count):
        tag, kind, values, raw = form.unpack_from(data, place + number * form.size)
        entry = _Entry(tag, kind, values, raw, layout)
        entries.setdefault(entry.tag, entry)
    end = place + count * form.size
    width = struct.calcsize(layout.pointer)
    following = struct.unpack_from(layout.pointer, data, end)[0] if end + width <= len(data) else 0
    return list(entries.values()), following


def _check(kept: list[_Entry], width: int, height: int, size_bytes: int) -> None:
    """Raise UnusableImageError if the entries `kept` have more values than in a real file.

    That is: more bytes than the file (`size_bytes`), or too many strips or tiles for an image of
    `width` × `height` pixels.
    """
    if sum(entry.size for entry in kept) > size_bytes:
        raise UnusableImageError("the TIFF is truncated or damaged: its tags are larger than the file; save it anew")
    most = container.part_limit(0) + 8 * max(height, width * height // 256)
    for entry in kept:
        if entry.tag in _STRIPS | _TILES and entry.number > most:
            raise container.too_many("TIFF", "strips or tiles", most)


def _rewritten(data: bytes, layout: _Layout, kept: list[_Entry]) -> bytes:
    """Return the file with only the entries `kept`, in a new directory at its end."""
    padding = bytes(-len(data) % 8)
    directory = struct.pack(layout.amount, len(kept)) + b"".join(
        layout.entry.pack(entry.tag, entry.kind, entry.number, entry.raw)
        for entry in sorted(kept, key=lambda entry: entry.tag)
    )
    pointer = struct.pack(layout.pointer, len(data) + len(padding))
    first, width = layout.first, len(pointer)
    return b"".join((data[:first], pointer, data[first + width :], padding, directory, bytes(width)))
