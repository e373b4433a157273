"""Define the two clients: methods of `Client` block, and those of `AsyncClient` are awaited.

    with Client() as client:
        for number, png in enumerate(client.samples("vae-mnist", 4, seed=3).images):
            Path(f"digit-{number}.png").write_bytes(png)

Requests are retried when the service is busy or unreachable; `Retry-After` is respected. A retry
repeats no work: the client draws a seed if you give none, and a request that creates a job has an
`Idempotency-Key`.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from typing import Any, Self, TypeVar, cast

import httpx
from httpx_sse import EventSource, ServerSentEvent

from reverie.errors import ProblemError, UnreachableError
from reverie.methods import ApiMethods
from reverie.methods.base import Steps
from reverie.records import TERMINAL, Event
from reverie.requests import CONNECT_TIMEOUT_S, ApiRequest, Delay, path_of, printable_url

T = TypeVar("T")
DEFAULT_URL = "http://127.0.0.1:8000"

# The service sends a comment every 15 s; a connection without data for longer than this is
# broken.
SILENCE_TIMEOUT_S = 45.0

# Failed connections in a row before the client gives up.
# A service that restarts is back by then.
MAX_FAILURES = 20


class Client(ApiMethods):
    """A client of the service whose methods block until they have the result."""

    def __init__(
        self, url: str | None = None, key: str | None = None, *, timeout_s: float = 60.0, retries: int = 5
    ) -> None:
        """Prepare to send requests to the service at `url` with the API key `key`.

        By default these are the environment variables `REVERIE_URL` and `REVERIE_KEY`, and without
        them http://127.0.0.1:8000 and no key. A request times out if the service sends nothing for
        `timeout_s` seconds; a method may take longer. `retries` is the number of times that a
        request may be sent again. Raises ValueError if `url` is not an HTTP address, or if `key` has
        other characters than printable ASCII.
        """
        super().__init__(retries)
        self._http = httpx.Client(**_http_settings(url, key, timeout_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the service; the client can then not be used any more."""
        self._http.close()

    def run_steps(self, steps: Steps[T]) -> T:
        """Run a method that is written as a generator of requests and delays; return its result.

        Each response, or the exception instead of one, is passed to the generator.
        """
        outcome: httpx.Response | Exception | None = None
        with contextlib.closing(steps):
            while True:
                try:
                    step = _next_step(steps, outcome)
                except StopIteration as end:
                    return cast("T", end.value)
                try:
                    outcome = self._execute(step)
                except (httpx.TransportError, OSError) as error:
                    outcome = error

    def _execute(self, step: ApiRequest | Delay) -> httpx.Response | None:
        """Run one step of a method: wait and return None, or send a request and return its
        response.
        """
        if isinstance(step, Delay):
            time.sleep(step.seconds)
            return None
        with step.open_files() as files:
            response = self._http.send(step.build(self._http, files), stream=True)
        with contextlib.closing(response), step.download.open(response) if step.download else nullcontext() as file:
            if step.download is None or file is None:
                response.read()
            else:
                for chunk in response.iter_bytes():
                    step.download.write(file, chunk)
        return response

    def events(self, job_id: str, after: int = 0) -> Iterator[Event]:
        """Yield the events of a job as they happen, until the job ends.

        `after` is the number of the last event that you have received; 0 yields all events. If the
        connection breaks, the client connects again. Raises ProblemError for an error response, and
        UnreachableError if `MAX_FAILURES` connections in a row bring no event.
        """
        stream = JobEventStream(job_id, after)
        outcome: httpx.Response | httpx.TransportError
        while not stream.ended:
            try:
                with contextlib.closing(self._http.send(stream.build_request(self._http), stream=True)) as outcome:
                    if outcome.status_code != 200:
                        outcome.read()
                    else:
                        for message in EventSource(outcome).iter_sse():
                            if event := stream.receive(message):
                                yield event
            except httpx.TransportError as error:
                outcome = error
            self._execute(stream.reconnect_delay(outcome))


