"""Find splits, images and labels by the names of arrays and folders."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from core.datasets.readers.base import UploadRejectedError

SPLITS = ("train", "validation", "test")
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development", "eval", "evaluation"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {word: split for split, words in _SPLIT_WORDS.items() for word in words}
_SPLIT = f"(?P<split>{'|'.join(sorted(_SPLIT_OF, key=len, reverse=True))})"
_PICTURES, _LABELS = "x|images?|imgs?|data|pictures?", "y|labels?"
_UNNAMED = "arr0"  # how NumPy names the first of arrays that were saved without names

_ARRAY = re.compile(
    f"{_SPLIT}|(?P<pictures>{_PICTURES})|(?P<labels>{_LABELS})"
    f"|{_SPLIT.replace('split', 'split1')}(?:(?P<pictures1>{_PICTURES})|(?P<labels1>{_LABELS}))"
    f"|(?:(?P<pictures2>{_PICTURES})|(?P<labels2>{_LABELS})){_SPLIT.replace('split', 'split2')}"
)
_FOLDER = re.compile(rf"(?:{_PICTURES})?{_SPLIT}(?:{_PICTURES}|sets?|splits?)?\d{{0,4}}")
_BETWEEN = re.compile(r"[\W_]+")


class Arrays(NamedTuple):
    """The names of an NPZ's arrays: of images (`pictures`) and of labels, keyed by split.

    The key None stands for an array without a split.
    """

    pictures: dict[str | None, str]
    labels: dict[str | None, str]


def arrays_by_split(names: Iterable[str]) -> Arrays:
    """Return which of the arrays `names` are the images and which the labels of each split.

    A name may contain a split (`train`, `val`, `test`, …) and a word for the content, in either
    order: `x`, `images` or `data` for images, `y` or `labels` for labels. A name with only a split
    means images; one with only the content has the split None. Case and separators are ignored:
    `x_train`, `trainImages`, `VAL_LABELS`. NumPy's default name `arr_0` means images if no other
    array does; other names are skipped. Raises UploadRejectedError if two arrays have the same
    split and content.
    """
    result = Arrays({}, {})
    unnamed = None
    for name in names:
        plain = _plain(name)
        if plain == _UNNAMED:
            unnamed = name
            continue
        match = _ARRAY.fullmatch(plain)
        if match is None:
            continue
        groups = match.groupdict()
        word = groups["split"] or groups["split1"] or groups["split2"]
        split = _SPLIT_OF[word] if word else None
        labels = any(groups[group] is not None for group in ("labels", "labels1", "labels2"))
        arrays = result.labels if labels else result.pictures
        if split in arrays:
            what = f"{split or 'all'} {'labels' if labels else 'pictures'}"
            detail = f"the NPZ has two arrays of {what}: {arrays[split]!r} and {name!r}; leave one of them out"
            raise UploadRejectedError(detail)
        arrays[split] = name
    if unnamed is not None and not result.pictures:
        result.pictures[None] = unnamed
    return result


def splits_of_paths(paths: Sequence[Sequence[str]]) -> list[str | None]:
    """Return the split of each image; `paths` has the folders of each, the outermost first.

    None for an image none of whose folders names a split. A folder that all images share names a
    split only if no folder below it does, because the ZIP itself may be called `test`.
    """
    common = 0
    while paths and all(len(path) > common and path[common] == paths[0][common] for path in paths):
        common += 1
    below = [_split_of(path[common:]) for path in paths]
    return below if any(below) else [_split_of(path) for path in paths]


def _split_of(folders: Sequence[str]) -> str | None:
    """Return the split that one of the folders names; None if none does."""
    matches = (_FOLDER.fullmatch(_plain(folder)) for folder in folders)
    return next((_SPLIT_OF[match["split"]] for match in matches if match), None)


def _plain(name: str) -> str:
    """Return a name in lower case, without underscores, hyphens and other separators."""
    return _BETWEEN.sub("", name.casefold())
