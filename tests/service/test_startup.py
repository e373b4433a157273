"""Programs that cannot start exit with status 1 and one sentence; an API can be stopped at any
time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from api.server import EXIT_S
from core import startup
from core.settings import Settings
from tests.forked import ForkedProcess
from tests.stack import ROOT, Stack, free_port, succeeds
from tests.waiting import wait_until
from workers.devserver import configuration, queue_command

PROGRAMS = {
    "api": ["api"],
    "inference": ["workers.inference"],
    "training": ["workers.training"],
    "serve": ["workers.devserver"],
    "serve beside a queue server": ["workers.devserver", "--no-queue"],
}
END_S = 90.0
"""Long, because importing torch takes time on a busy machine."""


Program = subprocess.Popen[str] | ForkedProcess


def start(module: list[str], *, forked: bool = False, **settings: object) -> Program:
    """Start a program with these settings only, in a new interpreter or, if `forked`, in a process
    that has imported its packages.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REVERIE_")}
    chosen = {f"REVERIE_{name.upper()}": str(value) for name, value in settings.items()}
    environment = {**kept, "OMP_NUM_THREADS": "1", **chosen}
    if forked:
        with tempfile.NamedTemporaryFile(suffix=".log", delete=False) as log:
            return ForkedProcess(module[0], ROOT, environment, Path(log.name))
    command = [sys.executable, "-m", *module]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def refusals(*programs: str, **settings: object) -> dict[str, str]:
    """Start programs at the same time; check that each exits with status 1 and one sentence, and
    return the sentences.

    All programs together are started in new interpreters; fewer are forked, where that is possible.
    """
    running = {}
    for name in programs or PROGRAMS:
        forked = 0 < len(programs) < len(PROGRAMS) and PROGRAMS[name][0] != "workers.devserver"
        running[name] = start(PROGRAMS[name], forked=forked, **{"port": free_port(), **settings})
    output = {}
    try:
        for name, process in running.items():
            output[name], _ = process.communicate(timeout=END_S)
            assert process.returncode == 1, (name, output[name])
            assert "Traceback" not in output[name]
            lines = output[name].splitlines()
            assert len(lines) == 1, (name, lines)
            assert lines[0].startswith("error: ")
    finally:
        for process in running.values():
            if process.poll() is None:
                process.kill()
                process.wait()
    return output


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@contextlib.contextmanager
def queue_server(folder: Path, *options: str) -> Iterator[str]:
    """Run a queue server; yield its URL."""
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    command = [*queue_command(Settings(state=folder, queue_url=url)), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: _listens(port), "the queue server listens")
            yield url
        finally:
            process.kill()


def test_requests_may_end_before_the_api_is_killed() -> None:
    """The supervisor waits as long as an API process may take: its delay, its grace period, and 4 s."""
    settings = Settings(shutdown_delay_s=7.5, shutdown_grace_s=20)
    waits_s = configuration(settings, queue=True, workers=1)["program:api"]["stopwaitsecs"]
    assert float(waits_s) > 7.5 + 20 + EXIT_S


# --- state folder, database, settings ---

TWO_OR_ALL = pytest.mark.parametrize(
    "programs",
    [pytest.param(("api", "training"), id="two"), pytest.param(tuple(PROGRAMS), id="all", marks=pytest.mark.slow)],
)
"""Test with two programs, which check their settings in the same function as the others; slow tests
start all.
"""


def reasons(first: tuple[object, ...], *others: tuple[object, ...]) -> list[object]:
    """Return test parameters with the programs to start: all for the first reason; two, or in slow
    tests all, for the others.
    """
    all_programs, two = tuple(PROGRAMS), ("api", "training")
    return [
        pytest.param(*first, all_programs, id=str(first[0])),
        *(pytest.param(*reason, two, id=str(reason[0])) for reason in others),
        *(pytest.param(*reason, all_programs, id=f"{reason[0]}, all", marks=pytest.mark.slow) for reason in others),
    ]


