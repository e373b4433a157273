"""Image files are checked before they are decoded, and decoded equally by operations and
upscales.
"""

import io
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from core.imaging.container import PROFILE_LIMIT_BYTES
from core.imaging.decode import open_picture
from core.imaging.pictures import Pixels, UnusableImageError, decode
from core.imaging.tiling import Photograph, decode_photograph, open_photograph

HEIGHT, WIDTH = 24, 32
CPU_LIMIT_S = 0.2
ATTEMPTS = 3  # the garbage collector may run in one of them


def smooth(mode: str = "RGB") -> Image.Image:
    """Return an asymmetric image that survives lossy formats."""
    corners = np.random.default_rng(3).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(corners).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).convert(mode)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    levels: np.ndarray, bits: int, colour: int, before: bytes = b"", after: bytes = b"", *, packed: bool = True
) -> bytes:
    """Return a PNG of levels (H, W) or (H, W, C) in any bit depth, with chunks before and after the
    pixels.
    """
    height, width = levels.shape[:2]
    lines = []
    for line in levels.reshape(height, -1):
        if bits == 16:
            lines.append(line.astype(">u2").tobytes())
        else:
            places = np.unpackbits(line.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]
            lines.append(np.packbits(places.reshape(-1)).tobytes())
    data = zlib.compress(b"".join(b"\0" + line for line in lines))
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", data) if packed else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + pixels + after + chunk(b"IEND", b"")


