"""Measure `denoise` of superres-photos on compressed and noisy pictures, and ship its network.

    python benchmarks/denoise.py measure --held-back
        by strength, on the photographs held back for choices
    python benchmarks/denoise.py measure --data FOLDER --write
        on Set5 and BSD100, at the strengths of the table of docs/superres.md;
        docs/results/denoise.md and .json, and the card
    python benchmarks/denoise.py text --write
        small text and thin lines, counted in pieces; docs/images/denoise-text.png
    python benchmarks/denoise.py ship RUN
        add the network of a run of `superres-denoiser` to the checkpoint

The low resolution is that of the set, or Pillow's bicubic filter. It is compressed by Pillow as a
JPEG file (colours at half the resolution, Pillow's default), or gets normal noise of a standard
deviation in grey levels, rounded to 8 bits. PSNR is of BT.601's Y without as many pixels on each
side as the scale. Lanczos is Pillow's filter. `matched` is the strength that belongs to the
degradation in the table, `fixed` the one for pictures of unknown origin.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "benchmarks"):
    sys.path.insert(0, str(folder))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from lattice import held_back, levels  # noqa: E402
from photos import metrics  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from serving import facts  # noqa: E402
from skimage import measure  # noqa: E402

from models import superres  # noqa: E402
from models.kit import card, export  # noqa: E402
from models.kit.figures import figure  # noqa: E402
from models.kit.train import weights  # noqa: E402

CHECKPOINT = ROOT / "checkpoints" / "superres-photos" / "1" / "model.safetensors"
RESULTS = ROOT / "docs" / "results" / "denoise"
SHEET = ROOT / "docs" / "images" / "denoise-text.png"
FIXED = 0.5  # the strength for pictures of unknown origin
SHOWN_LINES = 40  # of low resolution, in the sheet of small text
SETS = {"Set5": (4, 3, 2), "BSD100": (4, 3, 2)}


@dataclass(frozen=True)
class Degradation:
    """A compression with a JPEG quality, or noise with a standard deviation in grey levels.

    `strength` is the option `denoise` that belongs to it.
    """

    quality: int | None = None
    noise: float | None = None
    strength: float = FIXED

    def apply(self, low: np.ndarray, seed: int) -> np.ndarray:
        """Return a degraded 8-bit RGB image; `seed` is that of the noise."""
        if self.quality is not None:
            stream = io.BytesIO()
            Image.fromarray(low).save(stream, "JPEG", quality=self.quality)
            return np.asarray(Image.open(stream).convert("RGB"))
        if self.noise is not None:
            noise = np.random.default_rng(seed).normal(0.0, self.noise, low.shape)
            return np.asarray((low + noise).round().clip(0, 255), np.uint8)
        return low


# See the table of docs/superres.md
DEGRADATIONS = {
    "clean": Degradation(strength=0.5),
    "jpeg 80": Degradation(quality=80, strength=0.5),
    "jpeg 60": Degradation(quality=60, strength=0.85),
    "jpeg 40": Degradation(quality=40, strength=1.0),
    "jpeg 20": Degradation(quality=20, strength=1.0),
    "noise 10": Degradation(noise=10.0, strength=0.5),
    "noise 25": Degradation(noise=25.0, strength=1.0),
}


# --- Photographs ---


def pairs_of(folder: Path, scale: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the low and the high resolution of the pictures in a folder of Set5's form."""
    for path in sorted(folder.glob("*_HR.png")):
        with Image.open(path) as high, Image.open(path.with_name(path.name.replace("_HR", f"_LR_x{scale}"))) as low:
            original = metrics.cropped(np.asarray(high.convert("RGB")), scale)
            yield np.asarray(low.convert("RGB")), original


def enlarged(model: superres.Model, low: np.ndarray, scale: int, strength: float) -> np.ndarray:
    """Return the regression's estimate of a picture, cleaned first if `strength` is above 0."""
    x = torch.from_numpy(low.copy()).permute(2, 0, 1)[None].float() / 255.0
    with torch.inference_mode():
        clean = model.denoise(x, strength) if strength else x
        return levels(model.regress(clean, scale))


