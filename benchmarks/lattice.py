"""Measure whether the detail that the method "statistics" adds looks like texture or like a
lattice.

It is compared with white noise of the same strength.

    python benchmarks/lattice.py measure --write
        docs/results/lattice.md and .json, on the five test photographs
    python benchmarks/lattice.py measure --held-back --fidelity 0 0.25 0.5 0.75
        on those held back for choices
    python benchmarks/lattice.py fit
        the shipped checkpoint's filters anew, from the training patches

A lattice has much of its power in few frequencies: `largest cell` is the largest share of the power
of the added luma in one square of 1/16 × 1/16 cycles a pixel and its mirror image
(`photos.metrics.largest_cell`). The page also has the value of the detail that is really missing,
original minus regression. `noise` is the control: white noise in the place of the detail. Pictures
are reduced by Pillow's bicubic filter and upscaled whole. `python benchmarks/superres.py install`
installs VGG-16.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "benchmarks"):
    sys.path.insert(0, str(folder))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from photos import metrics, pictures  # noqa: E402
from photos.vgg import VGG16  # noqa: E402
from PIL import Image  # noqa: E402
from serving import facts  # noqa: E402

from models import superres  # noqa: E402
from models.kit import card, data, features, photographs  # noqa: E402
from models.kit.row_streams import RowStreams  # noqa: E402
from models.superres.model import FILTER_PATCHES  # noqa: E402

CHECKPOINT = ROOT / "checkpoints" / "superres-photos" / "1" / "model.safetensors"
RESULTS = ROOT / "docs" / "results" / "lattice"
MIDDLE = 384  # side in pixels of the crop of a held-back photograph
MOST = 0.08  # the largest cell that a shipped model may have
Distance = Callable[[np.ndarray], float]


def held_back(folder: Path, scale: int) -> dict[str, np.ndarray]:
    """Return crops of the validation photographs, at a third of their size."""
    files, found = photographs.photographs(folder), {}
    for name in photographs.TUNING:
        with Image.open(files[name]) as opened:
            pixels = np.asarray(photographs.smaller(opened.convert("RGB"), 3))
        size = MIDDLE // scale * scale
        top, left = (edge // 2 - size // 2 for edge in pixels.shape[:2])
        found[name] = np.ascontiguousarray(pixels[top : top + size, left : left + size])
    return found


def measured(
    model: superres.Model, original: np.ndarray, scale: int, fidelities: list[float], network: features.Features
) -> dict[str, Any]:
    """Return a photograph's figures: regression, statistics, and equally
    strong noise, by fidelity.
    """
    low = metrics.downscaled(original, scale)
    x = torch.from_numpy(low.copy()).permute(2, 0, 1)[None].float() / 255.0
    wanted = metrics.seen(network, original)
    with torch.inference_mode():
        estimate = model.regress(x, scale)
        regression = levels(estimate)
        lacking = metrics.largest_cell(metrics.luma(original) - metrics.luma(regression))
        found: dict[str, Any] = {
            "psnr": metrics.psnr(regression, original),
            "vgg": metrics.perceptual(network, regression, wanted),
            "lacking_cell": lacking[0],
            "fidelities": {},
        }
        noise = RowStreams.range(1, 0, 1).normals(estimate[0, 0].numel(), 0, 1)[0, 0].view(1, 1, *estimate.shape[2:])
        for fidelity in fidelities:
            high = levels(model.sharpen(x, scale, fidelity, RowStreams.range(1, 0, 1)))
            added = metrics.luma(high) - metrics.luma(regression)
            strength = float(added.std())
            control = levels(model._project(estimate + noise * (strength / 219.0), x, scale))  # noqa: SLF001
            cell, at = metrics.largest_cell(added)
            found["fidelities"][str(fidelity)] = {
                "psnr": metrics.psnr(high, original),
                "vgg": metrics.perceptual(network, high, wanted),
                "noise_vgg": metrics.perceptual(network, control, wanted),
                "cell": cell,
                "at": [round(frequency, 3) for frequency in at],
                "strength": strength,
            }
    return found


def levels(high: torch.Tensor) -> np.ndarray:
    """Return (1, C, H, W) in 0 … 1 as an 8-bit image."""
    found: np.ndarray = (high[0].clamp(0, 1).permute(1, 2, 0) * 255.0).round().to(torch.uint8).numpy()
    return found


def summary(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the means over the photographs and the largest cells, by fidelity.

    The regression's means come first.
    """
    names = list(found)
    means = {"regression": {key: float(np.mean([found[name][key] for name in names])) for key in ("psnr", "vgg")}}
    for fidelity in found[names[0]]["fidelities"]:
        every = [found[name]["fidelities"][fidelity] for name in names]
        means[fidelity] = {key: float(np.mean([one[key] for one in every])) for key in ("psnr", "vgg", "noise_vgg")}
        means[fidelity]["largest_cell"] = max(one["cell"] for one in every)
    return means


