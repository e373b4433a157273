"""Scores of the shipped EBGANs' samples, and their energies as an anomaly score.

    python benchmarks/gan_scores.py score --write
        docs/results/gan-scores.md and .json; figures into the cards
    python benchmarks/gan_scores.py figure
        docs/images/gan-figure.png: GAN, EBGAN and EBGAN-PT side by side

A sample is what the service returns without options: the draw of lowest energy of the model's
`best_of`. The scores of single draws, as in the paper, are beside it. Anomalies are separated from
MNIST's test digits by the energy alone, and for comparison by the distance to the subspace of the
first 128 principal components of the training digits. The GAN of the figure is a run of the recipe
`gan-mnist`, which does not ship: `python -m models train gan-mnist`.
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
from digits.scores import scores, standard_errors  # noqa: E402
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


def measured_samples(model: ebgan.Model, judge: classifier.Classifier, count: int, best_of: int) -> dict[str, Any]:
    """Return the scores of `count` samples, each the best of `best_of` draws, and their standard
    errors.
    """
    p = classifier.probabilities(judge, games.drawn(model, count, best_of))
    return {**scores(p).rounded(), "errors": standard_errors(p)}


def rejection(model: ebgan.Model, judge: classifier.Classifier, count: int) -> list[dict[str, Any]]:
    """Return the scores of those of `count` single draws that are below a percentile of the
    training energies, the option `below`.
    """
    draws = games.drawn(model, count, 1)
    found, p = energies(model, draws), classifier.probabilities(judge, draws)
    lines = []
    for percent in PERCENTILES:
        below = float(model.quantiles[percent * 10])
        kept = found < below
        accepted = round(float(kept.double().mean()), 4)
        lines.append(
            {"percentile": percent, "below": round(below, 4), "accepted": accepted, **scores(p[kept]).rounded()}
        )
    return lines


def separations(score: Any, pictures: dict[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """Return the AUROC of each kind of anomaly against the digits, with its standard error.

    `score` is a function from images to scores.
    """
    digits = score(pictures["digits"])
    found = {kind: score(images) for kind, images in pictures.items() if kind != "digits"}
    return {
        kind: {
            "value": round(anomalies.auroc(digits, values), 4),
            "error": round(anomalies.auroc_error(digits, values), 4),
        }
        for kind, values in found.items()
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
    real = classifier.probabilities(judge, pictures["digits"])
    mean, directions = anomalies.principal(data.grey(labelled("train")[0]), COMPONENTS)
    result: dict[str, Any] = {
        "classifier_accuracy": classifier.accuracy(judge),
        "real": {**scores(real).rounded(), "errors": standard_errors(real)},
        "pca": separations(lambda images: anomalies.residual(images, mean, directions), pictures),
        "models": {},
    }
    for name in NAMES:
        model, _ = card.load(checkpoint(name))
        several = {best: measured_samples(model, judge, count, best) for best in {*BEST_OF, model.config.best_of}}
        result["models"][name] = {
            "best_of": model.config.best_of,
            **several[model.config.best_of],
            "candidates": {str(best): several[best] for best in sorted(several)},
            "rejection": rejection(model, judge, count),
            "auroc": separations(lambda images, model=model: energies(model, images), pictures),
        }
        print(name, json.dumps(result["models"][name]), flush=True)
    if (gan / "state.pt").exists():
        result["gan"] = measured_samples(from_run(gan), judge, count, 1)
    return result


def spread(found: dict[str, Any]) -> str:
    """Return the shares of the rarest and the commonest digit."""
    return f"{min(found['shares']):.1%} … {max(found['shares']):.1%}"


def told_of(one: dict[str, Any]) -> str:
    """Describe an energy threshold and its effect in words."""
    return f"energy {one['below']}; {one['accepted']:.0%} accepted, E KL {one['e_kl']}, each digit {spread(one)}"


def sample_figures(found: dict[str, Any], result: dict[str, Any], count: int) -> list[tuple[str, float, str, str]]:
    """Return name, value, unit and detail of a model's figures of samples, with those of single
    draws.
    """
    real, best_of = result["real"], found["best_of"]
    draws = f"{count} single draws, as in the paper"
    kinds = {
        "": (found, f"{count} samples, each the best of {best_of} draws by energy"),
        "_best_of_1": (found["candidates"]["1"], draws),
    }
    if best_of == 1:
        kinds = {"": (found, draws)}
    meanings = (
        ("clear", "1", "share with p_max > 0.9"),
        ("i_prime", "nats", "E KL(p(y) | p(y|x)), clamp 0.01"),
        ("e_kl", "nats", "E KL(p(y|x) | p(y))"),
    )
    judge = f"{result['classifier_accuracy']:.2%} classifier"
    figures = []
    for name, unit, meaning in meanings:
        for end, (one, what) in kinds.items():
            beside = f"s.e. {one['errors'][name]}; test digits {real[name]}; each digit {spread(one)}"
            figures.append((name + end, one[name], unit, f"{meaning}, {what}, {judge}; {beside}"))
    return figures


def into_card(name: str, found: dict[str, Any], result: dict[str, Any], count: int) -> None:
    """Add a model's scores to the figures of its card."""
    path = checkpoint(name)
    model, described = card.load(path)
    figures = [
        *sample_figures(found, result, count),
        *[
            (f"i_prime_below_{one['percentile']}", one["i_prime"], "nats", f"of single draws under {told_of(one)}")
            for one in found["rejection"]
            if one["percentile"] == 80
        ],
        *[
            (
                f"auroc_{kind}",
                one["value"],
                "1",
                f"by energy, against the test digits; by PCA-128 {result['pca'][kind]['value']}; s.e. {one['error']}",
            )
            for kind, one in found["auroc"].items()
        ],
    ]
    new = [
        {"name": key, "value": value, "unit": unit, "better": "higher", "detail": detail}
        for key, value, unit, detail in figures
    ]
    names = {figure["name"] for figure in new}
    others = [figure for figure in described["figures"] if figure["name"] not in names]
    described["figures"] = [*others[:1], *new, *others[1:]]  # the first decides which version is better
    card.save(path, model, described)


