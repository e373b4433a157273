"""Serve the generator with LitServe; the settings are environment variables."""

import os
from typing import Any

import litserve
from fastapi import Response
from generator import Generator, encoded, load

BATCH = int(os.environ["PEER_BATCH"])


class Draw(litserve.LitAPI):
    """An API that turns seeds into JSON bodies, in batches of at most `PEER_BATCH`."""

    generator: Generator

    def setup(self, device: str) -> None:  # noqa: ARG002  # LitServe names the argument
        """Load the model into the inference worker."""
        self.generator = load()

    def decode_request(self, request: dict[str, Any]) -> int:
        """Return the seed; LitServe uses the argument's name and validates the body by its type."""
        return int(request["seed"])

    def batch(self, inputs: list[int]) -> list[int]:
        """Keep seeds as a list: the model stacks them itself."""
        return list(inputs)

    def predict(self, x: int | list[int]) -> bytes | list[bytes]:
        """Run one forward pass; LitServe passes a single seed when batching is off."""
        return encoded(self.generator, x) if isinstance(x, list) else encoded(self.generator, [x])[0]

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """Return the bodies unchanged: there is one per request."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """Return the body unchanged, so that the front process does not encode JSON again."""
        return Response(output, media_type="application/json")


if __name__ == "__main__":
    server = litserve.LitServer(
        Draw(max_batch_size=BATCH, batch_timeout=float(os.environ["PEER_WAIT_S"])),
        accelerator="cpu",
        workers_per_device=int(os.environ["PEER_WORKERS"]),
        fast_queue=os.environ["PEER_FAST_QUEUE"] == "1",
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PEER_PORT"]),
        num_api_servers=int(os.environ["PEER_FRONTS"]),
        generate_client_file=False,
        access_log=False,
        log_level="warning",
    )
