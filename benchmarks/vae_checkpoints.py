"""Write docs/results/vae-checkpoints.md from the cards of the VAE's checkpoints.

The page has their training and their figures. Command: `python benchmarks/vae_checkpoints.py`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from models.kit.card import read_card  # noqa: E402


def escaped(text: str) -> str:
    """Return text escaped for a table cell."""
    return text.replace("|", "\\|")


MIDDLE = (  # options of the second of three stages
    "seed=6",
    "training.epochs=14",
    "training.batch_size=50",
    "training.learning_rate=0.0005",
    "training.drop_from=9",
)


def commands(name: str, *, three_stages: bool) -> list[str]:
    """Return the commands that train a checkpoint, with all stages of a training in three stages."""
    if three_stages:
        first = "runs/first/vae-mnist-k5/1/model.safetensors"
        middle = f"runs/second/{name}/1/model.safetensors"
        return [
            "python -m models train vae-mnist-k5 --out runs/vae-mnist-k5 &&",
            "  python -m models export runs/vae-mnist-k5 --checkpoints runs/first &&",
            f"  python -m models train {name} --start {first} --out runs/middle"
            + "".join(f" \\\n    --set {option}" for option in MIDDLE)
            + " &&",
            "  python -m models export runs/middle --checkpoints runs/second &&",
            f"  python -m models train {name} --start {middle} --out runs/{name} &&",
            f"  python -m models export runs/{name}",
        ]
    return [
        f"python -m models train {name} --set training.validation=5000 --out runs/choice",
        f"python -m models train {name} --out runs/final",
        "python -m models export runs/final --selection runs/choice",
    ]


def described(card: dict[str, Any]) -> list[str]:
    """Return one checkpoint as Markdown."""
    provenance = card["provenance"]
    config, training, chosen = (
        provenance["recipe"]["config"],
        provenance["recipe"]["training"],
        provenance.get("selection"),
    )
    widths = "-".join(map(str, (*config["hidden"], config["latents"])))
    bound = {"sgvb_a": "estimator A", "sgvb_b": "estimator B", "importance": "the importance-weighted bound"}
    bound["importance_dreg"] = f"{bound['importance']} by its doubly reparameterized gradient (DReG)"
    trained = [
        f"{card['summary']}.",
        f"Encoder 784-{widths} and the decoder its mirror, {config['activation']}.",
        f"Maximises {bound[config['objective']]}, samples an image: {config['samples']}.",
        f"{training['optimiser']}, step {training['learning_rate']} ({training.get('decay', 'constant')}),",
        f"{training['batch_size']} images a step, average of weights {training['average']},",
        (
            f"products in {training['precision']}, {provenance['binarization']['kind']} binarization, "
            f"seed {provenance['seed']}."
        ),
    ]
    epochs = [f"- Epochs: {provenance['epochs']}."]
    if chosen:
        epochs += [
            f"Of {chosen['epochs_tried']} tried on {chosen['count']:,} digits the best on the",
            f"other {chosen['validation']:,} was epoch {chosen['best_epoch']}",
            f"(loss {chosen['best_validation_loss']:.2f} nats;",
            f"{chosen['seconds']:.0f} s); then all {provenance['data']['count']:,} in {provenance['seconds']:.0f} s.",
        ]
    else:
        epochs += [f"On all {provenance['data']['count']:,} digits, {provenance['seconds']:.0f} s."]
    epochs += [
        f"Began with weights of {start['epochs']} epochs ({start['seconds']:.0f} s, commit {start['commit'][:12]})."
        for start in provenance.get("start", ())
    ]
    name, file = card["name"], f"checkpoints/{card['name']}/{card['version']}/model.safetensors"
    return [
        f"## {name}",
        "",
        " ".join(trained),
        "",
        " ".join(epochs),
        (
            f"- Machine: {provenance['hardware']}, shared with other work. Commit: {provenance['commit'][:12]}. "
            f"torch {provenance['torch']}."
        ),
        *([f"- Note: {provenance['note']}."] if "note" in provenance else []),
        "",
        "| figure | value | unit | how |",
        "| --- | --- | --- | --- |",
        *[f"| {f['name']} | {f['value']} | {f['unit']} | {escaped(f['detail'])} |" for f in card["figures"]],
        "",
        "```",
        *commands(name, three_stages="start" in provenance),
        f"python -m models evaluate {file} --write  # --precision bfloat16 where the table says so",
        "```",
        "",
    ]


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    text = ["# The VAE's checkpoints", "", "Made from the cards by `python benchmarks/vae_checkpoints.py`.", ""]
    for path in sorted((ROOT / "checkpoints").glob("*/*/model.safetensors")):
        card = read_card(path)
        if card["family"] == "vae":
            text += described(card)
    (ROOT / "docs" / "results" / "vae-checkpoints.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
