"""Studio, the web page at `/`: the files that `make studio` builds. They need no API key."""

from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.responses import HTMLResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from api.access import STUDIO_ASSETS, STUDIO_PAGES
from api.errors import NotFoundError

FOLDER = Path(__file__).parents[2] / "studio" / "dist"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FOREVER = "public, max-age=31536000, immutable"  # the name of a file has a hash of its content


class _AssetFiles(StaticFiles):
    """Serves the scripts and styles of Studio, which never change, also compressed by gzip."""

    async def check_config(self) -> None:
        """Accept a folder that does not exist: the page may be built later."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return the file at `path`, or its gzipped copy if there is one and the client accepts
        gzip.
        """
        if "gzip" in Headers(scope=scope).get("accept-encoding", ""):
            try:
                response = await super().get_response(f"{path}.gz", scope)
            except HTTPException:
                response = await super().get_response(path, scope)
            else:
                response.headers["Content-Encoding"] = "gzip"
        else:
            response = await super().get_response(path, scope)
        response.headers.update({"Cache-Control": _FOREVER, "Vary": "Accept-Encoding"})
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


def add_studio(app: FastAPI) -> None:
    """Add the page and its files to the application."""
    for path in STUDIO_PAGES:
        app.router.add_api_route(path, _get_page, include_in_schema=False, response_class=HTMLResponse)
    app.mount(STUDIO_ASSETS, _AssetFiles(directory=FOLDER / "assets", check_dir=False), name="studio-assets")


def _get_page() -> Response:
    """Return the page, which reads from its own address which area to show.

    The status is 404 if the page has not been built. The file is read for each request, so a
    running service shows a new build.
    """
    try:
        page = (FOLDER / "index.html").read_bytes()
    except FileNotFoundError:
        detail = "the page Studio is not built here; run `make studio` and load it again. The API is described at /docs"
        raise NotFoundError(detail) from None
    return HTMLResponse(page, headers={"Cache-Control": "no-cache", "Content-Security-Policy": _POLICY})
