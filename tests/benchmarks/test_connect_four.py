"""`benchmarks/connect_four.py` lists positions of the game connect four."""

from types import ModuleType

import numpy as np
import pytest

from tests.benchmarks.modules import Importer


@pytest.fixture
def connect_four(module: Importer) -> ModuleType:
    """The module that lists them."""
    found: ModuleType = module("connect_four")
    return found


@pytest.mark.parametrize(("moves", "count"), [(1, 7), (2, 49), (3, 238), (4, 1120), (5, 4263)])
def test_the_numbers_of_positions_are_the_known_ones(connect_four: ModuleType, moves: int, count: int) -> None:
    """After a few moves there are as many positions as the literature counts."""
    assert len(connect_four.positions(moves)) == count


def test_lines_of_four_do_not_cross_columns(connect_four: ModuleType) -> None:
    """Four cells in a column are a line; three cells and the next column's lowest one are not."""
    assert connect_four.has_four(0b1111 << 2)
    assert not connect_four.has_four(0b111 << 3 | 1 << connect_four.STRIDE)


def test_rows_are_cells_of_three_kinds_and_no_two_are_mirror_images(connect_four: ModuleType) -> None:
    """Each cell has one bit of three, and a row's mirror image is no other row."""
    bits = connect_four.rows(4)
    boards = bits.reshape(len(bits), connect_four.WIDTH, connect_four.HEIGHT, 3)
    assert np.array_equal(boards.sum(-1), np.ones(boards.shape[:3]))
    assert np.array_equal(boards[..., 1].sum((1, 2)), np.full(len(bits), 2))
    seen = {board.tobytes() for board in boards}
    mirrored = [np.ascontiguousarray(board[::-1]) for board in boards]
    assert all(np.array_equal(m, b) or m.tobytes() not in seen for m, b in zip(mirrored, boards, strict=True))
