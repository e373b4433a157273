"""Measure the bidirectional Helmholtz machine, and compare its figures with the paper's.

    python benchmarks/bihm.py partition  # log Z of bihm-mnist by a second seed; 4 minutes
    python benchmarks/bihm.py sizes      # effective sample sizes, beside the VAE's; 3 minutes
    python benchmarks/bihm.py speed      # training against a transcript of Algorithm 1; 1 minute
    python benchmarks/bihm.py inpaint    # the lower half of 1000 test digits filled in; 10 minutes
    python benchmarks/bihm.py pictures   # samples and inpaintings, docs/images/bihm-*.png; 1 minute
    python benchmarks/bihm.py report     # docs/results/bihm.md of what was measured last

Every part writes its share of docs/results/bihm.json with machine, commit and date. Likelihoods are
in the cards, of all 10,000 test digits: `python -m models evaluate
checkpoints/bihm-mnist/1/model.safetensors --k 1000 --z-samples 1000000 --write`.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "benchmarks"):
    sys.path.insert(0, str(folder))

import torch  # noqa: E402
from digits import classifier  # noqa: E402
from digits.labels import labelled  # noqa: E402
from serving import facts  # noqa: E402

from models import bihm  # noqa: E402
from models.kit import card, data, memory  # noqa: E402
from models.kit.operations import Continuation  # noqa: E402
from models.kit.preview import image_grid  # noqa: E402
from models.kit.row_streams import RowStreams  # noqa: E402
from models.kit.sampling import effective_sample_size, log_mean_exp  # noqa: E402

RESULT = ROOT / "docs" / "results" / "bihm.json"
NAMES = ("bihm-mnist", "bihm-mushrooms", "bihm-dna")
HALF = 14  # lines of a digit that stay visible
STEP, TWICE = 50, 200  # digits per batch; digits that are inpainted twice


def checkpoint(name: str) -> Path:
    """Return the path of version 1 of a model."""
    return ROOT / "checkpoints" / name / "1" / "model.safetensors"


def finished(method: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Call an operation until it returns no `Continuation`; return its result."""
    answer = method(*arguments)
    while isinstance(answer, Continuation):
        answer = method(*arguments, answer.state)
    told: dict[str, Any] = answer
    return told


def test_digits(count: int) -> torch.Tensor:
    """Return the first test digits under the static binarization, (count, 1, 28, 28)."""
    pictures = data.load("mnist", "test", ROOT / "data")
    return data.grey(data.static_binarization(pictures.images, test=True)[0][:count])


# --- log Z ---


def partition(samples: int, seed: int = 102) -> dict[str, Any]:
    """Estimate −2 log Z by eq. 7 with another seed than the card's.

    Return it with its error and the card's value.
    """
    model, described = card.load(checkpoint("bihm-mnist"))
    told = next(figure for figure in described["figures"] if figure["name"] == "minus_2_log_z")
    z = model.estimate_log_z(seed, samples)
    error = 2.0 * z["standard_error"]
    return {
        "samples": samples,
        "seed": seed,
        "minus_2_log_z": -2.0 * z["log_z"],
        "standard_error": error,
        "largest": z["largest"],
        "card": {"minus_2_log_z": -2.0 * float(model.log_z), "standard_error": 2.0 * float(model.log_z_error)},
        "card_detail": told["detail"],
    }


# --- Effective sample sizes ---


@torch.inference_mode()
def sizes(count: int, k: int) -> dict[str, Any]:
    """Return the effective sample sizes (% of K) of each model's posterior samples.

    They are those of the weights p/q and √(p/q).

    The VAE has no p*: its √(p/q) are the weights of (∫ √(p q) dz)², which correspond to the BiHM's
    for p̃*.
    """
    x = test_digits(count)
    found: dict[str, Any] = {"count": count, "k": k}
    for name in ("bihm-mnist", "vae-mnist"):
        model, _ = card.load(checkpoint(name))
        logs = []
        for i in range(count):
            row = RowStreams.range(7, i, 1)
            parts = [model.log_weights(x[i].flatten(1), row, at, 500) for at in range(0, k, 500)]
            logs.append(torch.cat(parts, dim=1).double())
        a = torch.cat(logs)
        entry = {
            "log_p": float(log_mean_exp(a).mean()),
            "size_p": 100.0 * float(effective_sample_size(a).mean()) / k,
            "size_root": 100.0 * float(effective_sample_size(0.5 * a).mean()) / k,
        }
        if isinstance(model, bihm.Model):
            entry["log_p_star"] = float(2.0 * log_mean_exp(0.5 * a).mean() - 2.0 * model.log_z)
        found[name] = entry
    return found


