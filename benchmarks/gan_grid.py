"""A reduced version of the paper's grid search over network settings.

It measures how often a plain GAN and an EBGAN fail.

Zhao, Mathieu and LeCun, arXiv:1609.03126v4, §4.1, table 1, figures 2 and 3. Every run is a line of
a JSONL file under `runs/`, so that the grid can be resumed; the report uses the existing lines.

    python benchmarks/gan_grid.py run
        about a quarter of an hour on one core; may be stopped and run again
    python benchmarks/gan_grid.py report
        docs/results/gan-grid.md and .json, docs/images/gan-grid.png
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "benchmarks"):
    sys.path.insert(0, str(folder))

import torch  # noqa: E402
from digits import classifier, games  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402
from serving import facts  # noqa: E402

from models.kit import data  # noqa: E402

SEED = 1609_03126
EPOCHS, BATCH = 2, 128
FAILED = 0.1  # nats of clamped I', the lowest bin of the paper's histograms
NETWORKS = {
    "layers_g": (2, 3),
    "layers_d": (2, 3),
    "size_g": (400, 800),
    "size_d": (128, 256),
    "dropout": (0.0, 0.5),
}
OPTIMISERS = ("adam", "sgd")
RATES = (0.01, 0.001, 0.0001)
GANS_A_RATE = 11
LINES = ROOT / "runs" / "gan-grid.jsonl"
BIN = 0.1  # nats


def settings() -> list[dict[str, Any]]:
    """Return all runs in random order: 32 EBGANs, and 11 GANs per learning rate.

    SEED draws the GANs and the order.
    """
    networks = [dict(zip(NETWORKS, values, strict=True)) for values in itertools.product(*NETWORKS.values())]
    chance = random.Random(SEED)
    runs = [{"side": "ebgan", **network, "optimisers": ["adam", "adam"], "rate": 0.001} for network in networks]
    pairs = [list(pair) for pair in itertools.product(OPTIMISERS, repeat=2)]
    for rate in RATES:
        for network, pair in chance.sample(list(itertools.product(networks, pairs)), GANS_A_RATE):
            runs.append({"side": "gan", **network, "optimisers": pair, "rate": rate})
    chance.shuffle(runs)
    return [{"number": number, **run} for number, run in enumerate(runs)]


def one(run: dict[str, Any], images: torch.Tensor, judge: classifier.Classifier, epochs: int, count: int) -> dict:
    """Train and score one setting. The score is 0 if the loss becomes NaN."""
    config = {"objective": run["side"], **{name: run[name] for name in NETWORKS}}
    training = {
        "epochs": epochs,
        "batch_size": BATCH,
        "player_optimisers": run["optimisers"],
        "player_rates": [run["rate"]] * 2,
    }
    game = games.played(games.recipe("grid", SEED + run["number"], config, training), images)
    if game is None:
        return {**run, "ended": "not a number", "i_prime": 0.0, "e_kl": 0.0}
    last = {name: game.metrics[-1].get(name) for name in ("d_real", "d_fake", "active_hinges")}
    found = games.scored(game.model, judge, count).rounded()
    return {**run, "ended": game.reason, **found, **last, "seconds": round(game.seconds, 1), "commit": facts.commit()}


def fit(lines: Path, epochs: int, limit: int | None, pictures: int, count: int) -> None:
    """Train and score those of the first `limit` runs that the file does not have yet."""
    lines.parent.mkdir(parents=True, exist_ok=True)
    done = {json.loads(line)["number"] for line in lines.read_text().splitlines()} if lines.exists() else set()
    images = data.load("mnist", "train", ROOT / "data").images[:pictures]
    judge = classifier.load()
    for run in settings()[:limit]:
        if run["number"] not in done:
            line = json.dumps(one(run, images, judge, epochs, count))
            with lines.open("a") as file:
                file.write(line + "\n")
            print(line, flush=True)


def failed(runs: list[dict[str, Any]]) -> tuple[int, int]:
    """Return the number of runs whose score is in the lowest bin, and the number of all runs."""
    return sum(run["i_prime"] < FAILED for run in runs), len(runs)


def format_share(counts: tuple[int, int]) -> str:
    """Return a share in 0 … 1 as text, in percent."""
    return f"{counts[0]} of {counts[1]} ({counts[0] / counts[1]:.0%})" if counts[1] else "none run"


def histogram(sides: dict[str, list[dict[str, Any]]]) -> Image.Image:
    """Draw the share of runs by I', two bars per bin: GANs light, EBGANs dark."""
    bins, height, wide, left, top = 20, 240, 34, 60, 30
    page = Image.new("RGB", (left + bins * wide + 20, top + height + 60), "white")
    pen = ImageDraw.Draw(page)
    colours = {"gan": "#e39b45", "ebgan": "#2c5f8a"}
    for place, (side, runs) in enumerate(sides.items()):
        pen.rectangle((left + 130 + 220 * place, 8, left + 142 + 220 * place, 20), fill=colours[side])
        pen.text((left + 148 + 220 * place, 8), f"{side.upper()}, {len(runs)} runs", fill="black")
        for number in range(bins):
            inside = [run for run in runs if number == min(bins - 1, int(run["i_prime"] / BIN))]
            share = len(inside) / max(1, len(runs))
            x = left + number * wide + 3 + place * (wide // 2 - 3)
            pen.rectangle((x, top + round(height * (1 - share)), x + wide // 2 - 4, top + height), fill=colours[side])
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = top + round(height * (1 - share))
        pen.line((left - 4, y, left, y), fill="black")
        pen.text((left - 40, y - 6), f"{share:.0%}", fill="black")
    pen.line((left, top, left, top + height, left + bins * wide, top + height), fill="black")
    for number in range(0, bins + 1, 2):
        pen.text((left + number * wide - 8, top + height + 6), f"{number * BIN:.1f}", fill="black")
    pen.text((left + 180, top + height + 30), "I' (nats), probabilities clamped at 1e-2: share of runs", fill="black")
    return page


def report(lines: Path, epochs: int) -> None:
    """Write the page, its numbers and its figure."""
    runs = sorted((json.loads(line) for line in lines.read_text().splitlines()), key=lambda run: run["number"])
    sides = {side: [run for run in runs if run["side"] == side] for side in ("gan", "ebgan")}
    counts = {side: failed(found) for side, found in sides.items()}
    shares = {side: bad / max(1, all_of) for side, (bad, all_of) in counts.items()}
    times = (
        f", {shares['gan'] / shares['ebgan']:.1f} times the EBGANs' share" if counts["ebgan"][0] else "; no EBGAN did"
    )
    by_rate = {rate: failed([run for run in sides["gan"] if run["rate"] == rate]) for rate in RATES}
    ordered = {side: sorted(run["i_prime"] for run in found) for side, found in sides.items()}
    median = [f"{values[len(values) // 2]:.2f}" if values else "" for values in ordered.values()]
    best = [f"{values[-1]:.2f}" if values else "" for values in ordered.values()]
    networks = ", ".join(f"{name} {'/'.join(map(str, values))}" for name, values in NETWORKS.items())
    text = [
        "# The reduced grid: how often GAN and EBGAN fail",
        "",
        f"Networks: {networks}.",
        f"The EBGANs are all 32 of these with Adam 0.001 and m = 10; the GANs are {GANS_A_RATE}",
        f"for each learning rate, networks and both players' optimisers drawn by seed {SEED}. {epochs} epochs of all",
        f"60 000 digits for both, {BATCH} a step. Score: I' of {games.SAMPLES:,} samples, clamped at 1e-2",
        "and renormalised (`benchmarks/digits/scores.py`; the 10 000 test digits have 1.92).",
        "",
        "![histogram](../images/gan-grid.png)",
        "",
        "| | GAN | EBGAN | paper, full grid: GAN | EBGAN |",
        "| --- | --- | --- | --- | --- |",
        f"| I' < {FAILED} | {format_share(counts['gan'])} | {format_share(counts['ebgan'])} | about 56 % | about 9 % |",
        *[
            f"| at learning rate {rate} | {format_share(found)} | "
            f"{format_share(counts['ebgan']) if rate == 0.001 else 'not run'} | | |"
            for rate, found in by_rate.items()
        ],
        f"| median I' | {' | '.join(median)} | | |",
        f"| best I' | {' | '.join(best)} | | about 1.9 |",
        "",
        f"Of the GANs {shares['gan']:.0%} failed{times}. {epochs} epochs are few: a plain GAN of these sizes with Adam",
        "0.0001 begins to draw digits after five or six (`gan-mnist`, figure 5 in `docs/results/gan-scores.md`): this",
        "measures how often each side learns within the same small budget, not where it ends.",
        "",
        "## Every run",
        "",
        "| side | layers G, D | size G, D | dropout | optimiser D, G | rate | I' | E KL | active hinges |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in sorted(runs, key=lambda run: (run["side"], -run["i_prime"])):
        hinges = "" if run.get("active_hinges") is None else f"{run['active_hinges']:.0%}"
        cells = [
            run["side"],
            f"{run['layers_g']}, {run['layers_d']}",
            f"{run['size_g']}, {run['size_d']}",
            "yes" if run["dropout"] else "no",
            ", ".join(run["optimisers"]),
            str(run["rate"]),
            f"{run['i_prime']:.3f}",
            f"{run['e_kl']:.3f}",
            hinges,
        ]
        text.append(f"| {' | '.join(cells)} |")
    machine = facts.machine()
    commits = sorted({run["commit"] for run in runs if "commit" in run})
    text += [
        "",
        f"- Machine: {machine['cpu']}, one thread of {machine['cores']} cores, shared with other work.",
        f"- Commit: {', '.join(commits)}. Date: {facts.now()}.",
        "- Command: `python benchmarks/gan_grid.py run`, then `python benchmarks/gan_grid.py report`.",
        "",
    ]
    results = ROOT / "docs" / "results"
    (results / "gan-grid.md").write_text("\n".join(text))
    summary = {
        "date": facts.now(),
        "commits": commits,
        "machine": machine,
        "seed": SEED,
        "epochs": epochs,
        "runs": runs,
    }
    (results / "gan-grid.json").write_text(json.dumps(summary, indent=1) + "\n")
    histogram(sides).save(ROOT / "docs" / "images" / "gan-grid.png", optimize=True)
    print("docs/results/gan-grid.md")


def main() -> None:
    """Train and score the runs of the grid, or write the page of those that exist."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("--lines", type=Path, default=LINES, help="where the runs' lines are kept")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"of every run (default {EPOCHS})")
    parser.add_argument("--limit", type=int, help="only the first so many runs")
    parser.add_argument("--pictures", type=int, default=60_000, help="training digits (default all)")
    parser.add_argument("--samples", type=int, default=games.SAMPLES, help="digits drawn and scored a run")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.command == "run":
        fit(chosen.lines, chosen.epochs, chosen.limit, chosen.pictures, chosen.samples)
    else:
        report(chosen.lines, chosen.epochs)


if __name__ == "__main__":
    main()
