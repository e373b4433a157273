"""Measure the paper's estimators on trained networks.

They are the KL divergence, the variance of three gradients, L_K and log p(x).

    python benchmarks/vae_estimators.py  # docs/results/vae-estimators.md, about two minutes

Checks of Kingma and Welling, arXiv:1312.6114v11 (eq. 6, 7, 10, §2.2), and of Burda et al.,
arXiv:1509.00519v4 (§3), on the checkpoints that ship and, where `runs/paper-20` is there, on the
paper's own network.
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

from models import vae  # noqa: E402
from models.kit import card, data  # noqa: E402
from models.kit.export import commit, hardware  # noqa: E402
from models.kit.row_streams import RowStreams  # noqa: E402
from models.kit.train import weights  # noqa: E402

FIXTURE = ROOT / "tests" / "fixtures" / "digits-images-idx3-ubyte.gz"  # the first 2000 test digits
SIZES = (1, 10, 100, 1000, 5000)


def digits(count: int) -> torch.Tensor:
    """Return the first test digits, binarized by one draw of seed 1, (count, 784)."""
    images = data.load(str(FIXTURE)).images[:count]
    return data.binarize(images, RowStreams.range(1, 0, count)).flatten(1)


@torch.inference_mode()
def kl_gap(model: vae.Model, x: torch.Tensor, samples: int) -> tuple[float, float]:
    """Return (Monte Carlo − closed form) of the mean KL of `x`, and its standard error, in nats."""
    mean, log_variance = model.encoder(x)
    noise = RowStreams.range(2, 0, len(x)).normals(mean.shape[1], 0, samples)
    z = vae.reparameterise(mean, log_variance, noise)
    log_q = vae.log_normal(z, mean[:, None], log_variance[:, None])
    drawn = (log_q - vae.log_prior(z)).double()
    gap = drawn.mean(1) - vae.kl_to_prior(mean, log_variance).double()
    return float(gap.mean()), float(drawn.var(1).sum().sqrt() / samples**0.5 / len(x))


def surrogates(model: vae.Model, x: torch.Tensor, noise: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return, for each estimator, a (B,) term whose encoder gradient is its
    gradient of the bound.
    """
    mean, log_variance = model.encoder(x)
    z = vae.reparameterise(mean, log_variance, noise)
    log_p_x = model.log_p_x(x, z)
    log_q = vae.log_normal(z, mean[:, None], log_variance[:, None])
    fixed = z.detach()
    log_q_fixed = vae.log_normal(fixed, mean[:, None], log_variance[:, None])
    signal = log_p_x + vae.log_prior(fixed) - log_q
    return {
        "A": vae.sgvb_a(log_p_x, vae.log_prior(z), log_q),
        "B": vae.sgvb_b(log_p_x, vae.kl_to_prior(mean, log_variance)),
        "score function": vae.score_function(signal, log_q_fixed),
    }


def gradient_moments(model: vae.Model, x: torch.Tensor, repeats: int) -> dict[str, tuple[float, float]]:
    """Return the summed variance of an image's encoder gradient, and the norm of its mean.

    L = 1.
    """
    parameters = list(model.encoder.requires_grad_(requires_grad=True).parameters())
    totals = dict.fromkeys(("A", "B", "score function"), (0.0, 0.0))
    for i in range(len(x)):
        sums = {name: [torch.zeros_like(p) for p in parameters] for name in totals}
        squares = dict.fromkeys(totals, 0.0)
        for repeat in range(repeats):
            noise = RowStreams.range(3 + i, repeat, 1).normals(model.config.latents, 0, 1)
            for name, term in surrogates(model, x[i : i + 1], noise).items():
                gradient = torch.autograd.grad(term.sum(), parameters, retain_graph=True)
                torch._foreach_add_(sums[name], gradient)
                squares[name] += float(sum(g.square().sum() for g in gradient))
        for name, (variance, norm) in totals.items():
            mean_square = float(sum((s / repeats).square().sum() for s in sums[name]))
            spread = (squares[name] / repeats - mean_square) * repeats / (repeats - 1)
            totals[name] = variance + spread / len(x), norm + math.sqrt(mean_square) / len(x)
    return totals