# --- Speed ---


def transcription(model: bihm.Model, x: torch.Tensor, uniform16: torch.Tensor) -> torch.Tensor:
    """Return the loss of Algorithm 1 as the paper prints it.

    The image is repeated K times, and all probabilities are computed.

    With the same 16-bit random numbers it has the loss (B,) and the gradient of `bihm.Model.loss`.
    """
    batch, k = uniform16.shape[:2]
    h = [x.repeat_interleave(k, dim=0)]
    first = 0
    log_q = torch.zeros(batch * k)
    for layer, size in zip(model.q, model.config.hidden, strict=True):
        probability = torch.sigmoid(layer(h[-1])).clamp(1e-6, 1 - 1e-6)
        uniform = (uniform16[..., first : first + size].float() + 32768.0).view(batch * k, size) / 65536.0
        h.append((uniform < probability.detach()).float())
        log_q = log_q + (h[-1] * probability.log() + (1 - h[-1]) * (1 - probability).log()).sum(1)
        first += size
    top = torch.sigmoid(model.top).clamp(1e-6, 1 - 1e-6)
    log_p = (h[-1] * top.log() + (1 - h[-1]) * (1 - top).log()).sum(1)
    for layer, lower, upper in zip(model.p, h[:-1], h[1:], strict=True):
        probability = torch.sigmoid(layer(upper)).clamp(1e-6, 1 - 1e-6)
        log_p = log_p + (lower * probability.log() + (1 - lower) * (1 - probability).log()).sum(1)
    log_p, log_q = log_p.view(batch, k), log_q.view(batch, k)
    omega = torch.softmax(0.5 * (log_p - log_q).detach(), dim=1)
    carrier = (omega * log_p + (omega - 1.0 / k) * log_q).sum(1)
    value = 2.0 * log_mean_exp(0.5 * (log_p - log_q).detach())
    return carrier.detach() - carrier - value


def speed(steps: int, rounds: int = 5, batch: int = 100) -> dict[str, Any]:
    """Measure images per second of training steps on one thread, alternating between the variants.

    A step is samples, loss, gradient and Adam. The process keeps freed memory, as trainings do.
    """
    memory.keep_freed_memory()
    images = data.grey(data.static_binarization(data.load("mnist", "train", ROOT / "data").images[:batch])[0])
    model = bihm.Model(bihm.Config())
    model.initialise(RowStreams.range(1, 0, 1))
    optimiser = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    total = sum(model.config.hidden)

    def direct(rows: RowStreams) -> torch.Tensor:
        return transcription(model, images.flatten(1), rows.uniform_int16(total, 0, model.config.samples, bihm.HIDDEN))

    def ours(rows: RowStreams) -> torch.Tensor:
        return model.loss(images, rows)

    def low(rows: RowStreams) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model.loss(images, rows)

    kinds = {"transcription": direct, "ours, float32": ours, "ours, bfloat16": low}
    gradients = {}
    for name, loss in kinds.items():
        model.zero_grad()
        loss(RowStreams.range(2, 0, batch)).mean().backward()
        gradients[name] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    norm = gradients["transcription"].norm()
    apart = {n: float((g - gradients["transcription"]).norm() / norm) for n, g in gradients.items()}
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds):
        for name, loss in kinds.items():
            began = time.perf_counter()
            for step in range(steps):
                optimiser.zero_grad()
                loss(RowStreams.range(3 + number, step * batch, batch)).mean().backward()
                optimiser.step()
            rates[name].append(steps * batch / (time.perf_counter() - began))
    base = rates["transcription"]
    return {
        name: {
            "images_per_s": statistics.median(values),
            "ratio": statistics.median(a / b for a, b in zip(values, base, strict=True)),
            "gradient_apart": apart[name],
        }
        for name, values in rates.items()
    }


# --- Inpainting ---


def lower_half(count: int) -> torch.Tensor:
    """Return a mask that hides the lower half, (count, 1, 28, 28)."""
    mask = torch.zeros(count, 1, 28, 28)
    mask[:, :, HALF:] = 1.0
    return mask


