"""How a worker connects to the queue server again after an outage."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from celery.utils.imports import symbol_by_name
from kombu.connection import Connection

from core.broker.celery_app import app

FAILURES = 8


def test_a_worker_tries_every_second_to_reconnect() -> None:
    """The consumer that the configuration names never pauses longer between two tries, and goes on
    until the queue server replies.
    """
    consumer_class = symbol_by_name(app.conf.worker_consumer)
    consumer = consumer_class.__new__(consumer_class)  # connects, but is no part of a worker
    consumer.app, consumer.first_connection_attempt, consumer.broker_connection_retry_attempt = app, True, 0
    connection = Connection("memory://")
    establish = connection.transport.establish_connection
    pauses: list[float] = []

    def connect() -> Any:
        pauses.append(0.0)
        if len(pauses) <= FAILURES:
            raise connection.recoverable_connection_errors[0]
        return establish()

    def sleep(seconds: float) -> None:
        pauses[-1] += seconds

    with (
        patch.object(connection.transport, "establish_connection", connect),
        patch("kombu.utils.functional.sleep", sleep),
    ):
        assert consumer.ensure_connected(connection) is connection
    assert connection.connected
    assert pauses == [1.0] * FAILURES + [0.0]
    assert not consumer.first_connection_attempt
    connection.release()
