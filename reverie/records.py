"""Define frozen records for the service's responses.

`body` of a record is the complete JSON object, and `record["name"]` any of its fields.
"""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, overload

T = TypeVar("T")
TERMINAL = frozenset({"succeeded", "failed", "cancelled"})


class Field(Generic[T]):
    """A descriptor of a record's attribute, which reads the JSON field of the same name."""

    def __init__(self, convert: Callable[[Any], T], doc: str) -> None:
        """Set the function that converts the JSON value, and the docstring of the attribute."""
        self._convert, self.__doc__ = convert, doc

    def __set_name__(self, _owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, record: None, owner: type) -> Self: ...

    @overload
    def __get__(self, record: "Record", owner: type) -> T: ...

    def __get__(self, record: "Record | None", owner: type) -> Self | T:
        return self if record is None else self._convert(record.body[self._name])


def _text_or_none(value: str | None) -> str | None:
    return value or None


@dataclass(frozen=True)
class Record:
    """A JSON object that the service returned."""

    body: Mapping[str, Any] = field(repr=False)

    def __getitem__(self, name: str) -> Any:
        """Return the field `name` of the JSON object; raise KeyError if there is none."""
        return self.body[name]


class OperationResult(Record):
    """The result of an operation; which fields it has depends on the operation."""

    model = Field(str, "The model's name.")
    version = Field(str, "The version that computed the result.")
    seed = Field(int, "The seed; the same request with this seed returns the same bytes.")

    @property
    def images(self) -> list[bytes]:
        """The images of the result as the bytes of PNG files; empty if it has none."""
        return [base64.b64decode(image) for image in self.body.get("images", ())]


@dataclass(frozen=True)
class SavedFile:
    """A file that the client has downloaded.

    `media` is its media type. `made_by` (a model@version) and `seed` are set for a model's result.
    """

    path: Path
    size_bytes: int
    media: str
    made_by: str = ""
    seed: int | None = None


class Caller(Record):
    """The owner of the API key in use, with the key's roles, limits and usage."""

    roles = Field(list[str], "The key's roles: read, run, train, admin.")
    limits = Field(dict[str, Any], "The key's limits by name; None means no limit.")
    usage = Field(dict[str, int], "How much of each limit is in use.")
    name = Field(_text_or_none, "The owner's name; None if the service uses no keys.")


class Model(Record):
    """The model card of a version."""

    name = Field(str, "The model's name.")
    family = Field(str, "The family: vae, bihm, ebgan, superres or one of your own.")
    version = Field(str, "The version that this card describes.")
    versions = Field(list[str], "All versions of the model.")
    operations = Field(dict[str, Any], "The operations by the last part of their route, with JSON Schemas of options.")
    figures = Field(list[Mapping[str, Any]], "How good the model is: name, value and unit of each measurement.")


class Version(Record):
    """A version of a model; a version never changes."""

    model = Field(str, "The model's name.")
    version = Field(str, "The version number; use it in requests as model@version.")
    serves = Field(bool, "Whether this is the active version, which requests without a version use.")
    card = Field(Model, "The version's card.")


class Job(Record):
    """A job: an operation or a training that the service runs in the background."""

    id = Field(str, "The job's id.")
    kind = Field(str, "The operation, training or publication.")
    status = Field(str, "queued, running, succeeded, failed or cancelled; a training may also be paused.")
    progress = Field(float, "The share that is done, from 0 to 1.")

    @property
    def position(self) -> int | None:
        """The place of a queued job in the order in which jobs start, 1 for the next job.

        None if the job is not queued or its place is not known.
        """
        return self.body.get("position")

    @property
    def waiting_reason(self) -> str | None:
        """A sentence why the job does not run now; None if it runs or the reason is not known."""
        return self.body.get("waiting_reason")

    @property
    def estimated_start_s(self) -> float | None:
        """The seconds until a queued job starts, as estimated when the job was read.

        None if there is no estimate.
        """
        return self.body.get("estimated_start_s")

    @property
    def estimated_remaining_s(self) -> float | None:
        """The seconds until a running job ends, as estimated when the job was read.

        None if there is no estimate.
        """
        return self.body.get("estimated_remaining_s")

    @property
    def ended(self) -> bool:
        """Whether the job has succeeded, failed or been cancelled."""
        return self.status in TERMINAL

    @property
    def model(self) -> str:
        """The name of the model that the job runs or trains; "" if there is none."""
        return str(self.body.get("model") or "")

    @property
    def problem(self) -> Mapping[str, Any] | None:
        """The reason why the job failed, as a problem (RFC 9457); None if it did not fail."""
        return self.body.get("problem")


class Delivery(Record):
    """A request to the webhook of a job; it is sent until it is accepted, for at most a day."""

    id = Field(str, "The `webhook-id` of every attempt.")
    event = Field(str, "job.running, job.paused, job.succeeded, job.failed or job.cancelled.")
    url = Field(str, "Where it is sent.")
    status = Field(str, "pending, delivered or failed.")
    attempts = Field(int, "How often it was sent.")
    error = Field(_text_or_none, "Why the last attempt failed.")


class Training(Job):
    """A job that trains a model on a dataset."""

    family = Field(str, "The model's family.")
    dataset = Field(str, "The dataset that the model is trained on.")
    version = Field(_text_or_none, "The version that the training published; None until it has succeeded.")


class Dataset(Record):
    """The description of a dataset, on which models can be trained."""

    name = Field(str, "The dataset's name.")
    kind = Field(str, "pictures, vectors or photographs.")
    counts = Field(dict[str, int], "The number of pictures in each split: train, validation, test.")
    sha256 = Field(str, "The SHA-256 of the dataset's arrays.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """The channels, height and width of each picture."""
        return self.body["channels"], self.body["height"], self.body["width"]


class DatasetImage(Record):
    """An image of a dataset: its index in a split, and its label."""

    index = Field(int, "The place in the split, from 0.")

    @property
    def label(self) -> int | None:
        """The label; None if the dataset has none."""
        return self.body.get("label")


@dataclass(frozen=True)
class Event:
    """An event of a job.

    `kind` is status, progress, message, metrics, checkpoint or preview. `data` has the fields of
    the event, and `id` its number in the job; preview events have no `id`, because they are not
    stored.
    """

    kind: str
    data: Mapping[str, Any]
    id: int | None = None
