"""JSON responses that a route builds itself: those whose status depends on what was found."""

from collections.abc import Mapping

from pydantic import BaseModel
from starlette.responses import Response

from api.responses.render import JSON


def json_response(body: BaseModel, headers: Mapping[str, str] | None = None, status: int = 200) -> Response:
    """Return a response with a JSON body, without the fields that were not set."""
    return Response(body.model_dump_json(exclude_unset=True), status, headers, JSON)
