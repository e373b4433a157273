"""Connect to the hosts of clients' URLs, after their addresses have been checked.

The name of a host is resolved once for each connection, and the connection is made to an address
that was checked. So a name whose addresses change after the check cannot lead to another address.
TLS still verifies the name, because the HTTP client starts TLS on the connection afterwards.
"""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager

import httpcore
import httpx

from core.outbound.addresses import AddressPolicy, BlockedAddressError, Resolver, resolve

CONNECT_TIMEOUT_S = 5.0
IDLE_TIMEOUT_S = 15.0
# What a request to a client's URL may raise.
REQUEST_ERRORS = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
    OSError,  # and TimeoutError
    ValueError,
)

_MAX_ADDRESSES = 3  # addresses of a host that are tried


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """A network backend of httpcore that connects, over TCP, to allowed addresses only."""

    def __init__(self, policy: AddressPolicy, resolver: Resolver = resolve) -> None:
        """Use `resolver` to look up the addresses of a host, and `policy` to check them."""
        self._policy = policy
        self._resolver = resolver
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolve a host and connect to the first of its allowed addresses that accepts.

        At most three are tried. Raises httpcore.ConnectError if none accepts or none is allowed,
        and httpcore.ConnectTimeout.
        """
        try:
            async with asyncio.timeout(timeout):
                addresses = self._policy.allowed(host, await self._resolver(host, port))
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"the host {host} was not resolved in time") from error
        except BlockedAddressError as error:
            raise httpcore.ConnectError(str(error)) from error
        except OSError as error:
            raise httpcore.ConnectError(f"the host {host} cannot be resolved") from error
        failure: httpcore.ConnectError | httpcore.ConnectTimeout | None = None
        for address in addresses[:_MAX_ADDRESSES]:
            try:
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        assert failure is not None  # noqa: S101 - there is at least one address
        raise failure


def guarded_pool(policy: AddressPolicy, resolver: Resolver = resolve) -> httpcore.AsyncConnectionPool:
    """Return a pool of httpcore that connects to allowed addresses only.

    Each connection is used for one request. The pool follows no redirects and uses no proxy of the
    environment.
    """
    return httpcore.AsyncConnectionPool(
        ssl_context=httpx.create_ssl_context(),
        max_connections=None,
        max_keepalive_connections=0,
        network_backend=GuardedBackend(policy, resolver),
    )


def request_to(
    pool: httpcore.AsyncConnectionPool,
    method: str,
    url: httpx.URL,
    headers: Mapping[str, str],
    body: bytes | None = None,
) -> AbstractAsyncContextManager[httpcore.Response]:
    """Return a context manager that sends a request on a connection of `pool`.

    It yields the response, whose body the block can read as a stream.
    """
    target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    sent = [(b"Host", url.netloc), *((name.encode(), value.encode()) for name, value in headers.items())]
    timeout = {"connect": CONNECT_TIMEOUT_S, "read": IDLE_TIMEOUT_S, "write": IDLE_TIMEOUT_S}
    return pool.stream(method, target, headers=sent, content=body, extensions={"timeout": timeout})


def describe_error(error: Exception) -> str:
    """Return why a request to a client's URL failed, in a few words."""
    if isinstance(error, httpcore.TimeoutException | TimeoutError):
        return f"time-out: {error}" if str(error) else "no response in time"
    return str(error) or type(error).__name__
