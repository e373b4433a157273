"""Files are decoded as image editors do, cut into tiles, and joined again."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from core.imaging.pictures import UnusableImageError
from core.imaging.tiling import (
    Layout,
    Photograph,
    Tiling,
    decode_photograph,
    open_photograph,
    photograph_bytes,
    restore_channels,
)

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def noise(*shape: int) -> np.ndarray:
    """Return random pixels."""
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def smooth(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Return an image that lossy formats keep."""
    return Image.fromarray(noise(4, 4, 3)).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return the image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(data: bytes) -> Photograph:
    """Return the decoded image of a file."""
    return decode_photograph(open_photograph(data))


def swapped_space() -> bytes:
    """Return an sRGB ICC profile with red and green swapped."""
    profile = bytearray(SRGB.tobytes())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    description = "sRGB built-in".encode("utf-16-be")
    return bytes(profile).replace(description, "Swapped space".encode("utf-16-be"))


# --- decoding files ---


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (37, 23)])
def test_rgb_is_unchanged(kind: str, size: tuple[int, int]) -> None:
    """Lossless files give their exact pixels, without conversions."""
    pixels = noise(*size, 3)
    photograph = read(saved(Image.fromarray(pixels), kind, lossless=True))
    assert (photograph.pixels == pixels).all()
    assert (photograph.channels, photograph.alpha, photograph.notes, photograph.size) == (3, None, (), size)


def test_jpeg_is_decoded_as_pillow_does() -> None:
    """Colour and grey JPEGs equal Pillow's; of several images in a file the first is read."""
    image = smooth(40, 30)
    data = saved(image, "JPEG", quality=90)
    assert (read(data).pixels == np.asarray(Image.open(io.BytesIO(data)))).all()
    grey = saved(image.convert("L"), "JPEG")
    assert read(grey).pixels.shape == (40, 30, 1)
    many = saved(image, "MPO", save_all=True, append_images=[smooth(20, 20)])
    assert read(many).size == (40, 30)


def test_grey_stays_grey() -> None:
    """Grey and black-and-white images have one channel, and separate transparency."""
    pixels = noise(20, 30)
    photograph = read(saved(Image.fromarray(pixels)))
    assert (photograph.pixels[:, :, 0] == pixels).all()
    assert photograph.channels == 1
    bits = read(saved(Image.fromarray(pixels).convert("1")))
    assert (bits.channels, set(np.unique(bits.pixels))) == (1, {0, 255})
    both = read(saved(Image.merge("LA", [Image.fromarray(pixels), Image.fromarray(noise(30, 20).T.copy())])))
    assert (both.pixels[:, :, 0] == pixels).all()
    assert both.alpha is not None
    assert (both.alpha == noise(30, 20).T).all()


def test_transparency_is_kept_apart() -> None:
    """Visible colours are kept; fully transparent pixels get the colours around them."""
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[10:30, 10:30] = (200, 100, 50, 255)
    photograph = read(saved(Image.fromarray(pixels)))
    assert photograph.alpha is not None
    assert (photograph.alpha == pixels[:, :, 3]).all()
    seen = pixels[:, :, 3] == 255
    assert (photograph.pixels[seen] == (200, 100, 50)).all()
    assert abs(photograph.pixels[8, 20].astype(int) - (200, 100, 50)).max() <= 3
    clear = read(saved(Image.new("RGBA", (9, 9), (10, 20, 30, 0))))
    assert (clear.pixels == (10, 20, 30)).all()


def test_palettes_become_colours() -> None:
    """Palettes become RGB; a transparent entry or colour becomes transparency."""
    image = smooth(16, 16).quantize(8)
    photograph = read(saved(image))
    assert (photograph.pixels == np.asarray(image.convert("RGB"))).all()
    assert photograph.alpha is None
    with_hole = read(saved(image, transparency=3))
    assert with_hole.alpha is not None
    assert ((with_hole.alpha == 0) == (np.asarray(image) == 3)).all()
    key = read(saved(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3)))
    assert key.alpha is not None
    assert not key.alpha.any()


