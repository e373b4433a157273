"""Access control: checks host, origin, API key, request rate and role of a request."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from api import audit, errors
from api.auth import ANONYMOUS, Caller, Keys
from api.exposure import HostCheck, OriginCheck, allowed_hosts, allowed_origins, client_address, trusted_proxies
from api.openai_errors import PREFIX
from api.rate_limits import RateLimits
from core.catalog.operations import OPERATIONS
from core.settings import Settings

OPEN_PATHS = frozenset({"/healthz", "/readyz"})  # probes: they need no key, and any Host is allowed
_DESCRIPTION_PATHS = re.compile(r"/openapi\.json|/docs|/docs/static/.*")  # need no key unless a setting says so
_AREAS = ("draw", "plane", "paint", "enlarge", "train", "data", "models", "jobs", "compare")
STUDIO_PAGES = ("/", *(f"/{area}" for area in _AREAS))  # Studio: one page, which shows the area of its address
STUDIO_ASSETS = "/assets"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
ABUSE = "https://iana.org/assignments/http-problem-types#abnormal-usage-detected"


@dataclass(frozen=True)
class Rule:
    """The access rule of a route: the caller needs one of `roles`.

    `action` is the name of the route's requests in the audit log; empty if they are not logged.
    """

    roles: tuple[str, ...]
    action: str = ""


_READ = Rule(("read",))
_OTHERWISE = Rule(("train",))

# All routes with unsafe methods. GET and HEAD need `read`; unlisted routes need `train`.
RULES: dict[tuple[str, str], Rule] = {
    **{("POST", f"/v1/{operation.path}"): Rule(("run",)) for operation in OPERATIONS},
    ("POST", "/v1/jobs/{job_id}/cancel"): Rule(("run", "train"), "cancel"),
    ("DELETE", "/v1/jobs/{job_id}"): Rule(("run", "train"), "delete"),
    ("POST", "/v1/trainings"): Rule(("train",)),
    ("POST", "/v1/trainings/{job_id}/pause"): Rule(("train",)),
    ("POST", "/v1/trainings/{job_id}/resume"): Rule(("train",)),
    ("POST", "/v1/trainings/{job_id}/publish"): Rule(("train",), "publish"),
    ("POST", "/v1/datasets"): Rule(("train",)),
    ("PATCH", "/v1/datasets/{name}"): Rule(("train",), "share"),
    ("DELETE", "/v1/datasets/{name}"): Rule(("train",), "delete"),
    ("PATCH", "/v1/models/{name}"): Rule(("train",), "switch"),
    ("DELETE", "/v1/models/{name}"): Rule(("train",), "delete"),
    ("POST", "/v1/models/{name}/versions"): Rule(("train",), "import"),
    ("DELETE", "/v1/models/{name}/versions/{version}"): Rule(("train",), "delete"),
    ("POST", f"{PREFIX}/images/generations"): Rule(("run",)),
    ("POST", f"{PREFIX}/images/edits"): Rule(("run",)),
    ("POST", f"{PREFIX}/files"): Rule(("train",)),
    ("DELETE", f"{PREFIX}/files/{{file_id}}"): Rule(("train",), "delete"),
    ("POST", f"{PREFIX}/fine_tuning/jobs"): Rule(("train",)),
    ("POST", f"{PREFIX}/fine_tuning/jobs/{{job_id}}/cancel"): Rule(("run", "train"), "cancel"),
    ("POST", f"{PREFIX}/fine_tuning/jobs/{{job_id}}/pause"): Rule(("train",)),
    ("POST", f"{PREFIX}/fine_tuning/jobs/{{job_id}}/resume"): Rule(("train",)),
}

_PATTERNS = [(method, re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), rule) for (method, path), rule in RULES.items()]


def rule_of(method: str, path: str) -> Rule:
    """Return the access rule for a request's method and path.

    GET and HEAD need the role `read`. A request with another method needs the roles that `RULES`
    gives for its route, or `train` if `RULES` does not list the route.
    """
    if method in SAFE_METHODS:
        return _READ
    rule = RULES.get((method, path))
    if rule is None:
        matches = (rule for verb, pattern, rule in _PATTERNS if verb == method and pattern.fullmatch(path))
        rule = next(matches, _OTHERWISE)
    return rule


def caller_of(scope: Mapping[str, Any]) -> Caller:
    """Return the caller that `AccessControl.refusal` stored in the scope; anonymous if there is
    none.
    """
    caller: Caller = scope.get("reverie_caller", ANONYMOUS)
    return caller


class AccessControl:
    """Checks host, origin, API key, request rate and role of each request before its route runs."""

    def __init__(self, settings: Settings) -> None:
        """Read the key file, and parse the allowed hosts and origins and the trusted proxies.

        Raises ValueError if a line of the file or one of these settings is not valid, and OSError
        if the file cannot be read.
        """
        self.keys = Keys(settings.api_keys)
        self._settings = settings
        self._hosts = HostCheck(allowed_hosts(settings))
        self._origins = OriginCheck(allowed_origins(settings))
        self._proxies = trusted_proxies(settings)
        self._rates = RateLimits(settings.wrong_keys_per_minute)

    def refusal(self, scope: Scope, headers: Mapping[bytes, bytes]) -> errors.ProblemError | None:
        """Check host, origin, API key, rate and role; return the error, or None if the checks pass.

        Stores in the scope the caller, which `caller_of` returns, and, if the caller has a rate
        limit, the `RateLimit` header fields for the response. Writes rejected keys and missing
        roles to the audit log.
        """
        path, method = scope["path"], scope["method"]
        scope["reverie_caller"] = ANONYMOUS
        host = headers.get(b"host", b"")
        if not _names_one_host(scope, headers):
            return errors.MalformedError("a request needs exactly one `Host` header (RFC 9112, section 3.2)")
        if path in OPEN_PATHS:
            return None
        if not self._hosts.allows(host):
            name = host.decode("latin-1")[:80]
            detail = f"the host {name!r} is not allowed; the operator can add it to REVERIE_ALLOWED_HOSTS"
            return errors.MisdirectedError(detail)
        origin = headers.get(b"origin")
        if origin is not None and method not in SAFE_METHODS and not self._origins.allows(origin, host):
            name = origin.decode("latin-1")[:80]
            detail = f"pages of {name!r} may not change anything here; the operator can add it to "
            return errors.ForbiddenError(f"{detail}REVERIE_ALLOWED_ORIGINS")
        return self._check_key(scope, headers)

    def _check_key(self, scope: Scope, headers: Mapping[bytes, bytes]) -> errors.ProblemError | None:
        """Check the API key, and the caller's request rate and role; return the error, or None.

        Public paths need no key.
        """
        authorization, path = headers.get(b"authorization", b""), scope["path"]
        if not authorization and not path.startswith("/v1/") and self._is_public(path):
            return None
        caller = self.keys.caller(authorization)
        if caller is None:
            return self._check_unknown_key(scope, headers)
        scope["reverie_caller"] = caller
        return self._check_caller(scope, caller, rule_of(scope["method"], path)) if self.keys.used else None

    def _is_public(self, path: str) -> bool:
        """Return whether a path needs no key: the files of Studio, and the description of the API."""
        if path in STUDIO_PAGES or path.startswith(f"{STUDIO_ASSETS}/"):
            return True
        return self._settings.public_openapi and _DESCRIPTION_PATHS.fullmatch(path) is not None

    def _check_unknown_key(self, scope: Scope, headers: Mapping[bytes, bytes]) -> errors.ProblemError:
        """Return the error for a missing or unknown key: 401, or 429 after too many wrong keys."""
        challenge = {"WWW-Authenticate": "Bearer"}
        if not headers.get(b"authorization"):
            detail = "send `Authorization: Bearer KEY` with a key that the operator of this service gave you"
            return errors.UnauthorizedError(detail, headers=challenge)
        peer = scope.get("client")
        address = client_address(peer[0] if peer else "unknown", headers, self._proxies)
        detail = "the key in `Authorization: Bearer KEY` is not known here or has expired; ask the operator for one"
        error: errors.ProblemError = errors.UnauthorizedError(detail, headers=challenge)
        if wait_s := self._rates.wrong_key(address):
            detail = f"too many wrong keys came from your address; wait {wait_s} s, and check the key"
            error = errors.TooManyRequestsError(detail, retry_after_s=wait_s, type=ABUSE)
        _audit_refusal(scope, "", error.status, "wrong key", address=address)
        return error

    def _check_caller(self, scope: Scope, caller: Caller, rule: Rule) -> errors.ProblemError | None:
        """Count a request against the caller's rate limit, and check the limit and the caller's
        roles.

        Returns the error (429 over the limit, 403 without a role that `rule` requires), or None.
        """
        per_second = caller.limits.get("requests_per_second", self._settings.key_requests_per_second)
        within = self._rates.request(caller.name, per_second)
        scope["reverie_headers"] = self._rates.headers(caller.name, per_second)
        if not within:
            return quota_exceeded("requests_per_second", f"you may send {per_second} requests a second")
        if not caller.roles.isdisjoint(rule.roles):
            return None
        needed = " or ".join(f"`{role}`" for role in rule.roles)
        have = ", ".join(f"`{role}`" for role in sorted(caller.roles))
        _audit_refusal(scope, caller.name, errors.ForbiddenError.status, "missing role", role=rule.roles[0])
        return errors.ForbiddenError(f"this needs a key with the role {needed}; yours has {have}", role=rule.roles[0])


def quota_exceeded(limit: str, detail: str, retry_after_s: int = 1) -> errors.TooManyRequestsError:
    """Return the error (429) for a caller that is over the limit with the name `limit`.

    `detail` says what happened; a sentence is added which says that `GET /v1/me` shows the limits.
    `retry_after_s` is sent as the header `Retry-After`.
    """
    detail += "; GET /v1/me shows your limits and what you use"
    return errors.TooManyRequestsError(detail, retry_after_s=retry_after_s, limit=limit)


def _names_one_host(scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
    """Return whether the request has exactly one `Host` header; HTTP/1.0 also allows no header."""
    if b"host" not in headers:
        return bool(scope["http_version"] == "1.0")
    lines = scope["headers"]
    return len(lines) == len(headers) or sum(name == b"host" for name, _ in lines) == 1


def _audit_refusal(scope: Scope, owner: str, status: int, reason: str, **details: str) -> None:
    """Write a line about a rejected key or a missing role to the audit log."""
    resource, request_id = f"{scope['method']} {scope['path'][:200]}", scope.get("reverie_request_id", "")
    audit.record("key", owner=owner, resource=resource, status=status, request_id=request_id, reason=reason, **details)
