"""Define what client methods are built of: retries, lists, downloads, and waiting for jobs.

A method is a generator that yields requests and delays and receives the responses, so it is written
once for both clients ("sans I/O"). `Client` runs it blocking, and `AsyncClient` awaits it. See
docs/decisions.md#client-methods-are-generators-written-once.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Coroutine, Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeAlias, TypeVar, overload

import httpx

from reverie.errors import JobFailedError, ProblemError, StillRunningError, UnreachableError
from reverie.records import Job, SavedFile
from reverie.requests import ApiRequest, ByteProgress, Delay, Download, path_of, printable_url

if TYPE_CHECKING:
    from reverie.client import AsyncClient, Client

P = ParamSpec("P")
T = TypeVar("T")
Steps: TypeAlias = Generator[ApiRequest | Delay, Any, T]
FilePath: TypeAlias = str | os.PathLike[str]

# A webhook: its URL, or its `url` and the `events` at which it is sent.
Webhook: TypeAlias = str | Mapping[str, Any]

# Called with the job each time the client has polled it.
JobProgress: TypeAlias = Callable[[Job], object]

JSON, PNG = "application/json", "image/png"
MEDIA_TYPES = {
    ".png": PNG,
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".npz": "application/x-npz",
    ".json": JSON,
}
# The service responds to an upload when it has converted or checked the file.
IMPORT_TIMEOUT_S = 3600.0

_PAGE_SIZE = 100


class ClientMethod(Generic[P, T]):
    """A decorator that turns a generator of requests and delays into a method of both clients.

    The method blocks on `Client` and is a coroutine function on `AsyncClient`.
    """

    def __init__(self, steps: Callable[Concatenate[Any, P], Steps[T]]) -> None:
        """Wrap the generator function `steps`; the method has its signature and docstring."""
        self.__doc__ = steps.__doc__
        self.__wrapped__ = steps

    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    def __get__(self, client: Any, owner: type) -> Any:
        if client is None:
            return self

        @functools.wraps(self.__wrapped__)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.run_steps(self.__wrapped__(client, *args, **kwargs))

        return method


class BaseMethods:
    """The base class of client methods: requests with retries, lists, downloads and waiting.

    Each method here is a generator that yields requests and delays, for use by other methods.
    """

    def __init__(self, retries: int) -> None:
        """Set the maximum number of times that a request is sent again."""
        self._retries = retries

    def _send(self, request: ApiRequest) -> Steps[httpx.Response]:
        """Send a request, with retries, until it has a successful response; return that response.

        Raises ProblemError for an error response, and UnreachableError for none, when no more
        retries are allowed.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                response: httpx.Response = yield request
            except httpx.TransportError as error:
                if attempt > self._retries or not request.may_retry(error):
                    reason = str(error) or type(error).__name__
                    raise UnreachableError(f"no response from {printable_url(error.request.url)}: {reason}") from error
                yield Delay.before_retry(attempt)
                continue
            if not response.is_error:
                return response
            if attempt > self._retries or not request.may_retry(response):
                raise ProblemError.from_response(response)
            yield Delay.before_retry(attempt, response)

    def _json(self, request: ApiRequest) -> Steps[Any]:
        """Send a request, with retries; return the JSON body of the successful response."""
        return (yield from self._send(request)).json()

    def _get(self, *segments: str) -> Steps[Any]:
        """Send a GET request; return the JSON body of the successful response.

        `segments` are the parts of the URL's path after `/v1`.
        """
        return (yield from self._json(ApiRequest("GET", path_of(*segments))))

    def _post(self, *segments: str, **fields: Any) -> Steps[Any]:
        """Send a POST request; return the JSON body of the successful response.

        `segments` are the parts of the URL's path after `/v1`, and `fields` further arguments of
        `ApiRequest`.
        """
        return (yield from self._json(ApiRequest("POST", path_of(*segments), **fields)))

    def _delete(self, *segments: str) -> Steps[None]:
        """Send a DELETE request, which is not repeated if its response is lost.

        `segments` are the parts of the URL's path after `/v1`.
        """
        yield from self._send(ApiRequest("DELETE", path_of(*segments), retry_if_lost=False))

    def _list(self, path: str, limit: int | None = None, **filters: str | None) -> Steps[list[Any]]:
        """Return the entries of the list at the URL path `path`, which is read page by page.

        Returns the first `limit` entries, or all if `limit` is None. `filters` are query
        parameters.
        """
        entries: list[Any] = []
        after: str | None = None
        while limit is None or len(entries) < limit:
            page_size = _PAGE_SIZE if limit is None else min(_PAGE_SIZE, limit - len(entries))
            params = {**filters, "limit": page_size, "after": after}
            page = yield from self._json(ApiRequest("GET", path, params=params))
            entries += page["data"]
            after = page["last_id"]
            if not page["has_more"]:
                break
        return entries

    def _download(
        self,
        request: ApiRequest,
        path: FilePath,
        media_type: str,
        on_progress: ByteProgress | None = None,
        send: Callable[[ApiRequest], Steps[httpx.Response]] | None = None,
    ) -> Steps[SavedFile]:
        """Send a request and save the body of its response to the file `path`.

        `send` is the generator function that sends the request, by default `_send`. `on_progress`
        is called with the number of bytes received. After an error there is no file. Raises
        UnexpectedContentError if the body is not of `media_type`.
        """
        download = Download(Path(path), media_type, on_progress)
        try:
            response = yield from (send or self._send)(replace(request, download=download))
            download.commit()
        finally:
            download.discard()
        headers = response.headers
        seed = int(headers["reverie-seed"]) if "reverie-seed" in headers else None
        return SavedFile(download.path, download.size_bytes, media_type, str(headers.get("reverie-model", "")), seed)

    def _wait(self, job_id: str, timeout_s: float | None, on_progress: JobProgress | None) -> Steps[Job]:
        """Read a job again and again until it has ended; return it.

        `on_progress` is called with the job each time. Raises StillRunningError after `timeout_s`
        seconds; None means no limit.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        interval_s = 0.05
        while True:
            job = Job((yield from self._get("jobs", job_id)))
            if on_progress is not None:
                on_progress(job)
            if job.ended:
                return job
            time_left_s = interval_s if deadline is None else deadline - time.monotonic()
            if time_left_s <= 0:
                raise StillRunningError(job)
            yield Delay(min(interval_s, time_left_s))
            interval_s = min(1.5 * interval_s, 1.0)

    def _wait_for_success(self, accepted: httpx.Response, on_progress: JobProgress | None) -> Steps[Job]:
        """Wait until the job that a 202 response describes has succeeded; return the job.

        `on_progress` is called with the job in the response, and then each time the job is read.
        Raises JobFailedError if the job failed or was cancelled.
        """
        job = Job(accepted.json())
        if on_progress is not None:
            on_progress(job)
        job = yield from self._wait(job.id, None, on_progress)
        if job.status != "succeeded":
            raise JobFailedError(job)
        return job

    def _send_and_wait(self, request: ApiRequest, on_progress: JobProgress | None = None) -> Steps[httpx.Response]:
        """Send the request of an operation, and return the response that has the result.

        If the request became a job (202), wait for the job, and call `on_progress` with it each
        time it is read. Raises JobFailedError if the job failed or was cancelled.
        """
        response = yield from self._send(request)
        if response.status_code != 202:
            return response
        job = yield from self._wait_for_success(response, on_progress)
        headers = {"Accept": request.headers["Accept"]}
        result = ApiRequest("GET", path_of("jobs", job.id, "result"), headers=headers, download=request.download)
        return (yield from self._send(result))


def webhook_body(webhook: Webhook) -> dict[str, Any]:
    """Return the JSON object for `webhook`, which is a URL or a mapping of `url` and `events`."""
    return {"url": webhook} if isinstance(webhook, str) else dict(webhook)


def is_url(source: object) -> bool:
    """Return whether `source`, a picture or dataset, is an http or https URL."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def media_type_of(path: FilePath) -> str:
    """Return the media type of the file format that the suffix of `path` names.

    Raises ValueError for an unknown suffix.
    """
    path = Path(path)
    media_type = MEDIA_TYPES.get(path.suffix.lower())
    if media_type is None:
        raise ValueError(f"{path.name}: the suffix chooses the format; use one of {', '.join(MEDIA_TYPES)}")
    return media_type
