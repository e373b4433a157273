"""Read the run folder of a training, whose files the training's child process writes.

| file | content |
| --- | --- |
| `asked.json` | the recipe, written by the worker |
| `metrics.jsonl` | one line per epoch |
| `progress.json` | steps done, loss, and the last checkpoint's step |
| `state.pt` | the last checkpoint |
| `preview.png`, `previews/EPOCH.png` | images that the model has generated, now and after some epochs |
| `log` | standard error of the child processes |
| `lock` | locked by the process that works in the folder; says which process that is |
"""

import contextlib
import fcntl
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import orjson

from core.files import modified_at_ns
from workers.training.context import JobPostponedError

log = logging.getLogger(__name__)

RECIPE_FILE = "asked.json"
# Seconds that an orphaned process may take to exit after SIGTERM, and after SIGKILL.
ORPHAN_STOP_S = 20.0
# The beginning of the error of a child process whose run folder is locked by another process.
LOCKED_ERROR = "another process works on the run"

_ORPHAN = "another process still works in the folder of the run"
_WAITS = "the training waits until that process ends"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")

_PROGRESS_FILES = ("progress.json", "metrics.jsonl", "state.pt", "preview.png")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if the file is missing or incomplete."""
    try:
        return dict(orjson.loads(path.read_bytes()))
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a JSON Lines file; an empty list if the file is missing.

    Lines that are incomplete or not valid JSON are left out.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    records = []
    for line in text[: text.rfind(b"\n") + 1].splitlines():
        with contextlib.suppress(orjson.JSONDecodeError):
            records.append(orjson.loads(line))
    return records


def last_log_lines(log_file: Path, count: int = 1) -> list[str]:
    """Return the last `count` lines of a log file; an empty list if the file is missing."""
    return log_file.read_text(errors="replace").splitlines()[-count:] if log_file.exists() else []


def last_error(log_file: Path) -> str:
    """Return the error message in the last line of a child process's log, without `error: `.

    Returns "" if the last line does not begin with `error: `.
    """
    lines = last_log_lines(log_file)
    return lines[-1].removeprefix("error: ") if lines and lines[-1].startswith("error: ") else ""


def modification_times(folder: Path) -> tuple[int, ...]:
    """Return the modification times (ns) of a training's progress, metrics, checkpoint and preview.

    The time of a missing file is 0.
    """
    return tuple(modified_at_ns(folder / name) for name in _PROGRESS_FILES)


def checkpoint_step(folder: Path) -> int | None:
    """Return the optimizer step of the last checkpoint in a run folder; None if there is none."""
    checkpoint = read_json(folder / "progress.json").get("checkpoint")
    return checkpoint["steps"] if checkpoint else None


def describe_checkpoint(folder: Path) -> str:
    """Return a clause for error messages about the last checkpoint in a run folder.

    It says at which step the checkpoint was made, or that there is none.
    """
    step = checkpoint_step(folder)
    return "it left no checkpoint" if step is None else f"its checkpoint of step {step} is kept and can be published"


def kill_orphan(folder: Path) -> None:
    """Stop the process that still works in a run folder although its worker has died.

    The process gets SIGTERM and, after `ORPHAN_STOP_S` seconds, SIGKILL. Returns at once if there
    is no such process. Raises JobPostponedError if it still runs `ORPHAN_STOP_S` seconds later, or
    if it runs on another host or in another container: its number would name another process here.
    """
    kill_at = time.monotonic() + ORPHAN_STOP_S
    while (holder := lock_holder(folder)) is not None:
        late = time.monotonic() > kill_at
        if not _is_of_this_namespace(holder):
            log.warning("run folder in use", extra={"folder": folder.name, "holder": holder})
            raise JobPostponedError(f"{_ORPHAN}, on another host or in another container; {_WAITS}")
        if time.monotonic() > kill_at + ORPHAN_STOP_S:
            raise JobPostponedError(f"{_ORPHAN} and cannot be killed (process {holder['pid']}); {_WAITS}")
        if _start_ticks(holder["pid"]) == holder["start_ticks"]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(holder["pid"], signal.SIGKILL if late else signal.SIGTERM)
        time.sleep(0.1 if late else 0.5)


def lock_holder(folder: Path) -> dict[str, Any] | None:
    """Return what identifies the process that has locked a run folder; None if it is not locked.

    The result is empty if the lock file has no such description: the process is about to write it,
    or it is of an earlier release, which wrote a process id alone.
    """
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            with contextlib.suppress(orjson.JSONDecodeError):
                holder = orjson.loads(file.read())
                return holder if isinstance(holder, dict) else {}
            return {}
        return None


def _is_of_this_namespace(holder: dict[str, Any]) -> bool:
    """Return whether the process id of a lock's holder is valid in the PID namespace of this
    process.
    """
    if not {"pid", "start_ticks", "boot_id", "pid_namespace"} <= holder.keys():
        return False
    try:
        boot_id, pid_namespace = _BOOT_ID.read_text().strip(), str(_PID_NAMESPACE.readlink())
    except OSError:
        return False
    return bool(holder["boot_id"] == boot_id and holder["pid_namespace"] == pid_namespace)


def _start_ticks(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since boot; None if there is none."""
    try:
        # after the name, which may have spaces and brackets, this is field 22 of proc(5)
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return None
