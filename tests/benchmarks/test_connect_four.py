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


@pytest.mark.parametrize(("moves", "count"), [(1, 7), (2, 49), (3, 238), (4, 1120)])
def test_the_numbers_of_positions_are_the_known_ones(connect_four: ModuleType, moves: int, count: int) -> None:
    """After a few moves, before any is forced, there are as many positions as the literature counts."""
    found = set(connect_four.positions(moves))
    assert len(found | {tuple(map(connect_four.mirrored, position)) for position in found}) == count


@pytest.mark.slow
def test_rows_are_ucis_in_ucis_order(connect_four: ModuleType) -> None:
    """There are as many rows as at UCI, and the first ones have UCI's pieces, column by column."""
    cells = connect_four.rows().reshape(-1, connect_four.WIDTH, connect_four.HEIGHT, 3).argmax(-1)
    assert len(cells) == 67_557
    boards = ["/".join("".join("bxo"[cell] for cell in column if cell) for column in board) for board in cells[:8]]
    assert boards == [
        "//xo/xoxoxo///",
        "//x/xoxoxo/o//",
        "/o/x/xoxoxo///",
        "//x/xoxoxo//o/",
        "o//x/xoxoxo///",
        "//x/xoxoxo///o",
        "/x/o/xoxoxo///",
        "/x//xoxoxo/o//",
    ]


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
