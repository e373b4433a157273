"""JSON responses: fields that are not set are left out."""

from collections.abc import Mapping
from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.responses import Response

from api.responses.render import JSON


class JsonRoute(APIRoute):
    """A route whose function returns a model."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Leave out fields that are not set."""
        super().__init__(*args, **{**kwargs, "response_model_exclude_unset": True})


def json_response(body: BaseModel, headers: Mapping[str, str] | None = None, status: int = 200) -> Response:
    """Return a response with a JSON body, for a function whose status or headers depend on what it finds."""
    return Response(body.model_dump_json(exclude_unset=True), status, headers, JSON)