@torch.inference_mode()
def bounds(model: vae.Model, x: torch.Tensor) -> list[tuple[int, float]]:
    """Return the mean L_K for each K, from the same samples."""
    figures = {f["name"]: f["value"] for f in model.evaluate(x.view(-1, 1, 28, 28), 4, SIZES[-1])}
    return [(size, figures["bound" if size == 1 else f"bound_{size}"]) for size in SIZES]


@torch.inference_mode()
def quadrature(model: vae.Model, x: torch.Tensor, steps: int = 400, reach: float = 10.0) -> torch.Tensor:
    """Return log p(x) of a 2-D model by the rectangle rule around each
    posterior, float64, in nats.
    """
    answers = []
    mean, log_variance = model.encoder(x)
    for i in range(len(x)):
        deviation = (0.5 * log_variance[i]).exp()
        axes = [
            torch.linspace(float(m - reach * s), float(m + reach * s), steps)
            for m, s in zip(mean[i], deviation, strict=True)
        ]
        cell = (axes[0][1] - axes[0][0]).double() * (axes[1][1] - axes[1][0]).double()
        terms = []
        for first in axes[0].split(10):
            z = torch.cartesian_prod(first, axes[1])[None]
            terms.append((model.log_p_x(x[i : i + 1], z) + vae.log_prior(z)).double().logsumexp(1))
        answers.append(torch.cat(terms).logsumexp(0) + cell.log())
    return torch.stack(answers)


@torch.inference_mode()
def estimate(model: vae.Model, x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the operation's log p(x) and standard error for binary images, in nats."""
    options, state = vae.LikelihoodOptions(k=k), None
    while True:
        answer = model.log_likelihood(x.view(-1, 1, 28, 28), RowStreams.range(6, 0, len(x)), options, state)
        if isinstance(answer, dict):
            return answer["log_p"], answer["standard_error"]
        state = answer.state


def networks() -> dict[str, vae.Model]:
    """Return the available trained networks by name."""
    found = {}
    for name in ("vae-mnist", "vae-mnist-2d"):
        path = ROOT / "checkpoints" / name / "1" / "model.safetensors"
        if path.exists():
            found[name] = card.load(path)[0]
    if (ROOT / "runs" / "paper-20" / "state.pt").exists():
        tensors, recipe, counters = weights(ROOT / "runs" / "paper-20")
        model = vae.Model(recipe.config)
        model.load_state_dict(tensors)
        found[f"the paper's (500 tanh, N_z = 20, after {counters['epoch'] * 50_000:,} samples)"] = model.eval()
    return found


def report(say: Callable[[str], None]) -> None:
    """Measure everything and return it as Markdown."""
    say("# The estimators, measured on trained networks\n")
    say("Test digits, binarized by one draw. Variances are of one image's encoder gradient, summed over parameters,")
    say("L = 1, 200 draws each of 8 images.\n")
    for name, model in networks().items():
        say(f"## {name}\n")
        gap, error = kl_gap(model, digits(100), 2000)
        say(f"- Monte Carlo KL − closed form (eq. 10), 100 images, 2000 draws: {gap:+.4f} ± {error:.4f} nats")
        moments = gradient_moments(model, digits(8), 200)
        said = ", ".join(f"{n} {variance:,.0f}" for n, (variance, _) in moments.items())
        said_norms = ", ".join(f"{n} {norm:.0f}" for n, (_, norm) in moments.items())
        say(f"- Variance of the encoder's gradient: {said} nats² (norm of the mean gradient: {said_norms})")
        steps = ", ".join(f"K = {size}: {value:.2f}" for size, value in bounds(model, digits(100)))
        say(f"- L_K of 100 images, the same samples for every K: {steps} nats")
        if model.config.latents == 2:
            x = digits(5)
            exact, (log_p, spread) = quadrature(model, x), estimate(model, x, 5000)
            pairs = "; ".join(
                f"{a:.3f} against {b:.3f} ± {s:.3f}"
                for a, b, s in zip(exact.tolist(), log_p.tolist(), spread.tolist(), strict=True)
            )
            say(f"- log p(x) of 5 images by quadrature against 5000 importance samples: {pairs} nats")
        say("")
    say(f"Machine: {hardware()}. Commit: {commit()[:12]}. Date: {datetime.now(UTC):%Y-%m-%d}.")
    say("Command: `python benchmarks/vae_estimators.py`.")


def main() -> None:
    """Write docs/results/vae-estimators.md."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    report(say)
    path = ROOT / "docs" / "results" / "vae-estimators.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
