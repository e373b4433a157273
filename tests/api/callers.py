"""Applications with API keys in the test process, and clients that send a key."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from api.app import create_app
from api.state import AppState
from core.settings import Settings
from tests.stack import free_port


def key_line(name: str, *more: str) -> str:
    """Return the line of a key file for the key `NAME-key`."""
    return ":".join([name, hashlib.sha256(f"{name}-key".encode()).hexdigest(), *more])


def key_file(folder: Path, *lines: str) -> Path:
    """Write a key file with these lines; return its path."""
    file = folder / "keys"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def bearer(name: str) -> dict[str, str]:
    """Return the Authorization header with the key `NAME-key`."""
    return {"Authorization": f"Bearer {name}-key"}


def app_settings(folder: Path, **settings: Any) -> Settings:
    """Return the settings of an application without workers, with its state in `folder`."""
    given = {
        "state": folder / "state",
        "checkpoints": Path("checkpoints"),
        "queue_url": f"redis://127.0.0.1:{free_port()}/0",
        "allowed_hosts": "x",
        "log_level": "info",
    }
    return Settings(**{**given, **settings})


def state_of(client: httpx.AsyncClient) -> AppState:
    """Return the services of the application that a client from `application` calls."""
    transport = client._transport
    assert isinstance(transport, httpx.ASGITransport)
    app: Any = transport.app
    state: AppState = app.state.services
    return state


@asynccontextmanager
async def application(settings: Settings, *names: str) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Run an application; yield one client per name, which sends the key of that name ("":
    none).
    """
    app = create_app(settings)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        transport = httpx.ASGITransport(app)
        yield [
            await stack.enter_async_context(
                httpx.AsyncClient(transport=transport, base_url="http://x", headers=bearer(name) if name else {})
            )
            for name in names
        ]
