"""What the service answers, as small frozen records; `body` holds all of what was said."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True)
class Record:
    """A JSON object of the service."""

    body: Mapping[str, Any] = field(repr=False)

    def __getitem__(self, name: str) -> Any:
        """Any field of the answer by its name."""
        return self.body[name]


@dataclass(frozen=True)
class Answer(Record):
    """What a model said: its fields by name, and which version said it with which seed."""

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.body["model"])

    @property
    def version(self) -> str:
        """The version that answered."""
        return str(self.body["version"])

    @property
    def seed(self) -> int:
        """Asked again with this seed, it gives the same bytes."""
        return int(self.body["seed"])

    @property
    def images(self) -> list[bytes]:
        """The pictures of the answer, as PNG files."""
        return [base64.b64decode(image) for image in self.body.get("images", ())]


@dataclass(frozen=True)
class Saved:
    """A file that came: where it lies, its bytes, and who made it with which seed, where it is a model's answer."""

    path: Path
    size_bytes: int
    media: str
    made_by: str = ""
    seed: int | None = None


@dataclass(frozen=True)
class Model(Record):
    """A model's card; `version` is the one that answers to the bare name."""

    @property
    def name(self) -> str:
        """Its name in requests."""
        return str(self.body["name"])

    @property
    def family(self) -> str:
        """The paper it follows."""
        return str(self.body["family"])

    @property
    def version(self) -> str:
        """The version that this card is of."""
        return str(self.body["version"])

    @property
    def versions(self) -> list[str]:
        """All versions that there are."""
        return list(self.body["versions"])

    @property
    def operations(self) -> Mapping[str, Any]:
        """What it can do, by the last part of the route, with the JSON Schema of the options."""
        return dict(self.body["operations"])

    @property
    def figures(self) -> list[Mapping[str, Any]]:
        """How good it was measured to be."""
        return list(self.body["figures"])


@dataclass(frozen=True)
class Version(Record):
    """One of a model's versions, which never change."""

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.body["model"])

    @property
    def version(self) -> str:
        """Its number; model@version pins it in requests."""
        return str(self.body["version"])

    @property
    def serves(self) -> bool:
        """Whether the bare name means this one."""
        return bool(self.body["serves"])

    @property
    def card(self) -> Model:
        """What it can do, how good it is, where it came from."""
        return Model(self.body["card"])


@dataclass(frozen=True)
class Job(Record):
    """A promise of the service and what has become of it."""

    @property
    def id(self) -> str:
        """Its name in calls."""
        return str(self.body["id"])

    @property
    def kind(self) -> str:
        """The operation, or "training"."""
        return str(self.body["kind"])

    @property
    def status(self) -> str:
        """One of queued, running, succeeded, failed, cancelled; of a training also paused."""
        return str(self.body["status"])

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in TERMINAL

    @property
    def progress(self) -> float:
        """The share that is done, 0…1."""
        return float(self.body["progress"])

    @property
    def model(self) -> str:
        """The model it is for."""
        return str(self.body.get("model") or "")

    @property
    def problem(self) -> Mapping[str, Any] | None:
        """Why it failed."""
        return self.body.get("problem")


@dataclass(frozen=True)
class Training(Job):
    """A job that makes a version of a model."""

    @property
    def family(self) -> str:
        """What is trained."""
        return str(self.body["family"])

    @property
    def dataset(self) -> str:
        """What it is trained on."""
        return str(self.body["dataset"])

    @property
    def version(self) -> str | None:
        """The version that it became, once it has succeeded."""
        return self.body["version"] or None


@dataclass(frozen=True)
class Dataset(Record):
    """What can be trained on."""

    @property
    def name(self) -> str:
        """Its name in calls."""
        return str(self.body["name"])

    @property
    def kind(self) -> str:
        """One of pictures, vectors, photographs."""
        return str(self.body["kind"])

    @property
    def counts(self) -> Mapping[str, int]:
        """How many there are in each part: train, validation, test."""
        return dict(self.body["counts"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one."""
        return self.body["channels"], self.body["height"], self.body["width"]

    @property
    def sha256(self) -> str:
        """The fingerprint of its arrays."""
        return str(self.body["sha256"])


@dataclass(frozen=True)
class Event:
    """Something that happened to a job: `kind` is status, progress, message, metrics, checkpoint or preview."""

    kind: str
    data: Mapping[str, Any]
    id: int | None = None
