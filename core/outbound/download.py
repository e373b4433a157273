"""Download clients' URLs into files, with limits of size and time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import IO

import httpcore
import httpx

from core.outbound.network_backend import REQUEST_ERRORS, describe_error, request_to

# Called with the bytes received and the bytes announced by the server; None if it announced none.
Progress = Callable[[int, int | None], Awaitable[None]]

_HEADERS = {"User-Agent": "Reverie", "Accept": "*/*", "Accept-Encoding": "identity"}
_BLOCK_BYTES = 1 << 20
_REPORT_S = 0.5


class DownloadError(Exception):
    """Raised if a URL cannot be downloaded; the message says why and what would work."""


class TooLargeDownloadError(DownloadError):
    """Raised if the file at a URL is larger than the caller allows."""


async def download(
    pool: httpcore.AsyncConnectionPool,
    url: httpx.URL,
    file: IO[bytes],
    max_bytes: int,
    timeout_s: float,
    on_progress: Progress,
) -> int:
    """Write the file at a URL to `file`; return its size in bytes.

    `on_progress` is called after each MiB, each half second and at the end, with the number of
    bytes received and the total, None if the server does not state it; if it raises, the download
    ends. Raises DownloadError if the server cannot be reached, responds with another status than
    200 or a content encoding, or takes longer than `timeout_s` seconds; TooLargeDownloadError if
    the file has more than `max_bytes`; OSError if it cannot be written.
    """
    try:
        async with asyncio.timeout(timeout_s) as limit:
            return await _download(pool, url, file, max_bytes, on_progress)
    except REQUEST_ERRORS as error:
        if limit.expired():
            raise DownloadError(f"{_name(url)} took more than {timeout_s:g} s") from error
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file
        raise DownloadError(f"{_name(url)} cannot be fetched: {describe_error(error)}") from error


async def _download(
    pool: httpcore.AsyncConnectionPool, url: httpx.URL, file: IO[bytes], max_bytes: int, on_progress: Progress
) -> int:
    """Write the response's body to `file` as `download` does, but without a time limit."""
    async with request_to(pool, "GET", url, _HEADERS) as response:
        headers = {name.lower(): value for name, value in response.headers}
        _check(url, response.status, headers)
        length = headers.get(b"content-length", b"")
        total = int(length) if length.isdigit() else None
        if total is not None and total > max_bytes:
            raise _too_large(url, max_bytes)
        received, block, reported_at = 0, bytearray(), time.monotonic()
        async for chunk in response.aiter_stream():
            received += len(chunk)
            if received > max_bytes:
                raise _too_large(url, max_bytes)
            block += chunk
            if len(block) >= _BLOCK_BYTES:
                await asyncio.to_thread(file.write, bytes(block))
                block.clear()
            if not block or time.monotonic() - reported_at >= _REPORT_S:
                reported_at = time.monotonic()
                await on_progress(received, total)
        await asyncio.to_thread(file.write, bytes(block))
        await on_progress(received, total)
        return received


def _check(url: httpx.URL, status: int, headers: dict[bytes, bytes]) -> None:
    """Raise DownloadError for a redirect, another status than 200, or a content encoding."""
    if 300 <= status < 400:
        target = headers.get(b"location", b"").decode("latin-1")[:200]
        raise DownloadError(f"{_name(url)} redirects, which is not followed; send the URL it leads to: {target}")
    if status != 200:
        raise DownloadError(f"{_name(url)} responded {status}; send a URL that anybody can read")
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1")[:40]
    if encoding.lower() != "identity":
        raise DownloadError(f"{_name(url)} responded with the content encoding {encoding}, which is not read here")


def _too_large(url: httpx.URL, max_bytes: int) -> TooLargeDownloadError:
    return TooLargeDownloadError(f"{_name(url)} is larger than {max_bytes} bytes, the limit for this input")


def _name(url: httpx.URL) -> str:
    """Return a URL for messages, shortened and without its query, which may hold a secret."""
    text = str(url.copy_with(query=None))
    return text if len(text) <= 120 else f"{text[:119]}…"