@pytest.mark.parametrize(("where", "programs"), reasons(("a file",), ("below a file",), ("below /proc",)))
def test_a_state_folder_that_cannot_be_written(tmp_path: Path, where: str, programs: tuple[str, ...]) -> None:
    """The error names the state folder, the reason and the setting."""
    (tmp_path / "file").touch()
    state = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "state", "below /proc": Path("/proc/x/y")}
    queue = f"redis://127.0.0.1:{free_port()}/0"
    for output in refusals(*programs, state=state[where], queue_url=queue).values():
        assert str(state[where]) in output
        assert "set REVERIE_STATE to" in output


def test_a_part_of_the_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """A file in the place of a subfolder of the state folder is reported."""
    (tmp_path / "blobs").touch()
    for output in refusals("api", "inference", state=tmp_path, queue_url=f"redis://127.0.0.1:{free_port()}/0").values():
        assert "REVERIE_STATE" in output


@TWO_OR_ALL
def test_a_database_that_cannot_be_opened(tmp_path: Path, programs: tuple[str, ...]) -> None:
    """A URL of no usable database is reported without its password."""
    (tmp_path / "text").write_text("no database" * 1000)
    queue = {"queue_url": f"redis://127.0.0.1:{free_port()}/0", "state": tmp_path}
    for output in refusals(*programs, database_url=f"sqlite:///{tmp_path}/text", **queue).values():
        assert "file is not a database" in output
        assert "REVERIE_DATABASE_URL" in output
    (output,) = refusals("api", database_url="mariadb://me:secret@localhost/x", **queue).values()
    assert "secret" not in output


@TWO_OR_ALL
def test_settings_that_cannot_be_used(tmp_path: Path, programs: tuple[str, ...]) -> None:
    """An invalid value and an unknown setting are reported."""
    for output in refusals(*programs, state=tmp_path, sync_timeout_s="-1").values():
        assert "REVERIE_SYNC_TIMEOUT_S: Input should be greater than 0" in output
    for output in refusals("api", "serve", state=tmp_path, wiat_s="1").values():
        assert "no such setting: REVERIE_WIAT_S" in output


def test_a_setting_of_an_earlier_release_is_refused_with_its_new_name(tmp_path: Path) -> None:
    """A renamed setting is rejected with its new name, so that it does not silently lose its
    effect.
    """
    for message in refusals("api", "inference", state=tmp_path, ledger_url="x", life_s="3").values():
        assert "REVERIE_LEDGER_URL is REVERIE_DATABASE_URL now" in message
        assert "REVERIE_LIFE_S is REVERIE_HEARTBEAT_TIMEOUT_S now" in message


# --- ports ---