def segment(marker: int, content: bytes) -> bytes:
    """Return a JPEG segment."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def exif(orientation: int) -> Image.Exif:
    """Return EXIF metadata with this orientation."""
    metadata = Image.Exif()
    metadata[0x0112] = orientation
    metadata[0x010F] = "camera"
    return metadata


def profile(name: str = "Swapped space", size_bytes: int = 0) -> bytes:
    """Return an sRGB ICC profile with red and green swapped, of at least this size."""
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = bytearray(plain)
    red, green = plain.index(b"rXYZ"), plain.index(b"gXYZ")
    swapped[red : red + 4], swapped[green : green + 4] = b"gXYZ", b"rXYZ"
    text = "sRGB built-in".encode("utf-16-be")
    whole = bytes(swapped).replace(text, name.encode("utf-16-be")) + bytes(max(0, size_bytes - len(swapped)))
    return struct.pack(">I", len(whole)) + whole[4:]


def read(data: bytes) -> Photograph:
    """Return the image as upscales read it."""
    return decode_photograph(open_photograph(data))


# --- transparency of PNG ---

DEPTHS = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 2), (3, 4), (3, 8)]


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("colour", "bits"), DEPTHS)
def test_the_transparent_level_or_colour_is_transparent(colour: int, bits: int, *, interlaced: bool) -> None:
    """The transparent level or colour of a PNG of any depth applies to the pixels that match it in
    all bits.
    """
    random = np.random.default_rng(bits)
    channels = 3 if colour == 2 else 1
    levels = random.integers(0, 1 << bits, (HEIGHT, WIDTH, channels))
    key = levels[5, 7].copy()
    levels[8:12, 8:12] = key
    if bits == 16:  # equal upper bytes, one different lower byte
        levels[:4] = key
        levels[0, :, -1] ^= 1
    before = b""
    if colour == 3:
        before = chunk(b"PLTE", random.integers(0, 256, (1 << bits, 3), np.uint8).tobytes())
        alphas = [255] * (1 << bits)
        alphas[int(key[0])] = 0
        before += chunk(b"tRNS", bytes(alphas))
    else:
        before = chunk(b"tRNS", struct.pack(f">{channels}H", *key))
    matches = (levels == key).all(axis=2)
    file = png(levels, bits, colour, before)
    if interlaced:
        file = interlaced_copy(levels, bits, colour, before)
    photograph = read(file)
    assert photograph.alpha is not None
    assert ((photograph.alpha == 0) == matches).all()
    assert set(np.unique(photograph.alpha)) <= {0, 255}
    if bits <= 8:  # operations reject deeper images
        pixels, conversion = decode(file, 3, HEIGHT, WIDTH)
        assert (pixels[:, matches] == 0).all()
        assert "transparency over black" in str(conversion)
        assert (pixels[:, ~matches].transpose(1, 0) == photograph.pixels[~matches]).all()


def interlaced_copy(levels: np.ndarray, bits: int, colour: int, before: bytes) -> bytes:
    """Return the PNG of the same arguments, interlaced by Adam7."""
    plain = png(levels, bits, colour, before)
    passes = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)]
    raw = b""
    for top, down, left, across in passes:
        part = levels[top::down, left::across]
        if part.size:
            data = png(part, bits, colour)
            place = data.index(b"IDAT") + 4
            raw += zlib.decompress(data[place : place + int.from_bytes(data[place - 8 : place - 4], "big")])
    head = bytearray(plain[16:29])
    head[12] = 1
    return plain[:8] + chunk(b"IHDR", bytes(head)) + before + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def test_a_key_has_no_more_bits_than_the_levels() -> None:
    """The upper bits of a transparent level are ignored, as the PNG standard requires."""
    levels = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 16
    photograph = read(png(levels, 4, 0, chunk(b"tRNS", struct.pack(">H", 0x0F00 | 5))))
    assert photograph.alpha is not None
    assert ((photograph.alpha == 0) == (levels == 5)).all()


# --- metadata ---

NOISE = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3))
LARGE = b"a workflow " * 200_000


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize(
    "text",
    [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(LARGE)),
        chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(LARGE)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LARGE)),
        chunk(b"tEXt", b"parameters\0" + LARGE),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(LARGE)),
        chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(1 << 26))) * 4,
        chunk(b"zTXt", b"broken\0\0no zlib stream"),
        chunk(b"zTXt", b"broken\0\7"),
    ],
)
def test_text_of_any_size_is_dropped(text: bytes, where: str) -> None:
    """An image is read whatever text chunks its file has."""
    file = png(NOISE, 8, 2, before=text) if where == "before" else png(NOISE, 8, 2, after=text)
    assert (read(file).pixels == NOISE).all()
    assert (decode(file, 3, HEIGHT, WIDTH)[0].transpose(1, 2, 0) == NOISE).all()


def with_profile(kind: str, content: bytes) -> bytes:
    """Return a red image with an ICC profile."""
    red = Image.new("RGB", (WIDTH, HEIGHT), (255, 0, 0))
    if kind == "PNG":
        return png(np.asarray(red), 8, 2, chunk(b"iCCP", b"p\0\0" + zlib.compress(content)))
    return saved(red, kind, icc_profile=content, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_profile_within_the_limit_is_applied(kind: str) -> None:
    """Upscales and operations apply a profile and list it; a larger one is ignored, which is
    listed, too.
    """
    for size in (0, 1 << 20, 3 << 20):
        file = with_profile(kind, profile(size_bytes=size))
        pixels, conversion = decode(file, 3, HEIGHT, WIDTH)
        assert conversion == "Swapped space to sRGB"
        assert pixels[1].min() > 200
        assert pixels[0].max() < 50
    large = with_profile(kind, profile(size_bytes=PROFILE_LIMIT_BYTES + 1))
    pixels, conversion = decode(large, 3, HEIGHT, WIDTH)
    assert conversion == "an ICC profile of more than 8 MiB was left out"
    assert pixels[0].min() > 200
    if kind != "TIFF":
        assert read(large).notes == (conversion,)
        assert (read(large).pixels.transpose(2, 0, 1) == pixels).all()


def test_a_profile_that_is_none_is_left_out() -> None:
    """An invalid ICC profile is ignored, which is listed."""
    for content in (b"p" * 1_200_000, b"no profile"):
        file = with_profile("PNG", content)
        assert read(file).notes == ("an ICC profile that does not fit was left out",)
        assert decode(file, 3, HEIGHT, WIDTH)[1] == "an ICC profile that does not fit was left out"


def tagged(kind: str, image: Image.Image, orientation: int) -> bytes:
    """Return the image as a file with an EXIF orientation."""
    options: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
    return saved(image, kind, exif=exif(orientation), **options.get(kind, {}))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_honoured_by_operations(kind: str, orientation: int) -> None:
    """An image with an EXIF orientation is read as if it had been saved upright, and the conversion
    is listed.
    """
    lying = smooth()
    file = tagged(kind, lying, orientation)
    stored = Image.open(io.BytesIO(tagged(kind, lying, 1))).convert("RGB")
    steps = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    upright = stored.transpose(steps[orientation]) if orientation > 1 else stored
    assert open_picture(file).size == upright.size
    pixels, conversion = decode(file, 3, upright.height, upright.width)
    assert (pixels.transpose(1, 2, 0) == np.asarray(upright)).all()
    assert conversion == ("turned upright" if orientation > 1 else None)
    if kind != "TIFF":
        assert (read(file).pixels == np.asarray(upright)).all()


def test_orientation_is_read_from_xmp() -> None:
    """The orientation is read from XMP or ImageMagick's text chunk, unless EXIF has one."""
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    turned = NOISE[::-1, ::-1]
    for content in (
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)),
        chunk(
            b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 9\n" + exif(3).tobytes().hex().encode())
        ),
    ):
        assert (read(png(NOISE, 8, 2, content)).pixels == turned).all()
    both = chunk(b"eXIf", exif(1).tobytes()[6:]) + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    assert (read(png(NOISE, 8, 2, both)).pixels == NOISE).all()
    jpeg = saved(smooth(), "JPEG", xmp=xmp)
    assert (read(jpeg).pixels == np.asarray(Image.open(io.BytesIO(jpeg)))[::-1, ::-1]).all()


