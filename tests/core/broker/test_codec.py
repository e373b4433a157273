"""Packed messages are restored exactly, and damaged ones are detected."""

import numpy as np
import pytest

from core.broker.codec import Batch, BatchSlice, cut_items, joined, pack, unpack


def test_trees_with_arrays_survive_a_round_trip() -> None:
    """Arrays keep type, shape and values; pickles never travel."""
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": [b"png", 1.5, None], "c": np.uint8(7)}
    back = unpack(pack(tree))
    assert back["a"].dtype == np.float32
    np.testing.assert_array_equal(back["a"], tree["a"])
    assert back["b"] == tree["b"]
    with pytest.raises(TypeError, match="complex"):
        pack(np.zeros(1, np.complex64))
    with pytest.raises(TypeError, match="object"):
        pack(object())


def test_damaged_arrays_are_noticed() -> None:
    """An array whose bytes do not fit its shape raises ValueError."""
    data = pack(np.zeros((2, 2), np.uint8)).replace(b"\x92\x02\x02", b"\x92\x02\x03")
    with pytest.raises(ValueError, match="4 bytes"):
        unpack(data)


def test_batches_come_back() -> None:
    """Unpacking a batch restores its slices, options and state."""
    part = BatchSlice("c", 2**62, 3, 4, {"images": np.ones((4, 1, 2, 2), np.uint8)}, png=True, request_id="r")
    batch = Batch("b", "s", "m", "1", "encode", {"k": 1}, [part], {"n": np.zeros(4)})
    back = Batch.unpack(batch.pack())
    assert back.slices[0].seed == 2**62
    np.testing.assert_array_equal(back.slices[0].items["images"], part.items["images"])
    assert back.state is not None
    assert (back.options, back.method) == ({"k": 1}, "encode")


def test_items_are_cut_to_rows() -> None:
    """Each row of a slice gets the image it reads, and a single image is sent once."""
    three = {"images": np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)}
    assert cut_items(three, 2, 1, 4)["images"].ravel().tolist() == [0, 1, 1, 2]
    one = {"first": three["images"][:1]}
    assert cut_items(one, 9, 5, 2)["first"] is one["first"]
    both = cut_items({**three, "mask": three["images"][2:]}, 2, 3, 3)
    assert both["images"].ravel().tolist() == [1, 2, 2]
    assert both["mask"].ravel().tolist() == [2]


def test_pieces_are_joined_in_order() -> None:
    """Arrays and lists are concatenated; constants are kept."""
    pieces = [{"a": np.array([1]), "p": [b"x"], "k": 5}, {"a": np.array([2]), "p": [b"y"], "k": 5}]
    whole = joined(pieces)
    assert whole["a"].tolist() == [1, 2]
    assert (whole["p"], whole["k"]) == ([b"x", b"y"], 5)
