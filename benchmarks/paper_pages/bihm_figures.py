"""Figures of the page about Bidirectional Helmholtz Machines."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial

from paper_pages.results import (
    Figure,
    Source,
    card_figure,
    card_source,
    card_value,
    cell,
    json_source,
    match,
    percent,
    read_json,
)


def options(name: str) -> str:
    """Return the options with which a model's card was measured, by the details of its figures."""
    k = re.search(r"K = (\d+)", card_figure(name, "log_p_star")["detail"])
    z_samples = re.search(r"(\d+) samples of eq\. 7", card_figure(name, "minus_2_log_z")["detail"])
    assert k is not None
    assert z_samples is not None
    return f"--k {k[1]} --z-samples {z_samples[1]}"


MNIST = card_source("bihm-mnist", partial(options, "bihm-mnist"))


def script(part: str, model: str = "bihm-mnist") -> Source:
    """Return the source of a part of bihm.json, whose figures are those of `model`."""
    return json_source("bihm", f"python benchmarks/bihm.py {part}", part, model=model)


def ratio(name: str) -> Callable[[], str]:
    """Return a function that reads the speed of training beside that of a transcription."""
    return lambda: f"{read_json('bihm', 'speed')[name]['ratio']:.2f} ×"


def second_seed() -> str:
    """Return −2 log Z by another seed than the card's."""
    found = read_json("bihm", "partition")
    return f"{found['minus_2_log_z']:.3f} ± {found['standard_error']:.2g} nats"


def normaliser() -> str:
    """Return Z itself, from the card's −2 log Z."""
    return f"{math.exp(-0.5 * card_figure('bihm-mnist', 'minus_2_log_z')['value']):.3f}"


def divergence() -> str:
    """Return the Bhattacharyya distance of p and q, −log Z."""
    return f"{0.5 * card_figure('bihm-mnist', 'minus_2_log_z')['value']:.2f} nats"


def sizes(model: str) -> Callable[[], str]:
    """Return a function that reads the effective sample sizes of a model at K = 10,000."""

    def read() -> str:
        found = read_json("bihm", "sizes")[model]
        return f"{found['size_root']:.1f} % of √(p/q), {found['size_p']:.2f} % of p/q"

    return read


def inpainting() -> str:
    """Return how often the classifier finds the true digit in a filled-in one."""
    found = read_json("bihm", "inpaint")
    upper, whole = (percent(found[f"agreement_of_the_{part}"], 1) for part in ("upper_half_alone", "whole_digit"))
    return f"{percent(found['agreement'], 1)} (upper half alone: {upper}; whole digit: {whole})"


def vectors(name: str, paper: tuple[str, str, str, str]) -> dict[str, Figure]:
    """Return the figures of a model of binary vectors, with those of the paper's table 1."""
    source = card_source(f"bihm-{name}", partial(options, f"bihm-{name}"))
    lines = {"log_p_star": ("−log p*", -1.0), "log_p": ("−log p", -1.0), "minus_2_log_z": ("−2 log Z", 1.0)}
    figures = {
        f"{name}-{key}": Figure(f"{name}: {what}", partial(card_value, f"bihm-{name}", key, sign=sign), value, source)
        for (key, (what, sign)), value in zip(lines.items(), paper, strict=False)
    }
    figures[f"{name}-size"] = Figure(
        f"{name}: effective sample size, √(p/q)",
        lambda: card_value(f"bihm-{name}", "effective_sample_size_star", digits=1),
        paper[3],
        source,
    )
    return figures


def held_back(row: str) -> str:
    """Return −log p* of held-back rows, from the table of the default recipe in gpu.md."""
    return f"{cell('gpu', row, 'log p*', under='The default recipe now').replace('−', '')} nats"


def recipe_source(name: str, held_back: int, width: int, options: str = "") -> Source:
    """Return the source of a training in gpu.md that held rows back, with further `options`."""
    training = f"models train bihm --set data=data/{name}.npz --set training.validation={held_back}"
    command = f"python -m {training} --set config.height=1 --set config.width={width}{options}"
    day, version, machine = r"(\d{4}-\d\d-\d\d)", r"commit ([\da-f]+) with the new recipe", r"([^;]+);"

    def read_origin() -> str:
        found = match("gpu", rf"{day}, {version}, {machine}")
        origin = f"{found[1]}, {' '.join(found[3].split())}, commit {found[2]}+"
        return f"[gpu.md](../results/gpu.md), {origin}; the test rows were not looked at"

    return Source(lambda: command, read_origin)


