"""Hosts on one machine: network namespaces with a link each to one bridge, which can be cut or made
bad.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Self

SUBNET = "10.215.63"  # within a private range; the bridge has the address .1
BRIDGE = "reverie-test"

LOSS, RATE = "0.15", "100kbit"
"""The share of packets that a bad link loses, and its rate where the kernel cannot delay packets."""


def missing() -> str:
    """Return why there can be no namespaces here; empty if there can be."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "tc", "iptables", "unshare", "setpriv", "mount"):
        if shutil.which(program) is None:
            return f"there is no program `{program}`: apt-get install iproute2 iptables util-linux"
    return ""


def run(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command; return it with its output."""
    return subprocess.run(words, check=check, capture_output=True, text=True)


class Host:
    """A network namespace with one address."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.address = name, f"{SUBNET}.{number}"
        self._namespace, self._link = f"{BRIDGE}-{name}", f"rvt{number}"

    def create(self) -> None:
        """Make the namespace and its link to the bridge."""
        self.delete()
        run("ip", "netns", "add", self._namespace)
        run("ip", "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self._namespace)
        run("ip", "link", "set", self._link, "master", BRIDGE, "up")
        self._inside("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            self._inside("ip", "link", "set", device, "up")

    def delete(self) -> None:
        """Remove the namespace, and with it the link."""
        run("ip", "netns", "delete", self._namespace, check=False)
        run("ip", "link", "delete", self._link, check=False)

    def command(self, *words: str, own: Path, hidden: Path) -> list[str]:
        """Return the words that run a command on this host, under its name; it ends with this
        process.

        Of the folder `hidden`, the command sees only the folder `own` in it.
        """
        named = (
            'hostname "$1"; mount --bind "$2" /mnt; mount -t tmpfs none "$3"; mkdir -p "$2"; mount --move /mnt "$2"; '
            'shift 3; exec setpriv --pdeathsig KILL "$@"'
        )
        inside = ["ip", "netns", "exec", self._namespace, "unshare", "--uts", "--mount"]
        return [*inside, "sh", "-ec", named, "sh", self.name, str(own), str(hidden), *words]

    def cut(self) -> None:
        """Let no packet through: connections stay open at both ends and hear nothing."""
        run("ip", "link", "set", self._link, "down")

    def slow_down(self) -> str:
        """Delay packets by 100 ± 50 ms, or where the kernel has no netem, limit their rate; return
        which.
        """
        delay = ["tc", "qdisc", "replace", "dev", "eth0", "root", "netem", "delay", "100ms", "50ms"]
        if run("ip", "netns", "exec", self._namespace, *delay, check=False).returncode == 0:
            return "delay of 100 ms"
        self._inside(*delay[:5], "root", "tbf", "rate", RATE, "burst", "2kb", "latency", "1s")
        return f"rate of {RATE}"

    def lose(self) -> None:
        """Drop a share of the packets to and from this host."""
        for chain in ("INPUT", "OUTPUT"):
            chance = ["-m", "statistic", "--mode", "random", "--probability", LOSS]
            self._inside("iptables", "-A", chain, *chance, "-j", "DROP")

    def mend(self) -> None:
        """Make the link good again."""
        run("ip", "link", "set", self._link, "up")
        run("ip", "netns", "exec", self._namespace, "tc", "qdisc", "delete", "dev", "eth0", "root", check=False)
        self._inside("iptables", "-F")

    def _inside(self, *words: str) -> None:
        run("ip", "netns", "exec", self._namespace, *words)


class Network:
    """A bridge and hosts at it; the test process is at the bridge, too. A context manager."""

    def __init__(self, *names: str) -> None:
        self.hosts = {name: Host(name, 10 + number) for number, name in enumerate(names)}

    def __enter__(self) -> Self:
        run("ip", "link", "delete", BRIDGE, check=False)
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{SUBNET}.1/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        # a container engine may have set the policy to DROP, which then holds for bridges, too
        run("iptables", "-I", "FORWARD", "-i", BRIDGE, "-o", BRIDGE, "-j", "ACCEPT")
        for host in self.hosts.values():
            host.create()
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts.values():
            host.delete()
        run("iptables", "-D", "FORWARD", "-i", BRIDGE, "-o", BRIDGE, "-j", "ACCEPT", check=False)
        run("ip", "link", "delete", BRIDGE, check=False)
