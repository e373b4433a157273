"""What the bodies of all resources share: strictness, lists and problems."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Item = TypeVar("Item", bound=BaseModel)


class RequestBody(BaseModel):
    """A JSON body: unknown fields and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


def add_files(**files: str) -> Callable[[dict[str, Any]], None]:
    """Return what adds files, each with its description, to the schema of a form; the first one is required."""

    def add(schema: dict[str, Any]) -> None:
        parts = {name: {"type": "string", "format": "binary", "description": text} for name, text in files.items()}
        schema["properties"] = parts | schema["properties"]
        schema["required"] = [next(iter(files)), *schema.get("required", [])]

    return add


class Resource(BaseModel):
    """A JSON response; cards and workers of other versions may add fields, which clients ignore."""

    model_config = ConfigDict(extra="allow")


class Page(Resource, Generic[Item]):
    """One page of a list: `last_id` is the cursor (`after`) of the next one."""

    object: Literal["list"]
    data: list[Item]
    has_more: bool
    first_id: str | None
    last_id: str | None

    @classmethod
    def of(cls, data: Sequence[Item], key: str, *, has_more: bool = False) -> Self:
        """Return a page of items, whose field `key` is the cursor."""
        first, last = (str(getattr(data[0], key)), str(getattr(data[-1], key))) if data else (None, None)
        return cls(object="list", data=list(data), has_more=has_more, first_id=first, last_id=last)


class FieldError(Resource):
    """What is wrong with one field."""

    field: str
    detail: str


class Problem(Resource):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str = Field(description="What happened and what would work.")
    request_id: str
    errors: list[FieldError] | None = None
