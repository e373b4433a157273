"""The reader of ZIP files of images."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.uploads import SPLITS, UploadConverter, exif, packed, pictures, png, rows, saved, zipped


def test_zip_of_pictures(converter: UploadConverter) -> None:
    """Images are ordered by name; folders name splits; other files are ignored and listed."""
    some = pictures(20)
    members: list[tuple[str | zipfile.ZipInfo, bytes]] = [
        (f"set/{'test' if number < 4 else 'train'}/{number:02}.png", png(one)) for number, one in enumerate(some)
    ]
    more = [("set/README.txt", b"hello"), ("__MACOSX/set/._00.png", b"x"), ("set/.DS_Store", b"x"), ("set/train/", b"")]
    dataset = converter(packed([*reversed(members), *more]), validation=0.25)
    assert dataset["counts"] == {"train": 12, "validation": 4, "test": 4}
    assert dataset["ignored"] == {"count": 1, "names": ["set/README.txt"]}
    assert dataset["hidden"] == 2
    assert np.array_equal(converter.array("test")[:, 0], some[:4])
    assert rows(converter.array("train")) | rows(converter.array("validation")) == rows(some[4:, None])


def test_one_colour_picture_makes_all_rgb(converter: UploadConverter) -> None:
    """If one image has colour, grey ones get three equal channels."""
    colour = np.zeros((6, 5, 3), np.uint8)
    colour[..., 0] = 200
    dataset = converter(packed([*zipped(), ("red.jpg", png(colour, "JPEG"))]), validation=0, test=0)
    assert dataset["channels"] == 3
    assert sum((one[0] == one[1]).all() for one in converter.array("train")) == 12


def test_resize_covers_and_cuts_at_the_centre(converter: UploadConverter) -> None:
    """Images of mixed sizes are scaled without distortion and cropped."""
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 255
    dataset = converter(packed([*zipped(), ("wide.png", png(wide))]), resize=(8, 8), validation=0, test=0)
    assert (dataset["height"], dataset["width"], dataset["resized"]) == (8, 8, 13)
    assert converter.array("train")[-1].min() > 200


def test_photographs_are_cut_into_patches(converter: UploadConverter) -> None:
    """All patches of a photograph go into one split; a patch equals its part of the photograph."""
    random = np.random.default_rng(0)
    sizes = [(100, 200), (96, 96), (300, 150), (192, 288), (97, 400)]
    photographs = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    for number, one in enumerate(photographs):
        one[..., 0] = number
    file = packed((f"{number}.png", png(one)) for number, one in enumerate(photographs))
    dataset = converter(file, kind="photographs", validation=0.2, test=0.2)
    assert (dataset["kind"], dataset["channels"], dataset["height"], dataset["width"]) == ("photographs", 3, 96, 96)
    assert dataset["photographs"] == 5
    assert sum(dataset["counts"].values()) == 2 + 1 + 3 + 6 + 4
    held = {name: {int(one[0, 0, 0]) for one in converter.array(name)} for name in SPLITS}
    assert sorted(len(numbers) for numbers in held.values()) == [1, 1, 3]
    assert set().union(*held.values()) == set(range(5))
    patch = next(one for one in converter.all() if one[0, 0, 0] == 0)
    assert np.array_equal(patch.transpose(1, 2, 0), photographs[0][2:98, 4:100])


def test_duplicate_names_are_counted(converter: UploadConverter) -> None:
    """Two members of the same name are both read, and counted in the description."""
    with pytest.warns(UserWarning, match="Duplicate name"):
        file = packed([*zipped(), ("digits/000.png", png(pictures(1, seed=5)[0]))])
    assert converter(file)["duplicates"] == {"pictures": 0, "names": 1, "held_back_in_train": 0}
    assert len(converter.all()) == 13


def test_one_bad_picture_is_named(converter: UploadConverter) -> None:
    """An unusable image is rejected with its member's name and the reason."""
    whole = png(pictures(1, 40, 40, seed=1)[0])
    many = [(f"{number:02}.png", png(one)) for number, one in enumerate(pictures(12, 40, 40))]
    animation = io.BytesIO()
    frames = [Image.fromarray(one) for one in pictures(2, 40, 40)]
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    deep = io.BytesIO()
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(deep, "PNG")
    for name, data, word in (
        ("bad.png", b"no picture", "no picture"),
        ("cut.png", whole[:-500], "truncated"),
        ("moving.gif", animation.getvalue(), "animated"),
        ("deep.png", deep.getvalue(), "8 bits"),
        ("page.pdf.png", b"%PDF-1.4", "no picture"),
    ):
        converter.refused(packed([*many, (name, data)]), repr(name), word)
    spoilt = packed([*many, ("last.png", whole)], zipfile.ZIP_STORED)
    place = spoilt.index(whole) + 60
    converter.refused(spoilt[:place] + bytes([spoilt[place] ^ 1]) + spoilt[place + 1 :], "'last.png'", "damaged")


