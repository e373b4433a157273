"""Whole floats such as 4.0 count as integers, as in JSON Schema."""

from __future__ import annotations

import math
from typing import Annotated, Any

import orjson
import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from api.schemas.common import WHOLE
from core.catalog.validation import canonical, whole, whole_numbers

SCHEMA = {
    "properties": {
        "size": {"type": "integer"},
        "limit": {"type": ["integer", "null"]},
        "heat": {"type": "number"},
        "sizes": {"type": "array", "items": {"type": "integer"}},
        "table": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
        "inner": {"type": "object", "properties": {"k": {"type": "integer"}}},
    }
}


class Body(BaseModel):
    """A strict request with one integer."""

    model_config = ConfigDict(strict=True)
    count: Annotated[int, WHOLE]


def test_whole_floats_become_ints_where_the_schema_has_integers() -> None:
    """Whole floats become ints in properties and nested lists, but not where fractions are
    allowed.
    """
    given = {"size": 4.0, "limit": 2.0, "heat": 1.0, "sizes": [8.0, 9], "table": [[1.0], [2, 3.0]], "inner": {"k": 5.0}}
    made = whole_numbers(SCHEMA, given)
    assert made == given
    assert repr(made) == repr(
        {"size": 4, "limit": 2, "heat": 1.0, "sizes": [8, 9], "table": [[1], [2, 3]], "inner": {"k": 5}}
    )
    other = {"size": True, "limit": None, "sizes": [4.5], "unknown": 4.0, "table": "no list"}
    assert repr(whole_numbers(SCHEMA, other)) == repr(other)


def test_the_content_hash_treats_4_and_4_0_alike() -> None:
    """4 and 4.0 have the same fingerprint at any depth, and so have -0.0 and 0."""
    assert repr(canonical({"a": 4.0, "b": [1.0, {"c": 2.5}], "d": -0.0, "e": "4.0", "f": True})) == repr(
        {"a": 4, "b": [1, {"c": 2.5}], "d": 0, "e": "4.0", "f": True}
    )


@pytest.mark.parametrize(
    "text", ["-9223372036854775808", "-9223372036854775809", "-1e19", "18446744073709551616", "1e300"]
)
def test_a_large_number_of_a_body_can_be_hashed(text: str) -> None:
    """Every number that orjson reads can be hashed, because `canonical` makes it one that orjson
    writes.
    """
    read = orjson.loads(f'{{"a": [{text}]}}')
    assert orjson.loads(orjson.dumps(canonical(read))) == read


@pytest.mark.parametrize("value", [4.5, math.inf, -math.inf, math.nan, True, None, "4", "4.0", [4], 1e300, -1e300])
def test_values_that_are_no_whole_numbers_are_rejected(value: Any) -> None:
    """Fractions, infinity, NaN, booleans and text are rejected as integers."""
    assert repr(whole(value)) == repr(value)
    with pytest.raises(ValidationError, match="valid integer"):
        Body(count=value)


@pytest.mark.parametrize(("value", "made"), [(4.0, 4), (4, 4), (-0.0, 0), (2.0**53, 2**53), (-3.0, -3)])
def test_a_whole_number_is_an_int(value: float, made: int) -> None:
    """The values 4 and 4.0 of an integer field both become the int 4."""
    count = Body(count=value).count  # type: ignore[arg-type]
    assert (count, type(count)) == (made, int)
