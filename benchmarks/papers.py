"""Write docs/results/papers.md: every figure of the models beside that of its paper.

Command: `python benchmarks/papers.py`.

This script measures nothing: each line comes from a checkpoint's card or from the JSON of the
benchmark that measured it, and names the command that repeats the measurement.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "benchmarks"):
    sys.path.insert(0, str(folder))

from serving import facts  # noqa: E402

from models.kit import card  # noqa: E402

RESULTS = ROOT / "docs" / "results"
MISSING = "not measured yet"


def figures(name: str) -> dict[str, float]:
    """Return the figures of a shipped card by name."""
    described = card.read_card(ROOT / "checkpoints" / name / "1" / "model.safetensors")
    return {figure["name"]: figure["value"] for figure in described["figures"]}


def result(name: str) -> Any:
    """Return the JSON of a benchmark."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def failing(runs: list[dict[str, Any]], side: str) -> str:
    """Return the number of runs with I' < 0.1, of the GANs or of the EBGANs of the grid."""
    scored = [run["i_prime"] for run in runs if run["side"] == side]
    return f"{side.upper()} {sum(one < 0.1 for one in scored)} of {len(scored)}"


def best(kind: Callable[[dict[str, Any]], float]) -> float:
    """Return the largest value of a score over the shipped EBGANs."""
    return max(kind(found) for found in result("gan-scores")["models"].values())


EVALUATE = "python -m models evaluate checkpoints/{}/1/model.safetensors"
LIKELIHOOD = EVALUATE + " --k 10000"
BIHM_MNIST = EVALUATE.format("bihm-mnist") + " --k 1000 --z-samples 5000000"

LINES: tuple[tuple[str, str, Callable[[], str], str], ...] = (
    (
        "VAE, 50 latents: test NLL, K = 5000, dynamic",
        "86.35 (IWAE paper's VAE); 84.78 (IWAE, k = 50)",
        lambda: f"{figures('vae-mnist')['nll']:.2f} nats",
        EVALUATE.format("vae-mnist") + " --precision bfloat16",
    ),
    (
        "BiHM, MNIST (paper: static, ours: dynamic binarization): log p*, all 10 000 test digits, K = 1000",
        "−84.8",
        lambda: f"{figures('bihm-mnist')['log_p_star']:.2f} nats",
        BIHM_MNIST,
    ),
    (
        "the same: log p",
        "−84.5",
        lambda: f"{figures('bihm-mnist')['log_p']:.2f} nats",
        BIHM_MNIST,
    ),
    (
        "the same: −2 log Z",
        "2.6",
        lambda: f"{figures('bihm-mnist')['minus_2_log_z']:.2f} nats",
        "python benchmarks/bihm.py partition",
    ),
    (
        "BiHM, MNIST: effective sample size, √(p/q), K = 10 000 (the VAE's beside it)",
        "11.9 % at K = 100 000 (0.07 %, weights p/q)",
        lambda: " ".join(
            f"{name}: {found['size_root']:.1f} % of √(p/q), {found['size_p']:.2f} % of p/q;"
            for name, found in result("bihm")["sizes"].items()
            if isinstance(found, dict) and "size_root" in found
        ),
        "python benchmarks/bihm.py sizes",
    ),
    (
        "BiHM, mushrooms: −log p*, test",
        "9.40",
        lambda: f"{-figures('bihm-mushrooms')['log_p_star']:.2f} nats",
        LIKELIHOOD.format("bihm-mushrooms"),
    ),
    (
        "BiHM, DNA: −log p*, test",
        "86.92",
        lambda: f"{-figures('bihm-dna')['log_p_star']:.2f} nats",
        LIKELIHOOD.format("bihm-dna"),
    ),
    (
        "BiHM, training against a direct transcription of Algorithm 1",
        "",
        lambda: ", ".join(
            f"{result('bihm')['speed'][k]['ratio']:.2f} × ({k})" for k in ("ours, float32", "ours, bfloat16")
        ),
        "python benchmarks/bihm.py speed",
    ),
    (
        "BiHM, lower half of 1000 test digits hidden: the classifier finds the true digit",
        "",
        lambda: f"{100 * result('bihm')['inpaint']['agreement']:.1f} %",
        "python benchmarks/bihm.py inpaint",
    ),
    (
        "best EBGAN: I' (clamp 1e-2) over the test digits' own",
        "",
        lambda: f"{best(lambda found: found['i_prime']) / result('gan-scores')['real']['i_prime']:.2f}",
        "python benchmarks/gan_scores.py score",
    ),
    (
        "best EBGAN: E KL(p(y given x) ‖ p(y)); test digits beside it",
        "",
        lambda: f"{best(lambda found: found['e_kl']):.2f}; {result('gan-scores')['real']['e_kl']:.2f} nats",
        "python benchmarks/gan_scores.py score",
    ),
    (
        "runs of the reduced grid that fail (I' < 0.1)",
        "about 56 % of GANs, 9 % of EBGANs (whole grid)",
        lambda: "; ".join(failing(result("gan-grid")["runs"], side) for side in ("gan", "ebgan")),
        "python benchmarks/gan_grid.py run, report",
    ),
    (
        "margin sweep: I' at each m",
        "collapse at 1 and 32, varied at 4 to 8 (larger networks)",
        lambda: ", ".join(f"{run['margin']}: {run['i_prime']:.2f}" for run in result("gan-margins")["runs"]),
        "python benchmarks/gan_margins.py run, report",
    ),
)

PICTURES = (
    ("gan-figure.png", "The slides' figure 5: the best GAN, EBGAN and EBGAN-PT"),
    ("gan-margins.png", "The margin sweep"),
    ("gan-grid.png", "The reduced grid's histogram of I'"),
    ("bihm-p.png", "BiHM, samples of p"),
    ("bihm-p-star.png", "BiHM, samples of p* after 100 Gibbs sweeps"),
    ("bihm-inpaintings.png", "BiHM: the known half, five answers, the digit"),
)


def page() -> Iterator[str]:
    """Return the lines of the page."""
    yield from ("# The models beside their papers", "")
    yield f"Put together by `python benchmarks/papers.py` on {facts.now()} from the cards and from the JSON beside this"
    yield from ("page, which say where and when each was measured.", "")
    yield from ("| figure | paper | here | measured by |", "| --- | --- | --- | --- |")
    for name, paper, read, command in LINES:
        try:
            found = read()
        except (FileNotFoundError, KeyError):
            found = MISSING
        yield f"| {name} | {paper or '—'} | {found} | `{command}` |"
    yield ""
    for file, caption in PICTURES:
        if (ROOT / "docs" / "images" / file).exists():
            yield from (f"{caption}:", "", f"![{caption}](../images/{file})", "")
    pages = (
        "vae-paper",
        "vae-checkpoints",
        "vae-estimators",
        "bihm",
        "gan-scores",
        "gan-grid",
        "gan-margins",
        "sampling",
    )
    links = ", ".join(f"[{name}]({name}.md)" for name in pages if (RESULTS / f"{name}.md").exists())
    yield f"Pages: {links}."


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    (RESULTS / "papers.md").write_text("\n".join(page()) + "\n")
    print("docs/results/papers.md")


if __name__ == "__main__":
    main()