def test_transparency_turns_with_the_picture() -> None:
    """A transparent level applies after the image is turned upright."""
    levels = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 256
    file = png(levels, 8, 0, chunk(b"tRNS", struct.pack(">H", 9)) + chunk(b"eXIf", exif(6).tobytes()[6:]))
    photograph = read(file)
    assert photograph.alpha is not None
    assert ((photograph.alpha == 0) == (np.rot90(levels, -1) == 9)).all()


def test_of_several_pictures_in_a_jpeg_the_first_is_read() -> None:
    """Of a JPEG with several images, such as previews or depth maps, the first is read, which is
    listed.
    """
    first = smooth()
    file = saved(first, "MPO", save_all=True, append_images=[first.resize((9, 9)), first.rotate(180)])
    plain = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    pixels, conversion = decode(file, 3, HEIGHT, WIDTH)
    assert (pixels.transpose(1, 2, 0) == plain).all()
    assert conversion == "the first of several pictures in the file"
    assert (read(file).pixels == plain).all()
    broken = file.replace(b"MPF\0II", b"MPF\0XX")  # its directory is not read
    assert (read(broken).pixels == plain).all()


# --- truncated files ---


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("cut", [1, 2])
def test_a_jpeg_without_its_end_marker_is_read(cut: int, *, grey: bool) -> None:
    """A JPEG without its end marker is read if all pixels are there; the conversion is listed."""
    file = saved(smooth("L" if grey else "RGB"), "JPEG", quality=95)
    pixels, conversion = decode(file[:-cut], 3, HEIGHT, WIDTH)
    assert (pixels == decode(file, 3, HEIGHT, WIDTH)[0]).all()
    assert "the missing end marker of the JPEG was added" in str(conversion)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_a_jpeg_without_its_last_pixels_is_refused(options: dict[str, Any]) -> None:
    """A JPEG without its last pixels is rejected as truncated, however few are missing."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    file = saved(noise, "JPEG", quality=90, **options)
    scan = file.index(b"\xff\xda")
    for size in [len(file) - cut for cut in range(5, 40)] + list(range(scan + 20, len(file) - 40, 97)):
        for act in (lambda data: decode(data, 3, HEIGHT, WIDTH), read):
            with pytest.raises(UnusableImageError, match=r"truncated.*EOI"):
                act(file[:size])


def test_a_png_without_its_end_is_read() -> None:
    """A PNG without its end chunk is read."""
    assert (read(png(NOISE, 8, 2)[:-12]).pixels == NOISE).all()


# --- hostile files ---


def webp(*chunks: bytes) -> bytes:
    """Return an extended WebP of these chunks."""
    head = (
        struct.pack("<4sI4s", b"VP8X", 10, b"") + (WIDTH - 1).to_bytes(3, "little") + (HEIGHT - 1).to_bytes(3, "little")
    )
    body = b"WEBP" + head + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(entries: list[tuple[int, int, int, int]], following: int = 0) -> bytes:
    """Return a TIFF with one directory; an entry is tag, type, count and value."""
    tags = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + tags + struct.pack("<I", following)


def run_length_bmp(kind: int) -> bytes:
    """Return a BMP with 15 million run-length codes that set no pixel."""
    bits, colours = (8, 256) if kind == 1 else (4, 16)
    head = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, bits, kind, 0, 0, 0, colours, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 4 * colours) + head + bytes(4 * colours) + bytes(30_000_000)


def _jpeg(inside: bytes) -> bytes:
    plain = saved(smooth(), "JPEG")
    return plain[:2] + inside + plain[2:]


def _scans(scans: int, more: bytes = b"") -> bytes:
    plain = saved(smooth(), "JPEG", progressive=True)
    return plain[:-2] + plain[plain.rindex(b"\xff\xda") : -2] * scans + more + plain[-2:]


def _gif(inside: bytes, at_end: bytes = b"") -> bytes:
    plain = saved(smooth("P"), "GIF")
    place = 13 + (3 << ((plain[10] & 7) + 1))
    return plain[:place] + inside + plain[place:-1] + at_end + b";"


def _frames(frames: int) -> bytes:
    return struct.pack(">II", frames, 0)


BOMBS: dict[str, Callable[[], bytes]] = {
    "jpeg-app1": lambda: _jpeg(segment(0xE1, b"x" * 14) * 400_000),
    "jpeg-exif": lambda: _jpeg(segment(0xE1, b"Exif\0\0II*\0") * 400_000),
    "jpeg-icc": lambda: _jpeg(segment(0xE2, b"ICC_PROFILE\0\1\1") * 400_000),
    "jpeg-comment": lambda: _jpeg(segment(0xFE, b"") * 1_000_000),
    "jpeg-tables": lambda: _jpeg(segment(0xDB, b"\0" + bytes(range(1, 65))) * 100_000),
    "jpeg-soi": lambda: _jpeg(b"\xff\xd8" * 10_000_000),
    "jpeg-restart": lambda: _jpeg(b"\xff\xd0" * 10_000_000),
    "jpeg-stray": lambda: _jpeg(b"\xff\0" * 10_000_000),
    "jpeg-scans": lambda: _scans(100_000),
    "jpeg-scans-fill": lambda: _scans(60, b"\xff" * 20_000_000),
    "png-text": lambda: png(NOISE, 8, 2, chunk(b"tEXt", b"a\0b") * 1_000_000),
    "png-private": lambda: png(NOISE, 8, 2, chunk(b"prVt", b"") * 1_000_000),
    "png-palettes": lambda: png(NOISE, 8, 2, chunk(b"PLTE", b"\0\0\0") * 1_000_000),
    "png-empty-pixels": lambda: png(NOISE, 8, 2, chunk(b"IDAT", b"") * 1_000_000),
    "png-frames": lambda: png(NOISE, 8, 2, chunk(b"acTL", _frames(1)) + chunk(b"fcTL", bytes(26)) * 400_000),
    "webp-chunks": lambda: webp(b"abcd\0\0\0\0" * 1_000_000, saved(smooth(), "WEBP")[12:]),
    "webp-trailing": lambda: webp(saved(smooth(), "WEBP")[12:], b"abcd\0\0\0\0" * 1_000_000),
    "gif-comments": lambda: _gif(b"!\xfe\0" * 2_000_000),
    "gif-blocks": lambda: _gif(b"!\xfe" + b"\1a" * 5_000_000 + b"\0"),
    "gif-extensions": lambda: _gif(b"!\xff\1a\0" * 1_000_000),
    "gif-trailing": lambda: _gif(b"", b"!\xfe\0" * 1_000_000),
    "gif-junk": lambda: _gif(b"", bytes(10_000_000)),
    "tiff-tags": lambda: tiff([(tag, 3, 1, 1) for tag in range(65_535)]),
    "tiff-values": lambda: tiff([(tag, 7, 6_000_000, 8) for tag in range(65_535)]) + bytes(6_000_000),
    "tiff-strips": lambda: tiff([(256, 4, 1, WIDTH), (257, 4, 1, HEIGHT), (273, 4, 2_000_000, 8)]) + bytes(8_000_000),
    "tiff-pages": lambda: b"II*\0\x08\0\0\0" + b"".join(struct.pack("<HI", 0, 14 + 6 * n) for n in range(500_000)),
    "bmp-rle8": lambda: run_length_bmp(1),
    "bmp-rle4": lambda: run_length_bmp(2),
}


@pytest.mark.parametrize("name", BOMBS)
def test_files_of_countless_parts_are_refused_before_they_are_decoded(name: str) -> None:
    """Files of countless parts are rejected in under 0.2 s of CPU time, by operations and
    upscales.
    """
    data = BOMBS[name]()
    for act in (lambda data: decode(data, 3, HEIGHT, WIDTH), read):
        seconds: list[float] = []
        while len(seconds) < ATTEMPTS and min(seconds, default=CPU_LIMIT_S) >= CPU_LIMIT_S:
            start = time.thread_time()
            with pytest.raises(UnusableImageError):
                act(data)
            seconds.append(time.thread_time() - start)
        assert min(seconds) < CPU_LIMIT_S


HARMLESS: dict[str, Callable[[], bytes]] = {
    "jpeg-fill": lambda: _jpeg(b"\xff" * 20_000_000),
    "jpeg-fill-after": lambda: saved(smooth(), "JPEG")[:-2] + b"\xff" * 20_000_000 + b"\xd9",
    "jpeg-exif-tags": lambda: _jpeg(
        segment(
            0xE1,
            b"Exif\0\0II*\0\x08\0\0\0"
            + struct.pack("<H", 65_535)
            + b"".join(struct.pack("<HHII", tag, 7, 60_000, 8) for tag in range(5_000)),
        )
    ),
    "jpeg-directory": lambda: _jpeg(
        segment(
            0xE2, b"MPF\0II*\0\x08\0\0\0" + struct.pack("<H", 5_000) + struct.pack("<HHII", 1, 7, 60_000, 8) * 5_000
        )
    ),
    "png-text-after": lambda: png(NOISE, 8, 2, b"", chunk(b"tEXt", b"a\0b") * 1_000_000),
    "png-texts": lambda: png(
        NOISE, 8, 2, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(1 << 20), 9)) * 200
    ),
    "png-profile": lambda: png(NOISE, 8, 2, chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(1 << 28), 9))),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_hostile_metadata_costs_nothing(name: str) -> None:
    """An image with hostile metadata that is not needed is read in under 0.2 s of CPU time."""
    data = HARMLESS[name]()
    start = time.process_time()
    pixels: Pixels
    pixels, _ = decode(data, 3, HEIGHT, WIDTH)
    assert time.process_time() - start < CPU_LIMIT_S
    assert pixels.std() > 0


def test_real_files_have_fewer_parts_than_the_limit() -> None:
    """Files with large metadata, many segments or small blocks, as real programs write them, are
    read.
    """
    many = b"".join(segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(60_000)) for _ in range(150))
    assert (read(_jpeg(many)).pixels == read(saved(smooth(), "JPEG")).pixels).all()
    large = np.random.default_rng(0).integers(0, 256, (600, 700, 3), np.uint8)
    packed = zlib.compress(b"".join(b"\0" + line.tobytes() for line in large))
    pieces = b"".join(chunk(b"IDAT", packed[at : at + 4096]) for at in range(0, len(packed), 4096))
    assert (read(png(large, 8, 2, pieces, packed=False)).pixels == large).all()
    assert read(saved(Image.fromarray(large), "JPEG", progressive=True)).size == (600, 700)
    noise = saved(Image.fromarray(large).convert("P"), "GIF")
    assert decode(noise, 3, 600, 700)[0].shape == (3, 600, 700)
    for compression in ("raw", "tiff_lzw"):
        stripes = saved(Image.fromarray(large), "TIFF", compression=compression, tiffinfo={278: 1})
        assert (decode(stripes, 3, 600, 700)[0].transpose(1, 2, 0) == large).all()


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "WEBP"])
def test_several_frames_are_rejected(kind: str) -> None:
    """An animation is rejected with the reason; a file with a single frame is read."""
    image = smooth()
    several = saved(image, kind, save_all=True, append_images=[image.rotate(90)])
    with pytest.raises(UnusableImageError, match=r"animated.*single frame"):
        decode(several, 3, HEIGHT, WIDTH)
    single = saved(image, kind, save_all=True)
    assert decode(single, 3, HEIGHT, WIDTH)[0].shape == (3, HEIGHT, WIDTH)


def test_sixteen_bit_colours_of_windows_are_not_deep() -> None:
    """A BMP with 5, 6 and 5 bits per colour is read."""
    head = struct.pack("<IiiHHIIiiII", 40, 4, 2, 1, 16, 3, 0, 0, 0, 0, 0) + struct.pack("<3I", 0xF800, 0x7E0, 0x1F)
    file = b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + len(head)) + head + b"\x00\xf8" * 8
    assert decode(file, 3, 2, 4)[0][:, 0, 0].tolist() == [255, 0, 0]
