"""`GET /docs`: the Swagger UI page, with all of its files served by this process."""

from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.staticfiles import StaticFiles

from api.html_headers import policy_of

router = APIRouter()

_STATIC = "/docs/static"


def mount_static_files(app: FastAPI) -> None:
    """Serve the scripts and styles of the documentation page."""
    app.mount(_STATIC, StaticFiles(directory=Path(fastapi_offline.__file__).parent / "static"), name="docs-static")


@router.get("/docs", include_in_schema=False)
async def get_docs() -> Response:
    """Return the Swagger UI page of this service's API."""
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Reverie",
        swagger_js_url=f"{_STATIC}/swagger-ui-bundle.js",
        swagger_css_url=f"{_STATIC}/swagger-ui.css",
        swagger_favicon_url=f"{_STATIC}/favicon.png",
    )
    page.headers["Content-Security-Policy"] = policy_of(bytes(page.body).decode())
    return page
