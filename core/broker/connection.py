"""Create clients of the queue server, read its streams, and send commands without waiting."""

import logging
from typing import Any

import redis

from core.broker.address import QueueAddress, next_database
from core.settings import Settings

log = logging.getLogger(__name__)


def training_queue(settings: Settings) -> str:
    """Return the URL of the Redis database by which training workers are woken.

    Raises ValueError if it follows from the URL of the queue server, which is not valid.
    """
    return settings.training_queue_url or next_database(settings.queue_url)


def connect(settings: Settings, *, training: bool = False) -> redis.Redis:
    """Return a blocking client of the queue server.

    With `training`, it uses the Redis database whose messages wake training workers; otherwise the
    database with the queues of inference workers.
    """
    address = QueueAddress.parse(training_queue(settings) if training else settings.queue_url)
    return address.client(socket_timeout=5, health_check_interval=15, **_tcp_options(address))


def connect_async(settings: Settings) -> redis.asyncio.Redis:
    """Return an asyncio client of the queue server, for the queues of inference workers."""
    address = QueueAddress.parse(settings.queue_url)
    return address.async_client(socket_timeout=15, **_tcp_options(address))


def _tcp_options(address: QueueAddress) -> dict[str, Any]:
    """Return options that connections have by TCP only, not by a Unix socket."""
    return {} if "path" in address.options else {"socket_connect_timeout": 2, "socket_keepalive": True}


def server_time(client: redis.Redis) -> float:
    """Return the Unix time of the queue server, which dates heartbeats: clocks of hosts may differ.

    Raises RedisError if the server cannot be reached.
    """
    seconds, microseconds = client.time()
    return float(seconds) + float(microseconds) / 1e6


def stream_entries(reply: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Return (id, fields) of each entry in redis-py's reply to an XREAD of one stream.

    The reply has different forms with the protocols RESP2 and RESP3, and is None without entries.
    """
    if not reply:
        return []
    streams = reply.values() if isinstance(reply, dict) else [entries for _, entries in reply]
    flat = [entry for entries in streams for entry in entries]
    return [
        pair
        for entry in flat
        for pair in (entry if isinstance(entry, list) and isinstance(entry[0], tuple | list) else [entry])
    ]


class FireAndForgetClient:
    """Sends commands without waiting for their replies. Use it in one thread only.

    The replies are read before the next command is sent. If the connection breaks, commands may be
    lost, and the next command connects again. The caller must repeat commands that matter.
    """

    def __init__(self, client: redis.Redis) -> None:
        """Prepare to send; the first command takes a connection from the pool of `client`."""
        self._pool = client.connection_pool
        self._connection: Any = None
        self._unread_replies = 0

    def send(self, *command: Any) -> None:
        """Send a command; if the connection is broken, connect again and send it once more.

        Raises RedisError if that fails as well. If the server has rejected an earlier command, that
        is only logged.
        """
        try:
            while self._unread_replies:
                self._unread_replies -= 1
                try:
                    self._connection.read_response()
                except redis.ResponseError as error:  # of an earlier command
                    log.warning("command rejected by the queue server", extra={"reason": str(error)})
            self._send(command)
        except (redis.ConnectionError, redis.TimeoutError):
            self._disconnect()
            self._send(command)

    def _send(self, command: tuple[Any, ...]) -> None:
        """Send a command; take a connection from the pool if none is open."""
        if self._connection is None:
            self._connection = self._pool.get_connection()
        self._connection.send_command(*command)
        self._unread_replies += 1

    def _disconnect(self) -> None:
        connection, self._connection, self._unread_replies = self._connection, None, 0
        if connection is not None:
            connection.disconnect()
            self._pool.release(connection)
