"""URLs of the queue server: every kind of client connects with credentials, by TLS and by
Sentinel.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu.connection import Connection

from api.training_workers import TrainingWorkers
from core.broker.address import QueueAddress, next_database
from core.broker.codec import pack
from core.broker.pipelined_connection import PipelinedConnection
from core.catalog.recipes import TRAINING_WORKERS
from core.settings import Settings
from tests.stack import free_port, succeeds
from tests.waiting import wait_until
from workers.devserver import queue_command

PASSWORD = "p@ss:w/rd"  # noqa: S105 - a test's
ENCODED = "p%40ss%3Aw%2Frd"


@contextlib.contextmanager
def server(folder: Path, *options: str) -> Iterator[int]:
    """Run a queue server with one user, "me"; yield its port."""
    port = free_port()
    command = queue_command(Settings(state=folder, queue_url=f"redis://127.0.0.1:{port}/0"))
    user = ["--user", "default", "off", "--user", "me", "on", f">{PASSWORD}", "~*", "&*", "+@all"]
    process = subprocess.Popen([*command, *user, *options], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port, username="me", password=PASSWORD) as client:
            wait_until(lambda: succeeds(client.ping), "a server replies")
        yield port
    finally:
        process.terminate()
        process.wait(10)


def check_all_clients(url: str) -> None:
    """Check that each kind of client writes to database 3, and that Celery's transport uses it,
    too.
    """
    address = QueueAddress.parse(url)

    async def close_sentinels(client: redis.asyncio.Redis) -> None:
        if address.sentinels:  # redis-py leaves their connections open
            pool: Any = client.connection_pool
            for one in pool.sentinel_manager.sentinels:
                await one.aclose()

    async def write() -> None:
        pipelined = PipelinedConnection(url)
        async with address.async_client() as client:
            await client.lpush("written", "asyncio")
            await client.hset(TRAINING_WORKERS, "w", pack({"at": time.time()}))
            await close_sentinels(client)
        await pipelined.command("LPUSH", "written", "pipelined")
        pipelined.close()
        training_workers = TrainingWorkers(url)
        training_workers.start()
        assert await training_workers.count() == 1
        await close_sentinels(training_workers._redis)
        await training_workers.stop()

    asyncio.run(write())
    with address.client(socket_timeout=5) as client:
        client.lpush("written", "blocking")
        assert client.lrange("written", 0, -1) == [b"blocking", b"pipelined", b"asyncio"]
        assert client.connection_pool.connection_kwargs["db"] == 3
        client.delete("written")
    broker = address.celery_configuration()
    options = broker["broker_transport_options"]
    with Connection(broker["broker_url"], ssl=broker["broker_use_ssl"], transport_options=options) as connection:
        transport_client = connection.default_channel.client
        transport_client.lpush("written", "kombu")
    with address.client() as client:
        assert client.lrange("written", 0, -1) == [b"kombu"]
        client.delete("written")


def test_credentials(tmp_path: Path) -> None:
    """User names and passwords may be percent-encoded; a wrong password is rejected."""
    with server(tmp_path) as port:
        check_all_clients(f"redis://me:{ENCODED}@127.0.0.1:{port}/3")

        async def wrong() -> None:
            await PipelinedConnection(f"redis://me:wrong@127.0.0.1:{port}/3").command("PING")

        with pytest.raises(redis.ResponseError, match="WRONGPASS"):
            asyncio.run(wrong())


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate of 127.0.0.1 with its key, in one file."""
    key, made = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run([*command, *names, "-keyout", key, "-out", made], check=True, capture_output=True)
    made.write_text(made.read_text() + key.read_text())
    return made


