"""Measure the CPU time of one small synchronous request in the API process.

The request is `POST /v1/samples` for `vae-mnist-2d`.

    python benchmarks/request_path.py
        1 and 64 connections, this checkout
    python benchmarks/request_path.py --tree ../other
        the same of another checkout, for a comparison
    python benchmarks/request_path.py --profile
        where the time goes

Requests go through the real HTTP protocol, application, scheduler and sender. The transport is
memory, and the queue server and the worker are functions that complete each batch after
`--worker-ms`. The figure is the least CPU time of many repetitions, so that other work on the
machine matters little; it includes these stand-ins.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import cProfile
import gc
import os
import pstats
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODEL = "vae-mnist-2d"
ROWS = 64
PNG = bytes(300)


def parsed_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1], help="checkout to measure")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 64], help="open connections")
    parser.add_argument("--requests", type=int, default=500, help="requests of a repetition")
    parser.add_argument("--repeat", type=int, default=40, help="repetitions")
    parser.add_argument("--worker-ms", type=float, default=10.0, help="time of a batch, with several connections")
    parser.add_argument("--profile", action="store_true", help="print a profile instead of the times")
    return parser.parse_args()


class Worker:
    """A fake `PipelinedConnection`: it returns replies, and every batch completes by itself."""

    delay_s = 0.0
    batches = 0
    completions: list[bytes] = []  # noqa: RUF012 - shared by the two connections
    waiting: asyncio.Future[None] | None = None

    def __init__(self, *_: object) -> None:
        """Do nothing, because there is no server."""

    def close(self) -> None:
        """Do nothing."""

    async def command(self, *words: Any, **_: object) -> Any:
        """Return the reply to a command."""
        loop = asyncio.get_running_loop()
        if words[0] == "LPUSH":
            loop.call_later(Worker.delay_s, self._run, words[2])
        if words[0] != "XREAD":
            return 1
        if not Worker.completions:
            Worker.waiting = loop.create_future()
            await Worker.waiting
        found, Worker.completions = Worker.completions, []
        return [[b"stream", [[b"1-1", [b"note", data]] for data in found]]]

    @staticmethod
    def _run(message: bytes) -> None:
        import msgpack
        import orjson

        Worker.batches += 1
        batch = msgpack.unpackb(msgpack.unpackb(base64.b64decode(orjson.loads(message)["body"]))[0][0])
        outcomes = [{"fields": {"images": [PNG]}, "problem": None} for _ in batch["parts"]]
        done = {"kind": "done", "took": 0.001, "wide": False, "outcomes": outcomes}
        Worker.completions.append(msgpack.packb({**done, "batch": batch["id"], "worker": "worker"}))
        if Worker.waiting is not None and not Worker.waiting.done():
            Worker.waiting.set_result(None)


class Client:
    """A client on one connection, and its transport: it sends the next request
    after each response.
    """

    left = 0
    seed = 0
    finished: asyncio.Future[None]

    def __init__(self, protocol: asyncio.Protocol, connections: int) -> None:
        """Open the connection."""
        self._protocol = protocol
        self._connections = connections
        self._in_head = True
        protocol.connection_made(self)  # type: ignore[arg-type]

    def send(self) -> None:
        """Send a request."""
        Client.seed += 1
        body = b'{"model":"%s","seed":%d}' % (MODEL.encode(), Client.seed)
        head = b"POST /v1/samples HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nContent-Type: application/json\r\n"
        self._protocol.data_received(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    def write(self, data: bytes) -> None:
        """Receive the head of a response, then its body."""
        assert not self._in_head or data.startswith(b"HTTP/1.1 200"), data
        self._in_head = not self._in_head
        if self._in_head:
            Client.left -= 1
            if Client.left >= self._connections:
                asyncio.get_running_loop().call_soon(self.send)
            elif Client.left == 0:
                Client.finished.set_result(None)

    def get_extra_info(self, name: str) -> Any:
        """Return the addresses."""
        return {"peername": ("127.0.0.1", 50_000), "sockname": ("127.0.0.1", 8000)}.get(name)

    def is_closing(self) -> bool:
        """Return False."""
        return False

    def get_write_buffer_size(self) -> int:
        """Return 0."""
        return 0

    def pause_reading(self) -> None:
        """Do nothing."""

    resume_reading = close = abort = pause_reading


class Redis:
    """A fake redis-py client with one live worker."""

    def __getattr__(self, name: str) -> Any:
        """Return a command."""

        async def command(*_: object, **__: object) -> Any:
            from core.broker.codec import pack

            if name != "hgetall":
                return 0
            heartbeat = {"beat": time.monotonic_ns(), "at": time.time(), "running": [], "state": "ready"}
            return {b"worker": pack({**heartbeat, "capacity": {f"{MODEL}@1": {"sample": [ROWS, ROWS]}}})}

        return command


async def measured(tree: Path, connections: int, arguments: argparse.Namespace) -> None:
    """Print the CPU time of a request at a number of connections."""
    import uvicorn
    from uvicorn.server import ServerState

    from api.app import create_app
    from api.batching import batch_sender
    from api.http_protocol import limited_protocol
    from api.jobs import JobService
    from core.settings import Settings

    async def nothing(_: object) -> None:
        pass

    batch_sender.PipelinedConnection, batch_sender.connect_async = Worker, lambda _: Redis()
    JobService.start = JobService.stop = nothing  # type: ignore[method-assign]
    Worker.delay_s = 0.0 if connections == 1 else arguments.worker_ms / 1000
    with tempfile.TemporaryDirectory(prefix="request-path-") as state:
        settings = Settings(state=Path(state), checkpoints=tree / "checkpoints", log_level="warning")
        app = create_app(settings)
        protocol = limited_protocol(settings)
        config = uvicorn.Config(app, http=protocol, ws="none", access_log=False, log_config=None, proxy_headers=False)
        config.load()
        loop, server = asyncio.get_running_loop(), ServerState()
        async with app.router.lifespan_context(app):
            await asyncio.sleep(0.5)  # until the heartbeat of the worker is read
            clients = [Client(protocol(config, server, {}, loop), connections) for _ in range(connections)]

            async def draw(requests: int) -> float:
                Client.left, Client.finished = requests, loop.create_future()
                began = time.thread_time()
                for client in clients:
                    loop.call_soon(client.send)
                await Client.finished
                return (time.thread_time() - began) / requests

            await draw(arguments.requests)
            gc.collect()
            gc.freeze()
            Worker.batches = 0
            profile = cProfile.Profile()
            if arguments.profile:
                profile.enable()
            least_s = min([await draw(arguments.requests) for _ in range(arguments.repeat)])
            profile.disable()
            rows = arguments.requests * arguments.repeat / Worker.batches
            print(f"{connections} connections: {1e6 * least_s:.1f} µs a request, {rows:.1f} rows a batch")
            if arguments.profile:
                pstats.Stats(profile).sort_stats("tottime").print_stats(40)


def main() -> None:
    """Measure each number of connections."""
    import uvloop

    arguments = parsed_arguments()
    tree = arguments.tree.resolve()
    sys.path.insert(0, str(tree))
    os.chdir(tree)
    for connections in arguments.connections:
        uvloop.run(measured(tree, connections, arguments))


if __name__ == "__main__":
    main()
