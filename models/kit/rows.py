r"""Random numbers that belong to a row: they depend on its (seed, row, stream) and on nothing else.

Generator: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011), a
bijection of a 128-bit counter under a 64-bit key. Here the key is the seed's two halves and the counter is
[block, row's low half, row's high half, stream], so no state is kept anywhere and every number can be drawn alone.

The integers are the same on every device. Uniforms are exact functions of them; normals go through a logarithm, a
sine and a cosine in float64 and are rounded once, so devices may part only where float64 rounding straddles a
float32 boundary (about one number in 10⁸).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from models.kit.shapes import Float, Int, Int16, Int64, Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

# Streams of an operation; a family may count on from `FIRST_FREE`.
LATENT, BINARIZE, OUTPUT, SHUFFLE, CHOICE, FIRST_FREE = range(6)


def _constants(device: torch.device) -> tuple[Int64[Tensor, "2"], Int64[Tensor, "rounds 2"]]:
    """The two multipliers, and what each round adds to the key."""
    multipliers = torch.tensor(MULTIPLIERS, device=device)
    steps = torch.arange(ROUNDS, device=device)[:, None] * torch.tensor(WEYL, device=device)
    return multipliers, steps


@lru_cache(maxsize=16)
def _kept(device: torch.device) -> tuple[Int64[Tensor, "2"], Int64[Tensor, "rounds 2"]]:
    """The constants, for every mode of gradients."""
    with torch.inference_mode(mode=False):
        return _constants(device)


def philox(counter: Int64[Tensor, "4 *n"], key: Int64[Tensor, "2 *m"]) -> Int64[Tensor, "4 *n"]:
    """Philox4x32-10 of 32-bit words kept in int64; a key's shape broadcasts to that of the counters.

    A product of two 32-bit words wraps in int64, but its bits are right; an arithmetic shift and a mask give the high
    word. The pairs (c0, c2) and (c1, c3) go together, so that a round is six tensor operations.
    """
    ones = (1,) * (counter.ndim - 1)
    # a compiler folds them into its program, and follows neither the mode nor the cache
    multipliers, steps = (_constants if torch.compiler.is_compiling() else _kept)(counter.device)
    multipliers = multipliers.view(2, *ones)
    keys = (key + steps.view(ROUNDS, 2, *ones)) & MASK
    high, low = counter[0::2], counter[1::2]
    for round_key in keys.unbind():
        product = (high * multipliers).flip(0)
        high = (product >> 32).bitwise_xor_(low).bitwise_xor_(round_key).bitwise_and_(MASK)
        low = product  # its upper half is dropped by the next mask
    return torch.stack((high, low & MASK), dim=1).view_as(counter)


@dataclass(frozen=True)
class Rows:
    """A batch of rows of random numbers: 0 ≤ seed < 2⁶³ and row ≥ 0, both int64, one each a row."""

    seed: Int[Tensor, "B"]
    row: Int[Tensor, "B"]

    @classmethod
    def range(cls, seed: int, first: int, count: int, device: torch.device | str = "cpu") -> Rows:
        """Rows `first` … `first + count − 1` of one seed; ValueError where they leave 0 … 2⁶³ − 1."""
        if not 0 <= seed < 2**63 or first < 0 or count < 0 or first + count > 2**63:
            raise ValueError(f"seed {seed}, first {first}, count {count}: seed and rows must lie in 0 … 2^63 - 1")
        row = first + torch.arange(count, device=device)
        return cls(seed=torch.full_like(row, seed), row=row)

    def __len__(self) -> int:
        return self.row.shape[0]

    def to(self, device: torch.device | str) -> Rows:
        """The same rows, drawn on another device."""
        return Rows(seed=self.seed.to(device), row=self.row.to(device))

    def shared(self) -> Rows:
        """Row 0 of each seed: what the frames of one path have in common."""
        return Rows(seed=self.seed, row=torch.zeros_like(self.row))

    def words(self, blocks: int, stream: int = 0, first: int = 0) -> Int64[Tensor, "B words"]:
        """Four 32-bit words from each of the blocks `first` … `first + blocks − 1`, (B, 4·blocks)."""
        return self._blocks(blocks, stream, first).permute(1, 2, 0).reshape(len(self), 4 * blocks)

    def _blocks(self, blocks: int, stream: int, first: int = 0) -> Int64[Tensor, "4 B blocks"]:
        """Those words as Philox leaves them: word by word, each for all rows and their blocks."""
        block = torch.arange(first, first + blocks, device=self.row.device)
        counter = block.new_empty((4, len(self), blocks))
        counter[0] = block
        counter[1] = (self.row & MASK)[:, None]
        counter[2] = (self.row >> 32)[:, None]
        counter[3] = stream
        return philox(counter, torch.stack((self.seed & MASK, self.seed >> 32))[:, :, None])

    def uniform(self, n: int, stream: int = 0) -> Float[Tensor, "B n"]:
        """`n` numbers a row, uniform on the 2²⁴ multiples of 2⁻²⁴ in [0, 1)."""
        return (self.words(-(-n // 4), stream)[:, :n] >> 8).to(torch.float32) * 2.0**-24

    def normal(self, n: int, stream: int = 0) -> Float[Tensor, "B n"]:
        """`n` numbers a row from N(0, 1), by Box and Muller's transform."""
        return box_muller(self.words(-(-n // 4), stream))[:, :n]

    def normals(self, n: int, first: int, count: int, stream: int = 0) -> Float[Tensor, "B count n"]:
        """Samples `first` … `first + count − 1` of a row's endless run of N(0, 1)ⁿ; sample 0 is `normal(n)`."""
        blocks = -(-n // 4)
        words = self.words(count * blocks, stream, first * blocks)
        return box_muller(words).view(len(self), count, 4 * blocks)[..., :n]

    def halves(self, n: int, first: int, count: int, stream: int = 0) -> Int16[Tensor, "B count n"]:
        """Samples `first` … `first + count − 1` of a row's endless run of n signed 16-bit numbers, for `below`."""
        blocks = -(-n // 8)
        words = self._blocks(count * blocks, stream, first * blocks).to(torch.int32)
        halves = words.view(torch.int16).view(4, len(self), count, 2 * blocks)
        return halves.permute(1, 2, 0, 3).reshape(len(self), count, 8 * blocks)[..., :n]

    def bernoulli(self, probability: Float[Tensor, "B n"], stream: int = BINARIZE) -> Float[Tensor, "B n"]:
        """One draw for each probability, itself rounded to a multiple of 2⁻¹⁶; 0 and 1 stay what they are.

        Sixteen bits a draw: half the work of a full word, and a bias below 8·10⁻⁶.
        """
        return below(self.halves(probability.shape[1], 0, 1, stream)[:, 0], probability)


def below(halves: Int16[Tensor, "*B n"], probability: Float[Tensor, "*#B n"]) -> Float[Tensor, "*B n"]:
    """1 where a 16-bit number, uniform on −2¹⁵ … 2¹⁵ − 1, lies below its probability's share of that range, else 0."""
    threshold = probability * 65536.0
    return (halves < threshold.round_().sub_(32768.0)).to(probability.dtype)


def box_muller(words: Int64[Tensor, "B words"]) -> Float[Tensor, "B words"]:
    """Each pair of 32-bit words gives a pair of independent N(0, 1) numbers, |z| < 6.77."""
    unit = (words.to(torch.float64) + 0.5).mul_(2.0**-32).view(words.shape[0], -1, 2)
    radius = unit[..., 0].log().mul_(-2.0).sqrt_()
    angle = unit[..., 1] * (2.0 * math.pi)
    pair = torch.stack((angle.cos().mul_(radius), angle.sin().mul_(radius)), dim=-1)
    return pair.to(torch.float32).view(words.shape[0], -1)
