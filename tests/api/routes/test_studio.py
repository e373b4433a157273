"""The routes of Studio: the page, its files, and what the service says where it is not built."""

from __future__ import annotations

import asyncio
import gzip
import re
from pathlib import Path

import httpx
import pytest

from api.access import STUDIO_PAGES
from api.routes import studio
from tests.api.callers import app_settings, application, key_file, key_line
from tests.api.helpers import problem

SCRIPT = b"export const area = 'draw';\n" * 100


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a built page, which the next application serves."""
    folder = tmp_path / "dist"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text('<!doctype html><script type="module" src="/assets/page-1a2b.js"></script>')
    (folder / "assets" / "page-1a2b.js").write_bytes(SCRIPT)
    (folder / "assets" / "page-1a2b.js.gz").write_bytes(gzip.compress(SCRIPT))
    (folder / "assets" / "icon-3c4d.svg").write_text("<svg/>")
    monkeypatch.setattr(studio, "FOLDER", folder)
    return folder


def test_the_page_is_served_at_each_of_its_addresses(built: Path, tmp_path: Path) -> None:
    """With a policy that allows its own files only; other paths are problems as before."""

    async def visit() -> None:
        async with application(app_settings(tmp_path), "") as (client,):
            for path in (*STUDIO_PAGES, "/draw?model=vae-mnist&seed=3"):
                page = await client.get(path)
                assert (page.status_code, page.content) == (200, (built / "index.html").read_bytes())
                assert page.headers["content-type"] == "text/html; charset=utf-8"
                assert page.headers["cache-control"] == "no-cache"
                policy = dict(rule.split(" ", 1) for rule in page.headers["content-security-policy"].split("; "))
                assert policy["default-src"] == "'none'"
                assert {policy["script-src"], policy["style-src"], policy["connect-src"]} == {"'self'"}
                assert "unsafe" not in page.headers["content-security-policy"]
                assert page.headers["x-content-type-options"] == "nosniff"
                assert page.headers["x-frame-options"] == "DENY"
            for path in ("/v1/draw", "/v1/", "/drawing", "/draw/"):
                problem(await client.get(path), 404)
            assert (await client.head("/draw")).headers["cache-control"] == "no-cache"
            problem(await client.post("/draw"), 405)

    asyncio.run(visit())


@pytest.mark.usefixtures("built")
def test_its_files_are_kept_forever(tmp_path: Path) -> None:
    """They are sent compressed to clients that accept it; what is not there is a problem that no
    cache keeps.
    """

    async def visit() -> None:
        async with application(app_settings(tmp_path), "") as (client,):
            for accepted, encoding in (("gzip", "gzip"), ("identity", None)):
                file = await client.get("/assets/page-1a2b.js", headers={"Accept-Encoding": accepted})
                assert file.content == SCRIPT
                assert file.headers.get("content-encoding") == encoding
                assert re.fullmatch(r"(text|application)/javascript(; charset=utf-8)?", file.headers["content-type"])
                assert "immutable" in file.headers["cache-control"]
                assert file.headers["x-content-type-options"] == "nosniff"
                assert file.headers["vary"] == "Accept-Encoding"
            assert (await client.get("/assets/icon-3c4d.svg")).headers["content-type"] == "image/svg+xml"
            for path in ("/assets/page-9z.js", "/assets/", "/assets/../index.html", "/assets/%2e%2e/index.html"):
                missing = await client.get(path)
                problem(missing, 404)
                assert missing.headers["cache-control"] == "no-store"

    asyncio.run(visit())


@pytest.mark.usefixtures("built")
def test_no_key_is_needed(tmp_path: Path) -> None:
    """Only for the page and its files, also where the description of the API is not public."""

    async def visit() -> None:
        keys = key_file(tmp_path, key_line("ann"))
        async with application(app_settings(tmp_path, api_keys=keys, public_openapi=False), "") as (nobody,):
            for path in ("/", "/jobs", "/assets/page-1a2b.js"):
                assert (await nobody.get(path)).status_code == 200
            for path in ("/v1/models", "/v1/jobs", "/metrics", "/docs", "/assets", "/elsewhere"):
                problem(await nobody.get(path), 401)

    asyncio.run(visit())


def test_a_missing_build_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service starts without the page, and serves one that is built while it runs."""
    monkeypatch.setattr(studio, "FOLDER", tmp_path / "dist")

    async def visit() -> None:
        async with application(app_settings(tmp_path), "") as (client,):
            problem(await client.get("/"), 404, "make studio", "/docs")
            problem(await client.get("/assets/page-1a2b.js"), 404)
            (tmp_path / "dist" / "assets").mkdir(parents=True)
            (tmp_path / "dist" / "index.html").write_text("<!doctype html>")
            page: httpx.Response = await client.get("/")
            assert page.text == "<!doctype html>"

    asyncio.run(visit())
