"""Repeat the paper's experiment: the test bound while a VAE is trained.

The network has one tanh layer of 500 units; Adagrad, M = 100, L = 1.

Kingma and Welling, arXiv:1312.6114v11, §5 and figure 2 (MNIST). Each run is a folder under `runs/`
and resumes where it stopped; the report is made from whatever runs are there.

    python benchmarks/vae_paper.py train --latents 20
        about ten minutes a run on one core
    python benchmarks/vae_paper.py choose --latents 20
        the step size, on the training set's first 1500 steps
    python benchmarks/vae_paper.py report
        docs/results/vae-paper.md
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

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


def report() -> None:
    """Write docs/results/vae-paper.md from the existing runs."""
    found: dict[tuple[int, int], dict] = {}
    commits, machines = set(), set()
    for latents in LATENTS:
        out = ROOT / "runs" / f"paper-{latents}"
        if (out / "bounds.jsonl").exists():
            lines = [json.loads(line) for line in (out / "bounds.jsonl").read_text().splitlines()]
            found |= {(line["samples"], latents): line for line in lines}
            provenance = json.loads((out / "provenance.json").read_text())
            commits.add(provenance["commit"][:12])
            machines.add(provenance["hardware"])
    last = {latents: max(at for at, n in found if n == latents) for _, latents in found}
    marks = sorted({samples for samples, _ in found})
    text = [
        "# The VAE in the paper's own setting",
        "",
        "One tanh layer of 500, Adagrad, M = 100, L = 1, estimator B, initial weights N(0, 0.1²), prior N(0, 1) on the",
        "weights, digits binarized afresh each time (the paper does not say how). The lower bound of the",
        "10 000 test digits, nats, by estimator B, 10 draws an image, float32; in brackets the paper's, read off its",
        "figure 2. Trained on the first 50 000 digits (the paper says so of figure 3 alone), products in bfloat16.",
        "",
        "| samples seen | " + " | ".join(f"N_z = {latents}" for latents in LATENTS) + " |",
        "| --- |" + " --- |" * len(LATENTS),
    ]
    for samples in marks:
        cells = []
        for latents in LATENTS:
            line = found.get((samples, latents))
            paper = PAPER.get(samples, {}).get(latents)
            ours = "not run" if line is None else f"{line['bound']:.1f} ± {line['standard_error']:.1f}"
            cells.append(ours + (f" ({paper})" if paper is not None and line is not None else ""))
        text.append(f"| {samples:,} | " + " | ".join(cells) + " |")
    tried = [json.loads(line) for line in CHOICE.read_text().splitlines()] if CHOICE.exists() else []
    losses = ", ".join(f"{line['step_size']}: {line['train_loss']:.1f}" for line in tried)
    taken = sorted({line["step_size"] for line in found.values()})
    longest = [(n, at, found[at, n]["seconds"]) for n, at in sorted(last.items())]
    times = ", ".join(f"{n}: {seconds} s for {at:,}" for n, at, seconds in longest)
    text += [
        "",
        "± is the standard error over images. Target at 10 000 000 samples and N_z = 20: at least −105.5, aim −104.7.",
        "",
        f"- Step size of Adagrad: {', '.join(map(str, taken))}, by the training loss over steps 1000 to 1500 at",
        f"  N_z = 20 ({losses}; `python benchmarks/vae_paper.py choose`).",
        f"- Wall-clock time by N_z, pauses of the machine included: {times}.",
        f"- Machine: {'; '.join(sorted(machines))}, shared with other work. Commit: {', '.join(sorted(commits))}.",
        f"- Date: {datetime.now(UTC):%Y-%m-%d}.",
        "- Command: `python benchmarks/vae_paper.py train --latents N` for each N_z (`--epochs 20` for 1 000 000",
        "  samples), then `python benchmarks/vae_paper.py report`.",
        "",
    ]
    path = ROOT / "docs" / "results" / "vae-paper.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(text))
    print(path.relative_to(ROOT))


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
