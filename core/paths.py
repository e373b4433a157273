"""Paths in the state folder."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StatePaths:
    """Paths below the state folder that several programs of the service use."""

    state: Path

    def run(self, job_id: str) -> Path:
        """Return the folder of a training's run."""
        return self.state / "runs" / job_id

    def auxiliary_job(self, job_id: str) -> Path:
        """Return the folder of an auxiliary job's files; it is removed when the job ends."""
        return self.state / "scratch" / job_id

    @property
    def datasets(self) -> Path:
        """The folder of datasets."""
        return self.state / "datasets"

    @property
    def checkpoints(self) -> Path:
        """The folder of model versions made by this service."""
        return self.state / "checkpoints"

    @property
    def families(self) -> Path:
        """The file with descriptions of extra families, which a training worker writes."""
        return self.state / "families.json"
