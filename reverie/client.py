"""A typed client of the service: `Client` makes calls, `AsyncClient` awaits them.

    with Client() as reverie:
        for number, png in enumerate(reverie.samples("vae-mnist", 4, seed=3).images):
            Path(f"digit-{number}.png").write_bytes(png)

What is busy or cannot be reached is tried again, as `Retry-After` says, and in a way that does nothing twice: answers
follow from a seed that the client draws where none is given, and what begins a job carries an `Idempotency-Key`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from typing import Any, Self, TypeVar

import httpx

from reverie.calls import Calls, Steps, word
from reverie.records import Event
from reverie.wire import CONNECT_S, Ask, Following, Pause

T = TypeVar("T")
URL = "http://127.0.0.1:8000"


class Client(Calls):
    """Calls that return when they are done."""

    def __init__(self, url: str = URL, key: str | None = None, *, timeout_s: float = 60.0, retries: int = 5) -> None:
        """A service's address and the key it may want; `timeout_s` is the longest silence, not the longest wait."""
        super().__init__(retries)
        self._http = httpx.Client(**_settings(url, key, timeout_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def run(self, steps: Steps[T]) -> T:
        """Make a call's requests and pauses one after the other."""
        try:
            step = next(steps)
            while True:
                try:
                    said = self._make(step)
                except (httpx.TransportError, OSError) as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(said)
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            steps.close()

    def _make(self, step: Ask | Pause) -> httpx.Response | None:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        response = self._http.send(step.request(self._http), stream=True)
        try:
            with step.into.opened(response) if step.into else nullcontext() as file:
                if step.into is None or file is None:
                    response.read()
                else:
                    for chunk in response.iter_bytes():
                        step.into.write(file, chunk)
        finally:
            response.close()
        return response

    def events(self, job_id: str, after: int = 0) -> Iterator[Event]:
        """A job's events as they come, to its end; a lost connection goes on after the last one."""
        following = Following(word(job_id), after)
        while not following.over:
            try:
                with contextlib.closing(self._http.send(following.request(self._http), stream=True)) as response:
                    if response.is_error:
                        response.read()
                    else:
                        for chunk in response.iter_bytes():
                            yield from following.feed(chunk)
                pause = following.ended(response)
            except httpx.TransportError as error:
                pause = following.ended(error)
            self._make(pause)


class AsyncClient(Calls):
    """The same calls, awaited; files are read and written in between."""

    def __init__(self, url: str = URL, key: str | None = None, *, timeout_s: float = 60.0, retries: int = 5) -> None:
        """As `Client`."""
        super().__init__(retries)
        self._http = httpx.AsyncClient(**_settings(url, key, timeout_s))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def run(self, steps: Steps[T]) -> T:
        """Make a call's requests and pauses one after the other."""
        try:
            step = next(steps)
            while True:
                try:
                    said = await self._make(step)
                except (httpx.TransportError, OSError) as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(said)
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            steps.close()

    async def _make(self, step: Ask | Pause) -> httpx.Response | None:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        response = await self._http.send(step.request(self._http), stream=True)
        try:
            with step.into.opened(response) if step.into else nullcontext() as file:
                if step.into is None or file is None:
                    await response.aread()
                else:
                    async for chunk in response.aiter_bytes():
                        step.into.write(file, chunk)
        finally:
            await response.aclose()
        return response

    async def events(self, job_id: str, after: int = 0) -> AsyncIterator[Event]:
        """A job's events as they come, to its end; a lost connection goes on after the last one."""
        following = Following(word(job_id), after)
        while not following.over:
            try:
                response = await self._http.send(following.request(self._http), stream=True)
                async with contextlib.aclosing(response):
                    if response.is_error:
                        await response.aread()
                    else:
                        async for chunk in response.aiter_bytes():
                            for event in following.feed(chunk):
                                yield event
                pause = following.ended(response)
            except httpx.TransportError as error:
                pause = following.ended(error)
            await self._make(pause)


def _settings(url: str, key: str | None, timeout_s: float) -> dict[str, Any]:
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is no address ({error}); write one like {URL}") from error
    if address.scheme not in {"http", "https"} or not address.host:
        raise ValueError(f"{url!r} is no address; write one like {URL}")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return {"base_url": address, "headers": headers, "timeout": httpx.Timeout(timeout_s, connect=CONNECT_S)}
