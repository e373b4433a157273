"""A job whose input was deleted or is damaged fails alone."""

from pathlib import Path

import numpy as np
import pytest

from core.broker.codec import pack
from core.jobs.records import Job
from core.settings import Settings
from tests.stack import share_plans
from workers.inference.context import InferenceContext
from workers.inference.jobs import JobRunner


def encoding(key: str) -> Job:
    """Return a job that encodes the one image in the blob `key`."""
    return Job(kind="encodings", model="vae-mnist-2d", version="1", method="encode", items_blob=key, seed=3)


@pytest.mark.parametrize(
    ("content", "state"),
    [(None, "missing"), (b"", "damaged"), (b"\xc1", "damaged"), (pack({"images": [1]})[:-1], "damaged")],
)
def test_a_job_without_its_input_fails_alone(tmp_path: Path, root: Path, content: bytes | None, state: str) -> None:
    """Of two jobs that are claimed together, the one whose input was deleted or is damaged fails
    with a text that says so, and the other one succeeds; a job that is claimed alone fails with the
    same text.
    """
    share_plans(tmp_path, tmp_path)
    settings = Settings(checkpoints=root / "checkpoints", state=tmp_path, queue_url="redis://127.0.0.1:1/0")
    context = InferenceContext(settings)
    assert context.load_model("vae-mnist-2d", "1", "encode").plans["encode"].largest > 1
    gone, kept = encoding("inputs/gone"), encoding("inputs/kept")
    if content is not None:
        context.blobs.put("inputs/gone", content)
    context.blobs.put("inputs/kept", pack({"images": np.zeros((1, 1, 28, 28), np.uint8)}))
    context.job_store.insert(gone, kept)
    runner = JobRunner(context)
    runner.run()
    failed, succeeded = (context.job_store.get(job.id) for job in (gone, kept))
    assert failed is not None
    assert succeeded is not None
    assert failed.co_batched
    assert succeeded.co_batched
    assert (succeeded.status, succeeded.problem) == ("succeeded", None)
    alone = encoding("inputs/gone")
    context.job_store.insert(alone)
    runner.run()
    for ended in (failed, context.job_store.get(alone.id)):
        assert ended is not None
        assert ended.status == "failed"
        assert f"the input of the job is {state}" in (ended.problem or {})["detail"]
        assert "send the request again" in (ended.problem or {})["detail"]
