"""`models.kit.sampling`: the algorithms, and how each of them fails."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from models.kit.row_streams import RowStreams
from models.kit.sampling import (
    ImportanceWeights,
    accept,
    batch_means,
    effective_sample_size,
    envelope_excess,
    exponential,
    first_accepted,
    log_mean_batches,
    log_mean_error,
    log_mean_exp,
    manifold_coordinates,
    normalised_weights,
    resample,
    truncated_normal,
)


def normal_log_w(spread: float, rows: int, count: int, seed: int = 1) -> torch.Tensor:
    """Return log p(z)/q(z) at z ~ q = N(0, spread²) for p = N(0, 1), (rows, count), float64."""
    noise = RowStreams.range(seed, 0, rows).normals(1, 0, count)[..., 0].double()
    return math.log(spread) + 0.5 * noise.square() * (1.0 - spread**2)


def kolmogorov(sample: torch.Tensor, cdf: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Return √n sup |F_n − F|, whose 1 % critical value is 1.63."""
    ordered = cdf(sample.double().flatten().sort().values)
    n = len(ordered)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return math.sqrt(n) * float(torch.maximum((ordered - steps[:-1]).abs().max(), (steps[1:] - ordered).abs().max()))


# --- Inverse CDF ---


def test_exponential_passes_kolmogorov_and_smirnov() -> None:
    """100 000 draws agree with 1 − e^(−λy) at p > 0.01 and with no other rate;
    no u gives infinity.
    """
    drawn = exponential(RowStreams.range(1, 0, 100).uniform(1000), 2.5)
    assert kolmogorov(drawn, lambda y: 1 - (-2.5 * y).exp()) < 1.63
    assert kolmogorov(drawn, lambda y: 1 - (-2.55 * y).exp()) > 1.63
    assert exponential(torch.tensor([0.0, 1 - 2**-24]), 1.0).tolist() == pytest.approx([0.0, 24 * math.log(2)])


def test_truncated_normal_is_the_normal_law_given_its_bounds() -> None:
    """Draws never leave (−t, t) and agree with (Φ(z) − Φ(−t))/(Φ(t) − Φ(−t)) at p > 0.01."""
    uniform = RowStreams.range(2, 0, 100).uniform(1000)
    for t in (0.1, 1.0, 3.0):
        z = truncated_normal(uniform, t)
        low = float(torch.special.ndtr(torch.tensor(-t, dtype=torch.float64)))
        assert float(z.abs().max()) < t

        def cdf(z: torch.Tensor, low: float = low) -> torch.Tensor:
            probability: torch.Tensor = (torch.special.ndtr(z) - low) / (1 - 2 * low)
            return probability

        assert kolmogorov(z, cdf) < 1.63
    assert bool(torch.isfinite(truncated_normal(torch.tensor([[0.0, 1 - 2**-24]]), 8.0)).all())


def test_truncated_normal_is_what_rejection_leaves() -> None:
    """Rejection from N(0, 1) at the same bounds agrees in its moments and accepts Φ(t) − Φ(−t)."""
    z = RowStreams.range(3, 0, 100).normal(1000).double().flatten()
    kept = z[z.abs() < 1.5]
    drawn = truncated_normal(RowStreams.range(4, 0, 100).uniform(1000), 1.5).double()
    inside = math.erf(1.5 / math.sqrt(2))
    assert len(kept) / len(z) == pytest.approx(inside, abs=4 * math.sqrt(inside * (1 - inside) / len(z)))
    for power in (1, 2, 4):
        error = float(((kept**power).var() / len(kept) + (drawn**power).var() / drawn.numel()).sqrt())
        assert float((kept**power).mean()) == pytest.approx(float((drawn**power).mean()), abs=4 * error)


def test_manifold_coordinates_are_interior_quantiles() -> None:
    """Manifold coordinates are finite, symmetric and increasing, and Φ maps them to equal steps."""
    at = torch.special.ndtr(manifold_coordinates(20).double())
    torch.testing.assert_close(at.diff(), torch.full((19,), 0.05, dtype=torch.float64), atol=1e-6, rtol=0)
    assert float(at[0]) == pytest.approx(0.025)
    assert float(at.sum()) == pytest.approx(10)


# --- Rejection sampling ---


