"""Measure training by the service, by the bare loop and by pythae.

The effect on the latency of samples is measured, too.

`python benchmarks/training.py` writes docs/results/training.json and .md; half an hour on a machine
otherwise idle. pythae runs in an environment of its own: python -m venv .venv-peers/pythae &&
.venv-peers/pythae/bin/pip install torch==2.13.0 pythae.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.serving.facts import commit, machine, now  # noqa: E402
from tests.stack import Stack  # noqa: E402

RESULTS = ROOT / "docs" / "results"
PEER = ROOT / ".venv-peers" / "pythae" / "bin" / "python"
BATCH, HIDDEN, LATENTS = 100, 512, 16
PARTS = ("bare", "served", "peers", "options", "latency", "mushrooms")
OPTIONS: dict[str, dict[str, Any]] = {"bfloat16": {"precision": "bfloat16"}, "compiled": {"compile": True}}
GOAL = 2.5  # times as fast as pythae
MUSHROOMS = ROOT / "data" / "mushrooms.npz"
BIHM: dict[str, Any] = {
    "config": {"hidden": [150, 100, 90, 60, 40, 20], "samples": 10},
    "training": {
        "epochs": 240,
        "batch_size": 20,
        "learning_rate": 0.006,
        "decay": "drop",
        "drop_from": 200,
        "drop_to": 0.001,
        "average": 0.998,
        "binarization": "none",
        "validation": 500,
    },
    "seed": 4,
}
"""The paper's layers for the mushrooms."""


def recipe(data: str, epochs: int, **training: Any) -> dict[str, Any]:
    """Return the recipe of all systems: 784-512-16-512-784, Adam, batches of 100, one thread."""
    chosen = {"epochs": epochs, "batch_size": BATCH, "learning_rate": 1e-3, "binarization": "none", "validation": 0}
    config = {"hidden": [HIDDEN], "latents": LATENTS, "activation": "elu"}
    words = {"family": "vae", "name": "measured", "summary": "for a benchmark", "data": data, "seed": 1}
    return {**words, "config": config, "training": {**chosen, **training}}


