"""Which addresses and URLs of clients the service may connect to."""

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
    """Private, loopback, link-local, multicast, and IPv6 addresses that stand for such ones."""
    assert not AddressPolicy().allows(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_allowed(address: str) -> None:
    """By IPv4 and IPv6."""
    assert AddressPolicy().allows(address)


def test_networks_of_the_setting_are_allowed_too() -> None:
    """Only they; also where an IPv6 address stands for one of theirs."""
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
    """With a reason."""
    with pytest.raises(ValueError, match=r"URL"):
        parse_url(text)


def test_a_url_is_normalized() -> None:
    """Host names in other scripts are encoded, and a fragment is removed."""
    assert str(parse_url("HTTPS://Exämple.com/a b#c".replace(" ", "%20"))) == "https://xn--exmple-cua.com/a%20b"


def names(*addresses: str, error: Exception | None = None, delay_s: float = 0.0) -> object:
    """Return a resolver."""

    async def look_up(_host: str, _port: int) -> Sequence[str]:
        await asyncio.sleep(delay_s)
        if error:
            raise error
        return addresses

    return look_up


def check(resolver: object) -> None:
    """Check a host with the addresses of a resolver."""
    asyncio.run(check_host(httpx.URL("https://example.com"), AddressPolicy(), 0.05, resolver))  # type: ignore[arg-type]


def test_a_host_is_checked_early() -> None:
    """One without a public address, or that does not exist, is an error; an unclear one is not."""
    check(names("10.0.0.1", "1.1.1.1"))
    with pytest.raises(BlockedAddressError, match=r"example\.com is not a public address"):
        check(names("10.0.0.1", "::1"))
    with pytest.raises(ValueError, match="does not exist"):
        check(names(error=socket.gaierror(socket.EAI_NONAME, "no such name")))
    check(names(error=socket.gaierror(socket.EAI_AGAIN, "try again")))
    check(names("10.0.0.1", delay_s=5))


def test_names_of_this_machine_resolve_to_blocked_addresses() -> None:
    """In every way of writing them."""
    for host in ("localhost", "127.1", "0x7f000001", "2130706433", "017700000001"):
        addresses = asyncio.run(resolve(host, 80))
        with pytest.raises(BlockedAddressError):
            AddressPolicy().allowed(host, addresses)
    with pytest.raises(socket.gaierror):
        asyncio.run(resolve("a" * 70 + ".example", 80))