def gaussian_acceptance(ratio: float, dimensions: int, proposals: int, log_k: float) -> tuple[torch.Tensor, float]:
    """Return ‖z‖² of the accepted proposals for p = N(0, I), q = N(0, ratio² I), and the envelope's
    excess.

    Only the sufficient statistic is drawn: ‖z‖²/ratio² ~ χ² with `dimensions` degrees of freedom.
    """
    generator = torch.Generator().manual_seed(5)
    chi = torch._standard_gamma(torch.full((proposals,), dimensions / 2, dtype=torch.float64), generator) * 2
    square = chi * ratio**2
    log_p, log_q = -0.5 * square, -0.5 * chi - dimensions * math.log(ratio)
    uniform = torch.rand(proposals, generator=generator, dtype=torch.float64)
    kept = accept(log_p, log_q, log_k, uniform)
    return square[kept], float(envelope_excess(log_p, log_q, log_k))


@pytest.mark.parametrize(
    ("ratio", "dimensions", "proposals", "expected"),
    [(1.1, 10, 200_000, 0.3855), (1.01, 100, 200_000, 0.3697), (1.01, 1000, 4_000_000, 4.77e-5)],
)
def test_acceptance_falls_with_the_dimension(ratio: float, dimensions: int, proposals: int, expected: float) -> None:
    """With the smallest k, (σp/σq)^D of the proposals from N(0, σq²I) are
    accepted for N(0, σp²I).
    """
    square, excess = gaussian_acceptance(ratio, dimensions, proposals, dimensions * math.log(ratio))
    rate = ratio**-dimensions
    assert rate == pytest.approx(expected, rel=2e-3)
    assert len(square) / proposals == pytest.approx(rate, abs=4 * math.sqrt(rate / proposals))
    assert excess <= 1e-9
    assert float(square.mean()) == pytest.approx(dimensions, abs=4 * math.sqrt(2 * dimensions / len(square)))


def test_acceptance_of_points_themselves() -> None:
    """With z drawn instead of ‖z‖², in ten dimensions, the same share is accepted with
    variance 1 per coordinate.
    """
    z = 1.1 * RowStreams.range(6, 0, 2000).normals(10, 0, 100).double().view(-1, 10)
    log_q = -0.5 * z.square().sum(1) / 1.21 - 10 * math.log(1.1)
    uniform = RowStreams.range(6, 0, 2000).uniform(100, 1).flatten()
    kept = z[accept(-0.5 * z.square().sum(1), log_q, 10 * math.log(1.1), uniform)]
    assert len(kept) / len(z) == pytest.approx(0.3855, abs=4 * math.sqrt(0.3855 * 0.6145 / len(z)))
    assert float(kept.var()) == pytest.approx(1, abs=4 * math.sqrt(2 / kept.numel()))


def test_an_envelope_too_small_is_seen_in_nothing_but_its_excess() -> None:
    """With a quarter of k, draws come from min(p, kq) and more are accepted; only
    `envelope_excess` shows it.
    """
    right = 10 * math.log(1.1)
    square, excess = gaussian_acceptance(1.1, 10, 200_000, right - math.log(4.0))
    assert excess == pytest.approx(math.log(4.0), abs=0.05)
    assert abs(float(square.mean()) - 10) > 20 * math.sqrt(20 / len(square))
    # a proposal narrower than its target has no finite k at all: the excess grows with every draw
    few = gaussian_acceptance(0.9, 10, 1_000, 0.0)[1]
    many = gaussian_acceptance(0.9, 10, 1_000_000, 0.0)[1]
    assert many > few > 0


def test_accept_at_the_edges() -> None:
    """A z with p̃(z) = 0 is never accepted, even at u = 0; one on the envelope always is."""
    log_p = torch.tensor([-math.inf, -math.inf, 0.0, 3.0])
    log_q = torch.tensor([0.0, -math.inf, 0.0, 0.0])
    for u in (0.0, 1 - 2**-24):
        assert accept(log_p, log_q, 0.0, torch.full((4,), u)).tolist() == [False, False, True, True]
    assert float(envelope_excess(log_p, log_q, 1.0)) == 2.0
    assert float(envelope_excess(log_p[:2], log_q[:2], 0.0)) == -math.inf


def test_the_first_of_each_row_that_is_kept() -> None:
    """Index, flag and number of proposals are right for rows that accept the first, the
    last, several or none.
    """
    accepted = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 1, 1], [0, 0, 0]]).bool()
    index, found, proposals = first_accepted(accepted)
    assert index.tolist() == [0, 2, 1, 0]
    assert found.tolist() == [True, True, True, False]
    assert proposals.tolist() == [1, 3, 2, 3]


# --- Importance sampling ---


