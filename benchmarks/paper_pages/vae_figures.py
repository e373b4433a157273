"""Figures of the page about Auto-Encoding Variational Bayes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paper_pages.results import (
    Figure,
    Source,
    card_figure,
    card_source,
    card_value,
    match,
    number,
    page_source,
    read_json,
)

CARD = card_source("vae-mnist", lambda: "--precision bfloat16")
PLANE = card_source("vae-mnist-2d", lambda: "--precision bfloat16")
ESTIMATORS = page_source("vae-estimators", "python benchmarks/vae_estimators.py")
DRAWN = "read off the paper's figure 2"


def figure_2(samples: int, latents: int) -> Figure:
    """Return a point of the paper's figure 2: the test bound after so many training samples."""

    def read() -> dict[str, Any]:
        for line in read_json("vae-paper", "bounds"):
            if (line["samples"], line["latents"]) == (samples, latents):
                return dict(line)
        raise KeyError(samples)

    def read_bound() -> str:
        return f"{number(read()['bound'], 1)} ± {read()['standard_error']:.1f}"

    def read_paper() -> str:
        return number(read_json("vae-paper", "paper")[str(samples)][str(latents)], 1)

    def read_origin() -> str:
        return "{date}, {machine}, commit {commit}".format(**read())

    def read_command() -> str:
        precision = "" if read()["precision"] == "bfloat16" else f" --precision {read()['precision']}"
        return f"python benchmarks/vae_paper.py train --latents {latents}{epochs}{precision}"

    what = f"the paper's network: test bound after {samples:,} samples, $N_z = {latents}$, nats"
    epochs = f" --epochs {samples // 50_000}" if samples < 10_000_000 else ""
    return Figure(what, read_bound, read_paper, Source(read_command, read_origin))


def bounds_by_k() -> str:
    """Return the importance-weighted bounds of `vae-mnist`, by the number of samples."""
    names = {1: "bound", **{k: f"bound_{k}" for k in (10, 100, 1000, 5000)}}
    return ", ".join(f"{k:,}: {number(card_figure('vae-mnist', name)['value'])}" for k, name in names.items())


def gap() -> str:
    """Return the distance of the lower bound from log p(x)."""
    bound, nll = (card_figure("vae-mnist", name)["value"] for name in ("bound", "nll"))
    return f"{number(-nll - bound)} nats"


def estimator(pattern: str) -> Callable[[], str]:
    """Return a function that reads a figure of `vae-mnist` from the page of the estimators."""
    return lambda: match("vae-estimators", r"(?s)## vae-mnist\n.*?" + pattern)[1].replace("-", "−")


def quadrature() -> str:
    """Return log p(x) of one digit by quadrature and by importance samples."""
    found = match(
        "vae-estimators", r"by quadrature against 5000 importance samples: (\S+) against ([^;]+?)(?: nats)?[;\n]"
    )
    return f"{found[2]}".replace("-", "−") + " nats"


FIGURES = {
    "nll": Figure(
        "`vae-mnist`: −log p(x) of 10,000 test digits, K = 5000",
        lambda: card_value("vae-mnist", "nll"),
        "86.35 (VAE), 84.78 (IWAE, k = 50) of Burda et al., table 1",
        CARD,
    ),
    "bound": Figure(
        "`vae-mnist`: lower bound of 10,000 test digits",
        lambda: card_value("vae-mnist", "bound"),
        "−94.18 (fully connected VAE of Salimans et al. 2015)",
        CARD,
    ),
    "gap": Figure(
        "`vae-mnist`: distance of the bound from log p(x)", gap, "5.2 nats (VAE of Salimans et al. 2015)", CARD
    ),
    "bounds-by-k": Figure(
        "`vae-mnist`: importance-weighted bound by K, nats", bounds_by_k, "rises with K (Burda et al., theorem 1)", CARD
    ),
    "active": Figure(
        "`vae-mnist`: active latents, of 50",
        lambda: str(card_figure("vae-mnist", "active_units")["value"]),
        "20 (VAE), 25 (IWAE, k = 50)",
        CARD,
    ),
    "plane": Figure(
        "`vae-mnist-2d`: −log p(x) of 10,000 test digits, K = 5000",
        lambda: card_value("vae-mnist-2d", "nll"),
        source=PLANE,
    ),
    "kl": Figure(
        "`vae-mnist`: Monte Carlo estimate of the divergence minus the closed form",
        estimator(r"closed form \(eq\. 10\), [^:]*: ([^\n]*)"),
        "0",
        ESTIMATORS,
    ),
    "variance": Figure(
        "`vae-mnist`: variance of the encoder's gradient, one sample, nats²",
        estimator(r"Variance of the encoder's gradient: (.*?) nats²"),
        "no number",
        ESTIMATORS,
    ),
    "quadrature": Figure(
        "`vae-mnist-2d`: log p(x) of a digit by 5000 samples",
        quadrature,
        lambda: (
            match("vae-estimators", r"5000 importance samples: (\S+)")[1].replace("-", "−") + " nats (by quadrature)"
        ),
        ESTIMATORS,
    ),
    **{f"1e6-{latents}": figure_2(1_000_000, latents) for latents in (3, 5, 10, 20, 200)},
    **{f"1e7-{latents}": figure_2(10_000_000, latents) for latents in (3, 5, 10, 20, 200)},
    "1e8": Figure(
        "the paper's network: test bound after 100,000,000 samples, $N_z = 20$, nats",
        None,
        f"−100.1 ({DRAWN})",
        reason="ten times the longest run here",
    ),
    "wake-sleep": Figure(
        "wake-sleep, test bound after 10,000,000 samples, $N_z = 20$, nats",
        None,
        f"−108.2 ({DRAWN})",
        reason="wake-sleep of a VAE is not in the repository",
    ),
    "figure-3": Figure(
        "figure 3: log p(x), 3 latents, 1000 training digits: train, test, nats",
        None,
        "−109.1, −143.2 (AEVB); −109.2, −141.6 (Monte Carlo EM)",
        reason="neither Monte Carlo EM nor its estimator by Hamiltonian Monte Carlo is in the repository",
    ),
    "frey": Figure(
        "Frey faces: test bound after 10,000,000 samples, $N_z = 20$, nats",
        None,
        f"1200 ({DRAWN})",
        reason="the data set is not in the repository; the Gaussian decoder is tested on made data",
    ),
}
