"""A worker that has just worked looks for more before it sleeps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from workers.inference import tasks
from workers.inference.tasks import BUSY_POLL_S, busy_poll


class Poller:
    """Polls that find what they are told to, and remember how long each was ready to sleep; each takes 0.1 ms."""

    def __init__(self, found: list[list[int]]) -> None:
        self.found, self.timeouts, self.now = found, [], 5.0

    def poll(self, timeout: float | None) -> list[int]:
        """What comes next, or nothing."""
        self.timeouts.append(timeout)
        self.now += 1e-4
        return self.found.pop(0) if self.found else []


def test_it_does_not_sleep_right_after_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an event it looks again and again for a moment; long after one, or before the first, it sleeps at once."""
    poller = Poller([[], [1], [], [], [2]])
    monkeypatch.setattr(tasks, "time", SimpleNamespace(perf_counter=lambda: poller.now))
    busy_poll(SimpleNamespace(hub=SimpleNamespace(poller=poller)))
    assert poller.poll(1.0) == [1]
    assert poller.timeouts == [0, 1.0]
    assert poller.poll(1.0) == [2]
    assert poller.timeouts[2:] == [0, 0, 0]
    assert poller.poll(1.0) == []
    assert set(poller.timeouts[5:-1]) == {0}
    assert len(poller.timeouts[5:-1]) == pytest.approx(BUSY_POLL_S / 1e-4, abs=1)
    assert poller.timeouts[-1] == 1.0
