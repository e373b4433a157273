"""A worker that has just handled a message polls for the next one before it sleeps."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from kombu.asynchronous import Hub

from workers.inference import busy_poll as module
from workers.inference.busy_poll import DENSE_GAP_S, POLL_S, BusyPoll


class Loop:
    """A real event loop that receives bytes as messages; `waits` are the time-outs of its polls."""

    def __init__(self, busy_poll: BusyPoll) -> None:
        self.busy_poll = busy_poll
        self.hub = Hub()
        self.near, self.far = socket.socketpair()
        self.waits: list[float] = []
        self.requested = 0
        self.send_after = 0
        self.poll = self.hub.poller.poll
        self.hub.poller.poll = self.observed_poll  # before the hub's loop is created, which keeps this function
        busy_poll.register(self.hub)
        self.hub.on_tick.add(self.request)
        self.hub.add_reader(self.near, self.handle)

    def observed_poll(self, timeout: float) -> list[tuple[int, int]]:
        """Poll, and record the time-out."""
        self.waits.append(timeout)
        if len(self.waits) == self.send_after:
            self.far.send(b"m")
        ready: list[tuple[int, int]] = self.poll(timeout)
        return ready

    def request(self) -> None:
        """Count the calls of another callback on the loop, as the transport registers one."""
        self.requested += 1

    def handle(self) -> None:
        """Receive and handle one message."""
        self.near.recv(1)
        self.busy_poll.message_received()
        self.busy_poll.message_handled()

    def send(self) -> None:
        """Send a message and let the loop handle it."""
        self.far.send(b"m")
        self.hub.run_once()


@pytest.fixture
def loop() -> Iterator[Loop]:
    """An event loop that has been idle for long."""
    made = Loop(BusyPoll())
    yield made
    made.hub.close()
    made.near.close()
    made.far.close()


def test_it_does_not_sleep_between_messages_in_close_succession(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """After two messages in close succession the worker polls until the next one, after other
    callbacks have run.
    """
    monkeypatch.setattr(module, "DENSE_GAP_S", 60.0)
    monkeypatch.setattr(module, "POLL_S", 60.0)
    loop.send()
    assert 0 not in loop.waits
    loop.send()
    loop.waits.clear()
    loop.requested = 0
    loop.send_after = 10
    loop.hub.run_once()
    assert len(loop.waits) >= 10
    assert set(loop.waits[:-1]) == {0}
    assert loop.requested == 2


def test_it_sleeps_when_no_message_comes(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `POLL_S` without a message the worker waits for events instead of polling."""
    monkeypatch.setattr(module, "DENSE_GAP_S", 60.0)
    loop.send()
    loop.send()
    threading.Timer(0.2, loop.far.send, (b"m",)).start()
    started = time.perf_counter()
    loop.hub.run_once()
    assert time.perf_counter() - started > 10 * POLL_S
    assert loop.waits[-1] > 0


def test_it_sleeps_at_once_after_a_lone_message(loop: Loop) -> None:
    """After a message that came long after the previous one, the worker does not poll."""
    loop.send()
    time.sleep(5 * DENSE_GAP_S)
    loop.send()
    loop.waits.clear()
    loop.far.send(b"m")
    loop.hub.run_once()
    assert 0 not in loop.waits


def test_a_reconnection_registers_it_once(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registering again on the same hub, as after a reconnection, adds no callback."""
    monkeypatch.setattr(module, "DENSE_GAP_S", 60.0)
    callbacks = len(loop.hub.on_tick)
    loop.busy_poll.register(loop.hub)
    assert len(loop.hub.on_tick) == callbacks
    loop.send()
    loop.send()
    loop.send()
