r"""Compute random numbers that depend only on seed, row and stream, and so not on the batch.

Generator: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3",
SC 2011), a bijection of a 128-bit counter under a 64-bit key. Here the key is the two halves of the
seed and the counter is [block, low half of the row, high half of the row, stream]. The generator
has no state: any number can be computed alone.

The integers are equal on every device. Uniforms are exact functions of them. Normals take a
logarithm, a sine and a cosine in float64 and are rounded once, so two devices differ only where
float64 rounding crosses a float32 boundary (about one number in 10⁸).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from models.kit.shapes import Float, Int, Int16, Int64, Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

# Stream numbers of the operations; a family numbers its own streams from FIRST_FREE.
LATENT, BINARIZE, OUTPUT, SHUFFLE, CHOICE, FIRST_FREE = range(6)


def _round_constants(device: torch.device) -> tuple[Int64[Tensor, "2"], Int64[Tensor, "rounds 2"]]:
    """Return Philox's two multipliers, and the increments of the key in each of its rounds."""
    multipliers = torch.tensor(MULTIPLIERS, device=device)
    increments = torch.arange(ROUNDS, device=device)[:, None] * torch.tensor(WEYL, device=device)
    return multipliers, increments


@lru_cache(maxsize=16)
def _cached_round_constants(device: torch.device) -> tuple[Int64[Tensor, "2"], Int64[Tensor, "rounds 2"]]:
    """Return Philox's two multipliers and the key's increments of each round, from a cache.

    The tensors can be used in inference mode and outside it.
    """
    with torch.inference_mode(mode=False):
        return _round_constants(device)


def philox(counter: Int64[Tensor, "4 *n"], key: Int64[Tensor, "2 *m"]) -> Int64[Tensor, "4 *n"]:
    """Return the Philox4x32-10 random words of each counter in `counter` under its key in `key`.

    All words have 32 bits and are stored in int64. The shape of the keys broadcasts to that of the
    counters.

    The product of two 32-bit words overflows int64, but its bits are right: an arithmetic shift and
    a mask give the high word. The word pairs (c0, c2) and (c1, c3) are processed together, so that
    a round takes six tensor operations.
    """
    ones = (1,) * (counter.ndim - 1)
    # torch.compile inlines the constants and can follow neither the inference mode nor the cache
    constants = _round_constants if torch.compiler.is_compiling() else _cached_round_constants
    multipliers, increments = constants(counter.device)
    multipliers = multipliers.view(2, *ones)
    keys = (key + increments.view(ROUNDS, 2, *ones)) & MASK
    high, low = counter[0::2], counter[1::2]
    for round_key in keys.unbind():
        product = (high * multipliers).flip(0)
        high = (product >> 32).bitwise_xor_(low).bitwise_xor_(round_key).bitwise_and_(MASK)
        low = product  # the next mask drops its upper half
    return torch.stack((high, low & MASK), dim=1).view_as(counter)


