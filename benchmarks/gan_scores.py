"""Scores of the shipped EBGANs' samples, and their energies as an anomaly score.

    python benchmarks/gan_scores.py score --write
        docs/results/gan-scores.md and .json; figures into the cards
    python benchmarks/gan_scores.py figure
        docs/images/gan-figure.png: GAN, EBGAN and EBGAN-PT side by side

Anomalies are separated from MNIST's test digits by the energy alone, and for comparison by the
distance to the subspace of the first 128 principal components of the training digits. The GAN of
the figure is a run of the recipe `gan-mnist`, which does not ship: `python -m models train
gan-mnist`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "benchmarks"):
    sys.path.insert(0, str(folder))

import torch  # noqa: E402
from digits import anomalies, classifier, games  # noqa: E402
from digits.labels import labelled  # noqa: E402
from digits.scores import scores  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402
from serving import facts  # noqa: E402

from models import ebgan  # noqa: E402
from models.kit import card, data  # noqa: E402
from models.kit.preview import image_grid  # noqa: E402
from models.kit.train import weights  # noqa: E402

NAMES = ("ebgan-mnist", "ebgan-pt-mnist")
COMPONENTS = 128
BEST_OF = (1, 2, 4, 8, 16)  # draws of which the one with the lowest energy is kept
PERCENTILES = (95, 90, 80, 50)  # of the training energies, as thresholds of rejection
TITLES = {"gan-mnist": "GAN", "ebgan-mnist": "EBGAN", "ebgan-pt-mnist": "EBGAN-PT"}


def checkpoint(name: str) -> Path:
    """Return the path of version 1 of a model."""
    return ROOT / "checkpoints" / name / "1" / "model.safetensors"


def energies(model: ebgan.Model, images: torch.Tensor) -> torch.Tensor:
    """Return the energies D(x) of images (N, 1, 28, 28) in 0 … 1, (N,)."""
    with torch.inference_mode():
        return torch.cat([model.energies(part) for part in images.split(500)])


def rejection(model: ebgan.Model, found: torch.Tensor, p: torch.Tensor) -> list[dict[str, Any]]:
    """Return the scores of samples below a percentile of the training
    energies, the option `below`.
    """
    lines = []
    for percent in PERCENTILES:
        below = float(model.quantiles[percent * 10])
        kept = found < below
        accepted = round(float(kept.double().mean()), 4)
        lines.append(
            {"percentile": percent, "below": round(below, 4), "accepted": accepted, **scores(p[kept]).rounded()}
        )
    return lines


def separations(score: Any, pictures: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the AUROC of each kind of anomaly against the digits.

    `score` is a function from images to scores.
    """
    found = {kind: score(images) for kind, images in pictures.items()}
    return {
        kind: round(anomalies.auroc(found["digits"], values), 4) for kind, values in found.items() if kind != "digits"
    }


def from_run(gan: Path) -> ebgan.Model:
    """Return the plain GAN of a finished run."""
    tensors, recipe, _ = weights(gan)
    model = ebgan.Model(recipe.config)
    model.load_state_dict(tensors)
    return model.eval()


def measured(count: int, gan: Path) -> dict[str, Any]:
    """Measure the shipped models, the test digits, the principal components and the GAN.

    The GAN is left out if it was not trained.
    """
    judge = classifier.load()
    pictures = anomalies.sets()
    mean, directions = anomalies.principal(data.grey(labelled("train")[0]), COMPONENTS)
    result: dict[str, Any] = {
        "classifier_accuracy": classifier.accuracy(judge),
        "real": scores(classifier.probabilities(judge, pictures["digits"])).rounded(),
        "pca": separations(lambda images: anomalies.residual(images, mean, directions), pictures),
        "models": {},
    }
    for name in NAMES:
        model, _ = card.load(checkpoint(name))
        samples = games.drawn(model, count)
        p = classifier.probabilities(judge, samples)
        result["models"][name] = {
            "best_of": model.config.best_of,
            **scores(p).rounded(),
            "candidates": {str(best): games.scored(model, judge, count, best).rounded() for best in BEST_OF},
            "rejection": rejection(model, energies(model, samples), p),
            "auroc": separations(lambda images, model=model: energies(model, images), pictures),
        }
        print(name, json.dumps(result["models"][name]), flush=True)
    if (gan / "state.pt").exists():
        result["gan"] = games.scored(from_run(gan), judge, count).rounded()
    return result


