"""The two clients: the methods of `Client` block, those of `AsyncClient` are awaited.

    with Client() as client:
        for number, png in enumerate(client.samples("vae-mnist", 4, seed=3).images):
            Path(f"digit-{number}.png").write_bytes(png)

Requests are retried when the service is busy or unreachable; `Retry-After` is respected. A retry
repeats no work: the client draws a seed if you give none, and a request that creates a job carries
an `Idempotency-Key`.
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
from reverie.requests import CONNECT_TIMEOUT_S, ApiRequest, Delay, path_of

T = TypeVar("T")
DEFAULT_URL = "http://127.0.0.1:8000"

# The service sends a comment every 15 s; a connection without data for longer than this is
# broken.
SILENCE_TIMEOUT_S = 45.0

# Failed connections in a row before the client gives up.
# A service that restarts is back by then.
MAX_FAILURES = 20


class Client(ApiMethods):
    """A client whose methods block until they are done."""

    def __init__(
        self, url: str | None = None, key: str | None = None, *, timeout_s: float = 60.0, retries: int = 5
    ) -> None:
        """Connect to the service at `url` with the API key `key`.

        Without them, the environment variables `REVERIE_URL` and `REVERIE_KEY` are used, then
        http://127.0.0.1:8000 and no key. `timeout_s` limits how long the service may send nothing,
        not how long a method may take. `retries` is the number of times that a request is sent
        again. Raises ValueError if `url` is not an HTTP address.
        """
        super().__init__(retries)
        self._http = httpx.Client(**_http_settings(url, key, timeout_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def run_steps(self, steps: Steps[T]) -> T:
        """Execute the requests and delays that the generator `steps` yields; return its result."""
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
        """Yield a job's events as they happen, until the job ends; reconnect when the connection
        breaks.

        `after` is the number of the last event that you have received; 0 yields all events. Raises
        ProblemError for an error response, and UnreachableError if reconnecting fails too often.
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
    """A client whose methods are awaited.

    Files are read and written on the event loop, in small chunks.
    """

    def __init__(
        self, url: str | None = None, key: str | None = None, *, timeout_s: float = 60.0, retries: int = 5
    ) -> None:
        """Connect to the service; the arguments are those of `Client`."""
        super().__init__(retries)
        self._http = httpx.AsyncClient(**_http_settings(url, key, timeout_s))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def run_steps(self, steps: Steps[T]) -> T:
        """Execute the requests and delays that the generator `steps` yields; return its result."""
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
        """Yield a job's events as they happen, until the job ends; reconnect when the connection
        breaks.

        `after` is the number of the last event that you have received; 0 yields all events. Raises
        ProblemError for an error response, and UnreachableError if reconnecting fails too often.
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
    """The state of an event stream over several connections.

    It records the last event that was received, and whether the job has ended (`ended`).
    """

    def __init__(self, job_id: str, after: int) -> None:
        """Start after event number `after`."""
        self.ended = False
        self._path = path_of("jobs", job_id, "events")
        self._last_id = after
        self._failures = 0
        self._retry_s = 2.0

    def build_request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Return the request for the events after the last event received."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(self._last_id)}
        return ApiRequest("GET", self._path, headers=headers, timeout_s=SILENCE_TIMEOUT_S).build(http)

    def receive(self, message: ServerSentEvent) -> Event | None:
        """Record a message of the stream and return its event, or None if it has none.

        Updates the state: `ended` becomes true with a final status, and the next connection starts
        after this event. A message may also set the delay before the next connection (`retry`).
        Messages after the final status are ignored: the result is None.
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
        """Return how long to wait before the next connection; update the state.

        `outcome` is the last response, or the error that ended it. Status 204 means that there are
        no more events, and sets `ended`. Raises ProblemError for an error response, and
        UnreachableError after too many failed connections.
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
    """Resume the generator `steps` with the outcome of its last step; return its next step.

    `outcome` is a response, an exception, or None at the start and after a delay. Raises
    StopIteration, whose value is the result of the client method, when the generator returns.
    """
    return steps.throw(outcome) if isinstance(outcome, Exception) else steps.send(outcome)


def _http_settings(url: str | None, key: str | None, timeout_s: float) -> dict[str, Any]:
    """Return the arguments of `httpx.Client` and `httpx.AsyncClient`.

    A `url` or `key` that is None is read from `REVERIE_URL` or `REVERIE_KEY`; see `Client`. Raises
    ValueError if the URL is not an HTTP address.
    """
    url = url or os.environ.get("REVERIE_URL") or DEFAULT_URL
    key = os.environ.get("REVERIE_KEY") if key is None else key
    example = f"write an address such as {DEFAULT_URL}"
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is not a valid URL ({error}); {example}") from error
    if address.scheme not in {"http", "https"} or not address.host:
        raise ValueError(f"{url!r} is not an HTTP address; {example}")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return {"base_url": address, "headers": headers, "timeout": httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)}
