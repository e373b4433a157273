"""`models.kit.row_streams`: random numbers that depend on (seed, row, stream) only."""

from __future__ import annotations

import math

import pytest
import torch

from models.kit.row_streams import MASK, RowStreams, box_muller, philox

KNOWN = [  # counter, key → words, from the known-answer file of Random123
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([MASK] * 4, [MASK] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_published_words(counter: list[int], key: list[int], words: list[int]) -> None:
    """Philox4x32-10 reproduces the known-answer vectors."""
    drawn = philox(torch.tensor(counter)[:, None], torch.tensor(key)[:, None])
    assert drawn[:, 0].tolist() == words


def test_a_row_is_the_same_alone_and_in_a_batch() -> None:
    """A row of a batch with mixed seeds equals that row drawn alone, for every kind of number."""
    seed = torch.tensor([5, 2**63 - 1, 5, 0])
    row = torch.tensor([0, 7, 2**40 + 3, 2**63 - 1])
    rows = RowStreams(seed, row)
    half = torch.full((4, 50), 0.5)
    for i in range(4):
        one = RowStreams(seed[i : i + 1], row[i : i + 1])
        assert torch.equal(one.uniform(13, 2)[0], rows.uniform(13, 2)[i])
        assert torch.equal(one.normal(50)[0], rows.normal(50)[i])
        assert torch.equal(one.normals(6, 4, 3)[0], rows.normals(6, 4, 3)[i])
        assert torch.equal(one.bernoulli(half[:1])[0], rows.bernoulli(half)[i])


def test_seed_row_and_stream_each_make_other_numbers() -> None:
    """Changing seed, row (low or high half) or stream changes the numbers."""
    drawn = [
        RowStreams.range(seed, row, 1).uniform(8, stream)[0].tolist()
        for seed, row, stream in [(1, 1, 1), (2, 1, 1), (1 + 2**32, 1, 1), (1, 2, 1), (1, 1 + 2**32, 1), (1, 1, 2)]
    ]
    assert len({tuple(numbers) for numbers in drawn}) == 6


def test_a_range_names_its_rows() -> None:
    """`range` counts from its first row, up to the largest row."""
    assert RowStreams.range(3, 5, 3).row.tolist() == [5, 6, 7]
    assert RowStreams.range(2**63 - 1, 2**63 - 1, 1).row.tolist() == [2**63 - 1]
    assert torch.equal(RowStreams.range(1, 4, 2).uniform(5), RowStreams.range(1, 0, 9).uniform(5)[4:6])
    assert RowStreams.range(1, 4, 2).row_zero().row.tolist() == [0, 0]


def test_samples_of_a_row_can_be_drawn_from_anywhere() -> None:
    """Samples 5 to 7 drawn alone equal those of a sequence from 0; sample 0 equals `normal`."""
    rows = RowStreams.range(9, 3, 2)
    run = rows.normals(10, 0, 8)
    assert torch.equal(rows.normals(10, 5, 3), run[:, 5:8])
    assert torch.equal(rows.normal(10), run[:, 0])


def test_the_distributions_are_right() -> None:
    """Moments of a million uniforms and normals and the frequency of Bernoulli draws are
    within 4 standard errors.
    """
    rows = RowStreams.range(4, 0, 1000)
    n = 1_000_000
    uniform, normal = rows.uniform(1000).double(), rows.normal(1000).double()
    assert float(uniform.min()) >= 0.0
    assert float(uniform.max()) < 1.0
    assert abs(float(uniform.mean()) - 0.5) < 4 / math.sqrt(12 * n)
    assert abs(float(normal.mean())) < 4 / math.sqrt(n)
    assert abs(float(normal.var()) - 1) < 4 * math.sqrt(2 / n)
    assert abs(float((normal**4).mean()) - 3) < 4 * math.sqrt(96 / n)
    assert abs(float((normal[:, ::2] * normal[:, 1::2]).mean())) < 4 / math.sqrt(n / 2)
    for p in (0.001, 0.3, 0.5, 0.99):
        drawn = rows.bernoulli(torch.full((1000, 1000), p)).double().mean()
        assert abs(float(drawn) - p) < 4 * math.sqrt(p * (1 - p) / n) + 2**-17


def test_normals_are_quantiles_of_a_normal() -> None:
    """100 000 normals are within the Kolmogorov–Smirnov distance of p = 0.001."""
    z = RowStreams.range(8, 0, 100).normal(1000).double().flatten().sort().values
    n = len(z)
    distance = (torch.special.ndtr(z) - torch.arange(1, n + 1) / n).abs().max()
    assert float(distance) < 1.95 / math.sqrt(n)


def test_certain_pixels_stay() -> None:
    """Probabilities 0 and 1 are exact, so a draw does not change binary images."""
    picture = (RowStreams.range(1, 0, 200).uniform(784) > 0.5).float()
    assert torch.equal(RowStreams.range(2, 0, 200).bernoulli(picture), picture)


def test_extreme_words_stay_finite() -> None:
    """The smallest and the largest word give finite normals."""
    words = torch.tensor([[0, 0, MASK, MASK, 0, MASK, MASK, 0]])
    assert bool(torch.isfinite(box_muller(words)).all())


def test_a_seed_out_of_range_is_refused() -> None:
    """Seeds and rows outside 0 … 2⁶³ − 1 raise ValueError."""
    for seed, first in [(-1, 0), (2**63, 0), (0, -1), (0, 2**63)]:
        with pytest.raises(ValueError, match="2\\^63"):
            RowStreams.range(seed, first, 1)
