"""The page of `benchmarks/superres.py`: its text, its crops, and the figures of the card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from models.kit import card
from models.kit.figures import figure
from photos import metrics, pictures

TITLES = {
    "bicubic": "bicubic",
    "tv": "total variation",
    "mse": "regression",
    "mse-ensemble": "regression, eight turns",
    "statistics": "statistics, amortised",
    "statistics-quarter": "the same, fidelity ¼: the default",
    "descent": "statistics, descent, tuned scattering",
    "descent-fixed": "statistics, descent, fixed scattering",
    "esrgan-slim": "esrgan-slim",
    "esrgan-medium": "esrgan-medium",
    "esrgan-thick": "esrgan-thick",
    "realesrgan-x4plus": "Real-ESRGAN x4plus",
}
CROPS = {"astronaut": (150, 60), "chelsea": (170, 100), "coffee": (250, 80), "motorcycle_left": (300, 170)}
EDGE = 96  # of a crop, in pixels


def mean_of(method: dict[str, Any]) -> dict[str, float]:
    """Return the mean of each metric over the photographs."""
    found = list(method["photographs"].values())
    return {key: round(float(np.mean([one[key] for one in found])), 4) for key in found[0]}


def text(result: dict[str, Any], protocol: str) -> str:
    """Return the Markdown page of a measurement.

    `result` are the metrics by method and photograph, as `superres.py measure` returns them;
    `protocol` is the paragraph that says how they were measured.
    """
    methods, names = result["methods"], list(next(iter(result["methods"].values()))["photographs"])
    machine = result["machine"]
    told = f"{result['date']}, commit {result['commit']}, {machine['cores']} cores of {machine['cpu']}"
    columns = ("method", "PSNR dB", "SSIM", "VGG distance", "Lite0 distance", "gradient", "octave 1", "consistency dB")
    lines = [
        f"# Upscaling photographs {result['scale']} times",
        "",
        f"Measured by `python benchmarks/superres.py measure --write` on {told}.",
        "",
        protocol,
        "",
        f"| {' | '.join(columns)} | s a megapixel | MiB |",
        f"|{' --- |' * (len(columns) + 2)}",
    ]
    for name, method in methods.items():
        mean = mean_of(method)
        lines.append(
            f"| {TITLES[name]} | {mean['psnr']:.2f} | {mean['ssim']:.3f} | {mean['vgg']:.4f} | {mean['lite0']:.4f} "
            f"| {mean['gradient']:.2f} | {mean['octave_1']:.2f} | {mean['consistency']:.1f} "
            f"| {method['cpu_s_per_megapixel']:.2f} | {method['peak_mib']} |"
        )
    note = (
        "Means over the photographs. Gradient and octave 1 (the finest frequencies) are energies as shares of the "
        "original's. Seconds are of one core for a megapixel of the answer; memory is the process's peak, its library "
        "included."
    )
    lines += ["", note, *(["", result["note"]] if "note" in result else [])]
    for key, title in (("psnr", "PSNR, dB"), ("vgg", "VGG distance"), ("consistency", "Consistency, dB")):
        lines += ["", f"## {title}", "", f"| method | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
        for name, method in methods.items():
            cells = [method["photographs"][one][key] for one in names]
            lines.append(
                f"| {TITLES[name]} | {' | '.join(f'{cell:.4f}' if key == 'vgg' else f'{cell:.2f}' for cell in cells)} |"
            )
    descents = {name: method for name, method in methods.items() if "energies" in method}
    if descents:
        lines += ["", "## Energy of the descents, last over first", "", f"| method | {' | '.join(names)} |"]
        lines.append(f"| --- |{' --- |' * len(names)}")
        for name, method in descents.items():
            cells = [f"{last / first:.2f} ({first:.3f})" for first, last in method["energies"].values()]
            lines.append(f"| {TITLES[name]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def into_card(result: dict[str, Any], path: Path) -> None:
    """Store the means of our methods as the card's figures, the regression's PSNR first."""
    model, described = card.load(path)
    count = len(next(iter(result["methods"].values()))["photographs"])
    how = f"mean of {count} photographs at ×{result['scale']}"
    units = {"psnr": ("dB", "higher", "luminance, 4 pixels cut off"), "vgg": ("1", "lower", "distance by VGG-16")}
    figures = []
    for name in ("mse", "statistics", "tv", "bicubic"):
        mean = mean_of(result["methods"][name])
        for key, (unit, better, what) in units.items():
            figures.append(figure(f"{key}_{name}", mean[key], unit, better, f"{TITLES[name]}: {what}, {how}"))
    described["figures"] = figures
    card.save(path, model, described)


def crops(scratch: Path, names: list[str]) -> Image.Image:
    """Return the same crop of each photograph by every method, and of the
    original, side by side.
    """
    width, label = EDGE * 2 + 6, 18
    sheet = Image.new("RGB", (width * (len(names) + 1), (EDGE * 2 + label + 6) * len(CROPS)), "white")
    draw = ImageDraw.Draw(sheet)
    for line, (photograph, (left, top)) in enumerate(CROPS.items()):
        original = metrics.cropped(pictures.photograph(photograph), 4)
        for column, name in enumerate((*names, "original")):
            file = scratch / f"{photograph}.{name}"
            picture = original if name == "original" else np.fromfile(file, np.uint8).reshape(original.shape)
            part = Image.fromarray(picture[top : top + EDGE, left : left + EDGE])
            place = (column * width, line * (EDGE * 2 + label + 6))
            draw.text((place[0] + 2, place[1] + 3), TITLES.get(name, name), fill="black")
            sheet.paste(part.resize((EDGE * 2, EDGE * 2), Image.Resampling.NEAREST), (place[0], place[1] + label))
    return sheet