def page(result: dict[str, Any]) -> str:
    """Return the results page."""
    measured_at = f"{result['date']}, commit {result['commit']}, {result['machine']['cpu']}"
    lines = [
        "# The detail that the statistics add",
        "",
        f"Measured by `python benchmarks/lattice.py measure --write` on {measured_at}.",
        "",
        (__doc__ or "").rpartition("\n\n")[2].strip(),
    ]
    for scale, found in result["scales"].items():
        lines += ["", f"## ×{scale}, means over the photographs", ""]
        lines += ["| | PSNR dB | VGG distance | that of noise as strong | largest cell of any |", f"|{' --- |' * 5}"]
        for name, mean in summary(found).items():
            rest = f"{mean['noise_vgg']:.4f} | {mean['largest_cell']:.1%}" if "noise_vgg" in mean else "| "
            title = name if name == "regression" else f"statistics, fidelity {name}"
            lines.append(f"| {title} | {mean['psnr']:.2f} | {mean['vgg']:.4f} | {rest} |")
        first = next(iter(next(iter(found.values()))["fidelities"]))
        lines += [
            "",
            f"Largest cells at fidelity {first}, where they lie (cycles a pixel, down and across), and what is",
        ]
        lines += ["really lacking:", "", "| photograph | added | at | lacking |", "| --- | --- | --- | --- |"]
        for name, one in found.items():
            chosen = one["fidelities"][first]
            at = ", ".join(f"{frequency:.2f}" for frequency in chosen["at"])
            lines.append(f"| {name} | {chosen['cell']:.1%} | {at} | {one['lacking_cell']:.1%} |")
    return "\n".join(lines) + "\n"


def fit(checkpoint: Path, radius: int, exponent: float, folder: Path) -> None:
    """Compute the detail filters from the first training patches, and store
    them in a checkpoint.
    """
    old, described = card.load(checkpoint)
    config = replace(old.config, detail_radius=radius, detail_exponent=exponent)
    model = superres.Model(config)
    model.load_state_dict({**model.state_dict(), **{n: v for n, v in old.state_dict().items() if "taps_" not in n}})
    patches = data.load("photographs", "train", folder).images[:FILTER_PATCHES]
    model.eval().finalize(lambda: iter([data.grey(patches)]), lambda first, count: RowStreams.range(0, first, count))
    described["config"] |= {"detail_radius": radius, "detail_exponent": exponent}
    described["operations"] = json.loads(json.dumps(model.operations()))
    described["provenance"]["detail"] = {
        "radius": radius,
        "exponent": exponent,
        "patches": len(patches),
        "command": f"python benchmarks/lattice.py fit --radius {radius} --exponent {exponent}",
    }
    card.save(checkpoint, model, described)


def main() -> None:
    """Measure the detail and print or write the page, or compute the filters of the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("measure", help="the added detail, on photographs")
    measure.add_argument("--scale", type=int, nargs="+", default=[4, 3, 2])
    measure.add_argument("--fidelity", type=float, nargs="+", default=[0.0, 0.25])
    measure.add_argument("--held-back", action="store_true", help="on the photographs held back to choose by")
    measure.add_argument("--features", type=Path, default=ROOT / "data" / "features")
    measure.add_argument("--write", action="store_true", help="the page and its numbers")
    fitting = commands.add_parser("fit", help="the filters, from the training patches")
    fitting.add_argument("--radius", type=int, default=4, help="pixels (default 4)")
    fitting.add_argument("--exponent", type=float, default=-0.2, help="of the spectrum (default −0.2)")
    for command in (measure, fitting):
        command.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
        command.add_argument("--data-folder", type=Path, default=ROOT / "data")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.command == "fit":
        fit(chosen.checkpoint, chosen.radius, chosen.exponent, chosen.data_folder)
        return
    model, _ = card.load(chosen.checkpoint)
    network = features.load(VGG16(), chosen.features / "vgg16-hed.npz")
    scales = {}
    for scale in chosen.scale:
        if chosen.held_back:
            originals = held_back(chosen.data_folder / "photographs", scale)
        else:
            originals = {name: metrics.cropped(pictures.photograph(name), scale) for name in pictures.NAMES}
        found = {name: measured(model, one, scale, chosen.fidelity, network) for name, one in originals.items()}
        scales[str(scale)] = found
        print(scale, json.dumps(summary(found)), flush=True)
        print(json.dumps({name: one["fidelities"] for name, one in found.items()}), flush=True)
    if chosen.write:
        result = {"date": facts.now(), "commit": facts.commit(), "machine": facts.machine(), "scales": scales}
        RESULTS.with_suffix(".md").write_text(page(result))
        RESULTS.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
