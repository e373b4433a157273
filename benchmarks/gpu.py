"""Check and measure the models on a GPU, one line of JSON each; `benchmarks/gpu.sh` runs all three
commands.

    python benchmarks/gpu.py check --device cuda
        the CPU's results on that device, random numbers to the bit
    python benchmarks/gpu.py speed --device cuda
        samples a second, and the share of what a matrix product reaches
    python benchmarks/gpu.py train --device cuda --out runs/gpu
        every recipe at its paper's scale, then measured

`--dry` runs a small version of each on synthetic data, on any device. Needs torch, numpy, pillow
and safetensors alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from models.kit import card  # noqa: E402
from models.kit.operations import Continuation, options_of  # noqa: E402
from models.kit.recipe import Recipe  # noqa: E402
from models.kit.row_streams import RowStreams  # noqa: E402
from models.kit.run import Run  # noqa: E402

CHECKPOINTS = ROOT / "checkpoints"
SMALL = {"k": 200, "draws": 4, "steps": 4, "size": 2, "inner": 4, "candidates": 4}  # small values of the options
TOLERANCE = 2e-3  # difference from the CPU's result, relative to its largest value
FLIPS = 2e-3  # share of values that may differ by more: draws next to their threshold

# recipe → its paper's scale. vae-mnist: 3280 passes at K = 50 from a model of K = 5 (Burda et al.,
# §5); bihm: K = 10 to convergence, then K = 100 at 3e-4 (Bornschein et al., §5); ebgan: the grid's
# networks (Zhao et al., table 4).
PAPER: dict[str, tuple[str, ...]] = {
    "vae-mnist-k5": ("training.epochs=600",),
    "vae-mnist": ("training.epochs=2600", "training.drop_from=1300"),
    "vae-mnist-2d": ("training.epochs=1700",),
    "bihm-mnist-k10": ("training.epochs=800", "training.drop_from=600", "config.late_from=600"),
    "bihm-mnist": ("training.epochs=200", "training.drop_from=100", "config.late_from=100"),
    "bihm-mushrooms": (),
    "bihm-dna": (),
    "ebgan-mnist": ("training.epochs=100", "training.decay=cosine"),
    "ebgan-pt-mnist": ("training.epochs=100",),
    "gan-mnist": ("training.epochs=100",),
    "superres-regression": ("training.epochs=400",),
    "superres-statistics": ("training.epochs=40",),
    "superres-denoiser": ("training.epochs=100", "config.squared_from=80"),
}
STARTS = {"vae-mnist": "vae-mnist-k5", "bihm-mnist": "bihm-mnist-k10", "superres-statistics": "superres-regression"}
DRY = ("training.epochs=1", "training.pictures=24", "training.batch_size=12", "training.warmup_steps=0")
DRY_LESS = ("training.validation=0", "training.decay=constant", "training.precision=float32")


def synced(device: str) -> float:
    """Wait until the device has finished its work; return the time in seconds."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


# --- Comparison with the CPU ---