@pytest.mark.parametrize("colour", [0, 2, 4, 6])
def test_sixteen_bits_become_eight(colour: int) -> None:
    """16 bits per channel become 8, which is reported."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    deep = np.random.default_rng(1).integers(0, 65536, (6, 5, channels)).astype(">u2")
    deep[..., -1] |= 0x0100  # no pixel is fully transparent
    lines = b"".join(b"\0" + line.tobytes() for line in deep)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 6, 16, colour, 0, 0, 0))
    file = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    photograph = read(file)
    kept = channels - (channels + 1) % 2
    assert photograph.notes == ("16 bits a channel to 8",)
    assert photograph.channels == kept
    assert np.abs(photograph.pixels - deep[..., :kept] / 257).max() <= 1
    assert (photograph.alpha is None) == (channels in {1, 3})


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_is_applied(turn: int) -> None:
    """All eight EXIF orientations are applied; other values change nothing."""
    image = smooth(20, 30)
    exif = Image.Exif()
    exif[0x0112] = turn
    exif[0x010F] = "camera"
    photograph = read(saved(image, exif=exif))
    steps = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_270],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_90],
    }
    for step in steps.get(turn, []):
        image = image.transpose(step)
    assert (photograph.pixels == np.asarray(image)).all()
    assert photograph.notes == (("turned upright",) if turn > 1 else ())
    exif[0x0112] = 77
    assert read(saved(image, exif=exif)).notes == ()


def test_colours_go_through_the_profile() -> None:
    """ICC profiles are converted to sRGB; one that does not fit is dropped; both are reported."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[..., 0] = 255
    image = Image.fromarray(pixels)
    same = read(saved(image, icc_profile=SRGB.tobytes()))
    assert (same.pixels == pixels).all()
    assert same.notes == ()
    swapped = read(saved(image, icc_profile=swapped_space()))
    assert swapped.pixels[0, 0, 1] > 200
    assert swapped.pixels[0, 0, 0] < 50
    assert swapped.notes == ("Swapped space to sRGB",)
    for profile in (b"no profile", swapped_space()):
        wrong = read(saved(image.convert("L"), icc_profile=profile))
        assert wrong.notes == ("an ICC profile that does not fit was left out",)
        assert (wrong.pixels[:, :, 0] == np.asarray(image.convert("L"))).all()


def test_cmyk_becomes_srgb() -> None:
    """CMYK without a profile is converted plainly, which is reported."""
    photograph = read(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert photograph.notes == ("CMYK to sRGB without a profile",)
    assert abs(photograph.pixels[8, 8].astype(int) - (255, 0, 0)).max() <= 3


def two_frames(kind: str) -> bytes:
    """Return an animated image file of two frames."""
    return saved(smooth(8, 8), kind, save_all=True, append_images=[smooth(8, 8).rotate(90)], duration=50)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["empty", "PNG"]),
        (b"no picture at all", ["PNG, JPEG, WEBP"]),
        (saved(smooth(9, 9), "GIF"), ["PNG, JPEG, WEBP"]),
        (saved(smooth(9, 9), "TIFF"), ["PNG, JPEG, WEBP"]),
        (two_frames("PNG"), ["animated", "single frame"]),
        (two_frames("WEBP"), ["animated", "single frame"]),
        (saved(smooth(90, 90))[:-200], ["truncated"]),
        (saved(smooth(90, 90), "JPEG")[:-200], ["truncated"]),
        (saved(smooth(90, 90), "WEBP")[:-200], ["PNG"]),
        (saved(smooth(9, 9)).replace(b"IHDR\0\0\0\x09", b"IHDR\0\0\0\0"), ["PNG"]),
    ],
)
def test_unreadable_images_are_rejected(data: bytes, words: list[str]) -> None:
    """An unreadable image is rejected with the reason and what would work."""
    with pytest.raises(UnusableImageError) as caught:
        read(data)
    for word in words:
        assert word in str(caught.value)


# --- tiles ---

