"""From a run to a checkpoint with its card, and from a measurement to the card's figures."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from models.kit import card, data
from models.kit.preview import preview
from models.kit.recipe import Recipe
from models.kit.row_streams import RowStreams
from models.kit.shapes import Float, Tensor, UInt8
from models.kit.train import weights

PROVENANCE_FILE = "provenance.json"
Z_SAMPLES, MOST_Z_SAMPLES = 1000, 5_000_000
"""Samples of a normaliser for each importance sample of a picture, and how many are enough."""

MEASURED = 1
"""The seed of what is drawn to measure."""


def provenance(
    recipe: Recipe, pictures: data.Pictures, device: str = "cpu", held_back: data.Pictures | None = None
) -> dict[str, Any]:
    """Where a run happens: hardware, code, library, data; no path and no machine's name."""
    kept = recipe.training.validation
    kind = recipe.training.binarization
    images = pictures.images[: recipe.training.pictures or None]
    both = images if held_back is None else torch.cat([images, held_back.images[:kept]])
    drawn = {"sha256": data.static_binarization(both)[1]} if kind == "static" else {}
    return {
        "recipe": recipe.to_json(),
        "seed": recipe.seed,
        "hardware": hardware(device),
        "commit": commit(),
        "torch": torch.__version__,
        "data": {
            "name": pictures.name,
            "sha256": pictures.sha256,
            "count": len(both) - kept,
            "validation": kept,
        },
        "binarization": {"kind": kind, **drawn},
    }


def hardware(device: str = "cpu") -> str:
    """What computes, in words: "2-core CPU (AMD EPYC), 1 thread"."""
    if torch.device(device).type == "cuda":
        return f"1 GPU ({torch.cuda.get_device_name(device)})"
    name = platform.processor() or platform.machine()
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        named = [line.split(":", 1)[1].strip() for line in facts.read_text().splitlines() if "model name" in line]
        name = named[0] if named else name
    threads = torch.get_num_threads()
    return f"{os.cpu_count()}-core CPU ({name}), {threads} thread{'s' if threads > 1 else ''}"


def export(out: Path, checkpoints: Path, version: str = "1", selection: Path | None = None, note: str = "") -> Path:
    """Write the run in `out` as `checkpoints/NAME/VERSION/model.safetensors` without figures; returns the file.

    `selection` is the run on which the number of epochs was chosen; the card tells its best epoch. ValueError where
    the run has no checkpoint.
    """
    if not (out / "state.pt").exists():
        raise ValueError(f"{out.name} holds no run: there is no state.pt")
    tensors, recipe, counters = weights(out)
    module = card.family(recipe.family)
    model = module.Model(recipe.config)
    model.load_state_dict(tensors)
    told: dict[str, Any] = json.loads((out / PROVENANCE_FILE).read_text())
    told["recipe"] = recipe.to_json()  # its epochs and decay may have changed since the run began
    told |= {"epochs": counters["best_epoch"] or counters["epoch"], "seconds": round(counters["seconds"], 1)}
    if selection is not None:
        told["selection"] = _selection(selection)
    if note:
        told["note"] = note
    path = checkpoints / recipe.name / version / "model.safetensors"
    config = recipe.to_json()["config"]
    described = {
        "format": card.FORMAT,
        "name": recipe.name,
        "version": version,
        "family": recipe.family,
        "summary": recipe.summary,
        "created_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "config": config,
        "image": {key: config[key] for key in ("channels", "height", "width")},
        "operations": model.operations(),
        "figures": [],
        "provenance": told,
        "license": "MIT",
    }
    card.save(path, model, described)
    return path


def publish(
    out: Path,
    checkpoints: Path,
    version: str,
    load: Callable[[str, str], data.Pictures],
    count: int,
    k: int,
    against: Path | None = None,
    job: str = "",
) -> dict[str, Any]:
    """Export the run in `out` with figures on `count` test pictures and a preview; answers its path and the figures.

    `load` finds pictures by name and split. The checkpoint `against` is measured on the same pictures with the same
    numbers, if it can be.
    """
    path = export(out, checkpoints, version)
    model, described = card.load(path)
    if job:
        described["provenance"]["job"] = job
    try:
        pictures = load(described["provenance"]["data"]["name"], "test").images[:count]
    except ValueError:  # there is no test part
        pictures = torch.empty(0)
    described["figures"] = figures(model, described, pictures, k)
    shown = pictures if len(pictures) else load(described["provenance"]["data"]["name"], "train").images[:100]
    card.save(path, model, described, preview(model, shown, described["provenance"]["seed"]))
    said = {"path": str(path), "figures": described["figures"]}
    if against is not None:
        other, its = card.load(against)
        same = its["family"] == described["family"] and its["image"] == described["image"]
        said["against"] = figures(other, described, pictures, k) if same else []
    return said