def test_a_port_that_is_in_use(tmp_path: Path) -> None:
    """A port in use is reported before anything is started."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        queue = f"redis://127.0.0.1:{free_port()}/0"
        for output in refusals("api", "serve", state=tmp_path, queue_url=queue, port=port).values():
            assert f"cannot listen on 127.0.0.1:{port} (Address already in use)" in output
            assert "REVERIE_PORT" in output


# --- queue servers ---


def test_a_queue_server_on_a_unix_socket(tmp_path: Path) -> None:
    """All programs use a queue server on a Unix socket."""
    with tempfile.TemporaryDirectory() as short:  # the path of a socket has at most 107 characters
        path = f"{short}/queue.sock"
        running = Stack(tmp_path, queue_url=f"unix://{path}?db=2")
        command = queue_command(Settings(state=tmp_path / "state", queue_url=running.queue_url))
        running.parts["queue"] = subprocess.Popen([*command, "--unixsocket", path], stdout=subprocess.DEVNULL)
        try:
            running.wait_queue()
            for part in (*running.workers, "api"):
                running.start(part)
            running.wait_ready()
            request = {"model": "vae-mnist-2d", "count": 1}
            assert httpx.post(f"{running.url}/v1/samples", json=request, timeout=60).status_code == 200
            with redis.Redis(unix_socket_path=path) as client:
                assert {name for name in client.info("keyspace") if isinstance(name, str)} == {"db2", "db3"}
            (output,) = refusals(
                "serve", state=tmp_path / "other", queue_url=running.environment["REVERIE_QUEUE_URL"]
            ).values()
            assert "--no-queue" in output
        finally:
            running.down()


@TWO_OR_ALL
def test_a_queue_server_that_wants_a_password(tmp_path: Path, programs: tuple[str, ...]) -> None:
    """A missing or wrong password is reported without showing it; the right one is accepted."""
    with queue_server(tmp_path, "--requirepass", "sesame") as url:
        output = refusals(*programs, state=tmp_path, queue_url=url)
        if "serve" in programs:  # it starts a queue server of its own
            assert "Address already in use" in output.pop("serve")
        for one in output.values():
            assert "wants a password" in one
            assert "REVERIE_QUEUE_URL: redis://:PASSWORD@HOST:PORT/0" in one
        wrong = url.replace("redis://", "redis://:opensesame@")
        for one in refusals(*output, state=tmp_path, queue_url=wrong).values():
            assert "refuses the user name or password" in one
            assert "opensesame" not in one
        assert startup.check_queue(Settings(state=tmp_path, queue_url=url.replace("redis://", "redis://:sesame@")))


class Talker(threading.Thread):
    """A server that sends the same reply to each connection and closes it, or stays silent if
    `reply` is empty.
    """

    def __init__(self, reply: bytes) -> None:
        super().__init__(daemon=True)
        self.reply = reply
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self.listener.getsockname()[1]}/0"

    def run(self) -> None:
        """Accept connections until the listener is closed."""
        kept = []
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                if not self.reply:
                    kept.append(connection)
                    continue
                connection.sendall(self.reply)
                connection.close()


@pytest.mark.parametrize(
    ("kind", "reply", "reason", "programs"),
    reasons(
        ("denied", b"-DENIED Redis is running in protected mode\r\n", "DENIED Redis is running in protected mode"),
        ("another protocol", b"HTTP/1.1 400 Bad Request\r\n\r\n", "no Redis-compatible server"),
        ("silent", b"", "does not reply"),
    ),
)
def test_a_queue_server_that_refuses(
    tmp_path: Path, kind: str, reply: bytes, reason: str, programs: tuple[str, ...]
) -> None:
    """The error quotes the reply of a server that refuses, or says that there is none."""
    talker = Talker(reply)
    talker.start()
    try:
        outputs = refusals(*programs, state=tmp_path, queue_url=talker.url)
    finally:
        talker.listener.close()
    if "serve" in programs:  # it starts a queue server of its own
        assert "Address already in use" in outputs.pop("serve")
    for one in outputs.values():
        assert reason in one
        assert "REVERIE_QUEUE_URL" in one


@TWO_OR_ALL
def test_a_queue_server_of_another_instance(tmp_path: Path, programs: tuple[str, ...]) -> None:
    """A queue server that another instance uses is rejected, also on its other databases."""
    first, second = tmp_path / "first", tmp_path / "second"
    with queue_server(tmp_path) as url:
        assert startup.check(Settings(state=first, queue_url=url))
        for output in refusals(*programs, state=second, queue_url=url).values():
            assert "belongs to" in output
            assert str(first) in output
        database = f"sqlite:///{tmp_path}/other.sqlite3"
        workers_and_api = [name for name in programs if name != "serve"]
        for output in refusals(*workers_and_api, state=first, database_url=database, queue_url=url).values():
            assert "belongs to another instance" in output
        # the database that training workers of one instance use is not free for another
        for output in refusals("api", state=second, queue_url=url.replace("/0", "/1")).values():
            assert "belongs to another instance" in output
        (second / "link").symlink_to(first)
        assert startup.check(Settings(state=second / "link", queue_url=url))
        assert startup.check(Settings(state=second, queue_url=url.replace("/0", "/4")))


@pytest.mark.slow
def test_a_service_that_runs_already(tmp_path: Path) -> None:
    """A second `make serve` with the same state folder is rejected, whatever its ports."""
    state = tmp_path / "state"
    quiet: dict[str, Any] = {"state": state, "checkpoints": tmp_path / "none"}
    first = start(["workers.devserver"], port=free_port(), queue_url=f"redis://127.0.0.1:{free_port()}/0", **quiet)
    try:
        wait_until((state / "supervisord.pid").exists, "the first service runs", END_S)
        (output,) = refusals("serve", queue_url=f"redis://127.0.0.1:{free_port()}/0", **quiet).values()
        assert f"runs already from the state folder {state.resolve()} (process {first.pid})" in output
    finally:
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=END_S)


# --- an API can be stopped at any time ---


def serving(folder: Path, **settings: object) -> tuple[Program, str]:
    """Start an API; return its process and its URL once it responds."""
    port = free_port()
    process = start(["api"], forked=True, state=folder, port=port, shutdown_grace_s=1, **settings)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: succeeds(lambda: httpx.get(f"{address}/healthz").is_success), "the API is up", END_S)
    except TimeoutError:
        process.kill()
        pytest.fail(process.communicate()[0])
    return process, address


def ended_in_time(process: Program, limit_s: float = 10.0) -> str:
    """Send SIGTERM; return the process's output, and fail if it does not exit in time."""
    process.send_signal(signal.SIGTERM)
    try:
        return process.communicate(timeout=limit_s)[0]
    finally:
        process.kill()


