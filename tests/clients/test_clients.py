"""Clients that other tools generate from `/openapi.json` work with a live service, and linters find
no error in it.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from studio.npm import node_path
from tests.stack import Stack

HERE = Path(__file__).parent
COPIED = ("package.json", "package-lock.json", ".npmrc", "redocly.yaml", ".spectral.yaml", "tsconfig.json", "client.ts")
GENERATORS = ("orval", "hey-api")
"""Folders with the configuration of a generator and a client that uses what it generates."""
INSTALL = ("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline")
OFF = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}


@pytest.fixture(scope="module")
def project(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the npm tools, the description of the service, a picture and a data set."""
    folder = tmp_path_factory.mktemp("clients")
    for name in COPIED:
        shutil.copy(HERE / name, folder)
    for name in GENERATORS:
        shutil.copytree(HERE / name, folder / name)
    run(folder, *INSTALL, "--omit=optional")
    _write_inputs(stack.url, folder)
    return folder


def _write_inputs(url: str, folder: Path) -> None:
    (folder / "openapi.json").write_bytes(httpx.get(f"{url}/openapi.json", timeout=60).content)
    Image.new("RGB", (12, 10), "red").save(folder / "picture.png")
    pixels = np.random.default_rng(1).integers(0, 256, (60, 14, 14), np.uint8)
    np.savez(folder / "digits.npz", images=pixels)


def run(folder: Path, *command: str, **environment: str) -> str:
    """Run a tool of the project, or node or npm; return its output."""
    path = f"{folder / 'node_modules' / '.bin'}{os.pathsep}{node_path()}"
    program = shutil.which(command[0], path=path)
    assert program is not None, f"{command[0]} is not in {path}"
    done = subprocess.run(
        [program, *command[1:]],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **OFF, **environment, "PATH": path},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_redocly_finds_nothing(project: Path) -> None:
    """Redocly reports nothing; its configuration says which rules are off, and why."""
    found = json.loads(run(project, "redocly", "lint", "openapi.json", "--format", "json"))
    assert found["totals"] == {"errors": 0, "warnings": 0, "ignored": 0}


@pytest.mark.slow
def test_spectral_finds_nothing(project: Path) -> None:
    """Spectral reports nothing, not even hints; its configuration says which rules are off, and
    why.
    """
    assert "No results" in run(project, "spectral", "lint", "openapi.json", "--fail-severity", "hint")


def test_typescript(project: Path, stack: Stack) -> None:
    """A client with generated types, checked by `tsc --strict`, samples, upscales, uploads, trains
    and reads events.
    """
    run(project, "openapi-typescript", "openapi.json", "--default-non-nullable", "false", "-o", "schema.d.ts")
    run(project, "tsc")
    found = json.loads(run(project, "node", "client.js", stack.url, "picture.png", "digits.npz"))
    assert found["images"] == 2
    assert found["png"] == "PNG"
    assert sum(found["counts"].values()) == 60
    assert {"status", "metrics"} <= set(found["events"])
    assert found["status"] == "succeeded"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "command", "functions", "kinds"),
    [
        ("orval", ("orval", "--config", "orval/orval.config.mjs"), "generated.ts", ("", "WithJson", "WithFormData")),
        (
            "hey-api",
            ("openapi-ts", "--input", "openapi.json", "--output", "hey-api/generated", "--no-log-file"),
            "generated/sdk.gen.ts",
            ("",),
        ),
    ],
    ids=GENERATORS,
)
def test_other_generators(
    project: Path, stack: Stack, folder: str, command: tuple[str, ...], functions: str, kinds: tuple[str, ...]
) -> None:
    """The generated client has a function for each operation (orval: for each content type),
    compiles, and a call works.
    """
    run(project, *INSTALL)  # the generators are optional dependencies
    output = run(project, *command)
    assert not re.search("warn|error", output, re.IGNORECASE), output
    paths = json.loads((project / "openapi.json").read_bytes())["paths"]
    operations = [described["operationId"] for methods in paths.values() for described in methods.values()]
    exported = set(re.findall(r"^export const (\w+) = ", (project / folder / functions).read_text(), re.MULTILINE))
    lost = [name for name in operations if not exported & {camel_case(name) + kind for kind in kinds}]
    assert lost == []
    (project / folder / "tsconfig.json").write_text('{"extends": "../tsconfig.json", "include": ["**/*.ts"]}')
    run(project, "tsc", "--project", folder)
    assert run(project, "node", f"{folder}/client.js", REVERIE_URL=stack.url) == "2\n"


