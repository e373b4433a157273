"""Decide which addresses the service may connect to for a client: public and allowed ones.

This prevents server-side request forgery (SSRF): a client's URL must not reach services that only
this machine can reach. `REVERIE_ALLOWED_NETWORKS` lists networks that are allowed although they are
not public.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self, TypeAlias

import httpx

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
# Returns the addresses of a host, for a port. Raises OSError if there are none.
Resolver: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]

MAX_URL = 2000  # characters

# Threads of their own, so that a slow name server does not occupy those of the event loop.
_RESOLVERS = ThreadPoolExecutor(8, "resolver")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class BlockedAddressError(OSError):
    """Raised if a host has no address that the service may connect to."""


def parse_networks(text: str) -> tuple[Network, ...]:
    """Return the networks in a comma-separated list of CIDR blocks; none for an empty text.

    Raises ValueError if one of them is not valid.
    """
    return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())


@dataclass(frozen=True)
class AddressPolicy:
    """Which addresses the service may connect to: public ones, and those in `networks`.

    Public addresses are globally reachable unicast addresses.
    """

    networks: tuple[Network, ...] = ()

    @classmethod
    def of(cls, allowed_networks: str) -> Self:
        """Return a policy that also allows the networks in a comma-separated list of CIDRs."""
        return cls(parse_networks(allowed_networks))

    def allows(self, address: str) -> bool:
        """Return whether the service may connect to an IP address, which may have a scope id.

        An IPv6 address that contains an IPv4 address (mapped, NAT64, tunnel) is allowed if the IPv4
        address is, or if it is itself in one of `networks`.
        """
        ip = ipaddress.ip_address(address.partition("%")[0])
        if any(ip in network for network in self.networks):
            return True
        embedded = _embedded(ip)
        if embedded is not None:
            return self.allows(str(embedded))
        return ip.is_global and not ip.is_multicast and not ip.is_reserved

    def allowed(self, host: str, addresses: Sequence[str]) -> list[str]:
        """Return those of the `addresses` of `host` that are allowed, in the same order.

        Raises BlockedAddressError if none is allowed.
        """
        allowed = [address for address in addresses if self.allows(address)]
        if not allowed:
            raise BlockedAddressError(f"{host} is not a public address; REVERIE_ALLOWED_NETWORKS can allow its network")
        return allowed


def _embedded(ip: Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that an IPv6 address contains (mapped, NAT64 or tunnel), or None."""
    if isinstance(ip, ipaddress.IPv4Address):
        return None
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour


async def resolve(host: str, port: int) -> Sequence[str]:
    """Return the IP addresses of a host by the system's resolver.

    Raises OSError if there are none.
    """

    def look_up() -> list[str]:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except UnicodeError as error:  # a label that is too long
            raise socket.gaierror(socket.EAI_NONAME, str(error)) from error
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    return await asyncio.get_running_loop().run_in_executor(_RESOLVERS, look_up)


def parse_url(text: str) -> httpx.URL:
    """Parse an absolute http or https URL; return it without its fragment.

    Raises ValueError, which says what is wrong, for any other text and for a URL with a user name,
    which would be sent as credentials.
    """
    if len(text) > MAX_URL:
        raise ValueError(f"a URL has at most {MAX_URL} characters")
    if any(character.isspace() or not character.isprintable() for character in text):
        raise ValueError("a URL has no spaces or control characters; write them as %20")
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"this is not a valid URL: {error}") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise ValueError("send an absolute URL that begins with https:// or http://")
    if url.port is not None and not 1 <= url.port <= 65535:
        raise ValueError("the port of a URL is 1 to 65535")
    if url.userinfo:
        raise ValueError("a URL with a user name or password is not accepted")
    return url.copy_with(fragment=None)


async def check_host(url: httpx.URL, policy: AddressPolicy, timeout_s: float, resolver: Resolver = resolve) -> None:
    """Check the host of a URL that a client has sent, so that the client learns about a mistake.

    The addresses are checked again for each connection, because they may change. Raises
    BlockedAddressError if the host has no allowed address, and ValueError if it does not exist. A
    resolver that fails, or takes longer than `timeout_s` seconds, is no error.
    """
    try:
        async with asyncio.timeout(timeout_s):
            addresses = await resolver(url.host, url.port or 0)
    except socket.gaierror as error:
        if error.errno in {socket.EAI_NONAME, socket.EAI_NODATA}:
            raise ValueError(f"the host {url.host} does not exist") from error
    except (OSError, TimeoutError):
        pass
    else:
        policy.allowed(url.host, addresses)