def bare(folder: Path, epochs: int, **training: Any) -> dict[str, float]:
    """Measure `python -m models train` alone.

    Return images per second within epochs, and over the whole process.
    """
    file = folder / "recipe.json"
    file.write_text(json.dumps(recipe("mnist", epochs, **training)))
    out = folder / f"bare-{time.monotonic_ns()}"
    started = time.monotonic()
    command = [sys.executable, "-m", "models", "train", str(file), "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return _speed(_lines((out / "metrics.jsonl").read_text()), time.monotonic() - started)


def served(client: httpx.Client, epochs: int) -> dict[str, float]:
    """Measure the same recipe through POST /v1/trainings."""
    wish = recipe("mnist", epochs)
    overrides = {
        "config": wish["config"],
        "training": {**wish["training"], "average": 0.0, "decay": "constant"},
        "seed": 1,
    }
    overrides["config"] |= {"hidden": [HIDDEN]}
    body = {"family": "vae", "dataset": "mnist", "name": "measured", "recipe": overrides, "serve": "never"}
    started = time.monotonic()
    job = client.post("/v1/trainings", json={**body, "evaluation": {"count": 10, "k": 10}}).json()
    while not (training := client.get(f"/v1/trainings/{job['id']}").json())["finished_at"]:
        time.sleep(0.2)
    assert training["status"] == "succeeded", training["problem"]
    lines = client.get(f"/v1/trainings/{job['id']}/metrics").json()["data"]
    return _speed(lines, time.monotonic() - started)


def _speed(lines: list[dict[str, Any]], wall_s: float) -> dict[str, float]:
    """Return images per second of all epochs, and without the first epoch, which may compile."""
    first, last = lines[0], lines[-1]
    later = (last["images"] - first["images"]) / (last["seconds"] - first["seconds"])
    return {"images_per_s": last["images"] / last["seconds"], "later_images_per_s": later, "wall_s": wall_s}


def _lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


PYTHAE = """
import sys, time, json, logging
import numpy as np, torch
torch.set_num_threads(1)
logging.disable(logging.CRITICAL)
from torch import nn
from pythae.models import VAE, VAEConfig
from pythae.models.nn import BaseEncoder, BaseDecoder
from pythae.models.base.base_utils import ModelOutput
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.data.datasets import BaseDataset
from pythae.trainers.training_callbacks import TrainingCallback

hidden, latents, batch, epochs = map(int, sys.argv[2:6])

class Encoder(BaseEncoder):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(784, hidden), nn.ELU())
        self.mean, self.log_variance = nn.Linear(hidden, latents), nn.Linear(hidden, latents)
    def forward(self, x):
        h = self.trunk(x.flatten(1))
        return ModelOutput(embedding=self.mean(h), log_covariance=self.log_variance(h))

class Decoder(BaseDecoder):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(latents, hidden), nn.ELU(), nn.Linear(hidden, 784), nn.Sigmoid())
    def forward(self, z):
        return ModelOutput(reconstruction=self.net(z).view(-1, 1, 28, 28))

class Clock(TrainingCallback):
    def __init__(self):
        self.ends = []
    def on_epoch_end(self, *args, **kwargs):
        self.ends.append(time.monotonic())

images = np.load(sys.argv[1]).astype(np.float32) / 255
model = VAE(VAEConfig(input_dim=(1, 28, 28), latent_dim=latents, reconstruction_loss="bce"), Encoder(), Decoder())
config = BaseTrainerConfig(output_dir=sys.argv[6], num_epochs=epochs, learning_rate=1e-3, optimizer_cls="Adam",
    per_device_train_batch_size=batch, train_dataloader_num_workers=0, no_cuda=True, seed=1)
clock = Clock()
data = BaseDataset(torch.from_numpy(images), torch.zeros(len(images)))
trainer = BaseTrainer(model=model, train_dataset=data, eval_dataset=None, training_config=config, callbacks=[clock])
started = time.monotonic()
trainer.train()
print(json.dumps({"images_per_s": epochs * len(images) / (clock.ends[-1] - started)}))
"""


def pythae(folder: Path, epochs: int) -> dict[str, float]:
    """Measure the same network, batch size and optimizer in pythae's trainer."""
    import numpy as np

    from models.kit import data

    file = folder / "mnist.npy"
    if not file.exists():
        np.save(file, data.load("mnist").images.numpy())
    words = [str(file), str(HIDDEN), str(LATENTS), str(BATCH), str(epochs), str(folder / "pythae")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [str(PEER), "-c", PYTHAE, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def service(folder: Path) -> Iterator[tuple[Stack, httpx.Client]]:
    """Run a whole service with its defaults, with MNIST as a data set."""
    stack = Stack(folder, log_level="warning", training_nice="10", checkpoints=str(ROOT / "checkpoints"))
    try:
        stack.up()
        with httpx.Client(base_url=stack.url, timeout=600) as client:
            made = client.post("/v1/datasets", json={"name": "mnist", "source": "mnist"})
            assert made.status_code in {200, 201}, made.text
            yield stack, client
    finally:
        stack.down()


def latencies(url: str, seconds: float) -> dict[str, float]:
    """Draw single samples one after another on one connection; return p50 and
    p99 in milliseconds.
    """
    took = []
    with httpx.Client(base_url=url, timeout=60) as client:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            started = time.perf_counter()
            response = client.post("/v1/samples", json={"model": "vae-mnist", "seed": len(took)})
            assert response.status_code == 200, response.text
            took.append(1000 * (time.perf_counter() - started))
            time.sleep(0.01)
    took.sort()
    return {"requests": len(took), "p50_ms": statistics.median(took), "p99_ms": took[int(0.99 * len(took))]}


def beside(client: httpx.Client, url: str, seconds: float) -> dict[str, dict[str, float]]:
    """Measure latencies while nothing trains, while a training runs, and after it was cancelled."""
    latencies(url, 3)
    found = {"idle": latencies(url, seconds)}
    wish = recipe("mnist", 10_000)
    body = {"family": "vae", "dataset": "mnist", "name": "beside", "serve": "never"}
    overrides = {part: wish[part] for part in ("config", "training")}
    job = client.post("/v1/trainings", json={**body, "recipe": overrides}).json()
    while not client.get(f"/v1/trainings/{job['id']}/metrics").json()["data"]:
        time.sleep(0.2)
    found["training"] = latencies(url, seconds)
    client.post(f"/v1/jobs/{job['id']}/cancel")
    time.sleep(3)
    found["after"] = latencies(url, seconds)
    return found


def mushrooms(client: httpx.Client, state: Path, folder: Path) -> dict[str, Any]:
    """Train the BiHM on the mushrooms by REST, and compare with `python -m models train`."""
    from safetensors.numpy import load_file

    file, out = folder / "mushrooms.json", folder / "mushrooms"
    words = {"family": "bihm", "name": "mushrooms", "summary": "for a benchmark", "data": "mushrooms"}
    file.write_text(json.dumps({**words, **BIHM, "config": {**BIHM["config"], "height": 1, "width": 112}}))
    command = [sys.executable, "-m", "models"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    beside = subprocess.Popen([*command, "train", str(file), "--out", str(out)], cwd=ROOT, env=environment)
    made = client.post("/v1/datasets", files={"file": MUSHROOMS.read_bytes()}, data={"name": "mushrooms"})
    assert made.status_code in {200, 201}, made.text
    body = {"family": "bihm", "dataset": "mushrooms", "name": "mushrooms", "recipe": BIHM}
    job = client.post("/v1/trainings", json={**body, "evaluation": {"count": 5624, "k": 1000}}).json()
    while not (training := client.get(f"/v1/trainings/{job['id']}").json())["finished_at"]:
        time.sleep(1)
    assert training["status"] == "succeeded", training["problem"]
    assert beside.wait() == 0
    subprocess.run([*command, "export", str(out), "--checkpoints", str(folder)], cwd=ROOT, env=environment, check=True)
    served = load_file(state / "checkpoints" / "mushrooms" / training["version"] / "model.safetensors")
    alone = load_file(folder / "mushrooms" / "1" / "model.safetensors")
    measured = {"log_z", "log_z_error"}  # from the evaluation, which the bare run does not have
    same = all((served[name] == alone[name]).all() for name in alone if name not in measured)
    figures = client.get(f"/v1/models/mushrooms/versions/{training['version']}").json()["card"]["figures"]
    return {"same_bits": bool(same), "figures": figures[:4], "tensors": len(alone)}


def measure(parts: tuple[str, ...], rounds: int, epochs: int, seconds: float) -> dict[str, Any]:
    """Measure the chosen parts. Systems are measured in turn, so that
    disturbances affect each alike.
    """
    found: dict[str, Any] = {"machine": machine(), "commit": commit(), "at": now(), "epochs": epochs}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "stack").mkdir()
        with service(folder / "stack") as (stack, client):
            for number in range(rounds if {"bare", "served", "peers", "options"} & set(parts) else 0):
                if "bare" in parts:
                    found.setdefault("bare", []).append(bare(folder, epochs))
                if "served" in parts:
                    found.setdefault("served", []).append(served(client, epochs))
                if "peers" in parts:
                    found.setdefault("pythae", []).append(pythae(folder, epochs))
                if "options" in parts:
                    for option, chosen in OPTIONS.items():
                        found.setdefault(option, []).append(bare(folder, epochs, **chosen))
                print(f"round {number + 1}", json.dumps({k: v[-1] for k, v in found.items() if isinstance(v, list)}))
            if "mushrooms" in parts:
                found["mushrooms"] = mushrooms(client, stack.state / "state", folder)
            if "latency" in parts:
                found["latency"] = beside(client, stack.url, seconds)
    return found


TESTED = """
## Killed on the way

`python -m pytest tests/service/test_training.py -m slow`: a training of 18000 steps (checkpoint every 0.2 s) whose
process (4 times), worker (4) and queue server (2) are killed with SIGKILL at random moments, at least 8 of the 10
amid an epoch. The version has the weights of an undisturbed run, to the bit, and each epoch is told once. Three kills
of the same kind are part of `make test`, as are a worker frozen past its lease and one that is told to stop.

## Versions that switch

`tests/service/test_training.py`, in `make test`: a sample asked for every ten milliseconds while three versions of a
model switch twenty times; no request fails, and each answer is byte for byte that of the version it names.
"""

OPTIONS_SAID = (
    "Recipe options, epochs after the first, as multiples of the plain loop: `precision: bfloat16` {bfloat16}, "
    "`compile: true` {compiled} (the whole run took {seconds:.0f} s longer)."
)


def page(found: dict[str, Any]) -> str:
    """Return the results page."""

    def best(name: str, key: str = "images_per_s") -> float:
        return max(one[key] for one in found.get(name, [{key: float("nan")}]))

    speeds = {name: best(name) for name in ("bare", "served", "pythae")}
    lines = [
        "# Training measured",
        "",
        "Made by `python benchmarks/training.py`; the numbers are in [training.json](training.json).",
        f"Commit {found['commit']}, {found['at']}; {found['machine']['cpu']}, {found['machine']['cores']} cores; one",
        f"thread. A VAE 784–{HIDDEN}–{LATENTS}–{HIDDEN}–784, Adam, batches of {BATCH}, grey MNIST, {found['epochs']}",
        f"epochs; the best of {len(found.get('bare', []))} rounds in turns.",
        "",
        "| training by | images/s | of the bare loop |",
        "| --- | --- | --- |",
    ]
    named = {
        "bare": "`python -m models train`",
        "served": "`POST /v1/trainings`, nice 10",
        "pythae": "pythae's `BaseTrainer`",
    }
    lines += [f"| {named[name]} | {speed:.0f} | {speed / speeds['bare']:.1%} |" for name, speed in speeds.items()]

    def by_round(one: str, other: str) -> str:
        rounds = zip(found.get(one, []), found.get(other, []), strict=False)
        return ", ".join(f"{mine['images_per_s'] / theirs['images_per_s']:.2f}" for mine, theirs in rounds)

    ratio = speeds["bare"] / speeds["pythae"]
    lines += ["", f"Against pythae: {ratio:.2f} times as many images a second ({by_round('bare', 'pythae')} by round);"]
    lines.append(f"through REST against bare by round: {by_round('served', 'bare')}.")
    if ratio < GOAL:
        anchor = "matrix-products-bound-the-speed-of-a-training-on-a-cpu"
        lines.append(f"The goal of {GOAL} times is missed ([decisions.md](../decisions.md#{anchor})).")
    if set(OPTIONS) <= set(found):
        later = {name: best(name, "later_images_per_s") for name in ("bare", *OPTIONS)}
        waited = OPTIONS_SAID.format(
            **{name: f"{speed / later['bare']:.2f}" for name, speed in later.items()},
            seconds=min(one["wall_s"] for one in found["compiled"]) - min(one["wall_s"] for one in found["bare"]),
        )
        lines += ["", waited]
    if "mushrooms" in found:
        one = found["mushrooms"]
        star = next(figure for figure in one["figures"] if figure["name"] == "log_p_star")
        lines += [
            "",
            "The BiHM on the mushrooms, uploaded and trained over REST with the paper's layers: test −log p* =",
        ]
        lines.append(
            f"{-star['value']:.2f} nats ({star['detail']}); weights equal to those of `python -m models train`"
        )
        lines.append(f"to the bit: {'yes' if one['same_bits'] else 'no'}.")
    if "latency" in found:
        lines += ["", "Single samples of `vae-mnist` on one connection while the same machine trains:", ""]
        lines += ["| | requests | p50 | p99 |", "| --- | --- | --- | --- |"]
        for name, one in found["latency"].items():
            lines.append(f"| {name} | {one['requests']} | {one['p50_ms']:.2f} ms | {one['p99_ms']:.2f} ms |")
        ratio = found["latency"]["training"]["p99_ms"] / found["latency"]["idle"]["p99_ms"]
        lines += ["", f"p99 while training is {ratio:.2f} times that of an idle machine."]
    return "\n".join(lines) + "\n" + TESTED


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each latency measurement")
    parser.add_argument("--write", action="store_true", help="write docs/results/training.json and .md")
    chosen = parser.parse_args()
    found = measure(tuple(chosen.parts), chosen.rounds, chosen.epochs, chosen.seconds)
    print(json.dumps(found, indent=1))
    if chosen.write:
        (RESULTS / "training.json").write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "training.md").write_text(page(found))


if __name__ == "__main__":
    main()
