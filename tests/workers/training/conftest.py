"""A training worker for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.settings import Settings
from tests.datasets import digits
from workers.training.worker import TrainingWorker


@pytest.fixture
def trainer(tmp_path: Path) -> TrainingWorker:
    """A training worker without a queue server, which it does not need."""
    settings = Settings(
        state=tmp_path, checkpoints=tmp_path / "none", queue_url="redis://127.0.0.1:1/0", training_device="cpu"
    )
    worker = TrainingWorker(settings)
    digits(worker.context.paths.datasets)
    return worker
