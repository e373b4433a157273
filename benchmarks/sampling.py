"""Compare the algorithms of `models/kit/sampling.py` with known results.

Each algorithm is also shown where it fails.

    python benchmarks/sampling.py  # docs/results/sampling.md, about twenty seconds

Targets are normal: p = N(0, I) with proposals q = N(0, σ²I), so that every expectation has a closed
form.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from models.kit import sampling  # noqa: E402
from models.kit.export import commit, hardware  # noqa: E402
from models.kit.row_streams import RowStreams  # noqa: E402

SEED = 20140501
Say = Callable[[str], None]


def normals(seed: int, count: int, dimensions: int = 1) -> torch.Tensor:
    """Return (count, dimensions) numbers from N(0, 1), float64; `count` in thousands."""
    return RowStreams.range(SEED + seed, 0, 1000).normals(dimensions, 0, count // 1000).double().view(count, dimensions)


def kolmogorov(sample: torch.Tensor, cdf: Callable[[torch.Tensor], torch.Tensor]) -> tuple[float, float]:
    """Return √n sup |F_n − F| and the probability of at least that value, by
    Kolmogorov's series.
    """
    ordered = cdf(sample.double().flatten().sort().values)
    n = len(ordered)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = float(torch.maximum((ordered - steps[:-1]).abs().max(), (steps[1:] - ordered).abs().max()))
    at = math.sqrt(n) * distance
    series = sum((-1) ** (j - 1) * math.exp(-2 * (j * at) ** 2) for j in range(1, 101))
    return at, min(1.0, max(0.0, 2 * series))


def inverse_cdf(say: Say) -> None:
    """Run Kolmogorov–Smirnov tests of two transforms, and of one against a wrong distribution."""
    say("## Transform by inverse CDF\n")
    say("Kolmogorov-Smirnov, n = 100 000: √n sup |F_n − F| and its p-value.\n")
    say("| draws | against | √n D | p |\n| --- | --- | --- | --- |")
    drawn = sampling.exponential(RowStreams.range(SEED, 0, 100).uniform(1000), 2.5)
    for rate in (2.5, 2.55):
        at, p = kolmogorov(drawn, lambda y, rate=rate: 1 - (-rate * y).exp())
        say(f"| −ln(1 − u)/λ, λ = 2.5 | exponential, λ = {rate} | {at:.2f} | {p:.2g} |")
    for t in (0.5, 2.0):
        low = 0.5 * math.erfc(t / math.sqrt(2))
        at, p = kolmogorov(
            sampling.truncated_normal(RowStreams.range(SEED + int(2 * t), 0, 100).uniform(1000), t),
            lambda z, low=low: (torch.special.ndtr(z) - low) / (1 - 2 * low),
        )
        say(f"| Φ⁻¹ of a part of (0, 1), t = {t} | N(0, 1) given that it lies within ± {t} | {at:.2f} | {p:.2g} |")
    say("")


def squares(ratio: float, dimensions: int, count: int, *, whole: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw proposals and return ‖z‖² and ‖z‖²/ratio².

    With `whole` they are computed from points z, otherwise ‖z‖² is drawn from the χ² distribution.
    """
    if whole:
        chi = torch.cat([normals(7 + i, 10_000, dimensions).square().sum(1) for i in range(count // 10_000)])
    else:
        with torch.random.fork_rng():
            torch.manual_seed(SEED + dimensions)
            chi = torch.distributions.Chi2(torch.tensor(dimensions, dtype=torch.float64)).sample((count,))
    return chi * ratio**2, chi


def rejected(ratio: float, dimensions: int, count: int, log_k: float, *, whole: bool) -> tuple[torch.Tensor, float]:
    """Return ‖z‖² of the accepted proposals, and the excess over the envelope, in nats."""
    square, chi = squares(ratio, dimensions, count, whole=whole)
    log_p, log_q = -0.5 * square, -0.5 * chi - dimensions * math.log(ratio)
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(SEED + count), dtype=torch.float64)
    kept = sampling.accept(log_p, log_q, log_k, uniform)
    return square[kept], float(sampling.envelope_excess(log_p, log_q, log_k))


def rejection(say: Say) -> None:
    """Compare the acceptance rate with theory, and show a violated envelope."""
    say("## Rejection\n")
    say("Proposals from N(0, σ²I) in D dimensions for N(0, I), with the smallest k, σ^D: a share σ^−D is kept. At")
    say("D = 1000 the statistic ‖z‖² ~ σ²χ² is drawn and not z.\n")
    say("| σ | D | drawn | proposals | kept | σ^−D | E ‖z‖² of the kept (is D) | excess, nats |")
    say("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for ratio, dimensions, count, whole in (
        (1.1, 10, 200_000, True),
        (1.01, 100, 50_000, True),
        (1.01, 100, 200_000, False),
        (1.01, 1000, 10_000_000, False),
    ):
        square, excess = rejected(ratio, dimensions, count, dimensions * math.log(ratio), whole=whole)
        share = len(square) / count
        error = math.sqrt(share * (1 - share) / count)
        mean, spread = float(square.mean()), float(square.std()) / math.sqrt(len(square))
        say(
            f"| {ratio} | {dimensions} | {'z' if whole else '‖z‖²'} | {count:,} | {share:.4g} ± {error:.1g} "
            f"| {ratio**-dimensions:.4g} | {mean:.2f} ± {spread:.2f} | {excess:+.4f} |"
        )
    say("\n**An envelope that is too small fails silently.** σ = 1.1, D = 10, 200 000 proposals: more is kept, from")
    say("min(p, kq) instead of p; nothing but the excess says so.\n")
    say("| k | kept | E ‖z‖² of the kept (is 10) | excess, nats |\n| --- | --- | --- | --- |")
    for divisor in (1, 2, 4, 16):
        square, excess = rejected(1.1, 10, 200_000, 10 * math.log(1.1) - math.log(divisor), whole=False)
        mean, spread = float(square.mean()), float(square.std()) / math.sqrt(len(square))
        name = "smallest right one" if divisor == 1 else f"1/{divisor} of it"
        say(f"| {name} | {len(square) / 200_000:.3f} | {mean:.2f} ± {spread:.2f} | {excess:+.3f} |")
    found = ", ".join(
        f"{rejected(0.9, 10, count, 0.0, whole=False)[1]:.2f} after {count:,}" for count in (1000, 100_000, 10_000_000)
    )
    say(f"\nA proposal narrower than its target (σ = 0.9) has no finite k: with k = 1 the excess is {found} draws.\n")


def log_weights(spread: float, rows: int, count: int, seed: int = 0) -> torch.Tensor:
    """Return log p/q at z ~ q = N(0, spread²) for p = N(0, 1), (rows, count), in nats."""
    noise = RowStreams.range(SEED + seed, 0, rows).normals(1, 0, count)[..., 0].double()
    return math.log(spread) + 0.5 * noise.square() * (1 - spread**2)


def importance(say: Say) -> None:
    """Compare the effective sample size with theory, and show a too narrow proposal."""
    say("## Importance weights\n")
    say("p = N(0, 1), q = N(0, σ²): the effective share ESS/L tends to √(2σ² − 1)/σ². 40 runs of L = 10 000.\n")
    say("| σ | ESS/L | √(2σ² − 1)/σ² |\n| --- | --- | --- |")
    for spread in (0.8, 1.0, 1.2, 2.0, 4.0):
        share = sampling.effective_sample_size(log_weights(spread, 40, 10_000)) / 10_000
        law = math.sqrt(2 * spread**2 - 1) / spread**2
        say(f"| {spread} | {float(share.mean()):.4f} ± {float(share.std()) / math.sqrt(40):.4f} | {law:.4f} |")
    say("\nFor σ² ≤ ¾, as at σ = 0.8, the squared weights have no variance: the share comes to its law slowly.")
    say("\n**A proposal that is too narrow** (σ² ≤ ½) has weights without variance. 400 estimates of log Z = 0: their")
    say("root mean square, the standard error that they claim by the delta method, and how often the truth is more")
    say("than four of these away. For σ² = 2 the error falls as L^−½. For σ² ≤ ½ the weights' tail is a power, the")
    say("error falls as L^−σ² only, the claim is too small, and the effective share goes to zero.\n")
    say("| σ² | L | true error, nats | claimed | beyond 4 s.e. | mean ESS/L |\n| --- | --- | --- | --- | --- | --- |")
    for variance in (2.0, 0.3, 0.15):
        for count in (100, 1000, 10_000):
            log_w = log_weights(math.sqrt(variance), 400, count)
            log_mean, error = sampling.log_mean_exp(log_w), sampling.log_mean_error(log_w)
            true, claimed = float(log_mean.square().mean().sqrt()), float(error.mean())
            share = float(sampling.effective_sample_size(log_w).mean()) / count
            beyond = float((log_mean.abs() > 4 * error).double().mean())
            say(f"| {variance} | {count:,} | {true:.4f} | {claimed:.4f} | {beyond:.1%} | {share:.1%} |")
    z = normals(3, 10_000)[:, 0][None]
    log_p = torch.logaddexp(-0.5 * z.square(), -0.5 * (z - 40).square()) - math.log(2)
    log_w = log_p + 0.5 * z.square()
    share = float(sampling.effective_sample_size(log_w)) / 10_000
    say(
        "\n**A mode that the proposal misses goes unnoticed.** p has two equal modes, q is one of them: ESS/L = "
        f"{share:.2%}, log Z = {float(sampling.log_mean_exp(log_w)):.4f} ± "
        f"{float(sampling.log_mean_error(log_w)):.4f}, and the truth is 0.\n"
    )


def jensen(say: Say) -> None:
    """Measure the bias of the log of a mean."""
    say("## The log of a mean is biased low\n")
    say("σ = 2, the same 4 194 304 weights in groups of L: E log (1/L) Σ w rises to log Z = 0; to second order it is")
    say("−(4/√7 − 1)/2L.\n")
    say("| L | 1 | 4 | 16 | 64 | 256 |\n| --- | --- | --- | --- | --- | --- |")
    log_w = log_weights(2.0, 4096, 1024)
    sizes = (1, 4, 16, 64, 256)
    means = [float(sampling.log_mean_exp(log_w.reshape(-1, size)).mean()) for size in sizes]
    say("| mean, nats | " + " | ".join(f"{mean:.4f}" for mean in means) + " |")
    say("| to second order | " + " | ".join(f"{-0.5 * (4 / math.sqrt(7) - 1) / size:.4f}" for size in sizes) + " |")
    assert means == sorted(means)
    log_mean, error, largest = sampling.log_mean_batches(log_weights(2.0, 1, 1_000_000)[0], 100)
    say(
        f"\nAll of a million weights at once: log Z = {float(log_mean):+.5f} ± {float(error):.5f} by 100 batch means, "
        f"largest weight's share {float(largest):.1e}.\n"
    )


def main() -> None:
    """Write docs/results/sampling.md."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    say("# The sampling algorithms where the answer is known\n")
    for part in (inverse_cdf, rejection, importance, jensen):
        part(say)
    say(f"Machine: {hardware()}. Commit: {commit()[:12]}. Date: {datetime.now(UTC):%Y-%m-%d}.")
    say("Command: `python benchmarks/sampling.py`.")
    path = ROOT / "docs" / "results" / "sampling.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
