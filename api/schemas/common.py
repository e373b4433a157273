"""Base classes and field types of all bodies, pages of lists, and problems."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, Field

from core.catalog.validation import whole
from core.outbound.addresses import MAX_URL

Item = TypeVar("Item", bound=BaseModel)

WHOLE = BeforeValidator(whole)
# For integers, after the bounds: `Annotated[int, Field(ge=…), WHOLE]`. JSON may write them as 4.0;
# 4.5, `true`, text and non-finite numbers are rejected.


class RequestBody(BaseModel, extra="forbid", strict=True):
    """A request body in JSON. Unknown fields and values of another type are rejected."""


URL = Field(
    max_length=MAX_URL,
    description="An http or https URL of a public address.",
    json_schema_extra={"pattern": "^https?://"},  # the check says more than that the pattern does not match
)


def add_files(**files: str) -> Callable[[dict[str, Any]], None]:
    """Return a `json_schema_extra` for a form: it adds file fields, of which the first is required.

    `files` are the descriptions of the fields, keyed by field name. Other fields are no longer
    nullable: a form leaves a field out, and has no null.
    """

    def add(schema: dict[str, Any]) -> None:
        for name, field in schema["properties"].items():
            schema["properties"][name] = _without_null(field)
        parts = {name: {"type": "string", "format": "binary", "description": text} for name, text in files.items()}
        schema["properties"] = parts | schema["properties"]
        schema["required"] = [next(iter(files)), *schema.get("required", [])]

    return add


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an optional field without the type null and the default None."""
    kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
    if "anyOf" not in field or len(kinds) == len(field["anyOf"]):
        return field
    others = {name: value for name, value in field.items() if name != "anyOf" and (name, value) != ("default", None)}
    return others | (kinds[0] if len(kinds) == 1 else {"anyOf": kinds})


class Resource(BaseModel, extra="allow"):
    """A response in JSON. It may have fields that are not declared, such as those of a model card."""


class Page(Resource, Generic[Item]):
    """A page of a list. `last_id` is the cursor of the next page (the query parameter `after`)."""

    object: Literal["list"]
    data: list[Item]
    has_more: bool
    first_id: str | None
    last_id: str | None

    @classmethod
    def of(cls, items: Sequence[Item], key: str, limit: int | None = None) -> Self:
        """Return a page with the first `limit` of the items; with all items if `limit` is None.

        The field `key` of an item is its cursor. If there are more than `limit` items, the page
        says that another page follows.
        """
        data = list(items[:limit])
        ids: list[str | None] = [str(getattr(item, key)) for item in data] or [None]
        return cls(object="list", data=data, has_more=len(items) > len(data), first_id=ids[0], last_id=ids[-1])


class FieldError(Resource):
    """An invalid field of a request, and what is wrong with it."""

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
