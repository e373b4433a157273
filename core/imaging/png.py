"""Check the chunks of PNG files (ISO/IEC 15948), and remove their metadata."""

import re
import struct
import zlib
from collections.abc import Mapping

from core.imaging import container
from core.imaging.container import Container, UnusableImageError

MAGIC = b"\x89PNG\r\n\x1a\n"
_HEAD = struct.Struct(">I4s")
_IHDR = struct.Struct(">IIBBBBB")
_NEEDED = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_METADATA = {b"iCCP", b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"acTL", b"fcTL"}
_XMP = b"XML:com.adobe.xmp"
_RAW_EXIF = b"Raw profile type exif"
_GREY, _RGB, _PALETTE, _GREY_ALPHA = 0, 2, 3, 4
_PALETTE_SIZE = 256


def read_png(data: bytes) -> Container:
    """Check a PNG's chunks; return a `Container` whose data has no metadata.

    Raises UnusableImageError if it has no header, several frames or too many chunks, and IndexError
    or struct.error for a damaged file.
    """
    length, name = _HEAD.unpack_from(data, 8)
    if name != b"IHDR" or length != 13:
        raise UnusableImageError("not a picture that can be read: the PNG does not begin with its header; save it anew")
    width, height, depth, colour, *_ = _IHDR.unpack_from(data, 16)
    spans, metadata, plain = _walk(data)
    if _animated(metadata):
        raise UnusableImageError(container.ANIMATED)
    profile, notes = _profile(metadata[b"iCCP"]) if b"iCCP" in metadata else (None, ())
    key = None
    transparency = metadata.get(b"tRNS")
    if transparency is not None and colour in {_GREY, _RGB}:
        levels = 1 if colour == _GREY else 3
        # at a bit depth below 16 only the low bits of a value are used
        key = tuple(level & ((1 << depth) - 1) for level in struct.unpack_from(f">{levels}H", transparency))
    if key is not None or len(transparency or b"") > _PALETTE_SIZE:
        plain = False
    clean = data if plain else _without_metadata(data, spans, transparency, colour)
    orientation, grey = _orientation(metadata) if metadata else 1, colour in {_GREY, _GREY_ALPHA}
    return Container("PNG", width, height, clean, orientation, profile, key, depth, grey=grey, notes=notes)


def _walk(data: bytes) -> tuple[list[tuple[bytes, int, int]], dict[bytes, bytes], bool]:
    """Read the chunks of a PNG up to the end of the pixels.

    Returns (name, start, end) of each chunk that decoding needs, where the end is after the
    checksum; the metadata, keyed by name; and whether the file has no other chunks. Raises
    UnusableImageError if there are too many chunks.
    """
    limit = container.part_limit(len(data))
    spans: list[tuple[bytes, int, int]] = []
    metadata: dict[bytes, bytes] = {}
    plain, place, size = True, 8, len(data)
    for _ in range(limit):
        if place + 8 > size:  # without an end: read as far as it goes
            return spans, metadata, plain
        length, name = _HEAD.unpack_from(data, place)
        end = place + 12 + length
        if name == b"IDAT" or name in _NEEDED:
            # the end of the file, or a misplaced chunk, which is not read
            if name != b"IDAT" and spans and spans[-1][0] == b"IDAT":
                plain = plain and name == b"IEND"
                return spans, metadata, plain
            if name == b"tRNS":
                metadata[name] = data[place + 8 : end - 4]
            spans.append((name, place, end))
        else:
            if spans and spans[-1][0] == b"IDAT":
                return spans, metadata, False
            plain = False
            if name in _METADATA:
                _keep(metadata, name, data[place + 8 : end - 4])
        place = end
    raise container.too_many("PNG", "chunks", limit)


def _keep(metadata: dict[bytes, bytes], name: bytes, content: bytes) -> None:
    """Store the content of a metadata chunk in `metadata`, keyed by the name of the chunk.

    A text chunk is stored under its keyword and with its chunk name in front, still compressed, and
    only if it may contain an orientation; other text is dropped.
    """
    if name not in {b"tEXt", b"zTXt", b"iTXt"}:
        metadata[name] = content
        return
    keyword, _, rest = content.partition(b"\0")
    if keyword in {_XMP, _RAW_EXIF}:
        metadata[keyword] = name + rest  # unpacked when it is known to be the last


def _text(stored: bytes) -> bytes:
    """Return the decompressed text of a text chunk; empty if it is damaged or too large.

    `stored` is the name of the chunk (tEXt, zTXt or iTXt), then its content after the keyword.
    """
    name, rest = stored[:4], stored[4:]
    if name == b"tEXt":
        return rest
    if name == b"zTXt":
        return container.inflated(rest[1:], container.TEXT_LIMIT_BYTES) or b""
    text = rest[2:].split(b"\0", 2)[-1]
    return (container.inflated(text, container.TEXT_LIMIT_BYTES) or b"") if rest[:1] == b"\1" else text


def _animated(metadata: Mapping[bytes, bytes]) -> bool:
    """Return whether a PNG is animated (APNG) with several frames.

    The default image counts as a frame even if it is not part of the animation.
    """
    control = metadata.get(b"acTL", b"")
    if len(control) < 8:
        return False
    frames = int.from_bytes(control[:4], "big")
    return frames > 1 or (frames == 1 and b"fcTL" not in metadata)


def _profile(content: bytes) -> tuple[bytes | None, tuple[str, ...]]:
    """Decompress the ICC profile in the content of an iCCP chunk.

    Returns the profile and a tuple of messages. The profile is None without a message if it is
    damaged, and None with a message if it is too large.
    """
    _, _, rest = content.partition(b"\0")
    if rest[:1] != b"\0":
        return None, ()
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(rest[1:], container.PROFILE_LIMIT_BYTES + 1)
    except zlib.error:
        return None, ()
    return container.limit_profile(profile or None)


def _orientation(metadata: Mapping[bytes, bytes]) -> int:
    """Return the orientation, 1 … 8, in a PNG's EXIF or XMP metadata; 1 by default."""
    exif = metadata.get(b"eXIf")
    if exif is None and _RAW_EXIF in metadata:
        # ImageMagick's: lines of a name and a length, then the bytes in hexadecimal
        digits = re.sub(rb"\s", b"", b"".join(_text(metadata[_RAW_EXIF]).split(b"\n")[3:]))
        try:
            exif = bytes.fromhex(digits.decode("latin-1"))
        except ValueError:
            exif = None
    return container.orientation_of(exif, _text(metadata[_XMP]) if _XMP in metadata else None)


def _without_metadata(
    data: bytes, spans: list[tuple[bytes, int, int]], transparency: bytes | None, colour: int
) -> bytes:
    """Return the PNG with only the chunks at `spans`, a shortened tRNS, and an end chunk."""
    pieces = [MAGIC]
    for name, begin, end in spans:
        if name != b"tRNS":
            pieces.append(data[begin:end])
        elif colour == _PALETTE and transparency:
            pieces.append(chunk(name, transparency[:_PALETTE_SIZE]))
    return b"".join((*pieces, chunk(b"IEND", b"")))


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a PNG chunk: the length of `content`, the name, `content` and the checksum."""
    return _HEAD.pack(len(content), name) + content + struct.pack(">I", zlib.crc32(name + content))