SIZES = [(1, 1), (1, 200), (200, 1), (2, 3), (24, 24), (25, 24), (23, 49), (100, 75)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_are_windows_of_the_mirrored_image(size: tuple[int, int], channels: int) -> None:
    """Tiles equal windows of the image that is mirrored at its edges."""
    picture = noise(*size, channels)
    tiling = Tiling(*size, (32, 32), (4, 4))
    assert tiling.count == -(-size[0] // 24) * -(-size[1] // 24)
    after = [4 + count * 24 - edge for count, edge in zip((tiling.lines, tiling.columns), size, strict=True)]
    whole = np.pad(picture, ((4, after[0]), (4, after[1]), (0, 0)), "symmetric")
    tiles = tiling.cut(lambda begin, end: picture[begin:end], 0, tiling.count)
    for index, tile in enumerate(tiles):
        line, column = divmod(index, tiling.columns)
        window = whole[line * 24 : line * 24 + 32, column * 24 : column * 24 + 32]
        assert (tile == np.broadcast_to(window, (32, 32, 3)).transpose(2, 0, 1)).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_cores_side_by_side_are_the_picture(size: tuple[int, int], scale: int) -> None:
    """Tiles that are cut, enlarged and joined put every pixel in its place."""
    picture = noise(*size, 3)
    tiling = Tiling(*size, (32, 40), (4, 4))
    tiles = tiling.cut(lambda begin, end: picture[begin:end], 0, tiling.count)
    cores = tiles[:, :, 4:-4, 4:-4].repeat(scale, 2).repeat(scale, 3)
    whole = np.concatenate(list(tiling.bands(iter(cores), scale)))
    assert (whole == picture.repeat(scale, 0).repeat(scale, 1)).all()


@pytest.mark.parametrize("size", [(8, 8), (9, 700), (128, 128), (192, 192), (193, 192), (349, 349), (512, 512)])
def test_tiles_fit_the_picture(size: tuple[int, int]) -> None:
    """A picture that fits is one tile without a margin; others have at most 1.25 times the pixels
    in tiles, and every pixel is in its place.
    """
    tiling = Tiling.fit(*size, 192 * 192, 8)
    height, width = tiling.tile
    assert height * width <= 192 * 192
    if size[0] * size[1] <= 192 * 192:
        assert (tiling.count, tiling.tile, tiling.margins) == (1, size, (0, 0))
    assert tiling.count * height * width <= 1.25 * size[0] * size[1]
    picture = noise(*size, 3)
    tiles = tiling.cut(lambda begin, end: picture[begin:end], 0, tiling.count)
    assert tiles.shape == (tiling.count, 3, height, width)
    down, across = tiling.margins
    cores = tiles[:, :, down : height - down, across : width - across]
    assert (np.concatenate(list(tiling.bands(iter(cores), 1))) == picture).all()


def test_an_axis_that_is_not_divided_has_no_margin() -> None:
    """A strip is divided along its long axis only; a large picture along both."""
    strip = Tiling.fit(20, 4000, 192 * 192, 8)
    assert (strip.lines, strip.margins) == (1, (0, 8))
    assert Tiling.fit(1000, 1000, 192 * 192, 8).margins == (8, 8)
    with pytest.raises(ValueError, match="too small for a margin"):
        Tiling.fit(100, 100, 30, 8)


def test_layouts_of_earlier_releases_are_read() -> None:
    """A job that was created before margins differed by axis keeps its tiles."""
    stored = Layout(Tiling(100, 75, (32, 32), (4, 4)), 3, alpha=False)
    earlier = {
        **stored.json,
        "tiles": {name: value for name, value in stored.json["tiles"].items() if name != "margins"},
    }
    assert Layout.read(earlier) == stored


def test_some_tiles_need_some_lines() -> None:
    """A range of tiles equals those tiles of the whole image, and only their lines are read from
    the blob.
    """
    photograph = Photograph(noise(100, 75, 3), noise(75, 100).T.copy())
    layout = Layout(Tiling(*photograph.size, (32, 32), (4, 4)), 3, alpha=True)
    assert Layout.read(layout.json) == layout
    blob = photograph_bytes(photograph)
    spans: list[int] = []

    def get(begin: int, end: int) -> bytes:
        spans.append(end - begin)
        return blob[begin:end]

    every = layout.tiles(get, 0, layout.tiling.count)
    for first, count in ((0, 1), (3, 1), (2, 5), (layout.tiling.count - 1, 1)):
        spans.clear()
        assert (layout.tiles(get, first, count) == every[first : first + count]).all()
        assert max(spans) <= 32 * 75 * 3
    transparency = layout.transparency(get)
    assert transparency is not None
    assert (transparency == photograph.alpha).all()


# --- joining results ---


def _bands(picture: np.ndarray, lines: int) -> Iterator[np.ndarray]:
    return (picture[at : at + lines] for at in range(0, len(picture), lines))


def test_transparency_is_enlarged_without_a_seam() -> None:
    """Transparency enlarged in bands equals Pillow's bicubic enlargement in one piece."""
    alpha = noise(30, 20)
    picture = noise(90, 60, 3)
    whole = np.asarray(Image.fromarray(alpha).resize((60, 90), Image.Resampling.BICUBIC))
    made = np.concatenate(list(restore_channels(_bands(picture, 21), 3, alpha, 3, opaque=False)))
    assert (made[:, :, :3] == picture).all()
    assert (made[:, :, 3] == whole).all()
    flat = np.concatenate(list(restore_channels(_bands(picture, 21), 3, alpha, 3, opaque=True)))
    share = whole[:, :, None] / 255
    assert np.abs(flat - (picture * share + 255 * (1 - share))).max() <= 0.51


def test_grey_results_are_luma() -> None:
    """The result of a grey image is the luma of the model's three channels."""
    picture = noise(20, 30, 3)
    made = np.concatenate(list(restore_channels(_bands(picture, 7), 1, None, 2, opaque=False)))
    assert (made[:, :, 0] == np.asarray(Image.fromarray(picture).convert("L"))).all()
