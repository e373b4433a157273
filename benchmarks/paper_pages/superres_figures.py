"""Figures of the page about super-resolution with deep convolutional sufficient statistics."""

from __future__ import annotations

import re
from statistics import mean

from paper_pages.results import Figure, Source, json_source, number, percent, read_json


def descent_origin() -> str:
    """Return when the descent was measured: the note in superres.json says so if it was before the
    others.
    """
    found = read_json("superres")
    earlier = re.search(r"descent are of (\d{4}-\d\d-\d\d) and an earlier checkpoint", found.get("note", ""))
    if earlier is None:
        return METHODS.read_origin()
    machine = found["machine"]
    return f"{earlier[1]}, {machine['cores']} cores of {machine['cpu']}, **with an earlier checkpoint**"


METHODS = json_source("superres", "python benchmarks/superres.py measure --write")
DESCENT = Source(METHODS.read_command, descent_origin)
DETAIL = json_source("lattice", "python benchmarks/lattice.py measure --write")
SETS = json_source("superres-sets", "python benchmarks/superres.py psnr --data FOLDER --write")


def method(key: str, what: str, source: Source = METHODS) -> Figure:
    """Return the mean figures of a method on the five test photographs at ×4."""

    def read() -> str:
        photographs = read_json("superres", "methods")[key]["photographs"].values()
        psnr, vgg = (mean(one[name] for one in photographs) for name in ("psnr", "vgg"))
        return f"{psnr:.2f} dB, VGG distance {vgg:.4f}"

    return Figure(f"×4, five photographs: {what}", read, source=source)


def consistency() -> str:
    """Return the worst agreement of the learned methods with their input."""
    methods = read_json("superres", "methods")
    found = {key: mean(one["consistency"] for one in methods[key]["photographs"].values()) for key in LEARNED}
    worst = min(found, key=lambda key: found[key])
    return f"{found[worst]:.1f} dB ({LEARNED[worst]})"


LEARNED = {"mse": "regression", "statistics": "statistics, one pass", "descent": "statistics, descent"}


def noise() -> str:
    """Return the VGG distances of the statistics' detail and of noise of the same strength."""
    photographs = read_json("lattice", "scales")["4"].values()
    own, noisy = (mean(one["fidelities"]["0.0"][name] for one in photographs) for name in ("vgg", "noise_vgg"))
    return f"{own:.4f}; noise {noisy:.4f}"


def lattice() -> str:
    """Return the largest share of the detail's power in one cell of the spectrum."""
    photographs = read_json("lattice", "scales")["4"].values()
    return percent(max(one["fidelities"]["0.0"]["cell"] for one in photographs), 1)


def benchmark(name: str, scale: int, method: str, paper: str) -> Figure:
    """Return the PSNR on one of the field's test sets."""

    def read() -> str:
        found = next(one for one in read_json("superres-sets", "sets") if one["set"] == name and one["scale"] == scale)
        return f"{number(found[method])} dB"

    return Figure(f"{name} ×{scale}: {method}", read, paper, SETS)


FIGURES = {
    "bicubic": method("bicubic", "bicubic"),
    "tv": method("tv", "total variation"),
    "mse": method("mse", "regression"),
    "statistics": method("statistics", "statistics, one pass"),
    "quarter": method("statistics-quarter", "statistics, one pass, mixed with a quarter of the regression"),
    "descent": method("descent", "statistics, descent, trained wavelets", DESCENT),
    "descent-fixed": method("descent-fixed", "statistics, descent, fixed wavelets", DESCENT),
    "consistency": Figure("×4: PSNR of the downsampled result to the input, lowest mean", consistency, source=METHODS),
    "noise": Figure("×4: VGG distance with the statistics' detail", noise, source=DETAIL),
    "lattice": Figure("×4: largest share of the detail's power in 1/128 of the spectrum", lattice, source=DETAIL),
    "set5-bicubic": benchmark("Set5", 4, "bicubic", "28.42 dB (the literature's)"),
    "bsd100-bicubic": benchmark("BSD100", 4, "bicubic", "25.96 dB (the literature's)"),
    "set5": benchmark("Set5", 4, "regression", "30.48 (SRCNN), 31.35 (VDSR), 32.46 (EDSR)"),
    "bsd100": benchmark("BSD100", 4, "regression", "26.90 (SRCNN), 27.29 (VDSR), 27.71 (EDSR)"),
    "set5-x3": benchmark("Set5", 3, "regression", "33.66 (VDSR)"),
    "set5-x2": benchmark("Set5", 2, "regression", "37.53 (VDSR)"),
    "judges": Figure("what people prefer", None, "pictures only", reason="nobody was asked"),
    "imagenet": Figure("ImageNet patches, PSNR and SSIM", None, reason="trained and tested on photographs instead"),
}
