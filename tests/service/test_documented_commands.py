"""The commands of the documentation, run against a real service in the order of each page."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from core.imaging.pictures import png
from tests.stack import ROOT, Stack

ELSEWHERE = re.compile(
    r"bihm-mnist|superres|upscales|mixed\.zip|\"source\"|REVERIE_API_KEYS|python -m api|my-digits|trainings"
    r"|example\.com"
)
"""Commands of api.md that are not run here: they need another model or file, the network or a
training.
"""

PROBLEM = re.compile(r'"status":([45]\d\d)\b|"code":"(\w+)"')


def commands(page: str) -> list[tuple[str, str]]:
    """Return each `$ command` of a page with the output that the page shows."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", page, re.DOTALL):
        for entry in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = entry.split("\n")
            length = 1
            while lines[length - 1].endswith("\\") or (length < len(lines) and lines[length].startswith("    ")):
                length += 1
            found.append(("\n".join(lines[:length]), "\n".join(lines[length:])))
    return found


class Shell:
    """Runs commands in one folder; a job's id on the page is replaced by that of the job started
    last.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._folder = folder
        self._job = "job_0"
        self._environment = {
            **os.environ,
            "U": url,
            "J": "Content-Type: application/json",
            "REVERIE_URL": url,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def run(self, command: str) -> str:
        """Return the output of a command that must succeed."""
        command = re.sub(r"job_\w+|\$T\b", self._job, command)
        ran = subprocess.run(
            ["bash", "-c", command],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        output = ran.stdout + ran.stderr
        assert ran.returncode == 0, f"{command}\n{output}"
        if " -si " in command and (started := re.search(r'"id":"(job_\w+)"', output)):
            self._job = started.group(1)
        return output


def check(shell: Shell, page: str) -> int:
    """Run the commands of a page and check that each fails, or succeeds, as the page shows; return
    their number.
    """
    entries = commands(page)
    for command, shown in entries:
        output = shell.run(command)
        assert PROBLEM.findall(output)[:1] == PROBLEM.findall(shown)[:1], f"{command}\n{output}"
    return len(entries)


def write_files(folder: Path) -> None:
    """Write the files that the commands send."""
    with gzip.open(ROOT / "tests" / "fixtures" / "digits-images-idx3-ubyte.gz") as file:
        digits = np.frombuffer(file.read()[16:], np.uint8).reshape(-1, 1, 28, 28)
    (folder / "digit.png").write_bytes(png(digits[0]))
    for name, count in [("digits", 200), ("bad", 3)]:
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for number, pixels in enumerate(digits[:count]):
                archive.writestr(f"{number:04}.png", png(pixels))
            if name == "bad":
                archive.writestr("broken.png", b"not a picture")
    vectors = np.random.default_rng(0).integers(0, 2, (60, 112), np.uint8)
    np.savez(folder / "mushrooms.npz", train=vectors[:40], valid=vectors[40:50], test=vectors[50:])


def test_the_commands_of_the_tour_work(stack: Stack, tmp_path: Path) -> None:
    """The commands of docs/api.md work that need only one model and a dataset."""
    write_files(tmp_path)
    page = (ROOT / "docs" / "api.md").read_text()
    blocks = "\n".join(
        f"```console\n$ {command}\n{shown}\n```" for command, shown in commands(page) if not ELSEWHERE.search(command)
    )
    shell = Shell(stack.url, tmp_path)
    try:
        assert check(shell, blocks) >= 15
    finally:
        shell.run("curl -s -X DELETE $U/v1/datasets/digits")  # other tests use this name


def test_the_example_of_the_openai_client_works(stack: Stack, tmp_path: Path) -> None:
    """The example of OpenAI's Python client in docs/api.md works."""
    write_files(tmp_path)
    page = (ROOT / "docs" / "api.md").read_text()
    (example,) = re.findall(r"```python\n(from openai.*?)```", page, re.DOTALL)
    (tmp_path / "example.py").write_text(example.replace("http://127.0.0.1:8000", stack.url))
    output = Shell(stack.url, tmp_path).run("python -W error -W ignore::ResourceWarning example.py")
    assert "vae-mnist-2d" in output
    assert "280x280 The prompt was not used" in output
    assert "status: queued" in output


@pytest.mark.slow
def test_the_commands_of_a_training_work(stack: Stack, tmp_path: Path) -> None:
    """The commands of docs/train.md work, with fewer epochs: curl, the command line and Python."""
    write_files(tmp_path)
    page = (ROOT / "docs" / "train.md").read_text()
    for long, short in [('"epochs": 100}', '"epochs": 2}'), ("training.epochs=60", "training.epochs=2")]:
        assert long in page
        page = page.replace(long, short)
    page = re.sub(r"^\$ (export|T=).*\n", "", page, flags=re.MULTILINE)
    shell = Shell(stack.url, tmp_path)
    assert check(shell, page) >= 10
    (tmp_path / "train.py").write_text(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0])
    assert "Traceback" not in shell.run("python train.py")
