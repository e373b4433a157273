"""A request of the client as a record, and the rules for retries."""

import email.utils
import random
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx

from reverie.transfers import Download, FormFiles, Upload

CONNECT_TIMEOUT_S = 5.0
MAX_DELAY_S = 30.0


@dataclass(frozen=True)
class ApiRequest:
    """A request. Each attempt builds a new `httpx.Request` from it.

    `upload` are files to send. `download` receives the body of a successful response.
    `retry_if_lost` says whether to retry if the connection breaks after the request may have
    reached the service.
    """

    method: str
    path: str
    json: Any = None
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    upload: Upload | None = None
    download: Download | None = None
    retry_if_lost: bool = True
    timeout_s: float | None = None

    def open_files(self) -> AbstractContextManager[FormFiles | None]:
        """Open the files to upload, for one attempt; None if there are none."""
        return self.upload.open() if self.upload else nullcontext()

    def build(self, http: httpx.Client | httpx.AsyncClient, files: FormFiles | None = None) -> httpx.Request:
        """Build the request for an httpx client. `files` are the open files to upload.

        Query parameters that are None are left out.
        """
        timeout = http.timeout if self.timeout_s is None else httpx.Timeout(self.timeout_s, connect=CONNECT_TIMEOUT_S)
        return http.build_request(
            self.method,
            self.path,
            params={name: value for name, value in self.params.items() if value is not None} or None,
            json=self.json,
            files=files,
            headers={**self.headers, **(self.download.request_headers() if self.download else {})},
            timeout=timeout,
        )

    def may_retry(self, outcome: httpx.TransportError | httpx.Response) -> bool:
        """Return whether to send the request again after this error or error response."""
        if isinstance(outcome, httpx.Response):
            return outcome.status_code in {429, 503} or (self.retry_if_lost and outcome.status_code in {502, 504})
        if isinstance(outcome, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
            return True
        lost = (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError)
        return self.retry_if_lost and isinstance(outcome, lost)


@dataclass(frozen=True)
class Delay:
    """Time to wait before the next request."""

    seconds: float

    @classmethod
    def before_retry(cls, attempt: int, response: httpx.Response | None = None) -> "Delay":
        """Return the delay before the next attempt, at most 30 s.

        It is that of the response's `Retry-After`, or else an exponential backoff with jitter after
        `attempt` attempts.
        """
        retry_after = response.headers.get("retry-after", "") if response is not None else ""
        if retry_after.isdecimal():
            return cls(min(float(retry_after), MAX_DELAY_S))
        if retry_after.endswith("GMT"):
            moment = email.utils.parsedate_to_datetime(retry_after).timestamp()
            return cls(min(max(0.0, moment - time.time()), MAX_DELAY_S))
        return cls(random.uniform(0.5, 1.0) * min(0.1 * 2**attempt, MAX_DELAY_S))


def path_of(*segments: str) -> str:
    """Return the URL path of a resource: `/v1` and the segments, quoted."""
    return "/".join(("/v1", *(quote(segment, safe="@") for segment in segments)))