def test_the_log_of_a_mean_of_weights() -> None:
    """The mean of p/q is 1 within four standard errors, which agree with repeated
    estimates, at any scale.
    """
    log_w = normal_log_w(1.5, 400, 1000)
    log_mean, error = log_mean_exp(log_w), log_mean_error(log_w)
    assert abs(float(log_mean.mean())) < 4 * float(log_mean.std()) / 20
    assert float(error.mean()) == pytest.approx(float(log_mean.std()), rel=0.15)
    weight = log_w.exp()
    torch.testing.assert_close(error, weight.std(1) / weight.mean(1) / math.sqrt(1000))
    torch.testing.assert_close(log_mean_exp(log_w - 1e4), log_mean - 1e4)
    torch.testing.assert_close(log_mean_error(log_w - 1e4), error, rtol=1e-6, atol=0)


@pytest.mark.parametrize("spread", [1.0, 1.2, 2.0, 4.0])
def test_the_effective_share_of_a_gaussian_proposal(spread: float) -> None:
    """ESS/L → √(2σ² − 1)/σ² for p = N(0, 1) and q = N(0, σ²), as 1/E_q[(p/q)²]."""
    share = effective_sample_size(normal_log_w(spread, 40, 10_000)) / 10_000
    expected = math.sqrt(2 * spread**2 - 1) / spread**2
    assert float(share.mean()) == pytest.approx(expected, abs=max(1e-9, 4 * float(share.std()) / math.sqrt(40)))


def test_effective_size_lies_between_one_and_all() -> None:
    """Equal weights give K, one large weight gives 1, and no weight gives 0."""
    log_w = torch.tensor([[0.0] * 3, [-1e3] * 3, [0.0, -1e3, -1e3], [-math.inf] * 3, [0.0, 0.0, -math.inf]])
    assert effective_sample_size(log_w).tolist() == pytest.approx([3, 3, 1, 0, 2])
    assert log_mean_error(log_w)[:3].tolist() == pytest.approx([0, 0, 1])


def test_a_narrow_proposal_fails() -> None:
    """For σ² ≤ ½ the weights have infinite variance: 40 times the draws do not reduce the error by
    √40.

    The estimated error does not show it: it shrinks, and the truth is outside four of them in many
    runs.
    """
    true, claimed, outside = {}, {}, {}
    for spread in (math.sqrt(0.3), math.sqrt(2.0)):
        for count in (250, 10_000):
            log_w = normal_log_w(spread, 200, count)
            log_mean, error = log_mean_exp(log_w), log_mean_error(log_w)
            true[spread, count] = float(log_mean.square().mean().sqrt())
            claimed[spread, count] = float(error.mean())
            outside[spread, count] = float((log_mean.abs() > 4 * error).double().mean())
    narrow, wide = math.sqrt(0.3), math.sqrt(2.0)
    assert true[wide, 10_000] / true[wide, 250] == pytest.approx(1 / math.sqrt(40), rel=0.25)
    assert true[narrow, 10_000] / true[narrow, 250] > 2 / math.sqrt(40)
    assert claimed[narrow, 10_000] < 0.7 * true[narrow, 10_000]
    assert outside[wide, 10_000] == 0.0


def test_a_missed_mode_goes_unnoticed() -> None:
    """If q covers one of two equal modes of p, the effective sample size is 100 % and the
    estimate half the truth.
    """
    z = RowStreams.range(8, 0, 1).normals(1, 0, 10_000)[..., 0].double()
    log_p = torch.logaddexp(-0.5 * z.square(), -0.5 * (z - 40).square()) - math.log(2)
    log_w = log_p + 0.5 * z.square()
    assert float(effective_sample_size(log_w)) / 10_000 > 0.999
    assert float(log_mean_exp(log_w)) == pytest.approx(-math.log(2), abs=1e-6)
    assert float(log_mean_error(log_w)) < 1e-6


def test_the_log_of_the_mean_is_biased_low_and_less_so_with_more_samples() -> None:
    """E log (1/L) Σ w rises monotonically in L towards log Z = 0, by about half
    the variance over L.
    """
    log_w = normal_log_w(2.0, 4096, 64)
    means = [float(log_mean_exp(log_w.reshape(-1, count)).mean()) for count in (1, 2, 4, 8, 16, 32, 64)]
    assert means == sorted(means)
    assert means[0] == pytest.approx(math.log(2) - 1.5, abs=0.02)
    second_order = -0.5 * (4 / math.sqrt(7) - 1) / 64
    assert means[-1] == pytest.approx(second_order, abs=0.003)


