"""Converts uploads to datasets, each in a child process."""

import asyncio
import json
import logging
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request

from api.errors import FullError, InvalidError, TooLargeError
from core.datasets.readers.base import ConversionOptions
from core.settings import Settings

log = logging.getLogger(__name__)

NO_ROOM = "the disk has no room for this dataset; delete others, or send a smaller one"
_POLL_S = 0.5
_ROOT = Path(__file__).resolve().parents[1]


# See docs/decisions.md#a-child-process-of-the-api-converts-datasets
async def convert(request: Request, folder: Path, options: ConversionOptions, settings: Settings) -> dict[str, Any]:
    """Convert the upload `folder / "file"` in a child process; return the dataset's description.

    The dataset is written to the same folder. Raises InvalidError if the file is not valid or its
    conversion takes too long, TooLargeError or FullError if it is too large or the disk is full,
    and ClientDisconnect if the client disconnects.
    """
    command = ["core.datasets.convert", str(folder), json.dumps(asdict(options)), str(os.getpid())]
    try:
        code, output, errors = await _run(request, command, settings.conversion_timeout_s)
    except TimeoutError as error:
        log.warning("conversion timed out", extra={"limit_s": settings.conversion_timeout_s})
        limit = f"{settings.conversion_timeout_s:g} s (REVERIE_CONVERSION_TIMEOUT_S)"
        detail = f"reading it took longer than the limit of {limit}; send it in parts, or as an NPZ or IDX of uint8"
        raise InvalidError.in_field("file", detail) from error
    if code < 0:  # a decoder crashed, or the system's memory ran out
        detail = f"its reader crashed (signal {-code}); save it anew, or send it in parts"
        raise InvalidError.in_field("file", detail)
    if code:
        raise RuntimeError(f"the converter failed: {errors.decode('utf-8', 'replace')[-4000:]}")
    about: dict[str, Any] = orjson.loads(output)
    if problem := about.get("problem"):
        if problem["status"] == FullError.status:
            raise FullError(NO_ROOM)
        error_class = TooLargeError if problem["status"] == TooLargeError.status else InvalidError
        raise error_class(problem["detail"], errors=[{"field": problem["field"], "detail": problem["detail"]}])
    return about


async def _run(request: Request, command: list[str], timeout_s: float) -> tuple[int, bytes, bytes]:
    """Run `python -m COMMAND` and return its exit code, stdout and stderr.

    The process is killed if the client disconnects (ClientDisconnect) or after `timeout_s` seconds
    (TimeoutError).
    """
    until = time.monotonic() + timeout_s
    pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *command, stdin=nothing, stdout=pipe, stderr=pipe, cwd=_ROOT, env=environment
    )
    output = asyncio.ensure_future(child.communicate())
    try:
        while True:  # is_disconnected is called before the wait, too: uvicorn reports a disconnect at the second call
            if await request.is_disconnected():
                raise ClientDisconnect
            if output.done():
                break
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            await asyncio.wait((output,), timeout=min(_POLL_S, left_s))
    finally:
        if child.returncode is None and not output.done():
            child.kill()
            await output
    stdout, stderr = output.result()
    return child.returncode or 0, stdout, stderr