def test_sigterm_ends_an_api_without_a_queue_server(tmp_path: Path) -> None:
    """An API without a queue server is not ready and exits on SIGTERM; a waiting request gets
    503.
    """
    process, address = serving(tmp_path, queue_url=f"redis://127.0.0.1:{free_port()}/0")
    assert httpx.get(f"{address}/readyz").status_code == 503
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(httpx.post, f"{address}/v1/samples", json={"model": "vae-mnist-2d"}, timeout=20)
        time.sleep(1)
        assert "Traceback" not in ended_in_time(process)
        assert waiting.result().status_code == 503
        assert "is stopping" in waiting.result().json()["detail"]


def test_an_api_accepts_requests_for_a_while_after_sigterm(tmp_path: Path) -> None:
    """With a shutdown delay, a load balancer sees `/readyz` fail before connections are refused."""
    queue = f"redis://127.0.0.1:{free_port()}/0"
    process, address = serving(tmp_path, queue_url=queue, shutdown_delay_s=3)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    try:
        wait_until(lambda: httpx.get(f"{address}/readyz").json()["draining"], "it reports that it stops", 2)
        assert httpx.get(f"{address}/healthz").is_success
        process.communicate(timeout=END_S)
        assert time.monotonic() - began >= 3
    finally:
        process.kill()


def test_sigterm_ends_an_api_whose_queue_server_hangs(tmp_path: Path) -> None:
    """An API whose queue server no longer replies exits on SIGTERM."""
    with queue_server(tmp_path) as url:
        process, _ = serving(tmp_path, queue_url=url)
        with redis.Redis.from_url(url) as client:
            number = client.info()["process_id"]
        os.kill(number, signal.SIGSTOP)
        try:
            time.sleep(1)
            assert "Traceback" not in ended_in_time(process)
        finally:
            os.kill(number, signal.SIGCONT)


@pytest.mark.parametrize("after_s", [0.3, 1.0, 2.0])
def test_sigterm_ends_an_api_that_is_starting(tmp_path: Path, after_s: float) -> None:
    """An API exits on SIGTERM at any moment of its start."""
    process = start(["api"], state=tmp_path, port=free_port(), queue_url=f"redis://127.0.0.1:{free_port()}/0")
    time.sleep(after_s)
    ended_in_time(process, 20.0)


def test_another_instance_s_queue_server_that_comes_up_later_is_refused(tmp_path: Path) -> None:
    """An API that started before its queue server exits if the server belongs to another
    instance.
    """
    theirs = tmp_path / "theirs"
    with queue_server(theirs) as elsewhere:
        assert startup.check(Settings(state=theirs, queue_url=elsewhere))
        with redis.Redis.from_url(elsewhere) as client:
            client.shutdown(save=True, nosave=False)
    url = f"redis://127.0.0.1:{free_port()}/0"
    process, _ = serving(tmp_path / "mine", queue_url=url)
    command = queue_command(Settings(state=theirs, queue_url=url))  # its append-only file has the mark of the instance
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as queue:
        try:
            output, _ = process.communicate(timeout=60)
        finally:
            queue.kill()
            process.kill()
            process.wait()
    assert process.returncode == 1, output
    assert "belongs to another instance" in output
    assert "Traceback" not in output
