"""Checks network exposure: allowed hosts and origins, trusted proxies, and the listening address.

`python -m api.exposure` checks the settings and does nothing else.
"""

import ipaddress
import re
import sys
from collections.abc import Mapping
from urllib.parse import urlsplit

from api.auth import Keys
from core.settings import Settings
from core.settings import settings as settings_of_environment

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_REMEMBERED = 1000
_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\]|\*")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def split_list(text: str) -> list[str]:
    """Split the text of a comma-separated setting into its parts; leave out empty parts."""
    return [word.strip() for word in text.split(",") if word.strip()]


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_settings(settings: Settings) -> None:
    """Raise ValueError if the settings would expose the service unsafely, or cannot be parsed.

    The message names the setting to change.
    """
    path = settings.api_keys
    try:
        Keys(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(
            f"REVERIE_API_KEYS names a file that cannot be read, {path} ({reason}); "
            f"`python -m api keys --file {path} add NAME` makes it"
        ) from error
    hosts = allowed_hosts(settings)
    origins = allowed_origins(settings)
    trusted_proxies(settings)
    if path is None and "*" in origins:
        raise ValueError("REVERIE_ALLOWED_ORIGINS=* needs API keys: without them any web page could use the service")
    if path is not None or is_loopback(settings.host):
        return
    if not settings.allow_anonymous:
        raise ValueError(
            f"REVERIE_HOST={settings.host} can be reached from other machines and no API keys are set: set "
            "REVERIE_API_KEYS (`python -m api keys --file FILE add NAME` makes one), listen on 127.0.0.1, or set "
            "REVERIE_ALLOW_ANONYMOUS=true to let everybody in"
        )
    if not hosts:
        raise ValueError(
            f"REVERIE_HOST={settings.host} without API keys needs REVERIE_ALLOWED_HOSTS, the names by which clients "
            "call the service, such as localhost,127.0.0.1"
        )


def exit_if_refused(settings: Settings) -> None:
    """Check the settings; if they would expose the service unsafely, print why and exit with 1."""
    try:
        check_settings(settings)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)


def allowed_hosts(settings: Settings) -> tuple[str, ...]:
    """Return the hosts that a Host header may name, in lower case; empty if it may name any.

    The setting `allowed_hosts` lists them. If the setting is empty, a service that listens on
    loopback allows only loopback's names, and any other service allows all hosts. Raises ValueError
    if the setting contains something that is not a host.
    """
    hosts = tuple(word.lower() for word in split_list(settings.allowed_hosts))
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise ValueError(f"REVERIE_ALLOWED_HOSTS: {host[:80]!r} is not a host, such as example.com or [::1]")
    return hosts or (LOOPBACK_HOSTS if is_loopback(settings.host) else ())


def allowed_origins(settings: Settings) -> tuple[str, ...]:
    """Return the origins that may send requests, besides the service's own origin.

    Raises ValueError if the setting `allowed_origins` contains something that is not an origin,
    such as https://example.com.
    """
    origins = tuple(word.lower().rstrip("/") for word in split_list(settings.allowed_origins))
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/@?#\s]+", origin):
            raise ValueError(f"REVERIE_ALLOWED_ORIGINS: {origin[:80]!r} is not an origin, such as https://example.com")
    return origins


def trusted_proxies(settings: Settings) -> tuple[Network, ...]:
    """Return the IP networks whose X-Forwarded-For header is trusted.

    Raises ValueError if the setting `trusted_proxies` contains something that is not an IP network.
    """
    try:
        return tuple(ipaddress.ip_network(word, strict=False) for word in split_list(settings.trusted_proxies))
    except ValueError as error:
        raise ValueError(f"REVERIE_TRUSTED_PROXIES: {error}; write for example 10.0.0.1,10.1.0.0/16") from error


class HostCheck:
    """Checks the Host header of requests against the allowed hosts. Prevents DNS rebinding."""

    def __init__(self, hosts: tuple[str, ...]) -> None:
        """Allow these hosts, or all hosts if `hosts` is empty.

        `*.example.com` stands for the subdomains of `example.com`.
        """
        self._any = not hosts or "*" in hosts
        self._names = frozenset(host for host in hosts if not host.startswith("*"))
        self._suffixes = tuple(host[1:] for host in hosts if host.startswith("*."))
        self._seen: set[bytes] = set()

    def allows(self, host: bytes) -> bool:
        """Return whether the value of a Host header, with or without a port, is allowed."""
        if self._any or host in self._seen:
            return True
        text = host.decode("latin-1").strip().lower()
        name = text.partition("]")[0] + "]" if text.startswith("[") else text.partition(":")[0].rstrip(".")
        allowed = name in self._names or (bool(self._suffixes) and name.endswith(self._suffixes))
        if allowed and len(self._seen) < _REMEMBERED:
            self._seen.add(host)
        return allowed


class OriginCheck:
    """Checks the Origin header, which browsers send. Prevents cross-site request forgery."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        """Allow the service's own origin and those in `origins`; `*` in `origins` allows all."""
        self._any = "*" in origins
        self._origins = frozenset(origins)

    def allows(self, origin: bytes, host: bytes) -> bool:
        """Return whether the value of an Origin header is allowed.

        `host` is the value of the Host header, which names the service's own origin.
        """
        text = origin.decode("latin-1").strip().lower()
        if text == "null":
            return False
        if self._any or text in self._origins:
            return True
        try:
            address = urlsplit(text)
            port = address.port or _DEFAULT_PORTS.get(address.scheme)
            same = urlsplit(f"//{host.decode('latin-1').strip().lower()}")
            # behind a TLS proxy the scheme is not known: assume the default port of the origin's
            # scheme
            own_port = same.port or _DEFAULT_PORTS.get(address.scheme)
        except ValueError:
            return False
        return bool(address.hostname) and (address.hostname, port) == (same.hostname, own_port)


def client_address(peer: str, headers: Mapping[bytes, bytes], proxies: tuple[Network, ...]) -> str:
    """Return the IP address of the client; for an IPv6 address, its /64 network.

    Without proxies the client's address is `peer`, the address of the connection. If `peer` is one
    of the trusted `proxies`, the client's is the last address in X-Forwarded-For that is not a
    trusted proxy's.
    """
    address = _parsed(peer)
    for word in reversed(headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",")):
        if address is None or not any(address in network for network in proxies):
            break
        forwarded = _parsed(word.strip())
        if forwarded is None:
            break
        address = forwarded
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address or peer)


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address in a text, IPv4-mapped IPv6 as IPv4; None if the text is not an
    address.
    """
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


if __name__ == "__main__":
    exit_if_refused(settings_of_environment())