def test_an_empty_zip_is_rejected_with_the_reason(converter: UploadConverter) -> None:
    """A ZIP without images is rejected with what it contains."""
    converter.refused(packed([]), "holds no picture", ".png", "nothing")
    converter.refused(packed([("a.txt", b""), ("b/c.zip", packed(zipped()))]), "holds no picture", "a.txt, b/c.zip")
    converter.refused(packed(zipped(9)), "9 pictures are too few")


def test_mixed_sizes_are_refused_with_the_sizes(converter: UploadConverter) -> None:
    """Images of mixed sizes are rejected with the sizes and the two options that would work."""
    more = [("tall.png", png(pictures(1, 9, 5)[0])), ("wide.png", png(pictures(1, 6, 7)[0]))]
    error = converter.refused(
        packed([*zipped(), *more]), "12 of 6×5", "1 of 9×5 (as 'tall.png')", "resize=HxW", "kind=photographs"
    )
    assert error.field == "resize"
    sizes = [(f"{edge}.png", png(pictures(1, edge, edge)[0])) for edge in range(3, 30)]
    converter.refused(packed(sizes), "and 22 more sizes")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_orientation_is_honoured_in_datasets(converter: UploadConverter, kind: str) -> None:
    """Images are turned upright by their EXIF orientation, and their number is reported."""
    some = pictures(12, 10, 6)
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    files = []
    for number, one in enumerate(some):
        if number % 2:
            lying = Image.fromarray(np.ascontiguousarray(np.rot90(one)))
            files.append(
                (f"{number:02}.img.{kind.lower()}", saved(lying.convert("RGB"), kind, exif=exif(6), **options))
            )
        else:
            files.append(
                (f"{number:02}.img.{kind.lower()}", saved(Image.fromarray(one).convert("RGB"), kind, **options))
            )
    dataset = converter(packed(files), validation=0, test=0)
    assert (dataset["height"], dataset["width"]) == (10, 6)
    assert dataset["conversions"] == {"turned upright": 6}
    assert np.array_equal(converter.array("train")[:, 0], some)


def test_pictures_of_phones_are_photographs(converter: UploadConverter) -> None:
    """Of a JPEG with several images (MPO) the first is used, upright, in patches."""
    y, x = np.mgrid[0:96, 0:192]
    files, plain = [], []
    for number in range(4):
        image = Image.fromarray(np.stack([x, y * 2, (x + y + 20 * number) % 256], -1).astype(np.uint8))
        several = saved(image, "MPO", save_all=True, append_images=[image.resize((30, 25))], exif=exif(8), quality=95)
        files.append((f"IMG_{number}.jpg", several))
        plain.append(np.asarray(Image.open(io.BytesIO(several)).convert("RGB").transpose(Image.Transpose.ROTATE_90)))
    dataset = converter(packed(files), kind="photographs", validation=0, test=0)
    assert dataset["conversions"] == {"the first of several pictures in the file, turned upright": 4}
    assert dataset["counts"]["train"] == 8
    assert np.array_equal(converter.array("train")[0].transpose(1, 2, 0), plain[0][:96])
    assert np.array_equal(converter.array("train")[7].transpose(1, 2, 0), plain[3][96:])


def test_colours_of_datasets_go_through_the_profile(converter: UploadConverter) -> None:
    """An ICC profile with red and green swapped is applied."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = bytearray(profile)
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    swapped[red : red + 4], swapped[green : green + 4] = b"gXYZ", b"rXYZ"
    space = bytes(swapped).replace("sRGB built-in".encode("utf-16-be"), "Swapped space".encode("utf-16-be"))
    images = [Image.new("RGB", (6, 5), (255, 0, number)) for number in range(12)]
    dataset = converter(packed((f"{n:02}.png", saved(one, "PNG", icc_profile=space)) for n, one in enumerate(images)))
    assert dataset["conversions"] == {"Swapped space to sRGB": 12}
    assert converter.all()[:, 1].min() > 200
    assert converter.all()[:, 0].max() < 50


def test_hostile_pictures_in_a_zip_are_named(converter: UploadConverter) -> None:
    """Images with countless segments are rejected before they are decoded."""
    plain = saved(Image.fromarray(pictures(1)[0]), "JPEG")
    bomb = plain[:2] + b"\xff\xe1\0\x10" + (bytes(14) + b"\xff\xe1\0\x10") * 400_000 + bytes(14) + plain[2:]
    converter.refused(packed([*zipped(), ("bomb.jpg", bomb)]), "'bomb.jpg'", "segments")
