"""`models.kit.distributed`: processes on several hosts train as one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from models.kit import data
from models.kit.distributed import ProcessGroup
from models.kit.train import train, weights
from models.kit.trainer import Trainer
from tests.models.kit.recipes import DIGITS, recipe
from tests.models.kit.training_process import gradients
from tests.stack import free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 300.0


def losses(run: Path) -> list[dict[str, float]]:
    """Return the losses of a run's epochs."""
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in ("epoch", "steps", "train_loss", "validation_loss")} for line in read]


def assert_same_run(one: Path, several: Path) -> None:
    """Assert that two runs have the same losses and weights, up to the order of sums."""
    for expected, line in zip(losses(one), losses(several), strict=True):
        assert line == pytest.approx(expected, rel=1e-4)
    for name, weight in weights(one)[0].items():
        torch.testing.assert_close(weights(several)[0][name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda", "nccl")])
def test_processes_communicate_as_their_device_needs(
    monkeypatch: pytest.MonkeyPatch, device: str, backend: str
) -> None:
    """Trainings on CPUs use Gloo, also on a machine with a GPU; NCCL has no tensors of CPUs."""
    begun: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "init_process_group", begun.append)
    for name, value in {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    ProcessGroup(torch.device(device))
    assert begun == [backend]


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Two processes have the gradients and the weights of one, also when they resume; only the main
    process writes files. Images that differ are rejected by both.
    """
    (tmp_path / "recipe.json").write_text(json.dumps(recipe().to_json()))
    ports = [str(free_port()) for _ in range(3)]
    processes = []
    for rank in range(2):
        (folder := tmp_path / str(rank)).mkdir()
        started = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
        command = [sys.executable, "-m", "tests.models.kit.training_process", str(tmp_path / "recipe.json")]
        environment = {**os.environ, **started, "OMP_NUM_THREADS": "1"}
        with (tmp_path / f"{rank}.log").open("wb") as log:
            words = [*command, str(folder), *ports]
            processes.append(subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log))
    try:
        images = data.load(str(DIGITS)).images[:400]
        expected = gradients(Trainer(recipe(), images))
        train(recipe(), images, tmp_path / "one")
        for rank, process in enumerate(processes):
            assert process.wait(TIMEOUT_S) == 0, (tmp_path / f"{rank}.log").read_text()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for folder in (tmp_path / "0", tmp_path / "1"):
        found = torch.load(folder / "gradients.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
        assert "recipe or images differ" in (folder / "error.txt").read_text()
    assert_same_run(tmp_path / "one", tmp_path / "0" / "run")
    assert [file.name for file in (tmp_path / "1" / "run").iterdir()] == []


@pytest.mark.slow
def test_torchrun_on_two_hosts(tmp_path: Path) -> None:
    """The documented command trains on two hosts, each with a folder of its own; after one is
    killed, the same command resumes on both.
    """
    chosen = recipe({"epochs": 40, "save_every_s": 0.2})
    (tmp_path / "recipe.json").write_text(json.dumps(chosen.to_json()))
    (tmp_path / "1").mkdir()

    def start(rank: int, port: int) -> subprocess.Popen[bytes]:
        """Start a host's torchrun."""
        words = f"--nnodes=2 --node-rank={rank} --nproc-per-node=1 --master-addr=127.0.0.1 --master-port={port}"
        command = [sys.executable, "-m", "torch.distributed.run", *words.split(), "-m", "models", "train"]
        command += [str(tmp_path / "recipe.json"), "--resume", "--out", str(tmp_path / str(rank) / "run")]
        with (tmp_path / f"{rank}.log").open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def kill(host: subprocess.Popen[bytes]) -> None:
        """Kill torchrun and the processes that it has started, as if the host had failed."""
        torchrun = psutil.Process(host.pid)
        for process in (*torchrun.children(recursive=True), torchrun):
            process.kill()
        host.wait()

    hosts = [start(rank, port) for port in [free_port()] for rank in range(2)]
    try:
        state = tmp_path / "0" / "run" / "state.pt"
        wait_until(state.exists, "a checkpoint is written")
        kill(hosts[1])
        assert hosts[0].wait(TIMEOUT_S) != 0
        kept = torch.load(state, weights_only=True)
        assert kept["steps"] > 0
        assert kept["epoch"] < 40
        hosts = [start(rank, port) for port in [free_port()] for rank in range(2)]
        for rank, host in enumerate(hosts):
            assert host.wait(TIMEOUT_S) == 0, (tmp_path / f"{rank}.log").read_text()[-4000:]
    finally:
        for host in hosts:
            if host.poll() is None:
                kill(host)
    train(chosen, data.load(str(DIGITS)).images, tmp_path / "one")
    assert_same_run(tmp_path / "one", tmp_path / "0" / "run")
