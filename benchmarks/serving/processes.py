"""Servers as process trees: started with a tag, measured while idle, stopped completely."""

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TAG = "BENCHMARK_SERVER"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Weight:
    """Cost of an idle server: CPU-seconds per second, and the memory of its whole tree in bytes."""

    idle_cpu: float
    pss_bytes: int
    rss_bytes: int
    processes: int


@dataclass
class Tree:
    """The processes of a server: its root and all descendants.

    They are found by parent and by an environment variable, so that daemons count, too.
    """

    process: subprocess.Popen[bytes]
    tag: str
    log: Path
    known: set[int] = field(default_factory=set)

    def pids(self) -> set[int]:
        """Return all living processes of the tree."""
        parents = dict(_parents())
        found = {pid for pid in parents if pid == self.process.pid or pid in self.known or _tagged(pid, self.tag)}
        grew = True
        while grew:
            children = {pid for pid, parent in parents.items() if parent in found} - found
            found |= children
            grew = bool(children)
        self.known = found
        return found

    def cpu_s(self) -> float:
        """Return the CPU time, user and system, of the living processes."""
        return sum(_cpu_ticks(pid) for pid in self.pids()) / TICKS_PER_S

    def weigh(self, idle_s: float) -> Weight:
        """Measure the tree for `idle_s` seconds without load."""
        before, start = self.cpu_s(), time.monotonic()
        time.sleep(idle_s)
        spent, elapsed = self.cpu_s() - before, time.monotonic() - start
        pids = self.pids()
        pss, rss = (sum(_memory_bytes(pid, key) for pid in pids) for key in ("Pss:", "Rss:"))
        return Weight(max(0.0, spent) / elapsed, pss, rss, len(pids))

    def stop(self, grace_s: float) -> None:
        """Terminate the root process, kill the others, and wait until all have ended."""
        self.pids()
        _signal(self.process.pid, signal.SIGTERM)
        if not self._gone_within(grace_s):
            for pid in self.pids():
                _signal(pid, signal.SIGKILL)
            if not self._gone_within(10):
                raise RuntimeError(f"processes {sorted(self.pids())} outlived SIGKILL")

    def _gone_within(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while self.pids():
            self.process.poll()
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True


@contextlib.contextmanager
def process_tree(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path, grace_s: float
) -> Iterator[Tree]:
    """Run a server in a session of its own while the block runs; its output goes to `log`."""
    tag = uuid.uuid4().hex
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            env={**environment, TAG: tag},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    tree = Tree(process, tag, log)
    try:
        yield tree
    finally:
        tree.stop(grace_s)


def _parents() -> Iterator[tuple[int, int]]:
    """Return pairs of pid and parent pid of all processes except zombies."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = _stat(int(entry.name))
                if fields[0] != "Z":
                    yield int(entry.name), int(fields[1])


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the command name, which may contain spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _tagged(pid: int, tag: str) -> bool:
    try:
        return f"{TAG}={tag}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def _cpu_ticks(pid: int) -> int:
    try:
        fields = _stat(pid)
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def _memory_bytes(pid: int, key: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(key):
                return 1024 * int(line.split()[1])
    return 0


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
