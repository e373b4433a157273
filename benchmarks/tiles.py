"""Measure the processor time of an upscale in tiles against one pass over the picture.

    python benchmarks/tiles.py --methods mse --write
    python benchmarks/tiles.py --methods statistics --write
        docs/results/tiles.md and .json; a method that is not measured keeps its entry there

Pictures are crops of a made-up one. `one pass` is the model's regression or statistics of the whole
picture at ×4, `fitted` the tiles that the service cuts (`Tiling.fit`), and `fixed` tiles of 128×128
with a margin of 10 on both axes, as before. All are one thread's processor time, the shortest of
several rounds in which they take turns. `levels` is the largest difference of `fitted` from
`fixed`, in 256 levels: farther than 10 pixels from the borders of the picture, and in all of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "benchmarks"):
    sys.path.insert(0, str(folder))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from serving import facts  # noqa: E402

from core.imaging.tiling import Tiling  # noqa: E402
from models import superres  # noqa: E402
from models.kit import card, memory  # noqa: E402
from models.kit.row_streams import RowStreams  # noqa: E402

CHECKPOINT = ROOT / "checkpoints" / "superres-photos" / "1" / "model.safetensors"
RESULTS = ROOT / "docs" / "results" / "tiles"
SCALE, TILE_PIXELS, BORDER = 4, 192 * 192, 10
SIZES = ((8, 8), (16, 16), (32, 32), (64, 64), (128, 128), (192, 192), (256, 256))
LARGER = ((349, 349), (512, 512), (64, 512), (480, 640))


def picture(height: int, width: int) -> np.ndarray:
    """Return an image with edges and texture at several scales."""
    random = np.random.default_rng(5)
    y, x = np.mgrid[:height, :width]
    waves = 128 + 60 * np.sin(x / 3 + y / 17) + 40 * np.sign(np.sin(x * y / 900))
    noise = random.normal(0, 20, (height, width, 3))
    return np.asarray((waves[:, :, None] + noise).clip(0, 255), np.uint8)


def upscaled(model: superres.Model, pixels: np.ndarray, tiling: Tiling, options: superres.UpscaleOptions) -> np.ndarray:
    """Return a picture enlarged in tiles, uint8 (H, W, 3)."""
    rows = RowStreams.range(0, 0, 1)

    def enlarged(index: int) -> np.ndarray:
        tile = tiling.cut(lambda begin, end: pixels[begin:end], index, 1)
        with torch.inference_mode():
            result = model.upscale(torch.from_numpy(tile).float() / 255.0, rows, options, margins=tiling.margins)
        assert isinstance(result, dict)
        levels: np.ndarray = result["images"][0].mul(255.0).round().to(torch.uint8).numpy()
        return levels

    return np.concatenate(list(tiling.bands((enlarged(index) for index in range(tiling.count)), SCALE)))


def measured(model: superres.Model, size: tuple[int, int], method: str, rounds: int) -> dict[str, Any]:
    """Return the seconds of each way to enlarge a picture, and how they differ."""
    pixels, options = picture(*size), superres.UpscaleOptions(scale=SCALE, method=method)
    margin = model.config.margin
    ways = {
        "one_pass": Tiling(*size, size, (0, 0)),
        "fitted": Tiling.fit(*size, TILE_PIXELS, margin),
        "fixed": Tiling(*size, (128, 128), (10, 10)),
    }
    results = {name: upscaled(model, pixels, tiling, options) for name, tiling in ways.items()}
    seconds: dict[str, float] = {}
    for _ in range(rounds):
        for name, tiling in ways.items():
            seconds[name] = min(
                seconds.get(name, np.inf), _seconds(lambda t=tiling: upscaled(model, pixels, t, options))
            )
    apart = np.abs(results["fitted"].astype(int) - results["fixed"])
    edge = SCALE * BORDER
    inner = apart[edge:-edge, edge:-edge]
    fitted = ways["fitted"]
    return {
        "size": list(size),
        "method": method,
        "tiles": fitted.count,
        "tile": list(fitted.tile),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "fitted_over_one_pass": round(seconds["fitted"] / seconds["one_pass"], 3),
        "fixed_over_one_pass": round(seconds["fixed"] / seconds["one_pass"], 3),
        "levels_inside": int(inner.max()) if inner.size else 0,
        "levels": int(apart.max()),
    }


def _seconds(act: Callable[[], object]) -> float:
    started = time.thread_time()
    act()
    return time.thread_time() - started


def page(result: dict[str, Any]) -> str:
    """Return the results page."""
    lines = ["# Tiles that fit the picture", "", (__doc__ or "").rpartition("\n\n")[2].strip()]
    for method, part in result.items():
        lines += ["", f"## `{method}`", ""]
        lines += [f"Measured by `python benchmarks/tiles.py --methods {method} --write` on {part['date']}, commit"]
        lines += [f"{part['commit']}, {part['machine']['cpu']}.", ""]
        lines += ["| picture | tiles | one pass, s | fitted, s | fitted ÷ one pass | fixed ÷ one pass | levels |"]
        lines += [f"|{' --- |' * 7}"]
        for one in part["sizes"]:
            (height, width), (tall, wide), seconds = one["size"], one["tile"], one["seconds"]
            lines.append(
                f"| {width}×{height} | {one['tiles']} of {wide}×{tall} | {seconds['one_pass']:.3f} | "
                f"{seconds['fitted']:.3f} | {one['fitted_over_one_pass']:.2f} | "
                f"{one['fixed_over_one_pass']:.2f} | {one['levels_inside']}, {one['levels']} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all sizes, and print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=["mse", "statistics"])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--write", action="store_true", help="the page and its numbers")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    memory.keep_freed_memory()
    model, _ = card.load(chosen.checkpoint)
    numbers = RESULTS.with_suffix(".json")
    result: dict[str, Any] = json.loads(numbers.read_text()) if numbers.exists() else {}
    for method in chosen.methods:
        part = result[method] = {"machine": facts.machine(), "commit": facts.commit(), "date": facts.now(), "sizes": []}
        for size in SIZES + (LARGER if method == "mse" else LARGER[:1]):
            small = size[0] * size[1] <= 128 * 128
            part["sizes"].append(measured(model, size, method, 5 * chosen.rounds if small else chosen.rounds))
            print(json.dumps(part["sizes"][-1]), flush=True)
    if chosen.write:
        numbers.write_text(json.dumps(result, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(page(result))


if __name__ == "__main__":
    main()
