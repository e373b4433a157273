"""Read the run folder of a training, whose files the training's child process writes.

| file | content |
| --- | --- |
| `asked.json` | the recipe, written by the worker |
| `metrics.jsonl` | one line per epoch |
| `progress.json` | steps done, loss, and the last checkpoint's step |
| `state.pt` | the last checkpoint |
| `preview.png`, `previews/EPOCH.png` | images that the model has generated, now and after some epochs |
| `log` | standard error of the child processes |
| `lock` | locked by the process that works in the folder; has its process id |
"""

import contextlib
import fcntl
import os
import signal
import time
from pathlib import Path
from typing import Any

import orjson

from core.files import modified_at_ns
from workers.training.context import JobFailedError

RECIPE_FILE = "asked.json"
# Seconds that an orphaned process may take to exit after SIGTERM, and after SIGKILL.
ORPHAN_STOP_S = 20.0

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

    The process gets SIGTERM and, after `ORPHAN_STOP_S` seconds, SIGKILL. Raises JobFailedError if
    it still runs `ORPHAN_STOP_S` seconds later. Returns at once if there is no such process.
    """
    kill_at = time.monotonic() + ORPHAN_STOP_S
    while (pid := _lock_holder(folder)) is not None:
        late = time.monotonic() > kill_at
        if time.monotonic() > kill_at + ORPHAN_STOP_S:
            detail = f"the process {pid} works in its folder and cannot be killed"
            raise JobFailedError("Training process lost", detail)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        time.sleep(0.1 if late else 0.5)


def _lock_holder(folder: Path) -> int | None:
    """Return the id of the process that has locked a run folder; None if it is not locked."""
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            text = file.read()
            return int(text) if text.isdecimal() else None
        return None
