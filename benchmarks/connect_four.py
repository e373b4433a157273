"""Write UCI's data set connect-4 as binary vectors, made from the rules of the game.

Command: `python benchmarks/connect_four.py data/connect-4.npz`.

UCI describes it as all legal positions after 8 moves in which neither player has won and the next
move is not forced. There are 67 557 of them if a position and its mirror image count once, which is
UCI's number of rows. A position is 126 bits: each of the 42 cells, column by column from the left
and from the bottom up, is empty, the first player's or the second player's. UCI does not say which
of two mirror images it keeps; here it is the one whose cells are greater in this order. The order
of the rows is a draw with a fixed seed, divided as in the BiHM's paper into 16 000 rows for
training, 4 000 for validation and 47 557 for the test.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

WIDTH, HEIGHT, MOVES = 7, 6, 8
TRAIN, VALID = 16_000, 4_000
STRIDE = HEIGHT + 1  # bits of a column; the uppermost stays empty, so that no line crosses columns

Position = tuple[int, int, tuple[int, ...]]  # the first player's bits, the second one's, column heights


def has_four(bits: int) -> bool:
    """Return whether a player has four cells in a line."""
    for step in (1, STRIDE - 1, STRIDE, STRIDE + 1):
        pairs = bits & (bits >> step)
        if pairs & (pairs >> (2 * step)):
            return True
    return False


def can_win(bits: int, heights: tuple[int, ...]) -> bool:
    """Return whether one more move of a player makes a line of four."""
    return any(h < HEIGHT and has_four(bits | 1 << (c * STRIDE + h)) for c, h in enumerate(heights))


def positions(moves: int) -> set[Position]:
    """Return all positions after `moves` moves in which neither player has won."""
    level: set[Position] = {(0, 0, (0,) * WIDTH)}
    for number in range(moves):
        following: set[Position] = set()
        for first, second, heights in level:
            for column in range(WIDTH):
                if heights[column] == HEIGHT:
                    continue
                bit = 1 << (column * STRIDE + heights[column])
                higher = (*heights[:column], heights[column] + 1, *heights[column + 1 :])
                moved = first if number % 2 == 0 else second
                if not has_four(moved | bit):
                    following.add((first, second | bit, higher) if number % 2 else (first | bit, second, higher))
        level = following
    return level


def columns(first: int, second: int) -> tuple[tuple[int, ...], ...]:
    """Return the cells of each column from the bottom up: 0 empty, 1 the first player's, 2 the other's."""
    cells = [(first >> at & 1) + 2 * (second >> at & 1) for at in range(WIDTH * STRIDE)]
    return tuple(tuple(cells[c * STRIDE : c * STRIDE + HEIGHT]) for c in range(WIDTH))


def rows(moves: int = MOVES) -> np.ndarray:
    """Return the positions whose next move is not forced, one of each two mirror images, as bits."""
    kept = set()
    for first, second, heights in positions(moves):
        if not can_win(first, heights) and not can_win(second, heights):
            board = columns(first, second)
            kept.add(max(board, board[::-1]))
    cells = np.array(sorted(kept)).reshape(len(kept), WIDTH * HEIGHT)
    return np.eye(3, dtype=np.uint8)[cells].reshape(len(kept), -1)


def main() -> None:
    """Write the NPZ file with the arrays `train`, `valid` and `test`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    bits = rows()
    order = np.random.default_rng(0).permutation(len(bits))
    train, valid, test = np.split(bits[order], [TRAIN, TRAIN + VALID])
    np.savez_compressed(parser.parse_args().out, train=train, valid=valid, test=test)
    print(f"{len(bits)} positions")


if __name__ == "__main__":
    main()
