"""The table of operations: what each reads, and how many rows it makes."""

import numpy as np
import pytest

from core.catalog.cards import CodeFormat
from core.catalog.operations import BY_METHOD, OPERATIONS


def test_shared_pictures_are_inputs_under_their_own_name() -> None:
    """`inpaint` reads any number of images and one mask; no other operation shares an image."""
    inpaint = BY_METHOD["inpaint"]
    assert (inpaint.inputs, inpaint.images) == (("images", "mask"), ("images",))
    assert inpaint.images_needed == "at least one image"
    assert [one.path for one in OPERATIONS if one.shared] == ["inpaintings"]
    assert BY_METHOD["interpolate"].images == ("first", "second")


def test_codes_are_no_images() -> None:
    """`decode` reads codes; the option of a format decides their length, if there is one."""
    decode = BY_METHOD["decode"]
    assert (decode.inputs, decode.images, decode.codes) == (("codes",), (), True)
    assert [one.path for one in OPERATIONS if one.codes] == ["decodings"]
    assert CodeFormat([50], -16.0, 16.0).size({"output": "means"}) == 50
    assert [CodeFormat([300, 10], 0.0, 1.0, "layer").size({"layer": layer}) for layer in (0, 1)] == [300, 10]


def test_rows_and_columns_follow_from_counts() -> None:
    """Three images with four results each are twelve rows in a grid of four columns."""
    decode = BY_METHOD["decode"]
    assert (decode.rows(4, 3, {}), decode.columns(4), decode.columns(1)) == (12, 4, None)
    inpaint = BY_METHOD["inpaint"]
    assert inpaint.rows(4, 3, {}) == 12
    assert inpaint.columns(4) == 4
    assert BY_METHOD["sample"].columns(9) is None
    assert BY_METHOD["reconstruct"].columns(1) is None


@pytest.mark.parametrize(("levels", "words"), [([0, 127], "nothing"), ([128, 255], "everything"), ([127, 128], None)])
def test_a_mask_hides_something_but_not_all(levels: list[int], words: str | None) -> None:
    """A mask must have white and black pixels; level 128 is white, 127 is not."""
    fault = BY_METHOD["inpaint"].shared[0].fault(np.array([[levels]], np.uint8))
    assert (fault is None) if words is None else (words in str(fault))