def camel_case(name: str) -> str:
    """Return `name` in camel case: `drawSamples` for `draw_samples`."""
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)


@pytest.fixture(scope="module")
def generated(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a client that openapi-python-client generated; `generated` can be imported."""
    folder = tmp_path_factory.mktemp("python-client")
    _write_inputs(stack.url, folder)
    made = subprocess.run(
        [
            *(sys.executable, "-m", "openapi_python_client", "generate", "--path", "openapi.json"),
            *("--config", str(HERE / "openapi-python-client.yaml"), "--meta", "none", "--output-path", "generated"),
        ],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert "WARNING" not in made.stdout + made.stderr
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def call(client: Any, operation: str, **arguments: Any) -> Any:
    """Call an operation of the generated client, `TAG.NAME`; return the parsed response."""
    module = importlib.import_module(f"generated.api.{operation}")
    response = module.sync_detailed(client=client, **arguments)
    assert response.status_code < 300, response.content
    assert response.parsed is not None
    return response.parsed


def test_python(generated: Path, stack: Stack) -> None:
    """The generated Python client has all operations, and samples, upscales, uploads, trains and
    reads events.
    """
    paths = json.loads((generated / "openapi.json").read_bytes())["paths"]
    operations = {described["operationId"] for methods in paths.values() for described in methods.values()}
    assert operations == {path.stem for path in (generated / "generated" / "api").glob("*/*.py")} - {"__init__"}

    models, types = (importlib.import_module(f"generated.{name}") for name in ("models", "types"))
    made = importlib.import_module("generated.client").Client(base_url=stack.url, timeout=httpx.Timeout(90))
    with made as client:
        use(client, models, types, generated)


def use(client: Any, models: Any, types: Any, folder: Path) -> None:
    """Sample, upscale, upload a dataset, train on it and read the events."""
    body = models.SamplesBody(
        model="vae-mnist-2d", count=2, seed=3, options=models.VaeSamplesOptions.from_dict({"output": "draws"})
    )
    samples = call(client, "operations.create_samples", body=body, prefer="wait=60")
    assert len(samples.images) == 2
    with (folder / "picture.png").open("rb") as file:
        form = models.UpscalesForm(
            image=types.File(file, "picture.png", "image/png"), model="enlarge", format_=models.UpscalesFormFormat.PNG
        )
        enlarged = call(client, "operations.create_upscales", body=form, prefer="wait=60")
    assert enlarged.payload.read(4) == b"\x89PNG"
    with (folder / "digits.npz").open("rb") as file:
        upload = models.DatasetForm(name="python", file=types.File(file, "digits.npz"))
        dataset = call(client, "datasets.create_dataset", body=upload)
    assert sum(dataset.counts.to_dict().values()) == 60
    recipe = {"config": {"hidden": [8], "latents": 2}, "training": {"epochs": 1, "batch_size": 16}}
    training = models.TrainingBody.from_dict({"family": "vae", "dataset": "python", "name": "python", "recipe": recipe})
    job = call(client, "trainings.create_training", body=training)
    events = call(client, "jobs.stream_job_events", job_id=job.id)
    assert "event: metrics" in events
    assert call(client, "jobs.get_job", job_id=job.id).status == "succeeded"
