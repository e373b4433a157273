"""Figures of the page about energy-based generative adversarial networks."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from paper_pages.results import Figure, Source, card_figure, card_source, card_value, json_source, percent, read_json

GRID = json_source("gan-grid", "python benchmarks/gan_grid.py run")
MARGINS = json_source("gan-margins", "python benchmarks/gan_margins.py run")
FAILED = 0.1  # I' below which a run of the grid has failed
KINDS = {
    "fashion": "Fashion-MNIST",
    "joined": "left and right halves of two digits",
    "stacked": "upper and lower halves of two digits",
    "upside_down": "digits with top and bottom swapped",
    "turned": "digits turned by half a circle",
    "blank": "a black picture",
}
SEEN = {
    1: "ones only",
    2: "mostly ones",
    4: "varied and clean",
    8: "varied and clean",
    16: "varied, noisy",
    32: "one shape",
}


def scores_of(model: str = "") -> Source:
    """Return the source of the scores of a model."""
    return json_source("gan-scores", "python benchmarks/gan_scores.py score", model=model)


def options(name: str) -> str:
    """Return the options with which a model's card was measured, by the detail of a figure."""
    draws = re.search(r"mean of (\d+) single draws", card_figure(name, "sample_energy")["detail"])
    assert draws is not None
    return f"--k {draws[1]}"


def grid(side: str) -> Callable[[], str]:
    """Return a function that reads how many runs of one side of the grid failed."""

    def read() -> str:
        scored = [run["i_prime"] for run in read_json("gan-grid", "runs") if run["side"] == side]
        failed = sum(score < FAILED for score in scored)
        return f"{failed} of {len(scored)} ({percent(failed / len(scored))}); best I' {max(scored):.2f}"

    return read


def margin(m: int) -> Figure:
    """Return the figures of one margin of the sweep."""

    def read() -> str:
        run = next(run for run in read_json("gan-margins", "runs") if run["margin"] == m)
        return f"I' {run['i_prime']:.2f}; commonest digit {percent(max(run['shares']))}"

    return Figure(f"margin sweep, m = {m}", read, SEEN[m], MARGINS)


def discriminator_loss() -> str:
    """Return the discriminator's loss at m = 8, over the last epoch."""
    run = next(run for run in read_json("gan-margins", "runs") if run["margin"] == 8)
    return f"{run['loss_discriminator']:.2f}; hinge active for {percent(run['active_hinges'])}"


def draws(name: str) -> dict[str, Any]:
    """Return the scores of single draws of a model, which are the paper's samples."""
    if name == "gan-mnist":
        found = read_json("gan-scores", "gan")
        return dict(found)
    found = read_json("gan-scores", "models")[name]
    return dict(found.get("candidates", {"1": found})["1"])


def described(found: dict[str, Any]) -> str:
    """Return I' and beside the test digits', the share of clear samples and those of the digits.

    A sample is clear if the classifier's largest probability is above 0.9.
    """
    real = read_json("gan-scores", "real")["i_prime"]
    error = f" ± {found['errors']['i_prime']:.3f}" if "errors" in found else ""
    clear = f"; {percent(found['clear'])} clear" if "clear" in found else ""
    shares = f"each digit {percent(min(found['shares']))} … {percent(max(found['shares']))}"
    return f"I' {found['i_prime']:.3f}{error}, {found['i_prime'] / real:.2f} × that of the test digits{clear}; {shares}"


def samples(name: str) -> dict[str, Figure]:
    """Return the figures of a model's single draws and of its default samples."""

    def read_default() -> str:
        found = read_json("gan-scores", "models")[name]
        return f"best of {found['best_of']}: {described(found)}" if found["best_of"] > 1 else "single draws"

    single = Figure(
        f"`{name}`: 10,000 single draws",
        lambda: described(draws(name)),
        "about 1.9 (best bin read off)",
        scores_of(name),
    )
    default = Figure(f"`{name}`: 10,000 samples by default", read_default, "single draws only", scores_of(name))
    return {name: single, f"{name}-default": default}


def separation(kind: str) -> Figure:
    """Return how well the energies separate one kind of anomaly from digits."""

    def value(found: Any) -> str:
        return f"{found['value']:.4f} ± {found['error']:.4f}" if isinstance(found, dict) else f"{found:.4f}"

    def read() -> str:
        models = read_json("gan-scores", "models")
        parts = {"PCA": read_json("gan-scores", "pca")} | {name: found["auroc"] for name, found in models.items()}
        return ", ".join(f"{name} {value(found[kind])}" for name, found in parts.items())

    return Figure(f"AUROC of the energy: {KINDS[kind]}", read, source=scores_of("ebgan-mnist"))


FIGURES = {
    **samples("ebgan-mnist"),
    **samples("ebgan-pt-mnist"),
    "gan-mnist": Figure(
        "plain GAN (`gan-mnist`, not shipped): 10,000 draws",
        lambda: described(draws("gan-mnist")),
        "a picture only",
        scores_of(),
    ),
    "grid-gan": Figure("GANs of the grid that fail (I' < 0.1)", grid("gan"), "about 56 % of 6144 (read off)", GRID),
    "grid-ebgan": Figure("EBGANs of the grid that fail", grid("ebgan"), "about 9 % of 512 (read off)", GRID),
    **{f"margin-{m}": margin(m) for m in SEEN},
    "loss": Figure("discriminator's loss, m = 8", discriminator_loss, "m at the equilibrium (theorem 1)", MARGINS),
    "energy": Figure(
        "energy D(x) of the test digits, `ebgan-mnist`",
        lambda: card_value("ebgan-mnist", "energy", digits=3),
        source=card_source("ebgan-mnist", partial(options, "ebgan-mnist")),
    ),
    "energy-samples": Figure(
        "energy D(G(z)) of draws, `ebgan-mnist`",
        lambda: card_value("ebgan-mnist", "sample_energy", digits=3),
        source=card_source("ebgan-mnist", partial(options, "ebgan-mnist")),
    ),
    **{
        f"pt-{name}": Figure(
            f"pulling-away term of the codes of draws, `{name}`",
            partial(card_value, name, "pulling_away", digits=3),
            source=card_source(name, partial(options, name)),
        )
        for name in ("ebgan-mnist", "ebgan-pt-mnist")
    },
    **{f"auroc-{kind}": separation(kind) for kind in KINDS},
    "ladder": Figure(
        "table 2: error of a ladder network with 100, 200, 1000 labels",
        None,
        "1.04 %, 0.99 %, 0.89 %",
        reason="no ladder network is in the repository",
    ),
    "large": Figure(
        "bedrooms, faces and ImageNet at 64 to 256 pixels",
        None,
        "pictures",
        reason="too large for the machines at hand; the convolutional networks here are for small images",
    ),
}