def lanczos(low: np.ndarray, scale: int) -> np.ndarray:
    """Return a picture enlarged by Pillow's Lanczos filter."""
    size = (low.shape[1] * scale, low.shape[0] * scale)
    return np.asarray(Image.fromarray(low).resize(size, Image.Resampling.LANCZOS))


def measured(
    model: superres.Model,
    pairs: Iterator[tuple[np.ndarray, np.ndarray]],
    scale: int,
    strengths: Mapping[str, Mapping[str, float]],
) -> dict[str, dict[str, float]]:
    """Return the mean PSNR by degradation and method: Lanczos, the regression, and each strength.

    `strengths` has the strengths of each degradation, keyed by the name in the result.
    """
    found: dict[str, dict[str, list[float]]] = {name: {} for name in DEGRADATIONS}
    for number, (low, original) in enumerate(pairs):
        height, width = original.shape[:2]
        for name, degradation in DEGRADATIONS.items():
            seen = degradation.apply(low, number)
            results = {"lanczos": lanczos(seen, scale), "regression": enlarged(model, seen, scale, 0.0)}
            results |= {key: enlarged(model, seen, scale, strength) for key, strength in strengths[name].items()}
            for key, high in results.items():
                value = metrics.psnr(high[:height, :width], original, scale)
                found[name].setdefault(key, []).append(value)
    return {
        name: {key: round(float(np.mean(values)), 3) for key, values in methods.items()}
        for name, methods in found.items()
    }


# --- Text ---


def text_picture(scale: int) -> np.ndarray:
    """Return a page of small text and thin lines at `scale` times its resolution."""
    page = Image.new("RGB", (260 * scale, 150 * scale), "white")
    draw = ImageDraw.Draw(page)
    for line, size in enumerate((9, 10, 12, 14)):
        text = "Thin text: Illinois fjord, 0123456789"
        draw.text(
            (4 * scale, (4 + 20 * line) * scale), text, fill=(20, 20, 30), font=ImageFont.load_default(size * scale)
        )
    for number in range(7):
        top = (92 + 7 * number) * scale
        draw.line((4 * scale, top, 120 * scale, top + 5 * number * scale), fill=(10, 10, 10), width=scale)
        draw.ellipse(
            ((140 + 9 * number) * scale, 92 * scale, (170 + 9 * number) * scale, 140 * scale),
            outline=(150, 20, 20),
            width=scale,
        )
    return np.asarray(page)


def pieces(picture: np.ndarray) -> int:
    """Return the number of connected pieces of ink: pixels nearer to it than to the paper."""
    return int(measure.label(metrics.luma(picture) < 16.0 + 219.0 / 2.0, connectivity=2).max())


