"""The health check of workers' containers (docker/alive.py)."""

import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[1] / "docker" / "alive.py"


@pytest.mark.parametrize(
    ("state", "age_s", "expected"),
    [("ready", 0, True), ("draining", 9, True), ("loading", 0, False), ("ready", 11, False), (None, 0, False)],
)
def test_a_recent_heartbeat_is_alive(tmp_path: Path, state: str | None, age_s: float, *, expected: bool) -> None:
    """A worker is alive if its heartbeat file is at most ten seconds old and it has loaded a model."""
    file = tmp_path / "heartbeat"
    if state is not None:
        file.write_text(state)
        os.utime(file, (time.time() - age_s,) * 2)
    assert runpy.run_path(str(CHECK))["is_alive"](str(file), time.time()) is expected


def test_only_the_standard_library_is_imported() -> None:
    """The check runs without site-packages and the repository, and imports no package of its own
    accord.
    """
    source = "import sys; before = set(sys.modules); sys.argv = ['alive']; import runpy; runpy.run_path(sys.path[-1]);"
    source += "print(*{name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names)"
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(CHECK)!r}); {source}"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() in {"", "__main__"}
