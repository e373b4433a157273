"""Problems of unknown routes and methods."""

import httpx
import pytest

from api.errors import ALL, MEDIA_TYPE, TITLES
from tests.api.helpers import problem


def test_every_kind_owns_a_status_and_a_title() -> None:
    """Each error class has a status of its own and a title."""
    assert len(TITLES) == len(ALL)
    assert all(400 <= kind.status < 600 and kind.title for kind in ALL)
    assert MEDIA_TYPE == "application/problem+json"


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/nothing", "/v1/models/", "/v1/jobs/", "/docs/static/none.js"])
def test_an_unknown_route_is_a_problem(client: httpx.Client, path: str) -> None:
    """An unknown route is 404, which refers to `/docs`."""
    problem(client.get(path), 404, path, "/docs")


def test_a_long_unknown_route_is_not_repeated_whole(client: httpx.Client) -> None:
    """The detail of a 404 is short even if the path is long."""
    problem(client.get("/" + "x" * 5000), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/samples", "POST"),
        ("OPTIONS", "/v1/samples", "POST"),
        ("DELETE", "/v1/models", "GET"),
        ("PUT", "/v1/jobs", "GET"),
        ("OPTIONS", "/healthz", "GET"),
        ("POST", "/docs/static/swagger-ui.css", "GET"),
    ],
)
def test_another_method_is_a_problem(client: httpx.Client, method: str, path: str, allowed: str) -> None:
    """A method that a route does not have is 405, with the allowed ones."""
    body = problem(client.request(method, path), 405, method, allowed)
    assert body["title"] == "Method not allowed"


def test_head_is_get_without_the_body(client: httpx.Client) -> None:
    """HEAD returns the headers of GET; routes without GET and event streams reject it."""
    whole, head = client.get("/v1/models"), client.head("/v1/models")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))
    for path in ("/v1/samples", "/v1/jobs/job_0/events"):
        refused = client.head(path)
        assert (refused.status_code, refused.content) == (405, b"")
        assert refused.headers["content-type"] == MEDIA_TYPE