CONNECT_4 = recipe_source("connect-4", 1000, 126)
FAST = " --set training.learning_rate=0.01 --set training.batch_size=100"
CONNECT_4_FAST = recipe_source("connect-4", 1000, 126, FAST)


FIGURES = {
    "log-p-star": Figure(
        "`bihm-mnist`: log p*, 10,000 test digits, K = 1000",
        lambda: card_value("bihm-mnist", "log_p_star"),
        "−84.8 ± 0.23 (static binarization)",
        MNIST,
    ),
    "log-p": Figure(
        "`bihm-mnist`: log p, 10,000 test digits, K = 1000",
        lambda: card_value("bihm-mnist", "log_p"),
        "−84.5 ± 0.22 (static), −82.9 (dynamic binarization)",
        MNIST,
    ),
    "bound": Figure(
        "`bihm-mnist`: log p̃*, 10,000 test digits, K = 1000",
        lambda: card_value("bihm-mnist", "log_p_tilde_star"),
        "−87.4 (their log p* and 2 log Z)",
        MNIST,
    ),
    "log-z": Figure(
        "`bihm-mnist`: −2 log Z", lambda: card_value("bihm-mnist", "minus_2_log_z"), "2.63 (2.56 … 2.70)", MNIST
    ),
    "z": Figure("`bihm-mnist`: Z", normaliser, "0.27 (from their 2 log Z)", MNIST),
    "distance": Figure(
        "`bihm-mnist`: Bhattacharyya distance of p and q", divergence, "1.3 nats (from their 2 log Z)", MNIST
    ),
    "second-seed": Figure("`bihm-mnist`: −2 log Z by a second seed", second_seed, "2.63", script("partition")),
    "size-card": Figure(
        "`bihm-mnist`: effective sample size at K = 1000, √(p/q)",
        lambda: card_value("bihm-mnist", "effective_sample_size_star", digits=1),
        "—",
        MNIST,
    ),
    "sizes": Figure(
        "`bihm-mnist`: effective sample size at K = 10,000, first 100 test digits",
        sizes("bihm-mnist"),
        "11.9 %, 1.2 % at K = 100,000",
        script("sizes"),
    ),
    "sizes-vae": Figure(
        "`vae-mnist`: effective sample size at K = 10,000, first 100 test digits",
        sizes("vae-mnist"),
        "0.07 % of p/q at K = 100,000",
        script("sizes", "vae-mnist"),
    ),
    "inpainting": Figure(
        "lower half of the first 1000 test digits hidden: a classifier finds the true digit",
        inpainting,
        "no number; pictures only",
        script("inpaint"),
    ),
    "speed": Figure(
        "training, float32, beside a direct transcription of algorithm 1",
        ratio("ours, float32"),
        source=script("speed", ""),
    ),
    "speed-bfloat16": Figure(
        "training, bfloat16, beside a direct transcription of algorithm 1",
        ratio("ours, bfloat16"),
        source=script("speed", ""),
    ),
    **vectors("mushrooms", ("9.40", "9.40", "0.09", "92.5 %")),
    **vectors("dna", ("86.92", "86.49", "0.56", "11.2 %")),
    "connect-4": Figure(
        "connect-4, not shipped: −log p*, held-back rows, K = 1000",
        lambda: held_back("connect-4 |"),
        "12.31 (test rows)",
        CONNECT_4,
    ),
    "connect-4-fast": Figure(
        "connect-4, learning rate 0.01: −log p*, held-back rows, K = 1000",
        lambda: held_back("connect-4, learning rate 0.01 |"),
        "12.31 (test rows)",
        CONNECT_4_FAST,
    ),
    "adult": Figure(
        "adult, not shipped: −log p*, held-back rows, K = 1000",
        lambda: held_back("adult |"),
        "13.82 (test rows)",
        recipe_source("adult", 1414, 123),
    ),
    "other-sets": Figure(
        "−log p*: nips-0-12, ocr-letters, rcv1, web",
        None,
        "272.71, 27.30, 46.98, 28.22",
        reason="the data sets are not in the repository",
    ),
    "by-k": Figure(
        "figure 1C: log p* at K = 1, 10, 100, 1000, 10,000",
        None,
        "−89.3, −86.1, −85.3, −85.1, −85.0 (read off)",
        reason="the card has K = 1000 only",
    ),
    "faces": Figure("Toronto faces, 48×48: samples", None, "pictures", reason="the data set is not in the repository"),
}
