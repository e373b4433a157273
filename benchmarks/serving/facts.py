"""The machine and code that a result was measured with."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def busy_cpu_s() -> float:
    """Return the CPU-seconds of all processes since the machine started."""
    fields = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _idle, _wait, interrupts, soft = fields[:7]
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


def load_average() -> float:
    """Return the load average of the last minute."""
    return os.getloadavg()[0]


def machine() -> dict[str, str | int | float]:
    """Return properties of the machine, without its name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "cpu": model,
        "cores": os.cpu_count() or 1,
        "memory_gib": round(memory_kib / 2**20, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def commit() -> str:
    """Return the commit, with "+" if tracked files are modified."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    folders = ("api", "core", "workers", "models", "benchmarks")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *folders)
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def now() -> str:
    """Return date and minute, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
