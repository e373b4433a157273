"""A worker that has just worked looks for more before it sleeps."""

from __future__ import annotations

from types import SimpleNamespace

from workers.tasks import _stay_awake


class Poller:
    """Polls that find what they are told to, and remember how long each was ready to sleep."""

    def __init__(self, found: list[list[int]]) -> None:
        self.found, self.timeouts = found, []

    def poll(self, timeout: float | None) -> list[int]:
        """What comes next, or nothing."""
        self.timeouts.append(timeout)
        return self.found.pop(0) if self.found else []


def test_it_does_not_sleep_right_after_an_event() -> None:
    """After an event it looks again and again for a moment; long after one, or before the first, it sleeps at once."""
    poller = Poller([[], [1], [], [], [2]])
    _stay_awake(SimpleNamespace(hub=SimpleNamespace(poller=poller)))
    assert poller.poll(1.0) == [1]
    assert poller.timeouts == [0, 1.0]
    assert poller.poll(1.0) == [2]
    assert poller.timeouts[2:] == [0, 0, 0]
    assert poller.poll(1.0) == []
    assert poller.timeouts[-1] == 1.0
    assert len(poller.timeouts) > 10
