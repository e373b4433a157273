"""Repeat the paper's experiment: the test bound while a VAE is trained.

The network has one tanh layer of 500 units; Adagrad, M = 100, L = 1.

Kingma and Welling, arXiv:1312.6114v11, §5 and figure 2 (MNIST). Each run is a folder under `runs/`
and resumes where it stopped. The report adds the runs that are there to docs/results/vae-paper.json,
which keeps every measured bound.

    python benchmarks/vae_paper.py train --latents 20
        about ten minutes a run on one core
    python benchmarks/vae_paper.py choose --latents 20
        the step size, on the training set's first 1500 steps
    python benchmarks/vae_paper.py report
        docs/results/vae-paper.md and .json, docs/images/vae-paper.png
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402

from models import vae  # noqa: E402
from models.kit import data  # noqa: E402
from models.kit.export import provenance  # noqa: E402
from models.kit.recipe import Recipe  # noqa: E402
from models.kit.row_streams import RowStreams  # noqa: E402
from models.kit.run import Run  # noqa: E402
from models.kit.train import train, weights  # noqa: E402

LATENTS = (3, 5, 10, 20, 200)
STEP_SIZES = (0.01, 0.02, 0.1)
PAPER = {  # test bound in nats, read off figure 2, by samples seen and number of latents
    1_000_000: {3: -152.9, 5: -138.9, 10: -128.3, 20: -124.2, 200: -119.9},
    10_000_000: {3: -138.0, 5: -124.1, 10: -108.5, 20: -104.7, 200: -103.9},
}
EPOCH = 50_000  # images: the paper's training set; 200 epochs are 1e7 samples
EPOCHS = 200
MARKS = (20, 60, 100, 150, 200)  # epochs at which the test bound is measured
SEED = 13126114
CHOICE = ROOT / "runs" / "paper-choice.jsonl"
RESULTS = ROOT / "docs" / "results" / "vae-paper.json"
COLOURS = {3: "#b2475d", 5: "#e39b45", 10: "#5b8c5a", 20: "#2c5f8a", 200: "#6b4c8f"}


def recipe(latents: int, step_size: float, precision: str) -> Recipe:
    """Return the recipe of the paper's network and optimizer.

    The prior N(0, 1) of all parameters is a weight decay.
    """
    return Recipe.from_json(
        {
            "family": "vae",
            "name": f"paper-{latents}",
            "summary": f"the paper's network with {latents} latents",
            "data": "mnist",
            "seed": SEED,
            "config": {
                "hidden": [500],
                "latents": latents,
                "activation": "tanh",
                "init": "normal",
                "objective": "sgvb_b",
                "samples": 1,
            },
            "training": {
                "epochs": EPOCHS,
                "batch_size": 100,
                "optimiser": "adagrad",
                "learning_rate": step_size,
                "epsilon": 1e-10,
                "weight_prior": True,
                "precision": precision,
                "binarization": "dynamic",
                "save_every_s": 20.0,
            },
        }
    )


@torch.inference_mode()
def bound(model: vae.Model, pictures: data.ImageSet, samples: int = 10) -> tuple[float, float]:
    """Return the mean lower bound of newly binarized images and its standard error, in nats.

    The bound is SGVB B in float32.
    """
    bounds = []
    for first in range(0, len(pictures.images), 500):
        images = pictures.images[first : first + 500]
        rows = RowStreams.range(1, first, len(images))
        options = vae.EnergyOptions(draws=samples)
        bounds.append(-model.energy(data.grey(images), rows, options)["energies"])
    every = torch.cat(bounds).double()
    return float(every.mean()), float(every.std() / len(every) ** 0.5)


def choose(latents: int, precision: str, device: str) -> None:
    """Measure the training loss of the first 1500 steps for each step size.

    It is averaged over the last 500.
    """
    CHOICE.parent.mkdir(exist_ok=True)
    CHOICE.unlink(missing_ok=True)
    pictures = data.load("mnist", "train", ROOT / "data")
    for step_size in STEP_SIZES:
        run = Run(recipe(latents, step_size, precision), pictures.images[:EPOCH], Path(), device)
        losses = []
        while run.steps < 1500:
            batches = data.shuffled(EPOCH, SEED, run.epoch).to(device).split(100)
            losses += [float(run.train_step(index)) / 100 for index in batches]
            run.epoch += 1
        line = json.dumps({"step_size": step_size, "train_loss": sum(losses[-500:]) / 500})
        with CHOICE.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


def fit(latents: int, step_size: float, precision: str, epochs: int, device: str) -> None:
    """Train one network to `epochs`, and measure the test bound at each mark."""
    out = ROOT / "runs" / f"paper-{latents}"
    pictures = data.load("mnist", "train", ROOT / "data")
    test = data.load("mnist", "test", ROOT / "data")
    chosen = recipe(latents, step_size, precision)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "provenance.json").exists():
        (out / "provenance.json").write_text(json.dumps(provenance(chosen, pictures, device), indent=2) + "\n")
    for mark in (mark for mark in MARKS if mark <= epochs):
        until = dataclasses.replace(chosen, training=dataclasses.replace(chosen.training, epochs=mark))
        ended = train(until, pictures.images[:EPOCH], out, resume=True, device=device)
        if ended.reason != "finished":
            sys.exit(f"{ended.reason} after {ended.epochs} epochs")
        if ended.epochs > mark:
            continue
        tensors, reached, _ = weights(out)
        model = vae.Model(reached.config)
        model.load_state_dict(tensors)
        value, error = bound(model.eval(), test)
        line = {
            "latents": latents,
            "samples": mark * EPOCH,
            "bound": round(value, 2),
            "standard_error": round(error, 2),
            "seconds": round(ended.seconds),
            "step_size": step_size,
        }
        with (out / "bounds.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def measured(out: Path) -> list[dict[str, Any]]:
    """Return the bounds of a run, each with the machine, commit, precision and date."""
    path = out / "bounds.jsonl"
    if not path.exists():
        return []
    origin = json.loads((out / "provenance.json").read_text())
    found = {
        "precision": origin["recipe"]["training"]["precision"],
        "machine": origin["hardware"],
        "commit": origin["commit"][:12],
        "date": f"{datetime.fromtimestamp(path.stat().st_mtime, UTC):%Y-%m-%d}",
    }
    return [{**json.loads(line), **found} for line in path.read_text().splitlines()]


def curves(found: dict[tuple[int, int], dict[str, Any]]) -> Image.Image:
    """Draw the bounds by the number of samples seen, and the paper's as rings, as in its figure 2."""
    width, height, left, top = 560, 360, 60, 20
    low, high = -160.0, -100.0  # nats
    page = Image.new("RGB", (left + width + 110, top + height + 50), "white")
    pen = ImageDraw.Draw(page)

    def place(samples: int, bound: float) -> tuple[float, float]:
        share = math.log10(samples / 1e6)
        return left + 15 + (width - 30) * share, top + height * (high - bound) / (high - low)

    for bound in range(int(low), int(high) + 1, 10):
        y = place(1_000_000, bound)[1]
        pen.line((left, y, left + width, y), fill="#e4e4e4")
        pen.text((left - 36, y - 6), f"{bound}", fill="black")
    for samples in (1_000_000, 2_000_000, 5_000_000, 10_000_000):
        x = place(samples, low)[0]
        pen.line((x, top + height, x, top + height + 4), fill="black")
        pen.text((x - 28, top + height + 8), f"{samples:,}", fill="black")
    pen.line((left, top, left, top + height, left + width, top + height), fill="black")
    for latents in LATENTS:
        line = sorted((samples, entry["bound"]) for (samples, n), entry in found.items() if n == latents)
        points = [place(*point) for point in line]
        pen.line(points, fill=COLOURS[latents], width=2, joint="curve")
        for x, y in points:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=COLOURS[latents])
        for samples, bounds in PAPER.items():
            x, y = place(samples, bounds[latents])
            pen.ellipse((x - 5, y - 5, x + 5, y + 5), outline=COLOURS[latents], width=2)
        y = top + 20 + 22 * LATENTS.index(latents)
        pen.line((left + width + 15, y, left + width + 35, y), fill=COLOURS[latents], width=2)
        pen.text((left + width + 42, y - 6), f"N_z = {latents}", fill="black")
    pen.text(
        (left + 120, top + height + 28), "training samples seen; test bound in nats; rings: the paper", fill="black"
    )
    return page


