"""Check the limits of a training: its run time, memory and folder size, and the free disk space."""

import contextlib
import os
import shutil
from pathlib import Path

import psutil

from core.blobs import size_of
from core.settings import Settings
from core.storage import NO_SPACE
from workers.training.context import JobFailedError, disk_full_error
from workers.training.run_folder import describe_checkpoint, last_log_lines, read_json


# See docs/decisions.md#training-processes-are-limited-in-memory-before-and-while-they-run
def check_limits(settings: Settings, folder: Path, pid: int, run_s: float) -> None:
    """Raise JobFailedError if a training exceeds its limit of time, memory or disk space.

    The error has status 507 if the disk has less free space than trainings must leave. `folder` is
    the run folder of the training, `pid` the process group of its child process, and `run_s` the
    number of seconds for which the child process has run.
    """
    seconds = max(run_s, read_json(folder / "progress.json").get("seconds", 0.0))
    if seconds > settings.training_timeout_s:
        detail = f"it ran for {seconds:.0f} s; the limit is {settings.training_timeout_s:.0f} s"
        raise JobFailedError("Training too long", detail)
    check_memory(settings, pid, "Training too large")
    size = size_of(folder)
    if size > settings.training_disk_bytes:
        detail = f"its folder holds {size} bytes; the limit is {settings.training_disk_bytes} bytes"
        raise JobFailedError("Run too large", detail)
    check_free_disk(settings, folder)


def check_memory(settings: Settings, pid: int, title: str) -> None:
    """Raise JobFailedError if a process group uses more memory than `training_memory_bytes`.

    `pid` is the id of the process group, and `title` the title of the error.
    """
    used, limit = anonymous_bytes(pid), settings.training_memory_bytes
    if used > limit:
        detail = (
            f"it used {used >> 20} MiB of memory; the limit is {limit >> 20} MiB: a smaller batch or network needs less"
        )
        raise JobFailedError(title, detail, 422)


def check_free_disk(settings: Settings, folder: Path) -> None:
    """Create the folder `folder` if it is missing, and check the free space of its disk.

    Raises JobFailedError (507) if that is less than the setting `training_min_free_disk_bytes`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free, minimum = shutil.disk_usage(folder).free, settings.training_min_free_disk_bytes
    if free < minimum:
        raise disk_full_error(f"the disk has {free >> 20} MiB free, and trainings must leave {minimum >> 20} MiB free")


def raise_if_disk_was_full(settings: Settings, folder: Path, error: str) -> None:
    """Raise JobFailedError (507) if a child process failed because the disk was full.

    `folder` is the run folder. The disk was full if the last line of the log there says so. If the
    child process wrote no error (`error` is ""), the present free space decides. Otherwise return.
    """
    text = "".join(last_log_lines(folder / "log"))
    reason = next((os.strerror(number) for number in NO_SPACE if os.strerror(number) in text), None)
    if reason is not None:
        raise disk_full_error(f"the disk is full ({reason})").with_detail(describe_checkpoint(folder))
    if not error:
        check_free_disk(settings, folder)


def anonymous_bytes(process_group: int) -> int:
    """Return the resident memory of a process group in bytes, without file-backed and shared pages.

    File-backed pages are left out because the kernel can drop them at any time: datasets are read
    through memory maps.
    """
    total = 0
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(pid) == process_group:
                memory = psutil.Process(pid).memory_info()
                total += memory.rss - memory.shared
    return total
