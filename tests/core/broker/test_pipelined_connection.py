"""The pipelined connection to servers that are slow, silent, strict, or not queue servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import hiredis
import pytest
import redis

from core.broker.pipelined_connection import PipelinedConnection

Serve = Callable[["Peer"], Awaitable[None]]


class Peer:
    """The server's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._parser = hiredis.Reader()

    async def next(self) -> list[bytes]:
        """Return the next command. Raises EOFError."""
        while (command := self._parser.gets()) is False:
            data = await self._reader.read(4096)
            if not data:
                raise EOFError
            self._parser.feed(data)
        assert isinstance(command, list)
        return command

    async def nothing(self, seconds: float = 0.2) -> bool:
        """Return whether no command arrives for so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self.next()
        except TimeoutError:
            return True
        return False

    def say(self, data: bytes) -> None:
        """Send a reply."""
        self._writer.write(data)


@asynccontextmanager
async def server(serve: Serve, address: str = "redis://127.0.0.1:{}/0") -> AsyncIterator[PipelinedConnection]:
    """Run a server that handles each connection by `serve`; yield a connection to it."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(Peer(reader, writer))
        except EOFError:
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(accept, "127.0.0.1", 0)
    line = PipelinedConnection(address.format(listening.sockets[0].getsockname()[1]))
    try:
        yield line
    finally:
        line.close()
        listening.close()
        await asyncio.sleep(0.05)


async def echo(peer: Peer) -> None:
    """Reply to each command with its first argument, until the connection closes."""
    while True:
        _, word = await peer.next()
        peer.say(b"+%s\r\n" % word)


def test_no_command_goes_out_before_the_handshake_ends() -> None:
    """Concurrent commands wait for the replies to AUTH and SELECT."""

    async def strict(peer: Peer) -> None:
        assert await peer.next() == [b"AUTH", b"me", b"p@ss"]
        assert await peer.nothing()
        peer.say(b"+OK\r\n")
        assert await peer.next() == [b"SELECT", b"3"]
        assert await peer.nothing()
        peer.say(b"+OK\r\n")
        await echo(peer)

    async def whole() -> None:
        async with server(strict, "redis://me:p%40ss@127.0.0.1:{}/3") as line:
            replies = await asyncio.gather(*(line.command("ECHO", str(number)) for number in range(20)))
        assert replies == [str(number).encode() for number in range(20)]

    asyncio.run(whole())


def test_a_password_without_a_name_is_sent_alone() -> None:
    """A URL without a user name sends AUTH with the password only, as old servers require."""

    async def old(peer: Peer) -> None:
        assert await peer.next() == [b"AUTH", b"sesame"]
        peer.say(b"+OK\r\n")
        await echo(peer)

    async def whole() -> None:
        async with server(old, "redis://:sesame@127.0.0.1:{}") as line:
            assert await line.command("ECHO", "a") == b"a"

    asyncio.run(whole())


@pytest.mark.parametrize("reply", [b"-WRONGPASS no\r\n", b"-NOAUTH Authentication required.\r\n"])
def test_a_refused_handshake_fails_the_command(reply: bytes) -> None:
    """If the handshake is rejected, the command is not sent, and the next command tries again."""
    commands = []

    async def refusing(peer: Peer) -> None:
        while True:
            commands.append((await peer.next())[0])
            peer.say(reply)

    async def whole() -> None:
        async with server(refusing, "redis://:x@127.0.0.1:{}/1") as line:
            for _ in range(2):
                with pytest.raises(redis.ResponseError, match=r"WRONGPASS|NOAUTH"):
                    await line.command("LPUSH", "a", "b")
        assert commands == [b"AUTH", b"AUTH"]

    asyncio.run(whole())


def test_a_handshake_without_a_reply_ends() -> None:
    """A handshake without a reply raises TimeoutError."""

    async def silent(peer: Peer) -> None:
        while True:
            await peer.next()

    async def whole() -> None:
        async with server(silent, "redis://127.0.0.1:{}/1") as line:
            started = time.monotonic()
            with pytest.raises(redis.TimeoutError):
                await line.command("PING")
            assert time.monotonic() - started < 7

    asyncio.run(whole())


def test_a_reply_that_does_not_come_is_not_waited_for() -> None:
    """A command without a reply times out, with those behind it; later commands use a new
    connection.
    """
    connections = 0

    async def slow_at_first(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        if connections > 1:
            await echo(peer)
        await peer.next()
        await asyncio.sleep(3)
        peer.say(b"+late\r\n")
        await asyncio.sleep(1)

    async def whole() -> None:
        async with server(slow_at_first) as line:
            started = time.monotonic()
            replies = await asyncio.gather(
                line.command("ECHO", "a", timeout_s=0.3), line.command("ECHO", "b"), return_exceptions=True
            )
            assert time.monotonic() - started < 2.5  # the late reply comes after 3 s
            assert [type(reply) for reply in replies] == [redis.TimeoutError, redis.TimeoutError]
            for number in range(15):
                assert await line.command("ECHO", str(number)) == str(number).encode()
                await asyncio.sleep(0.05)

    asyncio.run(whole())


def test_a_cancelled_command_takes_its_own_reply() -> None:
    """The reply to a cancelled command is not given to the next one."""

    async def slow(peer: Peer) -> None:
        for _ in range(2):
            _, word = await peer.next()
            await asyncio.sleep(0.2)
            peer.say(b"+%s\r\n" % word)
        await echo(peer)

    async def whole() -> None:
        async with server(slow) as line:
            first = asyncio.create_task(line.command("ECHO", "first"))
            await asyncio.sleep(0.1)
            first.cancel()
            assert await line.command("ECHO", "second") == b"second"

    asyncio.run(whole())


@pytest.mark.parametrize("message", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+OK\r\n+unasked\r\n", b""])
def test_a_server_of_another_kind_breaks_the_connection(message: bytes) -> None:
    """Data that are not a reply, or a reply too many, close the connection with an error."""

    async def other(peer: Peer) -> None:
        await peer.next()
        peer.say(message)
        await asyncio.sleep(0.1)

    async def whole() -> None:
        async with server(other) as line:
            outcomes: list[Any] = []
            for _ in range(2):
                outcomes += await asyncio.gather(line.command("ECHO", "a"), return_exceptions=True)
                await asyncio.sleep(0.2)
            assert all(outcome == b"OK" or isinstance(outcome, redis.RedisError) for outcome in outcomes)

    asyncio.run(whole())