def random_numbers(device: str, count: int) -> dict[str, Any]:
    """Check that words, uniforms and draws equal the CPU's bit for bit; count the
    normals that do not.
    """
    here, there = (RowStreams.range(2**40 + 7, 2**33, count, where) for where in ("cpu", device))
    equal = all(
        torch.equal(getattr(here, name)(*words), getattr(there, name)(*words).cpu())
        for name, words in (("words", (16, 3)), ("uniform", (61, 2)), ("uniform_int16", (61, 5, 4, 1)))
    )
    apart = int((here.normal(64) != there.normal(64).cpu()).sum())
    return {"check": "random numbers", "ok": equal and apart <= max(1, count * 64 // 10**7), "normals_apart": apart}


def pictures(described: dict[str, Any], count: int) -> torch.Tensor:
    """Return smooth synthetic images of a card's shape in 0 … 1, binary if
    the family needs them.
    """
    shape = [described["image"][name] for name in ("channels", "height", "width")]
    drawn = RowStreams.range(5, 0, count).uniform(int(np.prod(shape))).view(count, *shape)
    return (drawn > 0.7).float() if described["family"] == "bihm" else drawn


def codes(described: dict[str, Any], count: int) -> torch.Tensor:
    """Return codes for the operation `decode` of a card, uniform in the part of their range within
    −2 … 2.
    """
    told = described["operations"]["decode"]["codes"]
    drawn = RowStreams.range(6, 0, count).uniform(told["sizes"][-1]).view(count, -1)
    low, high = max(told["minimum"], -2), min(told["maximum"], 2)
    return low + (high - low) * drawn


def asked(model: Any, described: dict[str, Any], operation: str, rows: int, device: str) -> dict[str, Any]:
    """Return an operation's result on the device, for synthetic images and small options."""
    told = described["operations"][operation]
    kind = options_of(model, operation)
    options = kind(**{name: value for name, value in SMALL.items() if name in told["options"]["properties"]})
    given = [(codes if name == "codes" else pictures)(described, rows).to(device) for name in told["inputs"]]
    if "mask" in told["inputs"]:
        given[-1] = (given[-1] > 0.5).float()
    method, row = getattr(model, operation), RowStreams.range(3, 0, rows, device)
    answer = method(*given, row, options)
    while isinstance(answer, Continuation):
        answer = method(*given, row, options, answer.state)
    found: dict[str, Any] = answer
    return found


def differences(name: str, device: str, rows: int) -> Iterator[dict[str, Any]]:
    """Compare each operation of a shipped model on the device with the CPU."""
    path = CHECKPOINTS / name / "1" / "model.safetensors"
    (here, described), (there, _) = card.load(path), card.load(path, device)
    for operation in described["operations"]:
        many = {"upscale": 1, "interpolate": SMALL["steps"], "manifold": SMALL["size"] ** 2}.get(operation, rows)
        expected, found = (
            asked(model, described, operation, many, at) for model, at in ((here, "cpu"), (there, device))
        )
        worst, flips = 0.0, 0.0
        for key, value in expected.items():
            if not isinstance(value, torch.Tensor):
                continue
            apart = (found[key].cpu().double() - value.double()).abs()
            scale = float(value.double().abs().max().clamp_min(1e-9))
            beyond = apart > TOLERANCE * scale
            flips = max(flips, float(beyond.double().mean()))
            worst = max(worst, float(apart[~beyond].max()) / scale if bool((~beyond).any()) else 1.0)
        yield {"check": f"{name} {operation}", "ok": flips <= FLIPS, "apart": worst, "flips": flips}


def graphed_training(name: str, device: str, steps: int) -> dict[str, Any]:
    """Train a recipe with and without a CUDA graph of the loss; check that
    losses and weights agree.
    """
    recipe = Recipe.from_json(json.loads((ROOT / "models" / "recipes" / f"{name}.json").read_text()))
    size = recipe.training.batch_size
    drawn = RowStreams.range(7, 0, size * max(steps, 30) + recipe.training.validation).uniform(28 * 28)
    images = (drawn.view(-1, 1, 28, 28) > 0.7).to(torch.uint8) * 255
    losses, weights, seconds = [], [], []
    for graphed in (False, True):
        with tempfile.TemporaryDirectory() as out:
            run = Run(recipe, images, Path(out), device)
        run.model.CUDA_GRAPH = graphed
        batches = run.batches(0)
        losses.append([float(run.train_step(batches[number])) for number in range(steps)])
        begun = synced(device)
        for number in range(steps):
            run.train_step(batches[number])
        seconds.append((synced(device) - begun) / steps)
        weights.append(torch.cat([parameter.detach().flatten().double() for parameter in run.model.parameters()]))
    apart = max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))
    moved = float((weights[0] - weights[1]).abs().max() / weights[0].abs().max())
    milliseconds = [round(1e3 * value, 2) for value in seconds]
    ok = apart < TOLERANCE and moved < 0.1
    return {"check": f"{name} training by CUDA graphs", "ok": ok, "apart": apart, "weights_apart": moved} | {
        "ms_per_step": dict(zip(("without", "with"), milliseconds, strict=True))
    }


def checked(device: str, *, dry: bool) -> bool:
    """Run all checks, one line each; return whether all hold."""
    found = [random_numbers(device, 100 if dry else 20_000)]
    found += [graphed_training(name, device, 2 if dry else 50) for name in ("vae-mnist-k5", "vae-mnist", "bihm-mnist")]
    for line in found:
        print(json.dumps(line), flush=True)
    for folder in sorted(CHECKPOINTS.iterdir()):
        for line in differences(folder.name, device, 2 if dry else 64):
            found.append(line)
            print(json.dumps(line), flush=True)
    return all(line["ok"] for line in found)


# --- Speed ---


def reached(device: str, seconds: float) -> float:
    """Return floating-point operations per second of large float32 matrix products."""
    size = 4096 if device.startswith("cuda") else 512
    a = RowStreams.range(1, 0, size, device).uniform(size)
    return 2.0 * size**3 * repeated(lambda: a @ a, device, seconds)


def repeated(work: Any, device: str, seconds: float) -> float:
    """Return how often per second a function runs, without its first call."""
    work()
    begun, times = synced(device), 0
    while (now := synced(device)) - begun < seconds or not times:
        work()
        times += 1
    return times / (now - begun)


