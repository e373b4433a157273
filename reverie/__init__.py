"""A client of the service, for programs (`Client`, `AsyncClient`) and for people (the command `reverie`)."""

from reverie.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]
