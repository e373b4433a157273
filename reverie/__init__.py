"""Provide the Python client of the Reverie service, and its command line `reverie`."""

from reverie.client import AsyncClient, Client
from reverie.errors import ReverieError

__all__ = ["AsyncClient", "Client", "ReverieError", "__version__"]

__version__ = "0.1.0"
