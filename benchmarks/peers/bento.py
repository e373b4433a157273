"""BentoML in front of the generator, every dial from the environment.

A batchable endpoint takes and answers lists: a request carries a list of one seed, its answer is a list of one body.
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
    """Seeds in, bodies out; the dispatcher fits its batches to the latency it is allowed."""

    def __init__(self) -> None:
        self.generator = load()

    @bentoml.api(
        batchable=True,
        max_batch_size=int(os.environ["PEER_BATCH"]),
        max_latency_ms=int(os.environ["PEER_LATENCY_MS"]),
    )
    def predict(self, seeds: list[int]) -> list[dict[str, Any]]:
        """One forward pass over the seeds of a batch."""
        return run(self.generator, seeds)
