"""Names of arrays and folders that mean splits and labels."""

import pytest

from core.datasets.split_names import arrays_by_split
from tests.uploads import SPLITS, UploadConverter, packed, pictures, png, rows

SPLIT_WORDS = {
    "train": ["train", "training"],
    "validation": ["val", "valid", "validation", "dev"],
    "test": ["test"],
}


def spellings(first: str, second: str) -> list[str]:
    """Return names of two words in both orders, with several separators and cases."""
    pairs = [(first, second), (second, first)]
    joined = [f"{a}{between}{b}" for a, b in pairs for between in ("_", "", "-")]
    camel = [a + b.capitalize() for a, b in pairs]
    return [*joined, *camel, *(name.upper() for name in joined), *(name.title() for name in joined)]


@pytest.mark.parametrize("pictures_word", ["x", "images", "data"])
@pytest.mark.parametrize("labels_word", ["y", "labels"])
def test_names_of_arrays_are_understood_in_any_spelling(pictures_word: str, labels_word: str) -> None:
    """Names of images and labels of each split are recognised in any spelling; other names are
    not.
    """
    for split, words in SPLIT_WORDS.items():
        for word in words:
            for name in spellings(word, pictures_word):
                assert arrays_by_split([name]) == ({split: name}, {}), name
            for name in spellings(word, labels_word):
                assert arrays_by_split([name]) == ({}, {split: name}), name
            assert arrays_by_split([word.upper()]) == ({split: word.upper()}, {})
    for name in (pictures_word, pictures_word.upper()):
        assert arrays_by_split([name]) == ({None: name}, {})
    assert arrays_by_split([labels_word.upper()]) == ({}, {None: labels_word.upper()})
    for name in ("extra", "trainer", "latest", "my", "xy", "train_x_images", "observations"):
        assert arrays_by_split([name]) == ({}, {}), name


@pytest.mark.parametrize("between", ["/", "\\"])
@pytest.mark.parametrize("root", ["", "set/", "My Pictures/2024/", "test/"])
@pytest.mark.parametrize(
    "names",
    [
        ("Train", "Val", "Test"),
        ("TRAIN", "VAL", "TEST"),
        ("Training", "Validation", "Testing"),
        ("train", "dev", "test"),
        ("training_set", "valid", "test_set"),
        ("train2017", "val2017", "test2017"),
        ("Train", "eval", "TEST"),
        ("train_images", "validation_images", "test_images"),
    ],
)
def test_split_folders_are_recognised(
    converter: UploadConverter, names: tuple[str, str, str], root: str, between: str
) -> None:
    """Split folders are recognised in any case, below a common folder, with any separator."""
    some = pictures(24)
    files = [
        (f"{root}{names[number // 8]}/{number % 2}/{number:02}.png".replace("/", between), png(one))
        for number, one in enumerate(some)
    ]
    dataset = converter(packed(files))
    assert dataset["counts"] == {"train": 8, "validation": 8, "test": 8}
    assert dataset["split"] == {"rule": "as sent", "shares": {}}
    for number, split in enumerate(SPLITS):
        assert rows(converter.array(split)) == rows(some[8 * number : 8 * number + 8, None])


def test_split_folders_within_classes_are_recognised(converter: UploadConverter) -> None:
    """The outermost split folder counts; a class below it may have a split's name."""
    some = pictures(24)
    folders = ["cats/train/dev", "cats/Test/dev", "dogs/train/x", "dogs/test/x"]
    dataset = converter(packed((f"{folders[number % 4]}/{number:02}.png", png(one)) for number, one in enumerate(some)))
    assert dataset["counts"]["test"] == 12
    assert rows(converter.array("test")) == rows(some[[n for n in range(24) if n % 2], None])
