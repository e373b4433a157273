"""One pipelined connection to the queue server on the event loop, with a time-out on every command.

hiredis speaks the protocol; redis-py's asyncio client costs half a millisecond a command, which a small request pays
twice. Replies come in the order of the commands, so a reply that does not come ends the connection: no later reply can
then be taken for it.
"""

import asyncio
from collections import deque
from typing import Any, cast

import hiredis
import redis
from redis.asyncio.connection import parse_url

COMMAND_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2.0
_CHECK_S = 0.5
"""How often the oldest unanswered commands are looked at: a time-out may be late by as much."""


class PipelinedConnection:
    """A connection that is made when it is needed, and made again after it broke.

    Commands in flight on a connection that breaks fail with `redis.ConnectionError`, one without a reply in time, and
    those behind it, with `redis.TimeoutError`.
    """

    def __init__(self, url: str) -> None:
        """Prepare; the first command connects. `url` is what redis-py's `from_url` takes."""
        self._address: dict[str, Any] = dict(parse_url(url))
        self._stream: _Stream | None = None
        self._connecting = asyncio.Lock()

    async def command(self, *words: Any, timeout_s: float = COMMAND_TIMEOUT_S) -> Any:
        """The reply to a command. Raises RedisError, or OSError where the server is away."""
        stream = self._stream
        if stream is None or stream.closed:
            stream = await self._connected()
        return await stream.send(words, timeout_s)

    async def _connected(self) -> "_Stream":
        async with self._connecting:
            if self._stream is None or self._stream.closed:
                # only now may others use it: a command sent during the handshake would run in database 0
                self._stream = await self._connect()
            return self._stream

    async def _connect(self) -> "_Stream":
        address = self._address
        loop = asyncio.get_running_loop()
        stream = _Stream(loop)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                if "path" in address:
                    await loop.create_unix_connection(lambda: stream, address["path"])
                else:
                    host, port = address.get("host", "127.0.0.1"), address.get("port", 6379)
                    # the class that redis-py would take says whether it is TLS
                    secure = "SSL" in getattr(address.get("connection_class"), "__name__", "") or None
                    await loop.create_connection(lambda: stream, host, port, ssl=secure)
        except TimeoutError as error:
            raise redis.TimeoutError(f"no connection in {CONNECT_TIMEOUT_S:g} s") from error
        try:
            if address.get("password"):
                name = (address["username"],) if address.get("username") else ()
                await stream.send(("AUTH", *name, address["password"]), COMMAND_TIMEOUT_S)
            if address.get("db"):
                await stream.send(("SELECT", str(address["db"])), COMMAND_TIMEOUT_S)
        except BaseException:
            stream.abort(redis.ConnectionError("the handshake failed"))
            raise
        return stream

    def close(self) -> None:
        """Close the connection; commands in flight fail."""
        if self._stream is not None:
            self._stream.abort(redis.ConnectionError("the connection was closed"))


class _Stream(asyncio.Protocol):
    """One connection's bytes, and the commands on it that wait for their replies."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[asyncio.Future[Any], float, float]] = deque()
        self._transport: asyncio.Transport | None = None
        self._check: asyncio.TimerHandle | None = None
        self.closed = False

    def send(self, words: tuple[Any, ...], timeout_s: float) -> "asyncio.Future[Any]":
        """Send a command; the future holds its reply."""
        reply: asyncio.Future[Any] = self._loop.create_future()
        if self.closed or self._transport is None:
            reply.set_exception(redis.ConnectionError("the connection broke"))
            return reply
        self._waiting.append((reply, self._loop.time() + timeout_s, timeout_s))
        if self._check is None:
            self._check = self._loop.call_later(_CHECK_S, self._check_time)
        self._transport.write(hiredis.pack_command(words))
        return reply

    def _check_time(self) -> None:
        self._check = None
        if not self._waiting:
            return
        now = self._loop.time()
        late = next((timeout_s for _, until, timeout_s in self._waiting if until < now), None)
        if late is None:
            self._check = self._loop.call_later(_CHECK_S, self._check_time)
        else:
            self.abort(redis.TimeoutError(f"the queue server has not replied in {late:g} s"))

    def abort(self, error: redis.RedisError) -> None:
        """Close the connection; what waits for a reply fails with this error."""
        self.closed = True
        if self._check is not None:
            self._check.cancel()
            self._check = None
        if self._transport is not None:
            self._transport.abort()
        while self._waiting:
            reply, *_ = self._waiting.popleft()
            if not reply.done():
                reply.set_exception(error)
                reply.exception()  # marks it as seen: whoever waited may be gone, which is no fault to report

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods alone

    def data_received(self, data: bytes) -> None:
        """Complete the oldest commands with the replies that have come."""
        self._reader.feed(data)
        while not self.closed:
            try:
                reply = self._reader.gets()
            except hiredis.ProtocolError as error:
                self.abort(redis.InvalidResponse(f"no Redis protocol: {error}"))
                return
            if reply is False:
                return
            if not self._waiting:
                self.abort(redis.InvalidResponse("a reply without a command"))
                return
            waiting, *_ = self._waiting.popleft()
            if waiting.done():
                continue  # cancelled meanwhile
            if isinstance(reply, hiredis.ReplyError):
                waiting.set_exception(redis.ResponseError(str(reply)))
            else:
                waiting.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Fail what waits."""
        self.abort(redis.ConnectionError("the connection broke"))
