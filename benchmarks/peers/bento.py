"""Serve the generator with BentoML; the settings are environment variables.

A batchable endpoint takes and returns lists: a request is a list of one seed, its response a list
of one body.
"""

from __future__ import annotations

import os
from typing import Any

import bentoml
from generator import load, run


@bentoml.service(
    workers=int(os.environ["PEER_WORKERS"]),
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Draw:
    """A service that turns seeds into response bodies; BentoML sizes the batches by
    the allowed latency.
    """

    def __init__(self) -> None:
        self.generator = load()

    @bentoml.api(
        batchable=True,
        max_batch_size=int(os.environ["PEER_BATCH"]),
        max_latency_ms=int(os.environ["PEER_LATENCY_MS"]),
    )
    def predict(self, seeds: list[int]) -> list[dict[str, Any]]:
        """Run one forward pass over the seeds of a batch."""
        return run(self.generator, seeds)