def text(model: superres.Model, scale: int = 4) -> tuple[dict[str, Any], Image.Image]:
    """Return the PSNR and the pieces of each method by degradation, and a sheet of pictures."""
    original = text_picture(scale)
    low = metrics.downscaled(original, scale)
    result: dict[str, Any] = {"scale": scale, "original": {"pieces": pieces(original)}}
    columns = ["input", "lanczos", "regression", "denoise"]
    rows = ["clean", "jpeg 80", "jpeg 40", "jpeg 20", "noise 25"]
    height, width = original.shape[:2]
    shown = (SHOWN_LINES * scale, width // 2)  # pixels down and across
    sheet = Image.new("RGB", ((shown[1] + 6) * len(columns), (shown[0] + 22) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for line, name in enumerate(rows):
        degradation = DEGRADATIONS[name]
        seen = degradation.apply(low, 0)
        results = {
            "input": np.asarray(Image.fromarray(seen).resize((width, height), Image.Resampling.NEAREST)),
            "lanczos": lanczos(seen, scale),
            "regression": enlarged(model, seen, scale, 0.0),
            "denoise": enlarged(model, seen, scale, degradation.strength),
        }
        result[name] = {
            key: {"psnr": round(metrics.psnr(high, original), 2), "pieces": pieces(high)}
            for key, high in results.items()
            if key != "input"
        }
        for column, key in enumerate(columns):
            place = (column * (shown[1] + 6), line * (shown[0] + 22))
            title = f"{name}: {key}" + (f" {degradation.strength:g}" if key == "denoise" else "")
            draw.text((place[0] + 2, place[1] + 4), title, fill="black")
            part = Image.fromarray(np.ascontiguousarray(results[key][: shown[0], : shown[1]]))
            sheet.paste(part, (place[0], place[1] + 20))
    return result, sheet


# --- The page and the card ---


def page(result: dict[str, Any]) -> str:
    """Return the results page."""
    measured_at = f"{result['date']}, commit {result['commit']}, {result['machine']['cpu']}"
    lines = ["# Compressed and noisy pictures", ""]
    lines += [f"Measured by `python benchmarks/denoise.py measure --data FOLDER --write` on {measured_at}."]
    lines += ["`python benchmarks/denoise.py text --write` makes the page of small text.", ""]
    lines += [(__doc__ or "").rpartition("\n\n")[2].strip()]
    for entry in result["sets"]:
        lines += ["", f"## {entry['set']} ×{entry['scale']}, {entry['pictures']} pictures, PSNR in dB", ""]
        lines += [
            f"| picture | Lanczos | regression | matched `denoise` | PSNR | fixed {FIXED:g} |",
            f"|{' --- |' * 6}",
        ]
        for name, found in entry["psnr"].items():
            lines.append(
                f"| {name} | {found['lanczos']:.2f} | {found['regression']:.2f} | {DEGRADATIONS[name].strength:g} | "
                f"{found['matched']:.2f} | {found['fixed']:.2f} |"
            )
    if "text" in result:
        found = result["text"]
        lines += ["", f"## Small text and thin lines ×{found['scale']}", ""]
        lines += [
            f"The page has {found['original']['pieces']} pieces of ink; more are broken strokes, fewer have merged."
        ]
        lines += ["", "| picture | Lanczos | regression | matched `denoise` |", f"|{' --- |' * 4}"]
        for name, methods in found.items():
            if name in DEGRADATIONS:
                cells = [f"{methods[key]['psnr']:.2f} dB, {methods[key]['pieces']}" for key in methods]
                lines.append(f"| {name} | {' | '.join(cells)} |")
        lines += ["", "![small text, enlarged](../images/denoise-text.png)"]
    return "\n".join(lines) + "\n"


def into_card(result: dict[str, Any], path: Path) -> None:
    """Store the PSNR of `denoise` as figures of the card, in place of earlier ones."""
    model, described = card.load(path)
    figures = [one for one in described["figures"] if not one["name"].startswith("psnr_denoise")]
    for entry in result["sets"]:
        for name, found in entry["psnr"].items():
            strength = DEGRADATIONS[name].strength
            key = f"psnr_denoise_{entry['set'].lower()}_x{entry['scale']}_{name.replace(' ', '')}"
            detail = (
                f"denoise {strength:g} and mse on {name}, {entry['pictures']} pictures of {entry['set']} "
                f"×{entry['scale']}; "
                f"Lanczos {found['lanczos']:.2f}, mse alone {found['regression']:.2f}"
            )
            figures.append(figure(key, found["matched"], "dB", "higher", detail))
    described["figures"] = figures
    card.save(path, model, described, card.read_preview(path))


def ship(checkpoint: Path, run: Path) -> None:
    """Add the denoiser of a run, or of its exported checkpoint, to the checkpoint."""
    model, described = card.load(checkpoint)
    if run.is_file():
        origin = card.read_card(run)
        tensors, config, provenance = load_file(run), origin["config"], origin["provenance"]
    else:
        tensors, recipe, counters = weights(run)
        config = recipe.to_json()["config"]
        provenance = json.loads((run / export.PROVENANCE_FILE).read_text())
        provenance |= {"epochs": counters["epoch"], "seconds": round(counters["seconds"], 1)}
    shape = {name: config[name] for name in ("denoiser_blocks", "denoiser_features")}
    shipped = superres.Model(replace(model.config, **shape))
    cleaner = {name: value for name, value in tensors.items() if name.startswith("denoiser.")}
    shipped.load_state_dict({**shipped.state_dict(), **model.state_dict(), **cleaner})
    described["config"] |= shape
    described["operations"] = json.loads(json.dumps(shipped.operations()))
    described["provenance"]["denoiser"] = provenance
    card.save(checkpoint, shipped.eval(), described, card.read_preview(checkpoint))


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    built = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = built.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="PSNR by degradation")
    measuring.add_argument("--held-back", action="store_true", help="on the photographs held back to choose by")
    measuring.add_argument("--data", type=Path, help="a folder with Set5 and BSD100")
    measuring.add_argument("--sets", nargs="+", default=list(SETS))
    measuring.add_argument("--scale", type=int, nargs="+", default=[4, 3, 2])
    measuring.add_argument("--strength", type=float, nargs="+", default=[0.2, 0.3, 0.5, 0.7, 0.9, 1.0])
    measuring.add_argument("--data-folder", type=Path, default=ROOT / "data")
    texts = commands.add_parser("text", help="small text and thin lines")
    for command in (measuring, texts):
        command.add_argument("--write", action="store_true", help="the page, the numbers and the card")
    shipping = commands.add_parser("ship", help="add a trained denoiser to the checkpoint")
    shipping.add_argument("run", type=Path, help="the folder of a run, or its checkpoint")
    for command in (measuring, texts, shipping):
        command.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    return built


def main() -> None:
    """Run the command that the command line names."""
    chosen = parser().parse_args()
    torch.set_num_threads(1)
    if chosen.command == "ship":
        ship(chosen.checkpoint, chosen.run)
        return
    model, _ = card.load(chosen.checkpoint)
    about = {"machine": facts.machine(), "commit": facts.commit(), "date": facts.now()}
    known = RESULTS.with_suffix(".json")
    stored: dict[str, Any] = json.loads(known.read_text()) if known.exists() else {"sets": []}
    if chosen.command == "text":
        found, sheet = text(model)
        print(json.dumps(found, indent=1))
        result = {**stored, **about, "text": found}
        if chosen.write:
            sheet.quantize(64).save(SHEET, optimize=True)
    else:
        result = {**stored, **about, "sets": []}
        for entry in _measured_sets(model, chosen):
            print(json.dumps(entry), flush=True)
            result["sets"].append(entry)
    if chosen.write:
        known.write_text(json.dumps(result, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(page(result))
        if chosen.command == "measure":
            into_card(result, chosen.checkpoint)


def _measured_sets(model: superres.Model, chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the figures of each set and scale that the command line names."""
    for scale in chosen.scale:
        if chosen.held_back:
            originals = held_back(chosen.data_folder / "photographs", scale)
            pairs = [(metrics.downscaled(one, scale), one) for one in originals.values()]
            strengths = {name: {str(value): value for value in chosen.strength} for name in DEGRADATIONS}
            yield {"set": "held back", "scale": scale, "psnr": measured(model, iter(pairs), scale, strengths)}
            continue
        for name in chosen.sets:
            pairs = list(pairs_of(chosen.data / name, scale))
            strengths = {key: {"matched": one.strength, "fixed": FIXED} for key, one in DEGRADATIONS.items()}
            found = measured(model, iter(pairs), scale, strengths)
            yield {"set": name, "scale": scale, "pictures": len(pairs), "psnr": found}


if __name__ == "__main__":
    main()