def score_row(name: str, one: dict[str, Any], real: dict[str, Any]) -> str:
    """Return a row of the page's tables: clear samples, I', E KL and the shares of the digits."""
    errors = one["errors"]
    return (
        f"| {name} | {one['clear']:.1%} ± {errors['clear']:.1%}"
        f" | {one['i_prime']:.3f} ± {errors['i_prime']:.3f} ({one['i_prime'] / real['i_prime']:.3f} × real)"
        f" | {one['e_kl']:.3f} ± {errors['e_kl']:.3f} | {spread(one)} |"
    )


def report(result: dict[str, Any], count: int) -> None:
    """Write the page and its numbers."""
    real, models = result["real"], result["models"]
    rows = [score_row("test digits", real, real)]
    for name, found in models.items():
        rows.append(score_row(f"{name}, best of {found['best_of']}: the default", found, real))
        rows.append(score_row(f"{name}, single draws", found["candidates"]["1"], real))
    if "gan" in result:
        rows.append(score_row("gan-mnist", result["gan"], real))
    several = [
        score_row(f"{name} | {best}", one, real)
        for name, found in models.items()
        for best, one in found["candidates"].items()
    ]
    kept = [
        f"| {name} | {one['below']:.2f} ({one['percentile']} %) | {one['accepted']:.0%} | {one['i_prime']:.3f}"
        f" ({one['i_prime'] / real['i_prime']:.2f} × real) | {one['e_kl']:.3f} | {spread(one)} |"
        for name, found in models.items()
        for one in found["rejection"]
    ]
    columns = {"PCA-128 residual": result["pca"]} | {name: found["auroc"] for name, found in models.items()}
    machine = facts.machine()
    text = [
        "# The EBGANs' samples and energies",
        "",
        "**A sample of the shipped models is not one draw.** The paper draws G(z) once. Here a sample is the",
        "draw of lowest energy of several: the option `best_of`, whose default belongs to the model. The rows",
        "of single draws are the paper's samples, and what `best_of: 1` returns.",
        "",
        f"Classifier: {result['classifier_accuracy']:.2%} on the 10 000 test digits (ships in `benchmarks/digits/`).",
        f"{count:,} samples, seed 1. I' = E KL(p(y) ‖ p(y|x)) with p(y|x) clamped at 1e-2 and renormalised;",
        "E KL(p(y|x) ‖ p(y)) is not clamped. Nats. A sample is clear if p_max > 0.9. After ± stands the",
        "standard error, by a jackknife over 50 groups of samples; that of a digit's share is at most 0.4 %.",
        "",
        "| | clear | I' | E KL | rarest … commonest digit |",
        "| --- | --- | --- | --- | --- |",
        *rows,
        "",
        "The best of several draws by energy:",
        "",
        "| | `best_of` | clear | I' | E KL | rarest … commonest digit |",
        "| --- | --- | --- | --- | --- | --- |",
        *several,
        "",
        "Rejection: only single draws under an energy (`below`), here a percentile of the training set's energies.",
        "Plain digits have the lowest energies, so that a tight threshold prefers ones.",
        "",
        "| | below | accepted | I' | E KL | rarest … commonest digit |",
        "| --- | --- | --- | --- | --- | --- |",
        *kept,
        "",
        "![GAN, EBGAN, EBGAN-PT](../images/gan-figure.png)",
        "",
        "The slides' figure 5: GAN, EBGAN and EBGAN-PT, the first samples of seed 1 of each. Upper row: single",
        "draws, as in the paper; lower row: the models' default. The GAN is the recipe `gan-mnist`, 8 epochs:",
        "the best plain one here, and not a long search.",
        "",
        "## The energy as an anomaly score",
        "",
        "AUROC against the 10 000 MNIST test digits; 10 000 anomalies of each kind, made from test pictures",
        "alone (`benchmarks/digits/anomalies.py`), but one black picture. Standard errors are DeLong's, as if",
        "all pictures were independent.",
        "",
        f"| | {' | '.join(columns)} |",
        "| --- |" + " --- |" * len(columns),
        *[
            f"| {what} | "
            + " | ".join(f"{found[kind]['value']:.4f} ± {found[kind]['error']:.4f}" for found in columns.values())
            + " |"
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
    """Draw the slides' figure 5 from a run of the plain GAN and the two checkpoints.

    Each model has a sheet of single draws; the checkpoints have one of their default samples below.
    """
    models = {"gan-mnist": from_run(gan), **{name: card.load(checkpoint(name))[0] for name in NAMES}}
    sheets = [[image_grid(games.drawn(model, 100, best), 10, 1) for best in (1, None)] for model in models.values()]
    side, top, gap = sheets[0][0].width, 18, 12
    page = Image.new("L", (len(sheets) * (side + gap) - gap, 2 * (top + sheets[0][0].height) + gap), 255)
    pen = ImageDraw.Draw(page)
    for column, (name, model) in enumerate(models.items()):
        for row, best_of in enumerate((1, model.config.best_of)):
            if row and best_of == 1:
                continue
            corner = (column * (side + gap), row * (top + side + gap))
            pen.text((corner[0], corner[1] + 3), TITLES[name] + (f", best of {best_of}" if row else ""), fill=0)
            page.paste(sheets[column][row], (corner[0], corner[1] + top))
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
