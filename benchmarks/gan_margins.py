"""Margin sweep: one EBGAN for each m, all else equal, with scores and samples.

Zhao, Mathieu and LeCun, arXiv:1609.03126v4, appendix, figure 9 (there nLayerG 5, sizeG 1600, sizeD
1024).

    python benchmarks/gan_margins.py run
        about four minutes on one core; may be stopped and run again
    python benchmarks/gan_margins.py report
        docs/results/gan-margins.md and .json, docs/images/gan-margins.png
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
from digits import classifier, games  # noqa: E402
from digits.scores import scores  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402
from serving import facts  # noqa: E402

from models.kit import data  # noqa: E402
from models.kit.preview import image_grid  # noqa: E402

MARGINS = (1, 2, 4, 8, 16, 32)
NETWORKS = {"layers_g": 3, "size_g": 800, "layers_d": 2, "size_d": 256}
EPOCHS = 2
SEED = 9
REAL = 1.918  # I' of the 10 000 test digits
FOLDER = ROOT / "runs" / "gan-margins"
SHOWN, COLUMNS = 48, 24


def fit(folder: Path, epochs: int, pictures: int, count: int) -> None:
    """Train and score an EBGAN for each margin without a result; store the scores and samples."""
    folder.mkdir(parents=True, exist_ok=True)
    images = data.load("mnist", "train", ROOT / "data").images[:pictures]
    judge = classifier.load()
    for margin in MARGINS:
        file = folder / f"{margin}.json"
        if file.exists():
            continue
        chosen = games.recipe("margin", SEED, {**NETWORKS, "margin": margin}, {"epochs": epochs})
        game = games.played(chosen, images)
        if game is None:
            raise ValueError(f"at m = {margin} the losses ceased to be numbers")
        samples = games.drawn(game.model, count)
        found = scores(classifier.probabilities(judge, samples)).rounded()
        last = {name: game.metrics[-1][name] for name in ("d_real", "d_fake", "active_hinges", "loss_discriminator")}
        image_grid(samples[:SHOWN], COLUMNS).save(folder / f"{margin}.png", optimize=True)
        line = {"margin": margin, **found, **last, "seconds": round(game.seconds, 1), "commit": facts.commit()}
        file.write_text(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def verdict(run: dict[str, Any]) -> str:
    """Describe the result of a run in words, by its scores."""
    often = max(range(10), key=lambda digit: run["shares"][digit])
    if run["shares"][often] > 0.5:
        return f"collapsed: {run['shares'][often]:.0%} are taken for a {often}"
    missing = [str(digit) for digit, share in enumerate(run["shares"]) if share < 0.02]
    if missing:
        return f"drops {', '.join(missing)}"
    return "all ten digits" + ("" if run["i_prime"] >= 0.85 * REAL else ", many of them unclear")


def report(folder: Path, epochs: int) -> None:
    """Write the page, its numbers and its figure."""
    runs = [json.loads((folder / f"{m}.json").read_text()) for m in MARGINS if (folder / f"{m}.json").exists()]
    rows = []
    for run in runs:
        cells = [
            str(run["margin"]),
            f"{run['i_prime']:.3f}",
            f"{run['e_kl']:.3f}",
            f"{min(run['shares']):.1%} … {max(run['shares']):.1%}",
            f"{run['d_real']:.2f}",
            f"{run['d_fake']:.2f}",
            f"{run['active_hinges']:.0%}",
            f"{run['loss_discriminator']:.2f}",
            verdict(run),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    machine = facts.machine()
    commits = sorted({run["commit"] for run in runs})
    networks = ", ".join(f"{name} {value}" for name, value in NETWORKS.items())
    text = [
        "# The margin sweep",
        "",
        f"One EBGAN a margin: {networks}, Adam 0.001, {epochs} epochs of 60 000 digits, seed {SEED}.",
        "Energies are Euclidean norms over 784 pixels in −1 … 1 (at most 56). I' and E KL of 10 000 samples as in",
        f"`benchmarks/digits/scores.py` (test digits: {REAL:.2f} and 2.28); energies, hinges and the discriminator's",
        "loss are means over the last epoch.",
        "The theory has that loss near m at the equilibrium (theorem 1).",
        "",
        "| m | I' | E KL | rarest … commonest digit | D(x) | D(G(z)) | active hinges | L_D | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        "![samples](../images/gan-margins.png)",
        "",
        f"- Machine: {machine['cpu']}, one thread of {machine['cores']} cores, shared with other work.",
        f"- Commit: {', '.join(commits)}. Date: {facts.now()}.",
        "- Command: `python benchmarks/gan_margins.py run`, then `python benchmarks/gan_margins.py report`.",
        "",
    ]
    results = ROOT / "docs" / "results"
    (results / "gan-margins.md").write_text("\n".join(text))
    summary = {"date": facts.now(), "machine": machine, "networks": NETWORKS, "epochs": epochs, "runs": runs}
    (results / "gan-margins.json").write_text(json.dumps(summary, indent=1) + "\n")
    stacked([run["margin"] for run in runs], folder).save(ROOT / "docs" / "images" / "gan-margins.png", optimize=True)
    print("docs/results/gan-margins.md")


def stacked(margins: list[int], folder: Path) -> Image.Image:
    """Return the samples of all margins, one grid below the other, labelled with m."""
    sheets = [Image.open(folder / f"{margin}.png") for margin in margins]
    left, gap = 60, 6
    height = sum(one.height + gap for one in sheets)
    page = Image.new("L", (left + max(one.width for one in sheets), height), 255)
    pen, top = ImageDraw.Draw(page), 0
    for margin, one in zip(margins, sheets, strict=True):
        pen.text((6, top + one.height // 2 - 6), f"m = {margin}", fill=0)
        page.paste(one, (left, top))
        top += one.height + gap
    return page


def main() -> None:
    """Train and score an EBGAN for each margin, or write the page of those that exist."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the runs' lines and pictures are kept")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"of every run (default {EPOCHS})")
    parser.add_argument("--pictures", type=int, default=60_000, help="training digits (default all)")
    parser.add_argument("--samples", type=int, default=games.SAMPLES, help="digits drawn and scored a run")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.command == "run":
        fit(chosen.folder, chosen.epochs, chosen.pictures, chosen.samples)
    else:
        report(chosen.folder, chosen.epochs)


if __name__ == "__main__":
    main()
