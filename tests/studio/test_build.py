"""How the page is built: `make serve` starts without it where npm cannot be reached, and its size
has a limit.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from api.routes.studio import FOLDER
from tests.stack import ROOT

MAX_BYTES = 150_000
PYTHON = """#!/bin/sh
echo "$@" >> calls
case "$*" in
  *"npm.py ci"*) exit {ci} ;;
  *"npm.py run"*) mkdir -p studio/dist; touch studio/dist/index.html ;;
  *devserver) echo the service starts ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what `make serve` needs, whose environment is installed."""
    (tmp_path / "studio" / "node_modules").mkdir(parents=True)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    for name in ("requirements", "studio/src"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("package.json", "package-lock.json", ".npmrc", "index.html", "vite.config.ts", "tsconfig.json"):
        shutil.copy2(ROOT / "studio" / name, tmp_path / "studio")
    shutil.copy(ROOT / "Makefile", tmp_path)
    for installed in (".torch", ".serve"):
        (tmp_path / "venv" / installed).touch()
    return tmp_path


def serve(folder: Path, *, reachable: bool) -> tuple[str, list[str]]:
    """Run `make serve` with a Python that only writes down its calls; return the output and the
    calls.

    `reachable`: whether `npm ci` succeeds.
    """
    python = folder / "venv" / "bin" / "python"
    python.write_text(PYTHON.format(ci=0 if reachable else 1))
    python.chmod(0o755)
    (folder / "calls").write_text("")
    command = ["make", "--no-print-directory", "serve", "VENV=venv"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, (folder / "calls").read_text().splitlines()


def test_the_service_starts_without_the_page(checkout: Path) -> None:
    """It says so in one sentence. The page is built when npm can be reached, and again when its
    sources change.
    """
    output, calls = serve(checkout, reachable=False)
    assert "Studio was not built" in output
    assert "make studio" in output
    assert output.endswith("the service starts\n")
    assert calls[-1] == "-m workers.devserver"

    output, calls = serve(checkout, reachable=True)
    assert "not built" not in output
    assert [call.split()[1] for call in calls] == ["ci", "run", "workers.devserver"]
    assert serve(checkout, reachable=True) == ("the service starts\n", ["-m workers.devserver"])
    (checkout / "studio" / "src" / "App.tsx").touch()
    output, calls = serve(checkout, reachable=False)
    assert [call.split()[1] for call in calls] == ["run", "workers.devserver"]


def test_the_page_is_small() -> None:
    """All scripts and styles together, compressed as they are sent, also those that are loaded
    later.
    """
    if not (FOLDER / "index.html").is_file():
        pytest.fail("Studio is not built: run `make studio`")
    sizes = {file.name: file.stat().st_size for file in FOLDER.glob("assets/*.gz")}
    assert len(sizes) >= 5
    assert sum(sizes.values()) <= MAX_BYTES, sizes


def test_every_area_is_described() -> None:
    """docs/studio.md has a section with a picture for each area; no picture is larger than 120 kB."""
    areas = re.findall(r'label: "(\w+)"', (ROOT / "studio" / "src" / "areas.ts").read_text())
    assert len(areas) == 9
    page = (ROOT / "docs" / "studio.md").read_text()
    for area in areas:
        assert re.search(rf"\n## {area}\n\n!\[[^]]+\]\(images/studio/{area.lower()}\.webp\)\n", page), area
    sizes = {file.name: file.stat().st_size for file in (ROOT / "docs" / "images" / "studio").iterdir()}
    assert set(re.findall(r"\(images/studio/([\w.-]+)\)", page)) == set(sizes)
    assert {name: size for name, size in sizes.items() if size > 120_000} == {}
