"""Paths in the state folder that more than one part of the service uses."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StatePaths:
    """Paths below the state folder of jobs, datasets and models."""

    state: Path

    def run(self, job_id: str) -> Path:
        """Return the folder of a training's run."""
        return self.state / "runs" / job_id

    def auxiliary_job(self, job_id: str) -> Path:
        """Return the folder of an auxiliary job's files, which is removed after it."""
        return self.state / "scratch" / job_id

    @property
    def datasets(self) -> Path:
        """The folder of datasets."""
        return self.state / "datasets"

    @property
    def checkpoints(self) -> Path:
        """The folder of versions made by this service."""
        return self.state / "checkpoints"

    @property
    def families(self) -> Path:
        """The descriptions of the families in the folder of extra models, which a training worker
        writes.
        """
        return self.state / "families.json"
