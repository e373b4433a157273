"""Hosts, origins, keys, roles and rate limits, which a request passes before its route, and their
log lines.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ipaddress
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.access import RULES, SAFE_METHODS, rule_of
from api.app import create_app
from api.exposure import (
    HostCheck,
    OriginCheck,
    allowed_hosts,
    allowed_origins,
    check_settings,
    client_address,
    trusted_proxies,
)
from api.rate_limits import RateLimits
from core.settings import Settings
from tests.api.callers import app_settings, application, bearer, key_file, key_line
from tests.api.helpers import MODEL, problem

# --- roles ---


def test_every_route_that_changes_something_has_a_rule(tmp_path: Path) -> None:
    """Every route with an unsafe method has its own rule of roles, and every rule has a route."""
    app = create_app(app_settings(tmp_path))
    described = app.openapi()["paths"].items()
    routes = {(method.upper(), path) for path, methods in described for method in methods}
    changing = {(method, path) for method, path in routes if method not in SAFE_METHODS}
    assert {(method, re.sub(r"\{\w+\}", "{}", path)) for method, path in changing} == {
        (method, re.sub(r"\{\w+\}", "{}", path)) for method, path in RULES
    }
    for method, path in changing:
        assert rule_of(method, re.sub(r"\{\w+\}", "some-name", path)) is RULES[method, path]


@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [
        ("POST", "/v1/samples", "run"),
        ("POST", "/v1/energies", "run"),
        ("POST", "/v1/upscales", "run"),
        ("POST", "/v1/datasets", "train"),
        ("DELETE", "/v1/datasets/digits", "train"),
        ("POST", "/v1/trainings", "train"),
        ("PATCH", f"/v1/models/{MODEL}", "train"),
        ("POST", f"/v1/models/{MODEL}/versions", "train"),
        ("DELETE", f"/v1/models/{MODEL}", "train"),
        ("DELETE", f"/v1/models/{MODEL}/versions/1", "train"),
        ("POST", "/v1/jobs/job_1/cancel", "run"),
        ("PUT", "/v1/whatever", "train"),
    ],
)
def test_a_key_without_the_role_is_refused(tmp_path: Path, method: str, path: str, needed: str) -> None:
    """A key without the required role gets 403, which names the role; a key with it reaches the
    route.
    """

    async def visit() -> None:
        other = "train" if needed == "run" and "jobs" not in path else "read"
        keys = key_file(tmp_path, key_line("reader", other), key_line("doer", needed))
        async with application(app_settings(tmp_path, api_keys=keys), "reader", "doer") as (reader, doer):
            body = problem(await reader.request(method, path, json={}), 403, f"`{needed}`")
            assert body["role"] == needed
            assert (
                (await doer.request(method, path, json={})).status_code not in {401, 403}
                or "versions" in path
                or (MODEL in path)
            )
            assert (await reader.get("/v1/models")).status_code == 200

    asyncio.run(visit())


# --- wrong keys and rates ---


def test_too_many_wrong_keys_from_one_address(tmp_path: Path) -> None:
    """After ten wrong keys an address gets 429 with `Retry-After`; valid keys still work, and a
    missing key does not count.
    """

    async def visit() -> None:
        keys = key_file(tmp_path, key_line("ann"))
        async with application(app_settings(tmp_path, api_keys=keys), "ann", "") as (ann, nobody):
            for number in range(10):
                problem(await nobody.get("/v1/models", headers={"Authorization": f"Bearer {number}"}), 401)
            refused = await nobody.get("/v1/models", headers={"Authorization": "Bearer 11"})
            assert "abnormal-usage" in problem(refused, 429, "wrong keys")["type"]
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert (await ann.get("/v1/models")).status_code == 200
            problem(await nobody.get("/v1/models"), 401)

    asyncio.run(visit())


def test_forwarded_addresses_count_where_the_proxy_is_trusted(tmp_path: Path) -> None:
    """Behind a trusted proxy, wrong keys are counted by forwarded address; otherwise the header is
    ignored.
    """

    async def visit(trusted: str, last: int) -> None:
        keys = key_file(tmp_path, key_line("ann"))
        settings = app_settings(tmp_path, api_keys=keys, trusted_proxies=trusted)
        async with application(settings, "") as (nobody,):
            for number in range(11):
                headers = {"Authorization": "Bearer wrong", "X-Forwarded-For": f"8.8.8.{number}"}
                response = await nobody.get("/v1/models", headers=headers)
            problem(response, last)

    asyncio.run(visit("", 429))
    asyncio.run(visit("127.0.0.1", 401))


NETWORKS = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("::1"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "counted"),
    [
        ("8.8.8.8", "1.1.1.1", "8.8.8.8"),
        ("10.1.1.1", "", "10.1.1.1"),
        ("10.1.1.1", "1.1.1.1", "1.1.1.1"),
        ("10.1.1.1", "6.6.6.6, 1.1.1.1, 10.2.2.2", "1.1.1.1"),
        ("10.1.1.1", "6.6.6.6, nonsense", "10.1.1.1"),
        ("::1", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:10.1.1.1", "1.1.1.1", "1.1.1.1"),
        ("unix", "1.1.1.1", "unix"),
    ],
)
def test_the_address_of_a_client(peer: str, forwarded: str, counted: str) -> None:
    """The client is the last forwarded address that is no trusted proxy's; IPv6 addresses count by
    their /64 network.
    """
    assert client_address(peer, {b"x-forwarded-for": forwarded.encode()}, NETWORKS) == counted


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_a_window_holds_as_many_requests_as_the_limit(limit: int) -> None:
    """An owner gets exactly `limit` requests per window, whatever other owners use; 0 means no
    limit.
    """
    rates = RateLimits(10)
    assert sum(rates.request("ann", limit) for _ in range(3 * limit + 5)) in {limit, 2 * limit}
    assert rates.request("bob", limit)
    assert all(rates.request("eve", 0) for _ in range(1000))


def test_the_header_says_what_is_left_of_the_window() -> None:
    """`RateLimit-Policy` and `RateLimit` state the limit and what remains; both are omitted without
    a limit.
    """
    rates = RateLimits(10)
    remaining = []
    for _ in range(4):
        assert rates.request("ann", 100)
        policy, limit = (value.decode() for _, value in rates.headers("ann", 100))
        assert policy == '"requests_per_second";q=100;w=1'
        name, rest, reset = limit.split(";")
        assert (name, reset) in {('"requests_per_second"', "t=1"), ('"requests_per_second"', "t=0")}
        remaining.append(int(rest.removeprefix("r=")))
    assert 99 in remaining  # a new second may have begun between two requests
    while rates.request("ann", 100):
        pass
    assert rates.headers("ann", 100)[1][1].startswith(b'"requests_per_second";r=0;t=')
    assert rates.headers("ann", 0) == []


def test_too_many_requests_a_second(tmp_path: Path) -> None:
    """Beyond the rate limit a request gets 429 with `Retry-After` and the limit's name; a key's own
    limit overrides the setting.
    """

    async def visit() -> None:
        keys = key_file(tmp_path, key_line("ann"), key_line("bob", "", "requests_per_second=100"))
        settings = app_settings(tmp_path, api_keys=keys, key_requests_per_second=5)
        async with application(settings, "ann", "bob") as (ann, bob):
            responses = [await ann.get("/v1/models/nothing") for _ in range(20)]
            refused = [response for response in responses if response.status_code == 429]
            assert len(refused) >= 10
            body = problem(refused[0], 429, "5 requests a second")
            assert body["type"].endswith("#quota-exceeded")
            assert body["limit"] == "requests_per_second"
            assert refused[0].headers["retry-after"] == "1"
            assert refused[0].headers["ratelimit"].startswith('"requests_per_second";r=0;t=')
            assert {response.headers["ratelimit-policy"] for response in responses} == {'"requests_per_second";q=5;w=1'}
            assert {(await bob.get("/v1/models/nothing")).status_code for _ in range(20)} == {404}

    asyncio.run(visit())


# --- logs ---


def test_log_lines_name_the_owner(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The access log has the owner of each request; the audit log has rejected keys and changes
    with resource and outcome.
    """

    async def visit() -> None:
        keys = key_file(tmp_path, key_line("ann"), key_line("eve", "read"))
        async with application(app_settings(tmp_path, api_keys=keys), "ann", "eve", "") as (ann, eve, nobody):
            logging.getLogger().addHandler(caplog.handler)
            await ann.get("/v1/models")
            await ann.delete("/v1/datasets/nothing", headers={"X-Request-Id": "trace-1"})
            await eve.delete("/v1/datasets/nothing")
            await nobody.get("/v1/models", headers={"Authorization": "Bearer secret"})
            logging.getLogger().removeHandler(caplog.handler)

    asyncio.run(visit())
    access = [record.__dict__ for record in caplog.records if record.name == "api.access"]
    assert [(line["owner"], line["path"]) for line in access][:2] == [
        ("ann", "/v1/models"),
        ("ann", "/v1/datasets/nothing"),
    ]
    lines = [record.__dict__ for record in caplog.records if record.name == "api.audit"]
    assert [(line["owner"], line["action"], line["outcome"], line["status"]) for line in lines] == [
        ("ann", "delete", "refused", 404),
        ("eve", "key", "refused", 403),
        ("eve", "delete", "refused", 403),
        ("", "key", "refused", 401),
    ]
    assert (lines[0]["resource"], lines[0]["request_id"]) == ("/v1/datasets/nothing", "trace-1")
    assert "secret" not in caplog.text


