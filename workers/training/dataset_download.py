"""Download the file of a dataset from a URL that a client gave, as part of a job."""

import asyncio
import errno
import os
import shutil
import time
from pathlib import Path
from typing import IO

from core.jobs.records import Job
from core.outbound.addresses import AddressPolicy, Resolver, parse_url, resolve
from core.outbound.download import DownloadError, TooLargeDownloadError, download
from core.outbound.network_backend import guarded_pool
from workers.training.context import JobContext, JobFailedError, WorkerStoppingError, message_event

_PROGRESS_S = 1.0
_PROGRESS = (0.05, 0.65)  # of the job, at the start and at the end of the download
_ASSUMED_BYTES = 1 << 30  # of a file whose server does not announce its size


def download_dataset(context: JobContext, job: Job, path: Path, resolver: Resolver = resolve) -> None:
    """Download the file at the `source_url` of the job's request to `path`.

    Events report the number of bytes received. `resolver` resolves host names. Raises
    JobFailedError if the file cannot be downloaded or is too large, ClaimLostError if the job's
    claim is lost, WorkerStoppingError if this worker stops, and OSError (ENOSPC) if the disk has
    less free space than the setting `min_free_disk_bytes`.
    """
    with path.open("wb") as file:
        asyncio.run(_download(context, job, file, resolver))


async def _download(context: JobContext, job: Job, file: IO[bytes], resolver: Resolver) -> None:
    """Download the file, with an event of progress every `_PROGRESS_S` seconds."""
    settings = context.settings
    policy = AddressPolicy.of(settings.allowed_networks)
    written_at = 0.0

    async def report(received: int, total: int | None) -> None:
        nonlocal written_at
        if context.stopping.is_set():
            raise WorkerStoppingError
        if shutil.disk_usage(context.paths.datasets).free < settings.min_free_disk_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if time.monotonic() - written_at < _PROGRESS_S:
            return
        written_at = time.monotonic()
        done = min(1.0, received / (total or _ASSUMED_BYTES))
        progress = _PROGRESS[0] + done * (_PROGRESS[1] - _PROGRESS[0])
        event = message_event(f"received {received} bytes", bytes=received, total_bytes=total)
        await asyncio.to_thread(context.append_events, job, [event], progress)

    url, limit = parse_url(job.request["source_url"]), settings.max_dataset_bytes
    async with guarded_pool(policy, resolver) as pool:
        try:
            await download(pool, url, file, limit, settings.fetch_timeout_s, report)
        except TooLargeDownloadError as error:
            raise JobFailedError("Too large", str(error), 413) from error
        except DownloadError as error:
            raise JobFailedError("Not possible", str(error), 422) from error