# See docs/decisions.md#a-rows-random-numbers-come-from-philox
@dataclass(frozen=True)
class RowStreams:
    """The random streams of the rows of a batch: row i has the seed seed[i] and the number row[i].

    0 ≤ seed < 2⁶³ and row ≥ 0. A stream, which is a number, selects one of a row's sequences of
    random numbers.
    """

    seed: Int[Tensor, "B"]
    row: Int[Tensor, "B"]

    @classmethod
    def range(cls, seed: int, first: int, count: int, device: torch.device | str = "cpu") -> "RowStreams":
        """Return the streams of rows `first` … `first + count − 1` of one seed.

        Raises ValueError if the seed or a row is outside 0 … 2⁶³ − 1.
        """
        if not 0 <= seed < 2**63 or first < 0 or count < 0 or first + count > 2**63:
            raise ValueError(f"seed {seed}, first {first}, count {count}: seed and rows must lie in 0 … 2^63 - 1")
        return cls.of_rows(seed, first + torch.arange(count, device=device))

    @classmethod
    def of_rows(cls, seed: int, row: Int[Tensor, "B"]) -> "RowStreams":
        """Return the streams of the rows numbered `row` of one seed, on the device of `row`."""
        return cls(seed=torch.full_like(row, seed), row=row)

    def __len__(self) -> int:
        return self.row.shape[0]

    def to(self, device: torch.device | str) -> "RowStreams":
        """Return the same rows on another device."""
        return RowStreams(seed=self.seed.to(device), row=self.row.to(device))

    def row_zero(self) -> "RowStreams":
        """Return streams in which each row has its seed, but the number 0.

        These streams draw numbers that all rows of a request share, for example to binarize the two
        images between which an interpolation is computed.
        """
        return RowStreams(seed=self.seed, row=torch.zeros_like(self.row))

    def words(self, blocks: int, stream: int = 0, first: int = 0) -> Int64[Tensor, "B words"]:
        """Return 4·`blocks` random 32-bit words of each row, in int64.

        A stream is a sequence of blocks of four words; the result has the `blocks` blocks from
        number `first` on.
        """
        return self._word_blocks(blocks, stream, first).permute(1, 2, 0).reshape(len(self), 4 * blocks)

    def _word_blocks(self, blocks: int, stream: int, first: int = 0) -> Int64[Tensor, "4 B blocks"]:
        """Return random 32-bit words of each row in int64, four words in each of `blocks` blocks.

        The result has the stream's blocks from number `first` on. The axes are in the order in
        which Philox computes the words: word of a block, row, block.
        """
        block = torch.arange(first, first + blocks, device=self.row.device)
        counter = block.new_empty((4, len(self), blocks))
        counter[0] = block
        counter[1] = (self.row & MASK)[:, None]
        counter[2] = (self.row >> 32)[:, None]
        counter[3] = stream
        return philox(counter, torch.stack((self.seed & MASK, self.seed >> 32))[:, :, None])

    def uniform(self, n: int, stream: int = 0) -> Float[Tensor, "B n"]:
        """Return `n` numbers per row, uniform on the 2²⁴ multiples of 2⁻²⁴ in [0, 1)."""
        return (self.words(-(-n // 4), stream)[:, :n] >> 8).to(torch.float32) * 2.0**-24

    def normal(self, n: int, stream: int = 0) -> Float[Tensor, "B n"]:
        """Return `n` numbers per row from N(0, 1), by the Box–Muller transform."""
        return box_muller(self.words(-(-n // 4), stream))[:, :n]

    def normals(self, n: int, first: int, count: int, stream: int = 0) -> Float[Tensor, "B count n"]:
        """Return `count` samples per row, from number `first` on, of a sequence of N(0, 1)ⁿ.

        Sample 0 equals `normal(n)` of the same stream.
        """
        blocks = -(-n // 4)
        words = self.words(count * blocks, stream, first * blocks)
        return box_muller(words).view(len(self), count, 4 * blocks)[..., :n]

    def uniform_int16(self, n: int, first: int, count: int, stream: int = 0) -> Int16[Tensor, "B count n"]:
        """Return `count` samples per row, from number `first` on, of a sequence of random integers.

        A sample is n uniform signed 16-bit integers.
        """
        blocks = -(-n // 8)
        words = self._word_blocks(count * blocks, stream, first * blocks).to(torch.int32)
        integers = words.view(torch.int16).view(4, len(self), count, 2 * blocks)
        return integers.permute(1, 2, 0, 3).reshape(len(self), count, 8 * blocks)[..., :n]

    def bernoulli(self, probability: Float[Tensor, "B n"], stream: int = BINARIZE) -> Float[Tensor, "B n"]:
        """Return one Bernoulli draw, 0 or 1, for each probability of each row.

        Probabilities are rounded to multiples of 2⁻¹⁶, a bias below 8·10⁻⁶; 0 and 1 are exact. A
        draw takes sixteen random bits, half the work of a 32-bit word.
        """
        return bernoulli_from_int16(self.uniform_int16(probability.shape[1], 0, 1, stream)[:, 0], probability)

    def binarize(self, pixels: Float[Tensor, "B n"], binarization: str) -> Float[Tensor, "B n"]:
        """Return pixels in 0 … 1 as 0 or 1, in the way that `binarization` names.

        "draw" is a Bernoulli draw with the pixel as its probability, "threshold" gives 1 from 0.5
        on, and "none" returns the pixels unchanged.
        """
        if binarization == "none":
            return pixels
        return self.bernoulli(pixels, BINARIZE) if binarization == "draw" else (pixels >= 0.5).to(pixels.dtype)


def bernoulli_from_int16(uniform: Int16[Tensor, "*B n"], probability: Float[Tensor, "*#B n"]) -> Float[Tensor, "*B n"]:
    """Return a Bernoulli draw, 0 or 1, for each probability, from uniform signed 16-bit integers.

    A draw is 1 where the integer, in −2¹⁵ … 2¹⁵ − 1, is below 2¹⁶·probability − 2¹⁵.
    """
    threshold = probability * 65536.0
    return (uniform < threshold.round_().sub_(32768.0)).to(probability.dtype)


def box_muller(words: Int64[Tensor, "B words"]) -> Float[Tensor, "B words"]:
    """Return two independent N(0, 1) numbers z for each pair of 32-bit words; |z| < 6.77."""
    unit = (words.to(torch.float64) + 0.5).mul_(2.0**-32).view(words.shape[0], -1, 2)
    radius = unit[..., 0].log().mul_(-2.0).sqrt_()
    angle = unit[..., 1] * (2.0 * math.pi)
    pair = torch.stack((angle.cos().mul_(radius), angle.sin().mul_(radius)), dim=-1)
    return pair.to(torch.float32).view(words.shape[0], -1)
