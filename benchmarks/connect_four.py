"""Write UCI's data set connect-4 as binary vectors, made from the rules of the game.

Command: `python benchmarks/connect_four.py data/connect-4.npz`.

UCI describes it as all legal positions after 8 moves in which neither player has won and the next
move is not forced; a position and its mirror image count once. A search of all games, each move from
the centre column outwards, finds UCI's 67 557 rows in UCI's order; of two mirror images UCI has the
one that this search finds first. A position is 126 bits: each of the 42 cells, column by column from
the left and from the bottom up, is empty, the first player's or the second player's. The rows are
shuffled with a fixed seed and divided as in the BiHM's paper into 16 000 rows for training, 4 000
for validation and 47 557 for the test. How the paper shuffled them is not known.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

WIDTH, HEIGHT, MOVES = 7, 6, 8
TRAIN, VALID = 16_000, 4_000
STRIDE = HEIGHT + 1  # bits of a column; the uppermost stays empty, so that no line crosses columns

ORDER = (3, 2, 4, 1, 5, 0, 6)  # columns, from the centre outwards
EMPTY = (0,) * WIDTH

Position = tuple[int, int]  # the first player's bits, the second one's


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


def mirrored(bits: int) -> int:
    """Return a player's bits in the mirror image."""
    column = (1 << STRIDE) - 1
    return sum((bits >> (c * STRIDE) & column) << ((WIDTH - 1 - c) * STRIDE) for c in range(WIDTH))


def positions(
    moves: int, position: Position = (0, 0), heights: tuple[int, ...] = EMPTY, seen: set[Position] | None = None
) -> Iterator[Position]:
    """Yield the positions that follow `position` by the game's move number `moves`.

    Of two mirror images the first that is found is yielded. Neither player has won, and the next
    move is not forced. `heights` are the numbers of pieces of the columns; `seen` has the positions
    that were visited, and their mirror images.
    """
    seen = set() if seen is None else seen
    if position in seen:
        return
    seen |= {position, (mirrored(position[0]), mirrored(position[1]))}
    number = sum(heights)
    if number == moves:
        if not any(can_win(bits, heights) for bits in position):
            yield position
        return
    player = number % 2
    for column in ORDER:
        moved = position[player] | 1 << (column * STRIDE + heights[column])
        if heights[column] < HEIGHT and not has_four(moved):
            following = (position[0], moved) if player else (moved, position[1])
            higher = (*heights[:column], heights[column] + 1, *heights[column + 1 :])
            yield from positions(moves, following, higher, seen)


def columns(first: int, second: int) -> tuple[tuple[int, ...], ...]:
    """Return the cells of each column from the bottom up: 0 empty, 1 the first player's, 2 the other's."""
    cells = [(first >> at & 1) + 2 * (second >> at & 1) for at in range(WIDTH * STRIDE)]
    return tuple(tuple(cells[c * STRIDE : c * STRIDE + HEIGHT]) for c in range(WIDTH))


def rows(moves: int = MOVES) -> np.ndarray:
    """Return the positions as bits, (N, 126), in UCI's order."""
    cells = np.array([columns(*position) for position in positions(moves)]).reshape(-1, WIDTH * HEIGHT)
    bits: np.ndarray = np.eye(3, dtype=np.uint8)[cells]
    return bits.reshape(len(cells), -1)


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
