"""A pipelined asyncio connection to the queue server, with a time-out for every command.

redis-py's asyncio client takes about half a millisecond per command, and a small request sends two
commands. `PipelinedConnection` uses only hiredis, a parser of Redis replies. Replies come in the
order of the commands. If a reply does not come in time, the connection is closed, so that a late
reply is not taken for the reply to another command.
"""

import asyncio
from collections import deque
from typing import Any, cast

import hiredis
import redis

from core.broker.address import QueueAddress

COMMAND_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2.0
_CHECK_S = 0.5  # how often commands without a reply are checked: a time-out may be late by as much


class PipelinedConnection:
    """A connection to the queue server; a command opens it if it is not open or has broken.

    If the connection breaks, its commands without a reply fail with `redis.ConnectionError`. If a
    reply does not come in time, all commands without a reply fail with `redis.TimeoutError`.
    """

    def __init__(self, url: str) -> None:
        """Prepare a connection to a URL (see `core.broker.address`); the first command connects."""
        self._address = QueueAddress.parse(url)
        self._ssl_context = self._address.ssl_context()
        self._stream: _Stream | None = None
        self._connecting = asyncio.Lock()

    async def command(self, *words: Any, timeout_s: float = COMMAND_TIMEOUT_S) -> Any:
        """Send a command and return its reply; wait for it at most `timeout_s` seconds.

        Raises RedisError if the server rejects the command, does not reply in time, or closes the
        connection; OSError if the server is unreachable.
        """
        stream = self._stream
        if stream is None or stream.closed:
            stream = await self._connected()
        return await stream.send(words, timeout_s)

    async def _connected(self) -> "_Stream":
        """Return the open connection; open one if there is none or if it has broken."""
        async with self._connecting:
            if self._stream is None or self._stream.closed:
                # only now may others use it: a command sent during the handshake would run in
                # database 0
                self._stream = await self._connect()
            return self._stream

    async def _connect(self) -> "_Stream":
        """Open a connection, authenticate and select the database; return it."""
        options = self._address.options
        loop = asyncio.get_running_loop()
        stream = _Stream(loop)
        host, port = await self._address.master()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                if "path" in options:
                    await loop.create_unix_connection(lambda: stream, options["path"])
                else:
                    await loop.create_connection(lambda: stream, host, port, ssl=self._ssl_context)
        except TimeoutError as error:
            raise redis.TimeoutError(f"no connection in {CONNECT_TIMEOUT_S:g} s") from error
        try:
            if options.get("password"):
                username = (options["username"],) if options.get("username") else ()
                await stream.send(("AUTH", *username, options["password"]), COMMAND_TIMEOUT_S)
            if options.get("db"):
                await stream.send(("SELECT", str(options["db"])), COMMAND_TIMEOUT_S)
        except BaseException:
            stream.abort(redis.ConnectionError("the handshake failed"))
            raise
        return stream

    def close(self) -> None:
        """Close the connection; commands without a reply fail with `redis.ConnectionError`."""
        if self._stream is not None:
            self._stream.abort(redis.ConnectionError("the connection was closed"))


class _Stream(asyncio.Protocol):
    """The asyncio protocol of one open connection.

    It keeps the commands that still wait for a reply, oldest first, and matches each reply to the
    oldest.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[asyncio.Future[Any], float, float]] = deque()
        self._transport: asyncio.Transport | None = None
        self._check: asyncio.TimerHandle | None = None
        self.closed = False

    def send(self, words: tuple[Any, ...], timeout_s: float) -> "asyncio.Future[Any]":
        """Send a command and return the future of its reply.

        The future fails if the connection is or becomes broken, or if the reply does not come
        within `timeout_s` seconds.
        """
        reply: asyncio.Future[Any] = self._loop.create_future()
        if self.closed or self._transport is None:
            reply.set_exception(redis.ConnectionError("the connection broke"))
            return reply
        self._waiting.append((reply, self._loop.time() + timeout_s, timeout_s))
        if self._check is None:
            self._check = self._loop.call_later(_CHECK_S, self._check_timeouts)
        self._transport.write(hiredis.pack_command(words))
        return reply

    def _check_timeouts(self) -> None:
        """Close the connection if a command has waited for its reply longer than its time-out."""
        self._check = None
        if not self._waiting:
            return
        now = self._loop.time()
        late = next((timeout_s for _, until, timeout_s in self._waiting if until < now), None)
        if late is None:
            self._check = self._loop.call_later(_CHECK_S, self._check_timeouts)
        else:
            self.abort(redis.TimeoutError(f"the queue server has not replied in {late:g} s"))

    def abort(self, error: redis.RedisError) -> None:
        """Close the connection; commands without a reply fail with `error`."""
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
                # marks it as retrieved: asyncio would log the error of a cancelled caller
                reply.exception()

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport, so that commands can be sent."""
        # a cast, because uvloop's transports are no subclasses
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse the replies in `data`; each one completes the oldest command without a reply.

        Data that is not the Redis protocol closes the connection.
        """
        self._reader.feed(data)
        while not self.closed:
            try:
                reply = self._reader.gets()
            except hiredis.ProtocolError as error:
                self.abort(redis.InvalidResponse(f"not the Redis protocol: {error}"))
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
        """Let the commands without a reply fail with `redis.ConnectionError`."""
        self.abort(redis.ConnectionError("the connection broke"))
