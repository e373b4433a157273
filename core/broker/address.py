"""Parse the URL of the queue server: plain TCP, TLS, a Unix socket, or Redis Sentinel.

| URL | server |
| --- | --- |
| `redis://USER:PASSWORD@HOST:PORT/DB` | TCP |
| `rediss://…?ssl_ca_certs=FILE` | TLS; `ssl_cert_reqs`, `ssl_certfile`, `ssl_keyfile` and so on as in redis-py |
| `unix://USER:PASSWORD@/PATH?db=DB` | Unix socket |
| `sentinel://USER:PASSWORD@HOST:PORT,HOST:PORT/DB?master_name=NAME` | the current master of Redis Sentinels |

Options in the query are those of redis-py's `from_url`. With Sentinel, `sentinel_username` and
`sentinel_password` are the Sentinels' own credentials, and the others are the master's.
"""

import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import redis
from kombu.utils.url import as_url
from redis.connection import parse_url

DEFAULT_PORT, DEFAULT_SENTINEL_PORT = 6379, 26379
_SENTINEL = "sentinel"
_SENTINEL_TIMEOUT_S = 1.0  # how long one Sentinel may take to reply, before the next one is tried


def next_database(url: str) -> str:
    """Return the URL of the same queue server with the next database number.

    Raises ValueError if `url` is not a URL of a queue server.
    """
    number = QueueAddress.parse(url).options.get("db", 0) + 1
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    if parts.scheme == "unix" or "db" in dict(query):
        others = [(name, value) for name, value in query if name != "db"]
        return f"{url.partition('?')[0]}?{urlencode([*others, ('db', number)], quote_via=quote)}"
    return parts._replace(path=f"/{number}").geturl()