# --- hosts and origins ---


@pytest.mark.parametrize(
    ("settings", "good", "bad"),
    [
        (
            {},
            ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "localhost."],
            ["evil.example", "", "10.0.0.1"],
        ),
        ({"host": "::1"}, ["localhost", "[::1]"], ["x"]),
        ({"host": "0.0.0.0"}, ["anything:1"], []),  # noqa: S104
        (
            {"allowed_hosts": "a.example, *.b.example"},
            ["a.example", "c.b.example"],
            ["localhost", "b.example", "xb.example"],
        ),
        ({"allowed_hosts": "*"}, ["anything"], []),
    ],
)
def test_hosts(settings: dict[str, str], good: list[str], bad: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a loopback address only its own names are allowed; `allowed_hosts` replaces them."""
    monkeypatch.delenv("REVERIE_ALLOWED_HOSTS")
    check = HostCheck(allowed_hosts(app_settings(Path(), **{"allowed_hosts": "", **settings})))
    for _ in range(2):
        assert all(check.allows(host.encode()) for host in good)
        assert not any(check.allows(host.encode()) for host in bad)


def test_another_host_is_misdirected(tmp_path: Path) -> None:
    """A request for a host that is not allowed gets 421 (protection from DNS rebinding), except
    health checks.
    """

    async def visit() -> None:
        async with application(app_settings(tmp_path, allowed_hosts="x,localhost"), "") as (client,):
            rebound = {"Host": "evil.example:8000"}
            for method, path in (("GET", "/v1/models"), ("POST", "/v1/samples"), ("GET", "/docs"), ("GET", "/metrics")):
                problem(await client.request(method, path, headers=rebound), 421, "evil.example")
            assert (await client.get("/healthz", headers=rebound)).status_code == 200
            assert (await client.get("/readyz", headers=rebound)).status_code == 503
            assert (await client.get("/v1/models", headers={"Host": "localhost:8000"})).status_code == 200

    asyncio.run(visit())


@pytest.mark.parametrize("allowed", ["x", "*"])
@pytest.mark.parametrize(
    ("version", "hosts", "path", "status"),
    [
        ("1.1", [], "/v1/models", 400),
        ("1.1", [""], "/v1/models", {"x": 421, "*": 200}),
        ("1.1", [], "/healthz", 400),
        ("1.1", ["x", "x"], "/v1/models", 400),
        ("1.1", ["x"], "/v1/models", 200),
        ("1.0", [], "/healthz", 200),
        ("1.0", ["x"], "/v1/models", 200),
        ("1.0", [], "/v1/models", {"x": 421, "*": 200}),
    ],
)
def test_a_request_names_one_host(
    tmp_path: Path, version: str, hosts: list[str], path: str, status: int | dict[str, int], allowed: str
) -> None:
    """An HTTP/1.1 request needs exactly one Host header; HTTP/1.0 may omit it if every host is
    allowed.
    """

    async def visit() -> None:
        async with application(app_settings(tmp_path, allowed_hosts=allowed), "") as (client,):
            app = client._transport.app  # type: ignore[attr-defined]
            headers = [(b"host", host.encode()) for host in hosts]
            scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b""}
            scope |= {"headers": headers, "http_version": version, "scheme": "http", "client": ("127.0.0.1", 1)}
            sent: list[Any] = []

            async def receive() -> dict[str, Any]:
                return {"type": "http.request", "body": b"", "more_body": False}

            async def send(message: Any) -> None:
                sent.append(message)

            await app(scope, receive, send)
            assert sent[0]["status"] == (status if isinstance(status, int) else status[allowed])

    asyncio.run(visit())


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        ("http://localhost:8000", "localhost:8000", True),
        ("https://a.example", "a.example", True),
        ("https://a.example:443", "a.example", True),
        ("http://[::1]:8000", "[::1]:8000", True),
        ("https://friend.example", "localhost:8000", True),
        ("http://friend.example", "localhost:8000", False),
        ("http://localhost:3000", "localhost:8000", False),
        ("http://localhost", "localhost:8000", False),
        ("https://evil.example", "localhost:8000", False),
        ("null", "null", False),
        ("", "localhost", False),
        ("localhost:8000", "localhost:8000", False),
        ("http://localhost:x", "localhost:8000", False),
        ("http://a@localhost:8000.evil.example", "localhost:8000", False),
    ],
)
def test_allowed_origins(origin: str, host: str, allowed: bool) -> None:
    """The service's own origin and the configured ones are allowed, and never `null`."""
    assert OriginCheck(("https://friend.example",)).allows(origin.encode(), host.encode()) == allowed
    assert OriginCheck(("*",)).allows(origin.encode(), host.encode()) == (origin != "null")


def test_a_page_of_another_origin_changes_nothing(tmp_path: Path) -> None:
    """An unsafe request from another origin is rejected with 403; without an Origin header it is
    allowed.
    """

    async def visit() -> None:
        async with application(app_settings(tmp_path), "") as (client,):
            for origin in ("https://evil.example", "null"):
                foreign = {"Origin": origin, "Content-Type": "text/plain"}
                for method, path in (
                    ("POST", "/v1/datasets?name=a"),
                    ("POST", "/v1/jobs/j/cancel"),
                    ("DELETE", "/v1/datasets/a"),
                ):
                    problem(await client.request(method, path, headers=foreign), 403, origin)
                assert (await client.get("/v1/models", headers=foreign)).status_code == 200
            problem(await client.delete("/v1/datasets/a", headers={"Origin": "http://x"}), 404)
            problem(await client.delete("/v1/datasets/a"), 404)
            response = await client.get("/v1/models", headers={"Origin": "https://evil.example"})
            assert "access-control-allow-origin" not in response.headers

    asyncio.run(visit())


def test_the_description_needs_no_key(tmp_path: Path) -> None:
    """`/openapi.json` and `/docs` need no key if `public_openapi` is set; a wrong key is rejected
    there, too.
    """

    async def visit(settings: Settings, *, public: bool) -> None:
        async with application(settings, "", "wrong") as (nobody, stranger):
            for path in ("/openapi.json", "/docs", "/docs/static/swagger-ui.css"):
                if public:
                    assert (await nobody.get(path)).status_code == 200
                else:
                    problem(await nobody.get(path), 401)
                problem(await stranger.get(path), 401)
            problem(await nobody.get("/v1/models"), 401)

    keys = key_file(tmp_path, key_line("ann"))
    asyncio.run(visit(app_settings(tmp_path / "open", api_keys=keys), public=True))
    asyncio.run(visit(app_settings(tmp_path / "closed", api_keys=keys, public_openapi=False), public=False))


def test_an_allowed_origin_may_call(tmp_path: Path) -> None:
    """A preflight of an allowed origin needs no key, and its requests get the CORS headers; other
    origins are rejected.
    """

    async def visit() -> None:
        keys = key_file(tmp_path, key_line("ann"))
        settings = app_settings(tmp_path, api_keys=keys, allowed_origins="https://friend.example")
        async with application(settings, "ann", "") as (ann, nobody):
            asks = {"Access-Control-Request-Method": "DELETE", "Access-Control-Request-Headers": "authorization"}
            good = await nobody.options("/v1/datasets/a", headers={"Origin": "https://friend.example", **asks})
            assert good.status_code == 200
            assert good.headers["access-control-allow-origin"] == "https://friend.example"
            bad = await nobody.options("/v1/datasets/a", headers={"Origin": "https://evil.example", **asks})
            assert "access-control-allow-origin" not in bad.headers
            problem(bad, 400, "origin", "REVERIE_ALLOWED_ORIGINS")
            response = await ann.delete("/v1/datasets/a", headers={"Origin": "https://friend.example"})
            problem(response, 404)
            assert response.headers["access-control-allow-origin"] == "https://friend.example"
            problem(await ann.delete("/v1/datasets/a", headers={"Origin": "https://evil.example"}), 403)

    asyncio.run(visit())


def test_pages_have_security_headers(tmp_path: Path) -> None:
    """`/docs` has a Content-Security-Policy that allows only its own scripts and no frames; JSON
    responses have none.
    """

    async def visit() -> None:
        async with application(app_settings(tmp_path), "") as (client,):
            page = await client.get("/docs")
            assert page.status_code == 200
            assert page.headers["x-content-type-options"] == "nosniff"
            assert page.headers["x-frame-options"] == "DENY"
            policy = page.headers["content-security-policy"]
            assert "frame-ancestors 'none'" in policy
            script = re.search(r"<script>(.*?)</script>", page.text, re.DOTALL)
            assert script
            digest = base64.b64encode(hashlib.sha256(script.group(1).encode()).digest()).decode()
            assert f"script-src 'self' 'sha256-{digest}'" in policy
            assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
            assert all(source.startswith("/docs/static/") for source in re.findall(r'src="([^"]+)"', page.text))
            other = await client.get("/docs/static/index.html")
            assert other.status_code != 200 or "content-security-policy" in other.headers
            assert "content-security-policy" not in (await client.get("/v1/models")).headers

    asyncio.run(visit())


# --- network settings ---

PUBLIC = {"host": "0.0.0.0"}  # noqa: S104


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (PUBLIC, "REVERIE_ALLOW_ANONYMOUS=true"),
        ({"host": "::"}, "no API keys are set"),
        ({"host": "192.168.1.5"}, "no API keys are set"),
        ({"host": "example.com"}, "no API keys are set"),
        ({**PUBLIC, "allow_anonymous": True}, "needs REVERIE_ALLOWED_HOSTS"),
        ({"allowed_origins": "*"}, "needs API keys"),
        ({"allowed_origins": "example.com"}, "is not an origin"),
        ({"allowed_hosts": "http://a.example"}, "is not a host"),
        ({"trusted_proxies": "proxy"}, "REVERIE_TRUSTED_PROXIES"),
        ({"api_keys": Path("/nowhere/keys")}, "cannot be read"),
    ],
)
def test_settings_under_which_the_service_does_not_listen(settings: dict[str, object], message: str) -> None:
    """Unsafe or invalid network settings raise an error that says what to set."""
    with pytest.raises(ValueError, match=message):
        check_settings(app_settings(Path(), **{"allowed_hosts": "", **settings}))


