"""The `Prefer` header of RFC 7240."""

import httpx
import pytest

from api.prefer import Prefer, preferences
from core.settings import Settings
from tests.api.helpers import TINY

SETTINGS = Settings(sync_timeout_s=10, max_sync_timeout_s=60)


@pytest.mark.parametrize(
    ("header", "wait_s", "applied"),
    [
        ("wait=5", 5, "wait=5"),
        ('WAIT = "5"', 5, "wait=5"),
        ("wait=60", 60, "wait=60"),
        ("wait=61", 60, "wait=60"),
        ("wait=" + "9" * 30, 60, "wait=60"),
        ("wait=" + "9" * 5000, 60, "wait=60"),
        ("wait=" + "0" * 30 + "7", 7, "wait=7"),
        ("wait=0", 0, "wait=0"),
        ("wait=000", 0, "wait=0"),
        ("respond-async, wait=20", 20, "wait=20"),
        ("wait=20;strict, respond-async", 20, "wait=20"),
        ("wait=3, wait=50", 3, "wait=3"),
        (r'wait="\1\2"', 12, "wait=12"),
        ("respond-async", 0, "respond-async"),
        ("return=minimal,Respond-Async;now", 0, "respond-async"),
        ('respond-async=""', 0, "respond-async"),
    ],
)
def test_a_preference_is_read_and_stated(header: str, wait_s: float, applied: str) -> None:
    """`wait` and `respond-async` are parsed in any case, quoted, and among others; a wait is
    reduced to the maximum.
    """
    assert Prefer.read(header, SETTINGS) == Prefer(wait_s, applied)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "wait",
        "wait=",
        'wait=""',
        "wait=-1",
        "wait=1.5",
        "wait=soon",
        "wait=5 5",
        "wait=\xb2",
        "await=5",
        "return=representation; wait=5",
        'note="a, wait=5, respond-async"',
        'note="wait=5',
        "respond-asynchronously",
        ';=,,;"\\',
    ],
)
def test_an_unknown_preference_is_ignored(header: str) -> None:
    """Unknown or malformed preferences are ignored: the default wait applies, and none is reported
    as applied.
    """
    assert Prefer.read(header, SETTINGS) == Prefer(10, "")
    assert Prefer.read(header, SETTINGS, default_s=25) == Prefer(25, "")


@pytest.mark.timeout(10)
@pytest.mark.parametrize("header", ["a" + " " * 60_000 + "x", '"' * 60_001, ", ;=" * 20_000, '"\\' * 30_000])
def test_a_long_header_costs_little(header: str) -> None:
    """The time to parse a header is linear in its length."""
    assert "wait" not in preferences(header)


def test_a_longer_wait_than_the_maximum_is_reduced_and_named(client: httpx.Client) -> None:
    """`Preference-Applied` has the wait that was applied, also of several Prefer headers."""
    body = {"model": TINY, "seed": 1}
    for headers, applied in (
        ([("Prefer", "wait=" + "9" * 30)], "wait=60"),
        ([("Prefer", "handling=lenient"), ("Prefer", 'wait="3600"')], "wait=60"),
    ):
        response = client.post("/v1/samples", json=body, headers=headers)
        assert (response.status_code, response.headers["preference-applied"]) == (200, applied)
    response = client.post("/v1/samples", json=body, headers={"Prefer": "wait=0"})
    assert (response.status_code, response.headers["preference-applied"]) == (202, "wait=0")
    assert response.headers["content-type"] == "application/json"
