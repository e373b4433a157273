"""The network backend connects to the address that was checked, even if the host name changes
later.
"""

from __future__ import annotations

import asyncio
import io
import ssl
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import httpcore
import httpx
import pytest

from core.outbound.addresses import AddressPolicy
from core.outbound.download import DownloadError, TooLargeDownloadError, download
from core.outbound.network_backend import GuardedBackend, guarded_pool, request_to
from tests.webhooks.pictures import FileServer, endless, redirect

LOCAL = AddressPolicy.of("127.0.0.1/32")


class ChangingNames:
    """A resolver that returns the next of several answers at each call."""

    def __init__(self, *addresses: Sequence[str]) -> None:
        self._addresses = list(addresses)
        self.hosts: list[str] = []

    async def __call__(self, host: str, _port: int) -> Sequence[str]:
        """Return the next addresses."""
        self.hosts.append(host)
        return self._addresses.pop(0)


def get(url: str, policy: AddressPolicy, resolver: Any) -> bytes:
    """Return the body of a GET request."""

    async def send() -> bytes:
        async with guarded_pool(policy, resolver) as pool, request_to(pool, "GET", httpx.URL(url), {}) as response:
            return await response.aread()

    return asyncio.run(send())


def test_each_connection_resolves_once_and_goes_to_what_was_checked() -> None:
    """Each connection resolves the name once and checks the result; a name that changes to an
    internal address is not reached.
    """
    with FileServer().running() as server:
        seen: list[str] = []

        def host(handler: Any) -> None:
            seen.append(handler.headers["host"])
            handler.send_response(200)
            handler.end_headers()

        server.files["/a"] = host
        port = httpx.URL(server.url).port
        names = ChangingNames(["127.0.0.1"], ["127.0.0.2"], ["10.0.0.1", "127.0.0.1"])
        url = f"http://hooks.example:{port}/a"
        get(url, LOCAL, names)
        with pytest.raises(httpcore.ConnectError, match="not a public address"):
            get(url, LOCAL, names)
        get(url, LOCAL, names)  # the allowed one of several addresses
        assert names.hosts == ["hooks.example"] * 3
        assert seen == [f"hooks.example:{port}"] * 2


def test_tls_verifies_the_name_and_not_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS verifies the host name of the URL, not the address."""
    asked: list[str | None] = []

    class Stream(httpcore.AsyncNetworkStream):
        async def start_tls(
            self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
        ) -> httpcore.AsyncNetworkStream:
            asked.append(server_hostname)
            assert ssl_context.check_hostname
            raise httpcore.ConnectError("enough")

        async def aclose(self) -> None:
            pass

    backend = GuardedBackend(LOCAL, ChangingNames(["127.0.0.1"]))
    connected: list[str] = []

    async def connect(host: str, *_: object) -> httpcore.AsyncNetworkStream:
        connected.append(host)
        return Stream()

    monkeypatch.setattr(backend._backend, "connect_tcp", connect)

    async def send() -> None:
        async with httpcore.AsyncConnectionPool(network_backend=backend) as pool:
            await pool.request("GET", "https://hooks.example/a")

    with pytest.raises(httpcore.ConnectError, match="enough"):
        asyncio.run(send())
    assert (connected, asked) == (["127.0.0.1"], ["hooks.example"])


def fetch(url: str, max_bytes: int = 1 << 20, timeout_s: float = 10.0) -> bytes:
    """Return the file at a URL."""
    file = io.BytesIO()

    async def ignore(_received: int, _total: int | None) -> None:
        pass

    async def run() -> None:
        async with guarded_pool(LOCAL) as pool:
            await download(pool, httpx.URL(url), file, max_bytes, timeout_s, ignore)

    asyncio.run(run())
    return file.getvalue()


def test_a_download_is_limited_in_size_and_time() -> None:
    """A download that is too large, too slow, redirected or compressed raises an error with the
    reason.
    """
    with FileServer().running() as server:
        stop = threading.Event()

        def stalls(handler: Any) -> None:
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(b"a")
            stop.wait(10)

        def compressed(handler: Any) -> None:
            handler.send_response(200)
            handler.send_header("Content-Encoding", "gzip")
            handler.end_headers()

        server.files = {
            "/good": b"x" * 3_000_000,
            "/endless": endless,
            "/huge": partial(endless, announced=10 << 30),
            "/stalls": stalls,
            "/redirect": redirect("http://10.0.0.1/"),
            "/gzip": compressed,
        }
        assert fetch(f"{server.url}/good", 3_000_000) == b"x" * 3_000_000
        for path in ("/good", "/endless", "/huge"):
            with pytest.raises(TooLargeDownloadError, match="larger than 1000000 bytes"):
                fetch(server.url + path, 1_000_000)
        for path, words in [
            ("/redirect", r"redirects.*http://10\.0\.0\.1/"),
            ("/missing", "responded 404"),
            ("/gzip", "gzip"),
        ]:
            with pytest.raises(DownloadError, match=words):
                fetch(server.url + path)
        with pytest.raises(DownloadError, match=r"took more than 0\.3 s"):
            fetch(f"{server.url}/stalls", timeout_s=0.3)
        stop.set()
    with pytest.raises(DownloadError, match="cannot be fetched"):
        fetch("http://127.0.0.1:9/")
    with pytest.raises(DownloadError, match="not a public address"):
        fetch("http://127.0.0.2/")