def spread(found: dict[str, Any]) -> str:
    """Return the shares of the rarest and the commonest digit."""
    return f"{min(found['shares']):.1%} … {max(found['shares']):.1%}"


def told_of(one: dict[str, Any]) -> str:
    """Describe an energy threshold and its effect in words."""
    return f"energy {one['below']}; {one['accepted']:.0%} accepted, E KL {one['e_kl']}, each digit {spread(one)}"


def into_card(name: str, found: dict[str, Any], result: dict[str, Any], count: int) -> None:
    """Add a model's scores to the figures of its card."""
    path = checkpoint(name)
    model, described = card.load(path)
    real = result["real"]
    best = "" if model.config.best_of == 1 else f", each the best of {model.config.best_of} by energy"
    how = f"{count} samples{best}, {result['classifier_accuracy']:.2%} classifier"
    shares = f"each digit {spread(found)} of samples"
    figures = [
        ("i_prime", found["i_prime"], "nats", f"E KL(p(y) | p(y|x)), clamp 0.01, {how}; test digits {real['i_prime']}"),
        ("clear", found["clear"], "1", f"share of samples with p_max > 0.9, {how}; test digits {real['clear']}"),
        ("e_kl", found["e_kl"], "nats", f"E KL(p(y|x) | p(y)), {how}; test digits {real['e_kl']}; {shares}"),
        *[
            (f"i_prime_below_{one['percentile']}", one["i_prime"], "nats", f"of samples under {told_of(one)}")
            for one in found["rejection"]
            if one["percentile"] == 80
        ],
        *[
            (f"auroc_{kind}", value, "1", f"by energy, against the test digits; by PCA-128 {result['pca'][kind]}")
            for kind, value in found["auroc"].items()
        ],
    ]
    new = [
        {"name": key, "value": value, "unit": unit, "better": "higher", "detail": detail}
        for key, value, unit, detail in figures
    ]
    names = {figure["name"] for figure in new}
    described["figures"] = [figure for figure in described["figures"] if figure["name"] not in names] + new
    card.save(path, model, described)


