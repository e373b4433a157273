"""Write the README's table of models from the cards of the shipped checkpoints.

Command: `python benchmarks/table.py --write`.
"""

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.catalog.cards import Metric  # noqa: E402 - the repository is put on the path first
from core.catalog.registry import ModelVersion, Registry  # noqa: E402 - the repository is put on the path first

MOST = 4  # figures per model; the card has all of them
BEGIN, END = "<!-- models: made by benchmarks/table.py -->", "<!-- end of models -->"
DEFINITIONS = (
    "Metrics: `nll` is −log p(x), and `log_p` log p(x); `bound` and `bound_K` are lower bounds of log p(x) from 1 and "
    "K samples. `log_p_star` is log p*(x), `log_p_tilde_star` its lower bound, and `minus_2_log_z` the gap between the "
    "two. `energy` is the energy of test pictures. `clear` is the share of samples that a classifier is sure of "
    "(p > 0.9), `clear_best_of_1` that of single draws, and `i_prime` the paper's modified inception score. `psnr_M` "
    "and `vgg_M` are the PSNR and the VGG-16 feature distance of the method M. ± is the standard error. "
    "[docs/papers](docs/papers/README.md) has the command that repeats each measurement. Some of the trainings in "
    "brackets ran on a GPU ([docs/results](docs/results/gpu.md))."
)


def describe(metric: Metric) -> str:
    """Return a metric's name, value, standard error (if the card has it) and unit."""
    error = re.search(r"(?:s\.e\.|standard error) ([\d.]*\d)", metric.detail)
    value = f"{metric.value:.4g}" + (f" ± {float(error[1]):.2g}" if error else "")
    return f"{metric.name} {value} {'' if metric.unit == '1' else metric.unit}".strip()


def listed(epochs: list[int]) -> str:
    """Return numbers of epochs as a list in words, which ends with how many are less than one."""
    words = [str(number) for number in epochs if number]
    short = epochs.count(0)
    text = f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)
    return f"{text} epochs" + (f", {short} of less than one" if short else "")


def combined(provenance: Mapping[str, Any]) -> list[int]:
    """Return the epochs of the trainings whose weights were combined with those of the model's own
    training, each once and without those that it started from.
    """
    known = {start["sha256"] for start in provenance.get("start", ())}
    own = (provenance["commit"], provenance["seconds"])
    epochs: list[int] = []

    def collect(record: Mapping[str, Any]) -> None:
        parts = [*record.get("mean_of", ()), *record.get("combined", ())]
        for part in parts:
            collect(part)
        if not parts and record["sha256"] not in known and (record["commit"], record["seconds"]) != own:
            known.add(record["sha256"])
            epochs.append(record["epochs"])

    for source in [*provenance.get("mean_of", ()), *provenance.get("combined", ())]:
        collect(source)
    return epochs


def row(entry: ModelVersion) -> str:
    """Return one line of the table: name, description, training, and figures."""
    card = entry.card
    provenance = card.provenance
    trained = f"{provenance['epochs']} epochs, {provenance['seconds'] / 60:.0f} min, {provenance['hardware']}"
    starts = [start["epochs"] for start in provenance.get("start", ()) if start.get("epochs")]
    if starts:
        trained += f"; with weights of earlier trainings ({listed(starts)})"
    others = combined(provenance)
    if others:
        trained += f"; combined with other trainings ({listed(others)})"
    figures = "; ".join(describe(metric) for metric in card.figures[:MOST])
    return f"| `{entry.name}` | {card.json['summary']} | {trained} | {figures or 'none measured yet'} |"


def table() -> str:
    """Return the table between its markers, with the definitions of its metrics."""
    rows = [row(entry) for entry in Registry(ROOT / "checkpoints").active()]
    head = "| model | what it is | trained | measured on the test set |\n| --- | --- | --- | --- |"
    return "\n".join([BEGIN, head, *rows, "", f"{DEFINITIONS} {END}"])


def written(readme: str) -> str:
    """Return the README with the new table.

    Raises ValueError if the markers are missing.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.md lacks the marks {BEGIN} and {END}")
    return before + table() + after


def main() -> None:
    """Print the table, or write it into the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write it into README.md")
    if not parser.parse_args().write:
        print(table())
        return
    readme = ROOT / "README.md"
    readme.write_text(written(readme.read_text()))


if __name__ == "__main__":
    main()
