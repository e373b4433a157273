"""JSON responses, and the one body that every list has."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from starlette.responses import Response

from api.responses.render import JSON


def json_response(body: Any, headers: Mapping[str, str] | None = None, status: int = 200) -> Response:
    """Return a response with a JSON body."""
    return Response(orjson.dumps(body), status, headers, JSON)


def list_response(data: Sequence[Mapping[str, Any]], key: str, *, has_more: bool = False) -> Response:
    """Return a response with one page of a list; the field `key` of its last item is the cursor of the next page."""
    first, last = (str(data[0][key]), str(data[-1][key])) if data else (None, None)
    return json_response({"object": "list", "data": data, "has_more": has_more, "first_id": first, "last_id": last})
