"""Reads the heartbeats of training workers, and sends the messages that wake them."""

import contextlib
import logging
from typing import Any

import redis

from core.broker.address import QueueAddress
from core.broker.codec import unpack
from core.broker.publisher import wake_training_workers
from core.catalog.recipes import TRAINER_TIMEOUT_S, TRAINING_WORKERS

log = logging.getLogger(__name__)


class TrainingWorkers:
    """Reads the heartbeats of training workers from their Redis database, and wakes the workers."""

    def __init__(self, url: str) -> None:
        """Store `url`, that of the Redis database that the training workers use."""
        self._url = url

    def start(self) -> None:
        """Create the Redis client, which connects when it sends its first command."""
        self._redis = QueueAddress.parse(self._url).async_client(socket_timeout=15, socket_connect_timeout=2)

    async def stop(self) -> None:
        """Close the connections to the Redis database."""
        await self._redis.aclose()

    async def wake(self) -> None:
        """Make idle training workers look for a job now, not only at their next poll."""
        with contextlib.suppress(redis.RedisError, OSError):
            async with self._redis.pipeline() as pipeline:
                for command in wake_training_workers():
                    pipeline.execute_command(*command)
                await pipeline.execute()

    async def live(self) -> dict[str, dict[str, Any]]:
        """Return the heartbeats of live training workers, keyed by worker id.

        Empty while the queue server is unreachable. A damaged heartbeat is logged and left out.
        """
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.time()
                pipeline.hgetall(TRAINING_WORKERS)
                (seconds, _), hashes = await pipeline.execute()
        except (redis.RedisError, OSError):
            return {}
        heartbeats = {}
        for name, data in hashes.items():
            try:
                heartbeat = unpack(data)
                if seconds - heartbeat["at"] < TRAINER_TIMEOUT_S:
                    heartbeats[name.decode()] = heartbeat
            except (ValueError, KeyError, TypeError) as error:
                log.warning("heartbeat not read", extra={"worker": repr(name), "reason": str(error)})
        return heartbeats

    async def runs(self, job_id: str) -> bool:
        """Return whether a live training worker runs a job, or still stores files of it."""
        return any(job_id in one.get("running", ()) for one in (await self.live()).values())

    async def count(self) -> int:
        """Return how many training workers are alive."""
        return len(await self.live())

    async def devices(self) -> int | None:
        """Return the number of devices of the live training worker that has the most.

        Returns None if no live worker reports its devices.
        """
        heartbeats = (await self.live()).values()
        return max((one["devices"] for one in heartbeats if one.get("devices")), default=None)