@dataclass(frozen=True)
class QueueAddress:
    """A parsed URL of the queue server.

    `options` are redis-py's arguments for the connection to the server or, with Sentinel, to the
    master. `sentinel_options` are its arguments for the connections to the Sentinels.
    """

    options: dict[str, Any]
    url: str = ""
    tls: bool = False
    sentinels: tuple[tuple[str, int], ...] = ()
    master_name: str = ""
    sentinel_options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str) -> "QueueAddress":
        """Parse a URL of the queue server, in a form that the docstring of this module lists.

        Raises ValueError for any other URL.
        """
        if urlsplit(url).scheme == _SENTINEL:
            return cls._parse_sentinel(url)
        options: dict[str, Any] = dict(parse_url(url))
        connection_class = options.pop("connection_class", redis.Connection)
        return cls(options, url, tls=issubclass(connection_class, redis.SSLConnection))

    @classmethod
    def _parse_sentinel(cls, url: str) -> "QueueAddress":
        parts = urlsplit(url)
        credentials, at, hosts = parts.netloc.rpartition("@")
        addresses = [urlsplit(f"redis://{host}") for host in hosts.split(",")]
        sentinels = tuple((one.hostname or "127.0.0.1", one.port or DEFAULT_SENTINEL_PORT) for one in addresses)
        # redis-py parses all the rest, on a URL with a made-up host
        redis_url = parts._replace(scheme="redis", netloc=f"{credentials}{at}host").geturl()
        options: dict[str, Any] = dict(parse_url(redis_url))
        del options["host"]
        names = ("username", "password")
        own = {name: value for name in names if (value := options.pop(f"sentinel_{name}", None))}
        if not (master_name := options.pop("master_name", "")):
            raise ValueError("a sentinel:// URL needs ?master_name=NAME")
        tls = str(options.pop("ssl", "")).lower() == "true"
        return cls(options, tls=tls, sentinels=sentinels, master_name=master_name, sentinel_options=own)

    @property
    def name(self) -> str:
        """A name of the server for messages, without credentials.

        It is HOST:PORT, the path of a Unix socket, or the master's name and the Sentinels.
        """
        if self.sentinels:
            return f"{self.master_name} by way of " + ", ".join(f"{host}:{port}" for host, port in self.sentinels)
        return str(self.options.get("path") or "{}:{}".format(*self.host_port))

    @property
    def host_port(self) -> tuple[str, int]:
        """Host and port of the server, or of the first Sentinel.

        For a Unix socket, which has none, they are arbitrary defaults.
        """
        if self.sentinels:
            return self.sentinels[0]
        return self.options.get("host", "127.0.0.1"), self.options.get("port", DEFAULT_PORT)

    # --- clients ---

    def client(self, **options: Any) -> redis.Redis:
        """Return a blocking client, which connects with its first command.

        `options` are redis-py's connection arguments; they override those of the URL.
        """
        if self.sentinels:
            sentinel = redis.Sentinel(self.sentinels, sentinel_kwargs=self._client_sentinel_kwargs())
            return sentinel.master_for(self.master_name, **self._client_options(), **options)  # type: ignore[no-any-return]
        return redis.Redis.from_url(self.url, **options)  # unlike Redis(…), without retries

    def async_client(self, **options: Any) -> redis.asyncio.Redis:
        """Return an asyncio client, which connects with its first command.

        `options` are redis-py's connection arguments; they override those of the URL.
        """
        if self.sentinels:
            options = {**self._client_options(), **options}
            return self._async_sentinel().master_for(self.master_name, **options)  # type: ignore[no-any-return]
        return redis.asyncio.Redis.from_url(self.url, **options)

    async def master(self) -> tuple[str, int]:
        """Return the host and port to connect to: of the server or, with Sentinel, of the master.

        Raises RedisError if no Sentinel can name the current master.
        """
        if not self.sentinels:
            return self.host_port
        sentinel = self._async_sentinel()
        try:
            host, port = await sentinel.discover_master(self.master_name)
        finally:
            for one in sentinel.sentinels:
                await one.aclose()
        return host, port

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return the SSL context that redis-py makes from the URL; None without TLS."""
        if not self.tls:
            return None
        return redis.asyncio.SSLConnection(**self._ssl_options()).ssl_context.get()

    def _ssl_options(self) -> dict[str, Any]:
        return {name: value for name, value in self.options.items() if name.startswith("ssl_")}

    def _client_options(self) -> dict[str, Any]:
        options = {("unix_socket_path" if name == "path" else name): value for name, value in self.options.items()}
        return {**options, "ssl": True} if self.tls else options

    def _sentinel_kwargs(self) -> dict[str, Any]:
        timeouts = {"socket_timeout": _SENTINEL_TIMEOUT_S, "socket_connect_timeout": _SENTINEL_TIMEOUT_S}
        return {**timeouts, **self.sentinel_options}

    def _client_sentinel_kwargs(self) -> dict[str, Any]:
        return {**self._sentinel_kwargs(), "retry": None}  # the next Sentinel is tried instead

    def _async_sentinel(self) -> Any:
        return redis.asyncio.Sentinel(self.sentinels, sentinel_kwargs=self._client_sentinel_kwargs())

    # --- Celery ---

    def celery_configuration(self) -> dict[str, Any]:
        """Return Celery's settings for this server.

        They are `broker_url`, `broker_use_ssl` and `broker_transport_options`.
        """
        user: Any = self.options.get("username")
        password: Any = self.options.get("password")
        db = self.options.get("db", 0)
        transport_options: dict[str, Any] = {}
        if self.sentinels:
            url = ";".join(as_url(_SENTINEL, *host_port, user, password, str(db)) for host_port in self.sentinels)
            transport_options = {"master_name": self.master_name, "sentinel_kwargs": self._sentinel_kwargs()}
        elif "path" in self.options:
            credentials = as_url("", user=user, password=password).removeprefix("://").rstrip("/")
            url = f"redis+socket://{credentials}{self.options['path']}?virtual_host={db}"
        else:
            url = as_url("redis", *self.host_port, user, password, str(db))
        use_ssl = {"ssl_cert_reqs": "required", **self._ssl_options()} if self.tls else False
        return {"broker_url": url, "broker_use_ssl": use_ssl, "broker_transport_options": transport_options}
