"""Addresses and URLs of clients to which the service may connect."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import httpx
import pytest

from core.outbound.addresses import AddressPolicy, BlockedAddressError, check_host, parse_networks, parse_url, resolve

BLOCKED = (
    "0.0.0.0",  # noqa: S104
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "192.168.1.1",
    "224.0.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "2002:7f00:1::",
    "2002:a00:1::1",
    "fc00::1",
    "fe80::1",
    "fe80::1%eth0",
    "ff02::1",
    "ff0e::1",
    "2001:db8::1",
)
PUBLIC = ("1.1.1.1", "93.184.216.34", "::ffff:1.1.1.1", "64:ff9b::101:101", "2606:4700:4700::1111")


@pytest.mark.parametrize("address", BLOCKED)
def test_an_address_that_is_not_public_is_blocked(address: str) -> None:
    """Private, loopback, link-local and multicast addresses are blocked, also as IPv6 addresses
    that embed them.
    """
    assert not AddressPolicy().allows(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_allowed(address: str) -> None:
    """Public IPv4 and IPv6 addresses are allowed."""
    assert AddressPolicy().allows(address)


def test_networks_of_the_setting_are_allowed_too() -> None:
    """The configured networks are allowed, also embedded in IPv6 addresses, and no other private
    ones.
    """
    policy = AddressPolicy.of("10.1.0.0/16, fd00::/8")
    for address in ("10.1.2.3", "fd00::5", "::ffff:10.1.2.3", "1.1.1.1"):
        assert policy.allows(address)
    for address in ("10.2.0.1", "127.0.0.1", "fc00::1"):
        assert not policy.allows(address)
    with pytest.raises(ValueError, match=r"10\.1\.2\.3/16"):
        parse_networks("10.1.2.3/16")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.com",
        "//example.com/a",
        "file:///etc/passwd",
        "gopher://example.com",
        "javascript:alert(1)",
        "https://",
        "https:///a",
        "http://ann@example.com",
        "http://ann:pw@example.com",
        "http://exam ple.com",
        "http://example.com/\n",
        "http://example.com:99999",
        "http://[::1",
        "http://" + "a" * 2000,
    ],
)
def test_a_text_that_is_no_url_of_a_public_server_is_rejected(text: str) -> None:
    """A text that is not an HTTP URL with a host, or has credentials, raises ValueError."""
    with pytest.raises(ValueError, match=r"URL"):
        parse_url(text)


def test_a_url_is_normalized() -> None:
    """International host names are encoded, and fragments are removed."""
    assert str(parse_url("HTTPS://Exämple.com/a b#c".replace(" ", "%20"))) == "https://xn--exmple-cua.com/a%20b"


def names(*addresses: str, error: Exception | None = None, delay_s: float = 0.0) -> object:
    """Return a resolver that returns these addresses, or raises `error`, after a delay."""

    async def look_up(_host: str, _port: int) -> Sequence[str]:
        await asyncio.sleep(delay_s)
        if error:
            raise error
        return addresses

    return look_up


def check(resolver: object) -> None:
    """Check the host `example.com` with a resolver."""
    asyncio.run(check_host(httpx.URL("https://example.com"), AddressPolicy(), 0.05, resolver))  # type: ignore[arg-type]


def test_a_host_is_checked_early() -> None:
    """A host without a public address, or that does not exist, is an error; a resolver failure is
    not.
    """
    check(names("10.0.0.1", "1.1.1.1"))
    with pytest.raises(BlockedAddressError, match=r"example\.com is not a public address"):
        check(names("10.0.0.1", "::1"))
    with pytest.raises(ValueError, match="does not exist"):
        check(names(error=socket.gaierror(socket.EAI_NONAME, "no such name")))
    check(names(error=socket.gaierror(socket.EAI_AGAIN, "try again")))
    check(names("10.0.0.1", delay_s=5))


def test_names_of_this_machine_resolve_to_blocked_addresses() -> None:
    """Every spelling of the loopback address resolves to a blocked one."""
    for host in ("localhost", "127.1", "0x7f000001", "2130706433", "017700000001"):
        addresses = asyncio.run(resolve(host, 80))
        with pytest.raises(BlockedAddressError):
            AddressPolicy().allowed(host, addresses)
    with pytest.raises(socket.gaierror):
        asyncio.run(resolve("a" * 70 + ".example", 80))