def by_latents(found: dict[tuple[int, int], dict[str, Any]], describe: Callable[[dict[str, Any]], str]) -> str:
    """Return what `describe` says of the longest run of each number of latents, equal ones together."""
    groups: dict[str, list[str]] = {}
    for latents in LATENTS:
        lines = [line for (_, n), line in sorted(found.items(), key=lambda item: item[0]) if n == latents]
        if lines:
            groups.setdefault(describe(lines[-1]), []).append(str(latents))
    if len(groups) == 1:
        return next(iter(groups))
    return ", ".join(f"{text} (N_z = {', '.join(names)})" for text, names in groups.items())


def report() -> None:
    """Add the existing runs to docs/results/vae-paper.json, and write the page and its picture."""
    kept = json.loads(RESULTS.read_text())
    found = {(line["samples"], line["latents"]): line for line in kept["bounds"]}
    for latents in LATENTS:
        lines = measured(ROOT / "runs" / f"paper-{latents}")
        found |= {(line["samples"], latents): line for line in lines}
    if CHOICE.exists():
        kept["step_sizes"] = [json.loads(line) for line in CHOICE.read_text().splitlines()]
    kept["bounds"] = [found[key] for key in sorted(found)]
    kept["paper"] = PAPER
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    picture = ROOT / "docs" / "images" / "vae-paper.png"
    curves(found).save(picture, optimize=True)
    text = [
        "# The VAE in the paper's own setting",
        "",
        "One tanh layer of 500, Adagrad, M = 100, L = 1, estimator B, initial weights N(0, 0.1²), prior N(0, 1) on the",
        "weights, digits binarized afresh each time (the paper does not say how). The lower bound of the",
        "10 000 test digits, nats, by estimator B, 10 draws an image, float32; in brackets the paper's, read off its",
        "figure 2. Trained on the first 50 000 digits (the paper says so of figure 3 alone); products in",
        f"{by_latents(found, lambda line: line['precision'])}.",
        "",
        "| samples seen | " + " | ".join(f"N_z = {latents}" for latents in LATENTS) + " |",
        "| --- |" + " --- |" * len(LATENTS),
    ]
    for samples in sorted({samples for samples, _ in found}):
        cells = []
        for latents in LATENTS:
            line = found.get((samples, latents))
            paper = PAPER.get(samples, {}).get(latents)
            ours = "not run" if line is None else f"{line['bound']:.1f} ± {line['standard_error']:.1f}"
            cells.append(ours + (f" ({paper})" if paper is not None and line is not None else ""))
        text.append(f"| {samples:,} | " + " | ".join(cells) + " |")
    losses = ", ".join(f"{line['step_size']}: {line['train_loss']:.1f}" for line in kept["step_sizes"])
    taken = sorted({line["step_size"] for line in found.values()})
    times = by_latents(found, lambda line: f"{line['seconds']} s for {line['samples']:,}")
    commits = sorted({commit for line in found.values() for commit in line["commit"].split(", ")})
    days = sorted({line["date"] for line in found.values()})
    text += [
        "",
        "![test bound by training samples seen](../images/vae-paper.png)",
        "",
        "± is the standard error over images. Target at 10 000 000 samples and N_z = 20: at least −105.5, aim −104.7.",
        "",
        f"- Step size of Adagrad: {', '.join(map(str, taken))}, by the training loss over steps 1000 to 1500 at",
        f"  N_z = 20 ({losses}; `python benchmarks/vae_paper.py choose`).",
        f"- Wall-clock time, pauses of the machine included: {times}.",
        f"- Machine: {by_latents(found, lambda line: line['machine'])}, shared with other work.",
        f"- Commit: {', '.join(commits)}.",
        f"- Date: {days[-1]}; the earliest of these runs {days[0]}.",
        "- Command: `python benchmarks/vae_paper.py train --latents N` for each N_z (`--epochs 20` for 1 000 000",
        "  samples; `--precision` as above), then `python benchmarks/vae_paper.py report`.",
        "- Numbers: [vae-paper.json](vae-paper.json).",
        "",
    ]
    RESULTS.with_suffix(".md").write_text("\n".join(text))
    print(f"{RESULTS.with_suffix('.md').relative_to(ROOT)}, {picture.relative_to(ROOT)}")


def main() -> None:
    """Train, choose a step size, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "choose", "report"))
    parser.add_argument("--latents", type=int, choices=LATENTS, default=20)
    parser.add_argument("--step-size", type=float, choices=STEP_SIZES, default=0.01)
    parser.add_argument("--epochs", type=int, choices=MARKS, default=EPOCHS, help="of 50 000 images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.command == "train":
        fit(chosen.latents, chosen.step_size, chosen.precision, chosen.epochs, chosen.device)
    elif chosen.command == "choose":
        choose(chosen.latents, chosen.precision, chosen.device)
    else:
        report()


if __name__ == "__main__":
    main()