def inpaint(count: int, options: bihm.InpaintOptions) -> dict[str, Any]:
    """Measure inpainting of the first test digits: right digit, known pixels, diversity.

    The first `TWICE` digits are filled in twice.
    """
    model, _ = card.load(checkpoint("bihm-mnist"))
    judge = classifier.load()
    images, labels = test_digits(count), labelled("test")[1][:count]
    agreed, kept, apart, upper = [], True, [], []
    for first in range(0, count, STEP):
        x = images[first : first + STEP]
        mask = lower_half(len(x))
        answers = []
        for answer in range(2 if first < TWICE else 1):
            rows = RowStreams.range(11 + answer, first, len(x))
            answers.append(finished(model.inpaint, x, mask, rows, options)["images"])
            kept &= torch.equal(answers[-1][:, :, :HALF], x[:, :, :HALF])
        right = labels[first : first + STEP]
        agreed.append(classifier.probabilities(judge, answers[0]).argmax(1) == right)
        if len(answers) > 1:
            apart.append((answers[0] - answers[1]).abs().flatten(1).sum(1))
        upper.append(classifier.probabilities(judge, x * (1 - mask)).argmax(1) == right)
        print(
            f"{first + len(x)}/{count}: {100 * float(torch.cat(agreed).double().mean()):.1f} %",
            file=sys.stderr,
            flush=True,
        )
    different = torch.cat(apart)
    return {
        "count": count,
        "options": vars(options),
        "agreement": float(torch.cat(agreed).double().mean()),
        "agreement_of_the_upper_half_alone": float(torch.cat(upper).double().mean()),
        "agreement_of_the_whole_digit": float(
            (classifier.probabilities(judge, images).argmax(1) == labels).double().mean()
        ),
        "known_pixels_unchanged": kept,
        "answers_that_differ": float((different > 0).double().mean()),
        "mean_pixels_apart": float(different.mean()),
    }


# --- Pictures ---


def pictures() -> dict[str, Any]:
    """Write the images of docs: 100 samples each of p and p*, and inpaintings of ten digits."""
    model, _ = card.load(checkpoint("bihm-mnist"))
    folder = ROOT / "docs" / "images"
    chosen = {
        "p": bihm.SampleOptions(source="p"),
        "p-star": bihm.SampleOptions(source="p_star", steps=100),
    }
    for name, options in chosen.items():
        images = finished(model.sample, RowStreams.range(1, 0, 100), options)["images"]
        image_grid(images, 10).save(folder / f"bihm-{name}.png", optimize=True)
    x = test_digits(10)
    answers = [
        finished(model.inpaint, x, lower_half(10), RowStreams.range(20 + i, 0, 10), bihm.InpaintOptions())
        for i in range(5)
    ]
    known = torch.where(lower_half(10) > 0, 0.5, x)
    columns = torch.stack([known, *(answer["images"] for answer in answers), x], dim=1)
    image_grid(columns.flatten(0, 1), 7, 1).save(folder / "bihm-inpaintings.png", optimize=True)
    return {"files": ["bihm-p.png", "bihm-p-star.png", "bihm-inpaintings.png"]}


# --- Report ---


def keep(part: str, found: dict[str, Any]) -> None:
    """Store one part's result in the JSON file, with the machine, commit and date."""
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    results[part] = found | {"commit": facts.commit(), "date": facts.now(), "machine": facts.machine()}
    RESULT.write_text(json.dumps(results, indent=1) + "\n")


ERRORS = {"log_p_star": "s.e. ", "log_p": "s.e. ", "minus_2_log_z": "standard error "}


def _after(detail: str, words: str) -> float:
    """Return the number that follows `words` in the detail of a figure."""
    return float(re.split(r"[^\d.]", detail.partition(words)[2])[0])


def epochs(provenance: dict[str, Any]) -> str:
    """Return the epochs of a training, and those of the trainings that it started from."""
    earlier = [str(start["epochs"]) for start in provenance.get("start", ())]
    before = f"{', '.join(earlier[:-1])} and {earlier[-1]}" if len(earlier) > 1 else "".join(earlier)
    return f"{provenance['epochs']}" + (f", after {before}" if before else "")


def card_lines() -> list[str]:
    """Return the figures of the shipped models' cards as table lines."""
    head = ("model", "epochs", "log p*", "log p", "−2 log Z", "ESS of √(p/q)", "ESS of p/q", "test rows", "K")
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for name in NAMES:
        if not checkpoint(name).exists():
            continue
        described = card.read_card(checkpoint(name))
        value = {figure["name"]: figure["value"] for figure in described["figures"]}
        detail = {figure["name"]: figure["detail"] for figure in described["figures"]}
        if value:
            errors = [_after(detail[n], words) for n, words in ERRORS.items()]
            cells = [f"{value[n]:.2f} ± {error:.2g}" for n, error in zip(ERRORS, errors, strict=True)]
            cells += [f"{value[n]:.1f} %" for n in ("effective_sample_size_star", "effective_sample_size")]
            cells += [f"{_after(detail['log_p_star'], words):,.0f}" for words in ("mean of ", "K = ")]
            lines.append(f"| `{name}` | {epochs(described['provenance'])} | " + " | ".join(cells) + " |")
    return lines