def report(result: dict[str, Any], count: int) -> None:
    """Write the page and its numbers."""
    real, models = result["real"], result["models"]
    rows = [
        f"| {name} | {found['clear']:.1%} | {found['i_prime']:.3f} ({found['i_prime'] / real['i_prime']:.2f} × real)"
        f" | {found['e_kl']:.3f} | {spread(found)} |"
        for name, found in {**models, **({"gan-mnist": result["gan"]} if "gan" in result else {})}.items()
    ]
    kept = [
        f"| {name} | {one['below']:.2f} ({one['percentile']} %) | {one['accepted']:.0%} | {one['i_prime']:.3f}"
        f" ({one['i_prime'] / real['i_prime']:.2f} × real) | {one['e_kl']:.3f} | {spread(one)} |"
        for name, found in models.items()
        for one in found["rejection"]
    ]
    best_of = " and ".join(f"{found['best_of']} ({name})" for name, found in models.items())
    several = [
        f"| {name} | {best} | {one['clear']:.1%} | {one['i_prime']:.3f} ({one['i_prime'] / real['i_prime']:.2f} × real)"
        f" | {spread(one)} |"
        for name, found in models.items()
        for best, one in found["candidates"].items()
    ]
    columns = {"PCA-128 residual": result["pca"]} | {name: found["auroc"] for name, found in models.items()}
    machine = facts.machine()
    text = [
        "# The EBGANs' samples and energies",
        "",
        f"Classifier: {result['classifier_accuracy']:.2%} on the 10 000 test digits (ships in `benchmarks/digits/`).",
        f"{count:,} samples, seed 1. I' = E KL(p(y) ‖ p(y|x)) with p(y|x) clamped at 1e-2 and renormalised;",
        "E KL(p(y|x) ‖ p(y)) is not clamped. Nats. A sample is clear if p_max > 0.9. A sample is the draw with the",
        f"lowest energy of {best_of} draws.",
        "",
        "| | clear | I' | E KL | rarest … commonest digit |",
        "| --- | --- | --- | --- | --- |",
        f"| test digits | {real['clear']:.1%} | {real['i_prime']:.3f} | {real['e_kl']:.3f} | {spread(real)} |",
        *rows,
        "",
        "The best of several draws by energy (`best_of`):",
        "",
        "| | best of | clear | I' | rarest … commonest digit |",
        "| --- | --- | --- | --- | --- |",
        *several,
        "",
        "Rejection: only samples under an energy (`below`), here a percentile of the training set's energies. Plain",
        "digits have the lowest energies, so that a tight threshold prefers ones.",
        "",
        "| | below | accepted | I' | E KL | rarest … commonest digit |",
        "| --- | --- | --- | --- | --- | --- |",
        *kept,
        "",
        "![GAN, EBGAN, EBGAN-PT](../images/gan-figure.png)",
        "",
        "The slides' figure 5: GAN, EBGAN and EBGAN-PT, the first samples of seed 1 of each. The GAN is the recipe",
        "`gan-mnist`, 8 epochs: the best plain one here, and not a long search.",
        "",
        "## The energy as an anomaly score",
        "",
        "AUROC against the 10 000 MNIST test digits; 10 000 anomalies of each kind, made from test pictures alone",
        "(`benchmarks/digits/anomalies.py`).",
        "",
        f"| | {' | '.join(columns)} |",
        "| --- |" + " --- |" * len(columns),
        *[
            f"| {what} | {' | '.join(f'{found[kind]:.4f}' for found in columns.values())} |"
            for kind, what in anomalies.KINDS.items()
        ],
        "",
        f"- Machine: {machine['cpu']}, one thread of {machine['cores']} cores, shared with other work.",
        f"- Commit: {facts.commit()}. Date: {facts.now()}.",
        "- Command: `python benchmarks/gan_scores.py score --write`, then `python benchmarks/gan_scores.py figure`.",
        "",
    ]
    results = ROOT / "docs" / "results"
    (results / "gan-scores.md").write_text("\n".join(text))
    record = {"date": facts.now(), "commit": facts.commit(), "machine": machine, "samples": count, **result}
    (results / "gan-scores.json").write_text(json.dumps(record, indent=1) + "\n")
    print("docs/results/gan-scores.md")


def figure(gan: Path) -> None:
    """Draw the slides' figure 5 from a run of the plain GAN and the two checkpoints."""
    models = {"gan-mnist": from_run(gan), **{name: card.load(checkpoint(name))[0] for name in NAMES}}
    sheets = [image_grid(games.drawn(model, 100), 10, 1) for model in models.values()]
    side, top, gap = sheets[0].width, 18, 12
    page = Image.new("L", (len(sheets) * (side + gap) - gap, top + sheets[0].height), 255)
    pen = ImageDraw.Draw(page)
    for place, (name, one) in enumerate(zip(models, sheets, strict=True)):
        pen.text((place * (side + gap), 3), TITLES[name], fill=0)
        page.paste(one, (place * (side + gap), top))
    page.save(ROOT / "docs" / "images" / "gan-figure.png", optimize=True)
    print("docs/images/gan-figure.png")


def main() -> None:
    """Score the shipped models and write the page, or draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("score", "figure"))
    parser.add_argument("--samples", type=int, default=games.SAMPLES, help="digits drawn and scored a model")
    parser.add_argument("--write", action="store_true", help="put the figures into the checkpoints' cards")
    parser.add_argument("--gan", type=Path, default=ROOT / "runs" / "gan-mnist", help="the plain GAN's run")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.command == "figure":
        figure(chosen.gan)
        return
    result = measured(chosen.samples, chosen.gan)
    if chosen.write:
        for name, found in result["models"].items():
            into_card(name, found, result, chosen.samples)
    report(result, chosen.samples)


if __name__ == "__main__":
    main()
