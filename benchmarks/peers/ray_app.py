"""Serve the generator with Ray Serve; the settings are environment variables."""

import os

import ray
from generator import encoded, load
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(
    num_replicas=int(os.environ["PEER_WORKERS"]),
    max_ongoing_requests=256,
    ray_actor_options={"num_cpus": 0.5},
)
class Draw:
    """A deployment that turns seeds into JSON bodies. Each replica batches its requests."""

    def __init__(self) -> None:
        self.generator = load()

    @serve.batch(max_batch_size=int(os.environ["PEER_BATCH"]), batch_wait_timeout_s=float(os.environ["PEER_WAIT_S"]))
    async def predict(self, seeds: list[int]) -> list[bytes]:
        """Run one forward pass over the seeds of a batch."""
        return encoded(self.generator, seeds)

    async def __call__(self, request: Request) -> Response:
        """Read the seed and return the body's bytes."""
        seed = (await request.json())["seed"]
        return Response(await self.predict(seed), media_type="application/json")


if __name__ == "__main__":
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 << 20,
        _temp_dir=os.path.join(os.environ["PEER_SCRATCH"], "ray"),  # noqa: PTH118  # Ray wants a string
    )
    quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PEER_PORT"])}, logging_config=quiet)
    serve.run(Draw.bind(), route_prefix="/predict", blocking=True, logging_config=quiet)
