"""What the service answers, as small frozen records; `body` holds all of what was said."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, overload

T = TypeVar("T")
TERMINAL = frozenset({"succeeded", "failed", "cancelled"})


class Field(Generic[T]):
    """A field of a record by its own name, as a type."""

    def __init__(self, kind: Callable[[Any], T], said: str) -> None:
        """`kind` makes the value of what JSON holds, `said` tells what it is."""
        self._kind, self.__doc__ = kind, said

    def __set_name__(self, _owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, record: None, owner: type) -> Self: ...

    @overload
    def __get__(self, record: Record, owner: type) -> T: ...

    def __get__(self, record: Record | None, owner: type) -> Self | T:
        return self if record is None else self._kind(record.body[self._name])


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

    model = Field(str, "The model's name.")
    version = Field(str, "The version that answered.")
    seed = Field(int, "Asked again with this seed, it gives the same bytes.")

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
class Caller(Record):
    """Whose key is sent, and what it may do; `name` is None where the service uses no keys."""

    roles = Field(list[str], "Of read, run, train and admin.")
    limits = Field(dict[str, Any], "What there may be of each thing; None is no limit.")
    usage = Field(dict[str, int], "How much of it there is.")

    @property
    def name(self) -> str | None:
        """The name that its jobs, datasets and models are kept under."""
        name: str | None = self.body["name"]
        return name


@dataclass(frozen=True)
class Model(Record):
    """A model's card; `version` is the one that answers to the bare name."""

    name = Field(str, "Its name in requests.")
    family = Field(str, "The paper it follows.")
    version = Field(str, "The version that this card is of.")
    versions = Field(list[str], "All versions that there are.")
    operations = Field(dict[str, Any], "What it can do, by the last part of the route, with its options' JSON Schema.")
    figures = Field(list[Mapping[str, Any]], "How good it was measured to be.")


@dataclass(frozen=True)
class Version(Record):
    """One of a model's versions, which never change."""

    model = Field(str, "The model's name.")
    version = Field(str, "Its number; model@version pins it in requests.")
    serves = Field(bool, "Whether the bare name means this one.")

    @property
    def card(self) -> Model:
        """What it can do, how good it is, where it came from."""
        return Model(self.body["card"])


@dataclass(frozen=True)
class Job(Record):
    """A promise of the service and what has become of it."""

    id = Field(str, "Its name in calls.")
    kind = Field(str, "The operation, or training.")
    status = Field(str, "One of queued, running, succeeded, failed, cancelled; of a training also paused.")
    progress = Field(float, "The share that is done, 0…1.")

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in TERMINAL

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

    family = Field(str, "What is trained.")
    dataset = Field(str, "What it is trained on.")

    @property
    def version(self) -> str | None:
        """The version that it became, once it has succeeded."""
        return self.body["version"] or None


@dataclass(frozen=True)
class Dataset(Record):
    """What can be trained on."""

    name = Field(str, "Its name in calls.")
    kind = Field(str, "One of pictures, vectors, photographs.")
    counts = Field(dict[str, int], "How many there are in each part: train, validation, test.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one."""
        return self.body["channels"], self.body["height"], self.body["width"]

    sha256 = Field(str, "The fingerprint of its arrays.")


@dataclass(frozen=True)
class Event:
    """Something that happened to a job: `kind` is status, progress, message, metrics, checkpoint or preview."""

    kind: str
    data: Mapping[str, Any]
    id: int | None = None
