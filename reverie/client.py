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
from typing import Any, Self, TypeVar

import httpx
from httpx_sse import EventSource

from reverie.event_stream import JobEventStream
from reverie.methods import ApiMethods
from reverie.methods.base import Steps
from reverie.records import Event
from reverie.requests import CONNECT_TIMEOUT_S, ApiRequest, Delay

T = TypeVar("T")
DEFAULT_URL = "http://127.0.0.1:8000"


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
        """Execute the requests and delays of a method one after the other; return the method's
        result.
        """
        try:
            step = next(steps)
            while True:
                try:
                    response = self._execute(step)
                except (httpx.TransportError, OSError) as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(response)
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            steps.close()

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

        `after` is the number of the last event that you have received. Raises ProblemError for an
        error response, and UnreachableError if reconnecting fails too often.
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
        """Take the same arguments as `Client`."""
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
        """Execute the requests and delays of a method one after the other; return the method's
        result.
        """
        try:
            step = next(steps)
            while True:
                try:
                    response = await self._execute(step)
                except (httpx.TransportError, OSError) as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(response)
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            steps.close()

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

        `after` is the number of the last event that you have received. Raises ProblemError for an
        error response, and UnreachableError if reconnecting fails too often.
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


def _http_settings(url: str | None, key: str | None, timeout_s: float) -> dict[str, Any]:
    """Return the arguments of both httpx clients.

    Raises ValueError if the URL is not an HTTP address.
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