def test_settings_under_which_it_listens(tmp_path: Path) -> None:
    """A loopback address needs no settings; a public one needs API keys, or anonymous access with
    allowed hosts.
    """
    keys = key_file(tmp_path, key_line("ann"))
    for settings in (
        {},
        {"host": "localhost"},
        {"host": "::1"},
        {"host": "127.0.0.2"},
        {**PUBLIC, "api_keys": keys},
        {**PUBLIC, "allow_anonymous": True, "allowed_hosts": "localhost"},
    ):
        check_settings(app_settings(tmp_path, **{"allowed_hosts": "", **settings}))
    assert allowed_origins(app_settings(tmp_path, allowed_origins="https://A.example/")) == ("https://a.example",)
    assert len(trusted_proxies(app_settings(tmp_path, trusted_proxies="10.0.0.1, 10.1.0.0/16"))) == 2


@pytest.mark.parametrize("module", ["api", "workers.devserver"])
def test_a_refused_start_is_one_sentence(tmp_path: Path, root: Path, module: str) -> None:
    """A rejected start prints one sentence, exits with status 1 and creates no state folder."""
    environment = {"REVERIE_HOST": "0.0.0.0", "REVERIE_STATE": str(tmp_path / "state"), "PATH": "/usr/bin"}  # noqa: S104
    done = subprocess.run(
        [sys.executable, "-m", module], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "REVERIE_ALLOW_ANONYMOUS=true" in done.stderr
    assert not (tmp_path / "state").exists()


def test_a_key_that_is_revoked_is_refused_by_a_running_service(tmp_path: Path) -> None:
    """A revoked key is rejected within a second, without a restart."""

    async def visit() -> None:
        keys = key_file(tmp_path, key_line("ann"), key_line("bob"))
        async with application(app_settings(tmp_path, api_keys=keys), "ann", "bob") as (ann, bob):
            assert (await ann.get("/v1/models")).status_code == 200
            keys.write_text(key_line("bob") + "\n")
            await asyncio.sleep(0.6)
            problem(await ann.get("/v1/models"), 401)
            assert (await bob.get("/v1/models")).status_code == 200

    asyncio.run(visit())


def test_a_real_client_has_the_defaults(client: httpx.Client) -> None:
    """A service on 127.0.0.1 with default settings rejects other hosts and origins."""
    assert client.get("/v1/models").status_code == 200
    problem(client.get("/v1/models", headers={"Host": "evil.example"}), 421)
    problem(client.post("/v1/samples", json={"model": MODEL}, headers={"Origin": "https://evil.example"}), 403)
    assert bearer("ann")