def test_resampling_follows_the_weights() -> None:
    """100 000 indices have the frequencies of their weights (χ² at p > 0.001), and zero
    weights are never drawn.
    """
    weight = torch.tensor([0.0, 0.1, 0.0, 0.5, 0.2, 0.2, 0.0], dtype=torch.float64)
    uniform = RowStreams.range(9, 0, 100).uniform(1000).flatten()
    index = resample((weight.log() + 700.0).expand(100_000, -1), uniform)
    counts = torch.bincount(index, minlength=7).double()
    drawn = weight > 0
    assert counts[~drawn].tolist() == [0, 0, 0]
    expected = 100_000 * weight[drawn]
    assert float(((counts[drawn] - expected).square() / expected).sum()) < 16.27
    torch.testing.assert_close(normalised_weights(weight.log()[None] - 900.0)[0], weight)


def test_resampling_never_leaves_the_range() -> None:
    """The smallest and largest uniforms (and 1) give the first and last index with
    weight, at any scale.
    """
    for scale in (0.0, 1e4, -1e4):
        log_w = scale + torch.cat([torch.tensor([-math.inf]), torch.zeros(9999), torch.tensor([-math.inf])])
        drawn = resample(log_w.expand(3, -1), torch.tensor([0.0, 1 - 2**-24, 1.0]))
        assert drawn.tolist()[0] == 1
        assert drawn.tolist()[2] == 9999
        assert 9990 <= drawn.tolist()[1] <= 9999
    nothing = torch.full((2, 4), -math.inf)
    assert resample(nothing, torch.tensor([0.0, 0.9])).tolist() == [3, 3]


def test_weights_in_slices_are_those_of_one_pass() -> None:
    """Log mean, error and effective sample size do not depend on how weights are split,
    or on a stored state.
    """
    log_w = normal_log_w(2.0, 5, 1000).float() - 100
    weights = ImportanceWeights.resume(None, 5)
    for piece in log_w.split(300, dim=1):
        weights = ImportanceWeights.resume({**weights.add(piece).state("x."), "other": piece}, 5, name="x.")
    assert weights.done == 1000
    torch.testing.assert_close(weights.log_mean, log_mean_exp(log_w.double()))
    torch.testing.assert_close(weights.standard_error, log_mean_error(log_w.double()))
    torch.testing.assert_close(weights.effective_sample_size, effective_sample_size(log_w.double()))
    assert all(len(value) == 5 for value in weights.state().values())


@pytest.mark.parametrize("size", [1, 7, 31, 250])
def test_weights_in_slices_have_the_same_bits(size: int) -> None:
    """The number of weights that are added at once, which depends on the size of a batch, changes
    no bit of the statistics.
    """
    log_w = 30.0 * normal_log_w(2.0, 5, 1000).float()
    at_once = pieces = ImportanceWeights.resume(None, 5)
    at_once = at_once.add(log_w)
    for piece in log_w.split(size, dim=1):
        pieces = pieces.add(piece)
    for name, value in at_once.state().items():
        assert torch.equal(pieces.state()[name], value), name


def test_weights_of_rows_that_differ_in_their_count_are_refused() -> None:
    """Rows with different numbers of weights raise ValueError; `done` is 0 without rows."""
    uneven = ImportanceWeights.resume({**ImportanceWeights.resume(None, 2).state(), "count": torch.tensor([1, 2])}, 2)
    with pytest.raises(ValueError, match="same progress"):
        _ = uneven.done
    assert ImportanceWeights.resume(None, 0).done == 0


def test_batch_means_give_the_error_of_a_mean() -> None:
    """The error is σ/√n for independent values, and √10 times that for values in
    runs of ten equal ones.
    """
    values = RowStreams.range(10, 0, 1).normal(100_000)[0].double()
    mean, error = batch_means(values, 100)
    assert float(error) == pytest.approx(100_000**-0.5, rel=0.25)
    assert abs(float(mean)) < 4 * float(error)
    _, runs = batch_means(values[:10_000].repeat_interleave(10), 100)
    assert float(runs) == pytest.approx(10_000**-0.5, rel=0.25)
    for batches in (0, 1, 3):
        with pytest.raises(ValueError, match="equal batches"):
            batch_means(values, batches)


def test_batch_means_of_weights_in_log_space() -> None:
    """The log of the mean weight, its error (near the delta method's) and the largest
    weight's share are right.
    """
    log_w = normal_log_w(2.0, 1, 100_000)[0] - 5000
    log_mean, error, share = log_mean_batches(log_w, 100)
    assert float(log_mean) == pytest.approx(-5000, abs=4 * float(error))
    assert float(error) == pytest.approx(float(log_mean_error(log_w[None])), rel=0.25)
    assert float(share) == pytest.approx(float((log_w - log_w.logsumexp(0)).exp().max()))
    lone = torch.zeros(1000)
    lone[7] = 30.0
    assert float(log_mean_batches(lone, 10)[2]) > 0.99