@contextlib.contextmanager
def tls_proxy(certificate: Path, port: int) -> Iterator[int]:
    """Run a TLS proxy in front of the queue server, which has no TLS itself; yield its port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    ready, stop = threading.Event(), asyncio.Event()
    ports: list[int] = []
    loop = asyncio.new_event_loop()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))

    async def run() -> None:
        proxy = await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context)
        ports.append(proxy.sockets[0].getsockname()[1])
        ready.set()
        await stop.wait()
        proxy.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    ready.wait(10)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.1))
        loop.close()


def test_tls(tmp_path: Path, certificate: Path) -> None:
    """All clients connect if the URL has the certificate's authority; otherwise they reject the
    server.
    """
    with server(tmp_path) as port, tls_proxy(certificate, port) as tls_port:
        url = f"rediss://me:{ENCODED}@127.0.0.1:{tls_port}/3"
        check_all_clients(f"{url}?ssl_ca_certs={certificate}")
        check_all_clients(f"{url}?ssl_cert_reqs=none&ssl_check_hostname=false")

        async def untrusted() -> None:
            await PipelinedConnection(url).command("PING")

        with pytest.raises(ssl.SSLCertVerificationError):
            asyncio.run(untrusted())
        with pytest.raises(redis.ConnectionError, match="certificate"), QueueAddress.parse(url).client() as client:
            client.ping()


def test_sentinel(tmp_path: Path) -> None:
    """Clients find the master by a Sentinel and skip one that does not respond."""
    with server(tmp_path) as port:
        sentinel_port = free_port()
        file = tmp_path / "sentinel.conf"
        file.write_text(
            f"port {sentinel_port}\nsentinel monitor main 127.0.0.1 {port} 1\n"
            f"sentinel auth-user main me\nsentinel auth-pass main {PASSWORD}\n"
        )
        binary = queue_command(Settings(state=tmp_path))[0]
        process = subprocess.Popen([binary, str(file), "--sentinel"], stdout=subprocess.DEVNULL)
        try:
            hosts = f"127.0.0.1:{free_port()},127.0.0.1:{sentinel_port}"
            url = f"sentinel://me:{ENCODED}@{hosts}/3?master_name=main"
            with QueueAddress.parse(url).client() as client:
                wait_until(lambda: succeeds(client.ping), "a server replies")
            check_all_clients(url)
        finally:
            process.terminate()
            process.wait(10)


def test_sentinel_urls_are_parsed() -> None:
    """Credentials, database and options of the URL apply to the master; Sentinels have their own
    parameters.
    """
    url = "sentinel://u:p%40@a:1,b/2?master_name=main&sentinel_password=s&socket_timeout=7&ssl=true"
    address = QueueAddress.parse(url)
    assert address.sentinels == (("a", 1), ("b", 26379))
    assert (address.master_name, address.tls, address.sentinel_options) == ("main", True, {"password": "s"})
    assert address.options == {"username": "u", "password": "p@", "db": 2, "socket_timeout": 7.0}
    with pytest.raises(ValueError, match="master_name"):
        QueueAddress.parse("sentinel://a/0")
    with pytest.raises(ValueError, match="scheme"):
        QueueAddress.parse("http://a/0")


@pytest.mark.parametrize(
    ("url", "following"),
    [
        ("redis://127.0.0.1:6390", "redis://127.0.0.1:6390/1"),
        ("redis://u:p%40@a:1/2?socket_timeout=7", "redis://u:p%40@a:1/3?socket_timeout=7"),
        ("redis://a:1/?db=3", "redis://a:1/?db=4"),
        ("rediss://a:1/?ssl_ca_certs=/a%20b.pem", "rediss://a:1/1?ssl_ca_certs=/a%20b.pem"),
        ("unix:///run/queue.sock", "unix:///run/queue.sock?db=1"),
        ("unix://u:p@/run/queue.sock?db=4&socket_timeout=7", "unix://u:p@/run/queue.sock?socket_timeout=7&db=5"),
        ("sentinel://u:p%40@a:1,b/2?master_name=main", "sentinel://u:p%40@a:1,b/3?master_name=main"),
    ],
)
def test_training_workers_use_the_next_database(url: str, following: str) -> None:
    """The URL with the next database number is the same otherwise."""
    assert next_database(url) == following
    number = QueueAddress.parse(url).options.get("db", 0)
    assert QueueAddress.parse(following).options == {**QueueAddress.parse(url).options, "db": number + 1}