def speeds(device: str, *, dry: bool) -> Iterator[dict[str, Any]]:
    """Yield samples per second of each shipped model, and the share of a matrix product's speed."""
    seconds, count = (0.05, 8) if dry else (3.0, 8192)
    best = reached(device, seconds)
    yield {"speed": "matrix product, float32", "flop_per_s": best}
    for folder in sorted(CHECKPOINTS.iterdir()):
        model, described = card.load(folder / "1" / "model.safetensors", device)
        if "sample" not in described["operations"]:
            continue
        with FlopCounterMode(display=False) as counter:
            asked(model, described, "sample", count, device)
        each = repeated(lambda model=model, of=described: asked(model, of, "sample", count, device), device, seconds)
        share = counter.get_total_flops() * each / best
        yield {"speed": folder.name, "samples_per_s": count * each, "batch": count, "share_of_product": share}


# --- Training ---


def made_up(recipe: dict[str, Any], folder: Path) -> Path:
    """Write a few synthetic images as a recipe's data; return the file's path.

    They are patches of 96 × 96 pixels for super-resolution.
    """
    config = recipe["config"]
    shape = (3, 96, 96) if recipe["family"] == "superres" else (1, config.get("height", 28), config.get("width", 28))
    drawn = np.random.default_rng(1).integers(0, 2 if recipe["family"] == "bihm" else 256, (48, *shape), np.uint8)
    drawn[0, 0, 0, :2] = 0, (1 if recipe["family"] == "bihm" else 255)
    path = folder / f"{recipe['name']}.npz"
    np.savez(path, train=drawn[:36], test=drawn[36:])
    return path


def commands(name: str, device: str, out: Path, data: Path, *, dry: bool) -> Iterator[list[str]]:
    """Return the arguments of `python -m models` to train, export and evaluate a recipe."""
    recipe = json.loads((ROOT / "models" / "recipes" / f"{name}.json").read_text())
    changes = [*PAPER[name], *(DRY + DRY_LESS if dry else ())]
    made = made_up(recipe, out) if dry else None
    if dry:
        changes += [f"data={made}"]
        changes += ["config.network=false"] if name == "superres-statistics" else []
        changes += ["config.late_from=0", "config.late_samples=20"] if "late_from" in recipe["config"] else []
    where, run = ["--device", device, "--data-folder", str(data)], out / "runs" / name
    words = ["train", name, "--out", str(run), *where, *(word for one in changes for word in ("--set", one))]
    if name in STARTS:
        words += ["--start", str(out / "starts" / f"{STARTS[name]}.safetensors")]
    yield [*words, "--resume"] if (run / "state.pt").exists() else words
    # two recipes may make models of one name, so each has a folder of its own
    yield ["export", str(run), "--checkpoints", str(out / "checkpoints" / name)]
    if recipe["name"] != "superres-photos":
        path = out / "checkpoints" / name / recipe["name"] / "1" / "model.safetensors"
        k = "10" if dry else "10000" if recipe["family"] == "bihm" else "5000"
        yield ["evaluate", str(path), "--write", "--k", k, *where, *(["--data", str(made)] if dry else [])]


def trained(device: str, out: Path, data: Path, names: list[str], *, dry: bool) -> None:
    """Run every recipe, one line each; CalledProcessError if a step fails."""
    for name in names:
        begun = time.perf_counter()
        for words in commands(name, device, out, data, dry=dry):
            subprocess.run([sys.executable, "-m", "models", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        made = next((out / "checkpoints" / name).glob("*/1/model.safetensors"))
        start = out / "starts" / f"{name}.safetensors"
        start.parent.mkdir(parents=True, exist_ok=True)
        start.unlink(missing_ok=True)
        start.hardlink_to(made)
        figures = {one["name"]: one["value"] for one in card.read_card(made)["figures"]}
        print(json.dumps({"trained": name, "seconds": time.perf_counter() - begun, "figures": figures}), flush=True)


def main() -> int:
    """Check, measure or train; return 1 if a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("check", "speed", "train"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dry", action="store_true", help="a little of everything, on made-up data")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="of train: where runs and checkpoints go")
    parser.add_argument("--data-folder", type=Path, default=ROOT / "data")
    parser.add_argument("--recipes", nargs="+", default=list(PAPER), choices=list(PAPER))
    chosen = parser.parse_args()
    if chosen.command == "check":
        return 0 if checked(chosen.device, dry=chosen.dry) else 1
    if chosen.command == "speed":
        for line in speeds(chosen.device, dry=chosen.dry):
            print(json.dumps(line), flush=True)
        return 0
    chosen.out.mkdir(parents=True, exist_ok=True)
    out, data = chosen.out.resolve(), chosen.data_folder.resolve()
    trained(chosen.device, out, data, chosen.recipes, dry=chosen.dry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