class AsyncClient(ApiMethods):
    """A client of the service whose methods are coroutines.

    Files are read and written in the thread of the event loop, in small chunks.
    """

    def __init__(
        self, url: str | None = None, key: str | None = None, *, timeout_s: float = 60.0, retries: int = 5
    ) -> None:
        """Prepare to send requests to the service at `url` with the API key `key`.

        By default these are the environment variables `REVERIE_URL` and `REVERIE_KEY`, and without
        them http://127.0.0.1:8000 and no key. A request times out if the service sends nothing for
        `timeout_s` seconds; a method may take longer. `retries` is the number of times that a
        request may be sent again. Raises ValueError if `url` is not an HTTP address, or if `key` has
        other characters than printable ASCII.
        """
        super().__init__(retries)
        self._http = httpx.AsyncClient(**_http_settings(url, key, timeout_s))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections to the service; the client can then not be used any more."""
        await self._http.aclose()

    async def run_steps(self, steps: Steps[T]) -> T:
        """Run a method that is written as a generator of requests and delays; return its result.

        Each response, or the exception instead of one, is passed to the generator.
        """
        outcome: httpx.Response | Exception | None = None
        with contextlib.closing(steps):
            while True:
                try:
                    step = _next_step(steps, outcome)
                except StopIteration as end:
                    return cast("T", end.value)
                try:
                    outcome = await self._execute(step)
                except (httpx.TransportError, OSError) as error:
                    outcome = error

    async def _execute(self, step: ApiRequest | Delay) -> httpx.Response | None:
        """Run one step of a method: wait and return None, or send a request and return its
        response.
        """
        if isinstance(step, Delay):
            await asyncio.sleep(step.seconds)
            return None
        with step.open_files() as files:
            response = await self._http.send(step.build(self._http, files), stream=True)
        async with contextlib.aclosing(response):
            with step.download.open(response) if step.download else nullcontext() as file:
                if step.download is None or file is None:
                    await response.aread()
                else:
                    async for chunk in response.aiter_bytes():
                        step.download.write(file, chunk)
        return response

    async def events(self, job_id: str, after: int = 0) -> AsyncIterator[Event]:
        """Yield the events of a job as they happen, until the job ends.

        `after` is the number of the last event that you have received; 0 yields all events. If the
        connection breaks, the client connects again. Raises ProblemError for an error response, and
        UnreachableError if `MAX_FAILURES` connections in a row bring no event.
        """
        stream = JobEventStream(job_id, after)
        outcome: httpx.Response | httpx.TransportError
        while not stream.ended:
            try:
                outcome = await self._http.send(stream.build_request(self._http), stream=True)
                async with contextlib.aclosing(outcome):
                    if outcome.status_code != 200:
                        await outcome.aread()
                    else:
                        async with contextlib.aclosing(EventSource(outcome).aiter_sse()) as messages:
                            async for message in messages:
                                if event := stream.receive(message):
                                    yield event
            except httpx.TransportError as error:
                outcome = error
            await self._execute(stream.reconnect_delay(outcome))


class JobEventStream:
    """The events of a job, read over one connection after another.

    Keeps the number of the last event received, and in `ended` whether the job has ended.
    """

    def __init__(self, job_id: str, after: int) -> None:
        """Prepare to read the events of a job that follow the event with the number `after`."""
        self.ended = False
        self._path = path_of("jobs", job_id, "events")
        self._last_id = after
        self._failures = 0
        self._retry_s = 2.0

    def build_request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Return the HTTP request for the events that follow the last event received."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(self._last_id)}
        return ApiRequest("GET", self._path, headers=headers, timeout_s=SILENCE_TIMEOUT_S).build(http)

    def receive(self, message: ServerSentEvent) -> Event | None:
        """Return the event in a message of the stream; None if the message has none.

        `ended` becomes True with the job's final status; after that, messages are ignored. The next
        connection starts after this event. A message may also set the delay before the next
        connection, by its field `retry`.
        """
        if message.retry is not None:
            self._retry_s = message.retry / 1000
        if self.ended or not message.data:
            return None
        number = int(message.id) if message.id else None
        if number == self._last_id:
            number = None  # a message without an id of its own repeats the last one
        event = Event(message.event, message.json(), number)
        self._failures = 0
        self._last_id = number or self._last_id
        self.ended = event.kind == "status" and event.data.get("status") in TERMINAL
        return event

    def reconnect_delay(self, outcome: httpx.Response | httpx.TransportError) -> Delay:
        """Return how long to wait before the next connection, after one has ended.

        `outcome` is the last response, or the error that ended its connection. Status 204 means
        that there are no more events, and sets `ended`. Raises ProblemError for an error response
        that is not worth a retry, and UnreachableError after more than `MAX_FAILURES` connections
        in a row without an event.
        """
        response = outcome if isinstance(outcome, httpx.Response) else None
        self.ended = self.ended or (response is not None and response.status_code == 204)
        if self.ended:
            return Delay(0.0)
        self._failures += 1
        cut_off = response is not None and not response.is_error
        if self._failures <= MAX_FAILURES and (cut_off or ApiRequest("GET", self._path).may_retry(outcome)):
            backoff = Delay.before_retry(self._failures, response)
            return Delay(self._retry_s if cut_off else min(self._retry_s, backoff.seconds))
        if response is not None and response.is_error:
            raise ProblemError.from_response(response)
        raise UnreachableError(
            f"{self._path}: the connection failed {self._failures} times without an event: {outcome}"
        )


def _next_step(steps: Steps[T], outcome: httpx.Response | Exception | None) -> ApiRequest | Delay:
    """Return the next request or delay of a client method, which is the generator `steps`.

    `outcome` is what the generator receives: the response to its last request, the exception
    instead of one, or None at the start and after a delay. Raises StopIteration, whose value is the
    result of the method, when the generator ends.
    """
    return steps.throw(outcome) if isinstance(outcome, Exception) else steps.send(outcome)


def _http_settings(url: str | None, key: str | None, timeout_s: float) -> dict[str, Any]:
    """Return the keyword arguments for `httpx.Client` and `httpx.AsyncClient`.

    If `url` or `key` is None, the environment variable `REVERIE_URL` or `REVERIE_KEY` is used, then
    `DEFAULT_URL` or no key. White space around the key is removed. Raises ValueError if the URL is
    not an HTTP address, or if the key has other characters than printable ASCII.
    """
    url = url or os.environ.get("REVERIE_URL") or DEFAULT_URL
    key = (os.environ.get("REVERIE_KEY", "") if key is None else key).strip()
    if not (key.isascii() and key.isprintable()):  # the message must not quote the key
        raise ValueError("the API key has a character that is not printable ASCII; copy the key again")
    example = f"write an address such as {DEFAULT_URL}"
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        reason = "" if "@" in url else f" ({error})"  # which quotes a part of the URL
        raise ValueError(f"{printable_url(url)!r} is not a valid URL{reason}; {example}") from None
    if address.scheme not in {"http", "https"} or not address.host:
        raise ValueError(f"{printable_url(url)!r} is not an HTTP address; {example}")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
    # to the object store of large results; httpx does not send the key to another host
    return {"base_url": address, "headers": headers, "timeout": timeout, "follow_redirects": True}
