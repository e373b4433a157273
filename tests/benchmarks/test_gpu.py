"""The benchmark script for a GPU, in its dry run on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks.modules import Importer

ROOT = Path(__file__).resolve().parents[2]


def test_a_device_that_computes_the_same_passes(module: Importer) -> None:
    """Every operation is compared, and the CPU agrees with itself."""
    gpu = module("gpu")
    lines = list(gpu.differences("vae-mnist-2d", "cpu", 9))
    assert {line["check"].split()[1] for line in lines} >= {"sample", "interpolate", "manifold", "log_likelihood"}
    assert all(line["ok"] and line["flips"] == 0 for line in lines)
    assert gpu.random_numbers("cpu", 50)["ok"]


def test_a_device_that_computes_otherwise_is_found(module: Importer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose results differ by 1 % fails the check."""
    gpu = module("gpu")
    real, calls = gpu.asked, list[tuple[Any, ...]]()

    def off(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments)
        answer: dict[str, Any] = real(*arguments)
        if len(calls) % 2:
            return answer
        return {name: 1.01 * value if isinstance(value, torch.Tensor) else value for name, value in answer.items()}

    monkeypatch.setattr(gpu, "asked", off)
    found = [line for line in gpu.differences("vae-mnist-2d", "cpu", 3) if line["check"].endswith("encode")]
    assert not found[0]["ok"]


def test_every_recipe_has_its_scale(module: Importer) -> None:
    """Every recipe has a scale, except the families' default recipes and one that makes no model of
    its own.
    """
    gpu = module("gpu")
    recipes = {path.stem for path in (ROOT / "models" / "recipes").glob("*.json")}
    assert recipes - set(gpu.PAPER) == {"vae", "bihm", "ebgan", "superres", "superres-scattering"}


@pytest.mark.slow
@pytest.mark.parametrize("recipes", [["vae-mnist-k5"], ["vae-mnist-k5", "vae-mnist"]], ids=len)
def test_a_recipe_is_trained_exported_and_measured(tmp_path: Path, recipes: list[str]) -> None:
    """The dry run trains, exports and evaluates each recipe; the second starts from the first."""
    command = [sys.executable, "benchmarks/gpu.py", "train", "--device", "cpu", "--dry", "--out", str(tmp_path)]
    command += ["--recipes", *recipes]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["trained"] for line in lines] == recipes
    assert all(line["figures"]["nll"] > 0 for line in lines)


@pytest.mark.slow
def test_the_whole_script_runs_dry_on_the_cpu(module: Importer, tmp_path: Path) -> None:
    """The dry run of the whole script checks, measures and trains all recipes."""
    settings = {**os.environ, "DEVICE": "cpu", "DRY": "1", "OUT": str(tmp_path), "PYTHON": sys.executable}
    subprocess.run(["bash", "benchmarks/gpu.sh"], cwd=ROOT, check=True, env=settings)
    found = {name: (tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("check", "speed", "train")}
    assert all(json.loads(line)["ok"] for line in found["check"])
    assert all(json.loads(line).get("samples_per_s", 1) > 0 for line in found["speed"])
    assert [json.loads(line)["trained"] for line in found["train"]] == list(module("gpu").PAPER)