def figures(model: Any, described: dict[str, Any], pictures: UInt8[Tensor, "N C H W"], k: int) -> list[dict[str, Any]]:
    """The family's own figures on these pictures, or their mean loss where it has none; none without pictures."""
    if len(pictures) < 2:
        return []
    images = _as_trained(described, pictures, MEASURED)
    if hasattr(model, "evaluate"):
        known = inspect.signature(model.evaluate).parameters
        # a constant of the model deserves more samples than a picture, but not minutes of them
        more = {"z_samples": min(Z_SAMPLES * k, MOST_Z_SAMPLES)} if "z_samples" in known else {}
        found: list[dict[str, Any]] = model.evaluate(images, MEASURED, k, **more)
        return found
    if not hasattr(model, "loss"):
        return []
    parts = []
    with torch.no_grad():
        for index in torch.split(torch.arange(len(images)), 100):
            rows = RowStreams(torch.full_like(index, MEASURED), index)
            parts.append(model.loss(images[index], rows, described["provenance"]["recipe"]["training"]["epochs"]))
    value = round(float(torch.cat(parts).double().mean()), 4)
    detail = f"the training loss, mean of {len(images)} test pictures"
    return [{"name": "loss", "value": value, "unit": "1", "better": "lower", "detail": detail}]


def test_images(described: dict[str, Any], pictures: data.Pictures, seed: int) -> Float[Tensor, "N C H W"]:
    """Test pictures as the model was trained on them: drawn afresh (dynamic), by the one fixed draw, or grey."""
    return _as_trained(described, pictures.images, seed)


def _as_trained(described: dict[str, Any], pictures: UInt8[Tensor, "N C H W"], seed: int) -> Float[Tensor, "N C H W"]:
    kind = described["provenance"]["binarization"]["kind"]
    if kind == "dynamic":
        return data.binarize(pictures, RowStreams.range(seed, 0, len(pictures)))
    images = data.static_binarization(pictures, test=True)[0] if kind == "static" else pictures
    return data.grey(images)


def _selection(run: Path) -> dict[str, Any]:
    """How many epochs were tried on which split, and which was the best."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = min(lines, key=lambda line: line["validation_loss"])
    told = json.loads((run / PROVENANCE_FILE).read_text())
    return {
        "count": told["data"]["count"],
        "validation": told["data"]["validation"],
        "epochs_tried": lines[-1]["epoch"],
        "best_epoch": best["epoch"],
        "best_validation_loss": best["validation_loss"],
        "last_validation_loss": lines[-1]["validation_loss"],
        "seconds": lines[-1]["seconds"],
    }


def describe_start(start: str) -> dict[str, Any]:
    """What a card should tell of a checkpoint, PATH or PATH:PART,PART, that training began with."""
    path, parts = _parted(start)
    known = card.read_card(path)
    told = {name: known["provenance"].get(name) for name in ("epochs", "seconds", "commit")}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"name": known["name"], "version": known["version"], "sha256": digest, "parts": parts, **told}


def load_start_weights(starts: Sequence[str]) -> dict[str, Tensor]:
    """The weights of checkpoints together, of each PATH or the parts in PATH:PART,PART; of one name the last."""
    found: dict[str, Tensor] = {}
    for start in starts:
        path, parts = _parted(start)
        chosen = load_file(path).items()
        found |= {name: value for name, value in chosen if not parts or name.partition(".")[0] in parts}
    return found


def _parted(start: str) -> tuple[Path, list[str]]:
    path, _, parts = start.partition(":")
    return Path(path), parts.split(",") if parts else []


def commit() -> str:
    """The commit of the code, with a plus where files of `models` differ from it; "unknown" outside a repository."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603, S607

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", "..") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