def report() -> str:
    """Write docs/results/bihm.md from the stored results and the cards."""
    results = json.loads(RESULT.read_text())
    lines = ["# The bidirectional Helmholtz machine, measured", ""]
    lines += [
        "Made by `python benchmarks/bihm.py report` from bihm.json, which says where and when each was measured.",
        "",
    ]
    lines += ["## Likelihoods (nats, test) with standard errors, from the cards", "", *card_lines(), ""]
    if "partition" in results:
        part = results["partition"]
        lines += [f"## log Z of `bihm-mnist`, {part['samples']:,} samples of eq. 7 a seed", ""]
        lines.append(f"- the card's: −2 log Z = {part['card']['minus_2_log_z']:.3f} nats; {part['card_detail']}")
        lines.append(
            f"- seed {part['seed']}: −2 log Z = {part['minus_2_log_z']:.3f} ± {part['standard_error']:.3f} nats, "
            f"largest weight {100 * part['largest']:.3f} % of all"
        )
        lines.append("")
    if "sizes" in results:
        part = results["sizes"]
        lines += [f"## Effective sample size, K = {part['k']}, the first {part['count']} test digits", ""]
        for name in ("bihm-mnist", "vae-mnist"):
            entry = part[name]
            star = f", log p* {entry['log_p_star']:.2f}" if "log_p_star" in entry else ""
            lines.append(
                f"- `{name}`: weights √(p/q) {entry['size_root']:.2f} %, weights p/q {entry['size_p']:.2f} % "
                f"(log p {entry['log_p']:.2f}{star})"
            )
        lines.append("")
    if "speed" in results:
        lines += ["## Training, one thread, K = 10, batches of 100", ""]
        lines += [
            f"- {name}: {entry['images_per_s']:.0f} images/s, {entry['ratio']:.2f} × the transcription; gradient "
            f"{entry['gradient_apart']:.1e} of its norm apart"
            for name, entry in results["speed"].items()
            if isinstance(entry, dict) and "ratio" in entry
        ] + [""]
    if "inpaint" in results:
        part = results["inpaint"]
        share = {name: f"{100 * value:.1f} %" for name, value in part.items() if isinstance(value, float)}
        lines += [f"## Lower half hidden, the first {part['count']:,} test digits", ""]
        lines.append(f"- answers in which the classifier names the true digit: {share['agreement']}")
        lines.append(f"- of the whole digits {share['agreement_of_the_whole_digit']}")
        lines.append(f"- of the upper halves alone {share['agreement_of_the_upper_half_alone']}")
        lines.append(f"- known pixels unchanged: {'yes' if part['known_pixels_unchanged'] else 'no'}")
        lines.append(f"- pairs of answers that differ, first {TWICE} digits: {share['answers_that_differ']}")
        lines += [f"- options: {part['options']}", ""]
    lines += [
        f"- {part}: {told['date']}, commit {told['commit']}, {told['machine']['cpu']}" for part, told in results.items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the part of the benchmark that the command line names, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("partition", "sizes", "speed", "inpaint", "pictures", "report"))
    parser.add_argument("--samples", type=int, default=5_000_000, help="of partition, a seed")
    parser.add_argument("--count", type=int, help="digits (sizes: 100, inpaint: 1000)")
    parser.add_argument("--k", type=int, default=10_000, help="importance samples of sizes")
    parser.add_argument("--steps", type=int, default=50, help="Gibbs sweeps of inpaint")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "partition": lambda: partition(chosen.samples),
        "sizes": lambda: sizes(chosen.count or 100, chosen.k),
        "speed": lambda: speed(10),
        "inpaint": lambda: inpaint(chosen.count or 1000, bihm.InpaintOptions(steps=chosen.steps)),
        "pictures": pictures,
    }
    if chosen.part != "report":
        found = parts[chosen.part]()
        keep(chosen.part, found)
        print(json.dumps(found, indent=1))
    if RESULT.exists():
        RESULT.with_suffix(".md").write_text(report())


if __name__ == "__main__":
    main()
