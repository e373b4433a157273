"""Figures of the page about basic sampling algorithms; the second column is the exact law."""

from __future__ import annotations

from paper_pages.results import Figure, cell, match, page_source

SOURCE = page_source("sampling", "python benchmarks/sampling.py")
EXPONENTIAL, NORMAL = "−ln(1 − u)/λ, λ = 2.5", "Φ⁻¹ of a part of (0, 1), t = 2.0"


def law(what: str, row: str, column: str, exact: str, under: str = "") -> Figure:
    """Return a figure of a table row; the exact value is the column `exact` of the same row."""
    return Figure(
        what,
        lambda: cell("sampling", row, column, under),
        lambda: cell("sampling", row, exact, under),
        SOURCE,
    )


def kolmogorov(what: str, row: str, paper: str) -> Figure:
    """Return the probability of a Kolmogorov–Smirnov test."""
    return Figure(what, lambda: "p = " + cell("sampling", row, "p"), paper, SOURCE)


def envelope() -> str:
    """Return what an envelope of a quarter of the right k gives."""
    mean, kept = (cell("sampling", "1/4 of it", column) for column in ("E ‖z‖² of the kept (is 10)", "kept"))
    return f"{mean}, {kept} kept"


def narrow() -> str:
    """Return true and claimed error of the narrowest proposal."""
    true, claimed = (cell("sampling", "0.15 | 10,000", column) for column in ("true error, nats", "claimed"))
    return f"{true} nats, claimed {claimed}"


def biases(row: str) -> str:
    """Return the mean of log (1/L) Σ w by L, from a row of the table."""
    return ", ".join(
        f"{count}: {cell('sampling', row, count).replace('-', '−')}" for count in ("1", "4", "16", "64", "256")
    )


FIGURES = {
    "exponential": kolmogorov(
        "100,000 draws against the exponential distribution (Kolmogorov–Smirnov)",
        f"{EXPONENTIAL} | exponential, λ = 2.5 ",
        "p above 0.01",
    ),
    "wrong-rate": kolmogorov(
        "100,000 draws against an exponential distribution whose rate is 2 % off",
        f"{EXPONENTIAL} | exponential, λ = 2.55",
        "p near 0",
    ),
    "truncated": kolmogorov("100,000 draws against N(0, 1) within ± 2", NORMAL, "p above 0.01"),
    "kept-10": law("accepted, σ_q = 1.1 σ_p, D = 10", "1.1 | 10 ", "kept", "σ^−D"),
    "kept-100": law("accepted, σ_q = 1.01 σ_p, D = 100", "1.01 | 100 ", "kept", "σ^−D"),
    "kept-1000": law("accepted, σ_q = 1.01 σ_p, D = 1000", "1.01 | 1000 ", "kept", "σ^−D"),
    "envelope": Figure(
        "k four times too small, D = 10: E ‖z‖² of the accepted", envelope, "10.00, 0.386 accepted", SOURCE
    ),
    "share-2": law("effective share ESS/L, σ = 2", "2.0 ", "ESS/L", "√(2σ² − 1)/σ²", "## Importance weights"),
    "share-4": law("effective share ESS/L, σ = 4", "4.0 ", "ESS/L", "√(2σ² − 1)/σ²", "## Importance weights"),
    "narrow": Figure(
        "proposal too narrow, σ² = 0.15, L = 10,000: error of log Z", narrow, "no finite variance", SOURCE
    ),
    "mode": Figure(
        "proposal that misses one of two modes: ESS/L and log Z",
        lambda: match("sampling", r"q is one of them: (ESS/L = \S+, log Z = \S+ ± [\d.]+\d)")[1].replace("-", "−"),
        "log Z = 0",
        SOURCE,
    ),
    "ratio": Figure(
        "log of the ratio of the normalising constants, one million weights",
        lambda: match("sampling", r"at once: log Z = (\S+ ± [\d.]+\d)")[1].replace("-", "−").lstrip("+"),
        "0",
        SOURCE,
    ),
    "bias": Figure(
        "mean of log (1/L) Σ w by L, nats; the exact log is 0",
        lambda: biases("mean, nats"),
        lambda: biases("to second order") + " (to second order)",
        SOURCE,
    ),
}
