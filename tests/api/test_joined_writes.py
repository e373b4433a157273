"""Responses are sent in one system call, but nothing is delayed or lost by that."""

import asyncio
from typing import Any

import pytest
import uvloop

from api.joined_writes import JOIN_BYTES, JoinedWrites


class _Transport(asyncio.Transport):
    """Records the calls that reach the connection."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []
        self.closing = False

    def writelines(self, list_of_data: Any) -> None:
        self.calls.append(b"".join(list_of_data))

    def write_eof(self) -> None:
        self.calls.append("eof")

    def close(self) -> None:
        self.closing = True
        self.calls.append("close")

    def abort(self) -> None:
        self.closing = True
        self.calls.append("abort")

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return 100


def _after(act: Any) -> list[Any]:
    """Return the calls that reach a connection by the next iteration of the event loop after `act`."""

    async def run() -> list[Any]:
        transport = _Transport()
        act(JoinedWrites(transport, asyncio.get_running_loop()), transport)
        await asyncio.sleep(0)
        return transport.calls

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def test_writes_of_one_iteration_are_sent_together_in_their_order() -> None:
    """A response's head and body share a system call."""

    def act(writes: JoinedWrites, transport: _Transport) -> None:
        writes.write(b"head ")
        writes.write(b"body")
        assert transport.calls == []
        assert writes.get_write_buffer_size() == 109

    assert _after(act) == [b"head body"]


def test_a_head_without_a_body_is_sent_in_the_next_iteration() -> None:
    """Event streams send their head, and then each event, at once."""

    async def run() -> list[Any]:
        transport = _Transport()
        writes = JoinedWrites(transport, asyncio.get_running_loop())
        for part in (b"head", b"event"):
            writes.write(part)
            await asyncio.sleep(0)
        return transport.calls

    assert asyncio.run(run()) == [b"head", b"event"]


def test_a_flush_sends_at_once_and_only_once() -> None:
    """A complete response does not wait for the end of the iteration."""

    def act(writes: JoinedWrites, transport: _Transport) -> None:
        writes.write(b"response")
        writes.flush()
        assert transport.calls == [b"response"]
        assert writes.get_write_buffer_size() == 100

    assert _after(act) == [b"response"]


def test_large_writes_are_not_delayed() -> None:
    """Otherwise uvicorn would not know when a client reads too slowly."""

    def act(writes: JoinedWrites, transport: _Transport) -> None:
        writes.write(b"head")
        writes.write(bytes(JOIN_BYTES))
        assert transport.calls == [b"head" + bytes(JOIN_BYTES)]
        writes.write(b"rest")

    assert _after(act) == [b"head" + bytes(JOIN_BYTES), b"rest"]


@pytest.mark.parametrize(("end", "calls"), [("close", [b"last", "close"]), ("write_eof", [b"last", "eof"])])
def test_what_was_written_is_sent_before_the_end(end: str, calls: list[Any]) -> None:
    """Closing a connection loses nothing."""

    def act(writes: JoinedWrites, _: _Transport) -> None:
        writes.write(b"last")
        getattr(writes, end)()

    assert _after(act) == calls


def test_an_abort_drops_what_was_not_sent() -> None:
    """An aborted connection sends nothing more."""

    def act(writes: JoinedWrites, _: _Transport) -> None:
        writes.write(b"dropped")
        writes.abort()
        assert writes.get_write_buffer_size() == 100

    assert _after(act) == ["abort"]


def test_nothing_is_written_to_a_connection_that_was_closed_meanwhile() -> None:
    """uvloop would raise an exception."""

    def act(writes: JoinedWrites, transport: _Transport) -> None:
        writes.write(b"late")
        transport.closing = True

    assert _after(act) == []
